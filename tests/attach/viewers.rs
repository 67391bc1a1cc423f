//! Private events for a client that has authenticated to the relay (NIP-42): exactly its own, and
//! of the same snapshot as everything else.

use super::database::{Database, KINDS};
use super::passing::config;
use crate::support::events::{Author, EPOCH, SPAN_S, id_of, unix_now};
use crate::support::negentropy_client::{Session, neg_ids, reconcile};
use crate::support::{Client, model};
use futures_util::{SinkExt, StreamExt};
use negsync::config::{AuthConfig, PublicKeys};
use negsync::index::Sets;
use negsync::reconcile::RangeSet;
use negsync::sidecar::{Attach, open_sets};
use negsync::store::{AttachedOptions, Filter, PrivateKinds, RelayKind, Viewer};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};

const RELAY_URL: &str = "wss://relay.example/";
const CHALLENGE: &str = "sign this";
/// When a client sends this, the relay refuses the previous AUTH.
const REFUSE: &str = "REFUSE";

/// The relay's answer to an AUTH.
#[derive(Debug, Clone, Copy)]
enum Manner {
    /// None.
    Silent,
    /// OK with this value.
    Says(bool),
}

/// A relay that sends a challenge, checks no AUTH and stores nothing.
async fn scripted(manner: Manner) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(speak(stream, manner));
        }
    });
    address
}

async fn speak(stream: TcpStream, manner: Manner) {
    let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
    let mut shown = Value::Null;
    // In two frames, with a control frame between them.
    let challenge = json!(["AUTH", CHALLENGE]).to_string();
    let (begin, end) = challenge.split_at(12);
    let part = |text: &str, data, is_last| {
        Message::Frame(Frame::message(text.to_owned(), OpCode::Data(data), is_last))
    };
    socket.feed(part(begin, Data::Text, false)).await.unwrap();
    socket.feed(Message::Ping("there?".into())).await.unwrap();
    socket.send(part(end, Data::Continue, true)).await.unwrap();
    while let Some(Ok(message)) = socket.next().await {
        let Message::Text(text) = message else { continue };
        let message: Value = serde_json::from_str(&text).unwrap();
        let ok = |accepted: bool| Some(json!(["OK", shown, accepted, ""]));
        let answer = match (message[0].as_str().unwrap(), manner) {
            ("REQ", _) => Some(json!(["EOSE", message[1]])),
            ("AUTH", _) => {
                shown = message[1]["id"].clone();
                match manner {
                    Manner::Silent => None,
                    Manner::Says(accepted) => Some(json!(["OK", shown, accepted, ""])),
                }
            }
            (REFUSE, _) => ok(false),
            _ => None,
        };
        if let Some(answer) = answer {
            socket.send(Message::text(answer.to_string())).await.unwrap();
        }
    }
}

/// The sidecar between such a relay and an existing database.
async fn attach(kind: RelayKind, database: &Database, relay_url: &str, manner: Manner) -> Attach {
    attach_with(kind, database, relay_url, manner, |_| {}).await
}

/// With a configuration changed by `change`.
async fn attach_with(
    kind: RelayKind,
    database: &Database,
    relay_url: &str,
    manner: Manner,
    change: impl FnOnce(&mut AuthConfig),
) -> Attach {
    let mut config = config(kind, &database.path, scripted(manner).await);
    config.attach.relay_url = relay_url.to_owned();
    change(&mut config.auth);
    let sets = open_sets(&config).unwrap();
    Attach::start(config, sets).await.unwrap()
}

async fn connect(attach: &Attach) -> Client {
    Client::connect(&format!("ws://{}", attach.address())).await
}

/// Sends AUTH to a relay that does not answer it.
async fn show_key(client: &mut Client, author: &Author, url: &str) {
    let event = author.authentication(unix_now(), url, &client.challenge);
    client.send(&json!(["AUTH", event])).await;
    client.fence().await;
}

fn listed(author: &Author) -> PublicKeys {
    let key = faster_hex::hex_decode_array(author.key().as_bytes()).unwrap();
    PublicKeys::from_iter([key])
}

fn private_kinds() -> Vec<u16> {
    AuthConfig::default().private_kinds
}

/// Events of four authors, half of them of private kinds, most of them with an addressee.
fn events(rng: &mut StdRng, count: usize) -> Vec<Value> {
    let authors: Vec<Author> = (1..=4).map(Author::new).collect();
    let mut events: Vec<Value> = Vec::new();
    for number in 0..count {
        let author = &authors[rng.random_range(0..4)];
        let at = EPOCH + rng.random_range(0..SPAN_S);
        let kind = [1, 7, 4, 1_059, 14, 30_023][rng.random_range(0..6)];
        let mut tags = vec![json!(["t", "sync"]), json!(["d", (number % 3).to_string()])];
        for _ in 0..rng.random_range(0..3) {
            tags.push(json!(["p", authors[rng.random_range(0..4)].key()]));
        }
        if rng.random_ratio(1, 20) {
            tags.push(json!(["expiration", (EPOCH + 1).to_string()]));
        }
        let target = events.get(rng.random_range(0..number.max(1)));
        let event = match target.filter(|_| rng.random_ratio(1, 10)) {
            Some(target) => {
                let by = authors.iter().find(|author| target["pubkey"] == author.key()).unwrap();
                by.deletion(at, json!([["e", id_of(target)]]))
            }
            None => author.event(kind, at, json!(tags), &number.to_string()),
        };
        events.push(event);
    }
    events
}

fn random_filter(rng: &mut StdRng) -> Value {
    let mut filter = json!({});
    let mut add = |one_in: u32, key: &str, value: Value| {
        if rng.random_ratio(1, one_in) {
            filter[key] = value;
        }
    };
    let keys = |first: u8| json!([Author::new(first).key(), Author::new(first + 1).key()]);
    add(4, "kinds", json!([1, 4, 30_023]));
    add(4, "kinds", json!([4, 1_059]));
    add(4, "authors", keys(1));
    add(4, "authors", keys(3));
    add(4, "#p", keys(1));
    add(4, "#p", keys(2));
    add(6, "#t", json!(["sync"]));
    add(4, "since", json!(EPOCH + SPAN_S / 3));
    add(4, "until", json!(EPOCH + SPAN_S / 2));
    add(4, "limit", json!(20));
    filter
}

/// The result of a direct scan for a client with these keys.
fn scan(database: &Database, filter: &Value, keys: &[String]) -> BTreeSet<String> {
    let visible = model::visible(&database.visible(unix_now()), &private_kinds(), keys);
    model::ids(model::answer(std::slice::from_ref(filter), &visible))
}

/// The key of one of the operator's own relays.
fn mirror() -> Author {
    Author::new(8)
}

async fn assert_given(
    client: &mut Client,
    database: &Database,
    filter: &Value,
    author: Option<&Author>,
    context: &str,
) {
    let keys: Vec<String> = author.map(Author::key).into_iter().collect();
    let expected = if keys == [mirror().key()] {
        model::ids(model::answer(std::slice::from_ref(filter), &database.visible(unix_now())))
    } else {
        scan(database, filter, &keys)
    };
    let found = neg_ids(client, filter).await;
    assert_eq!(found, expected, "{context}: {filter}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_client_is_given_its_own_and_nobody_elses() {
    for (kind, seed) in KINDS.into_iter().flat_map(|kind| (0..2).map(move |seed| (kind, seed))) {
        let folder = tempfile::tempdir().unwrap();
        let database = Database::new(kind, &folder.path().join("relay.db"));
        let mut rng = StdRng::seed_from_u64(seed);
        let mut events = events(&mut rng, 240);
        events.drain(..120).for_each(|event| database.publish(&event));
        let (url, manner) = match seed {
            0 => (RELAY_URL, Manner::Silent),
            _ => (RELAY_URL, Manner::Says(true)),
        };
        let attach = attach_with(kind, &database, url, manner, |auth| {
            auth.mirror_keys = listed(&mirror());
        })
        .await;
        let mut clients = vec![(connect(&attach).await, None)];
        for author in [Author::new(1), Author::new(2), Author::new(9), mirror()] {
            let mut client = connect(&attach).await;
            show_key_to(manner, &mut client, &author).await;
            clients.push((client, Some(author)));
        }
        let own = Author::new(1).key();
        let all = json!({});
        let is_more = scan(&database, &all, &[own]).len() > scan(&database, &all, &[]).len();
        assert!(is_more, "seed {seed}: the test tests nothing");
        while !events.is_empty() {
            let count = rng.random_range(1..=events.len().min(12));
            events.drain(..count).for_each(|event| database.publish(&event));
            for filter in [json!({}), random_filter(&mut rng), random_filter(&mut rng)] {
                for (client, author) in &mut clients {
                    // A client without keys is asked to authenticate if nothing else could be
                    // returned.
                    let is_private = filter["kinds"] == json!([4, 1_059]);
                    if author.is_none() && is_private && !url.is_empty() {
                        continue;
                    }
                    let context = format!("{kind:?}, seed {seed}, {} left", events.len());
                    assert_given(client, &database, &filter, author.as_ref(), &context).await;
                }
            }
        }
    }
}

fn own_and_others(folder: &TempDir, kind: RelayKind) -> Database {
    let database = Database::new(kind, &folder.path().join("relay.db"));
    let (one, other) = (Author::new(1), Author::new(2));
    for (number, author) in [&one, &other].into_iter().enumerate() {
        let at = EPOCH + number as u64;
        database.publish(&author.note(at, "for everybody"));
        database.publish(&author.event(4, at, json!([["p", Author::new(3).key()]]), "for one"));
    }
    database
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_the_relay_does_not_believe_shows_nothing_more() {
    for kind in KINDS {
        let folder = tempfile::tempdir().unwrap();
        let database = own_and_others(&folder, kind);
        let author = Author::new(1);
        let all = json!({});

        // Every part of it is invalid.
        let believing = attach(kind, &database, RELAY_URL, Manner::Silent).await;
        let mut client = connect(&believing).await;
        show_key(&mut client, &author, "wss://elsewhere.example").await;
        let challenge = std::mem::replace(&mut client.challenge, "another".to_owned());
        show_key(&mut client, &author, RELAY_URL).await;
        let mut forged = author.authentication(unix_now(), RELAY_URL, &challenge);
        forged["pubkey"] = json!(Author::new(2).key());
        client.send(&json!(["AUTH", forged])).await;
        client.fence().await;
        assert_given(&mut client, &database, &all, None, "not believed").await;

        // It was signed for another relay, and the OK may be for an EVENT.
        for (url, named) in [(RELAY_URL, "wss://elsewhere.example"), ("", RELAY_URL)] {
            let saying = attach(kind, &database, url, Manner::Says(true)).await;
            let mut client = connect(&saying).await;
            assert!(client.authenticate(&author, named).await.0);
            assert_given(&mut client, &database, &all, None, "signed for another").await;
        }

        // The relay refuses it, at once or later.
        let refusing = attach(kind, &database, RELAY_URL, Manner::Says(false)).await;
        let mut client = connect(&refusing).await;
        assert!(!client.authenticate(&author, RELAY_URL).await.0);
        assert_given(&mut client, &database, &all, None, "refused").await;

        let mut client = connect(&believing).await;
        show_key(&mut client, &author, RELAY_URL).await;
        assert_given(&mut client, &database, &all, Some(&author), "believed").await;
        let session = Session::open(&mut client, "open", &all, [], 0).await.unwrap();
        let refused = client.ask(&json!([REFUSE])).await;
        assert_eq!(refused[2], false, "{refused}");
        let gone = client.ask(&json!(["NEG-MSG", session.id(), "6100000200"])).await;
        assert_eq!(gone[0], "NEG-ERR", "{gone}");
        assert!(gone[2].as_str().unwrap().starts_with("closed:"), "{gone}");
        assert_given(&mut client, &database, &all, None, "refused later").await;
    }
}

/// A filter of only private kinds is refused to a client without keys, since authentication would
/// change that.
#[tokio::test(flavor = "multi_thread")]
async fn who_asks_for_private_kinds_alone_is_asked_for_a_key() {
    let folder = tempfile::tempdir().unwrap();
    let kind = RelayKind::NostrRsRelay;
    let database = own_and_others(&folder, kind);
    let attach = attach(kind, &database, RELAY_URL, Manner::Silent).await;
    let mut client = connect(&attach).await;
    let filter = json!({ "kinds": [4] });
    let refused = client.ask(&json!(["NEG-OPEN", "n", filter, "6100000200"])).await;
    assert_eq!(refused[0], "NEG-ERR", "{refused}");
    assert!(refused[2].as_str().unwrap().starts_with("auth-required:"), "{refused}");
    let author = Author::new(3);
    show_key(&mut client, &author, RELAY_URL).await;
    assert_given(&mut client, &database, &filter, Some(&author), "addressed").await;
    assert_eq!(neg_ids(&mut client, &filter).await.len(), 2);
}

/// The ways in which a relay accepts an AUTH: by an OK or without an answer.
fn kinds_and_manners() -> impl Iterator<Item = (RelayKind, Manner)> {
    let manners = [Manner::Says(true), Manner::Silent];
    KINDS.into_iter().flat_map(move |kind| manners.map(|manner| (kind, manner)))
}

async fn show_key_to(manner: Manner, client: &mut Client, author: &Author) {
    match manner {
        Manner::Silent => show_key(client, author, RELAY_URL).await,
        Manner::Says(_) => assert!(client.authenticate(author, RELAY_URL).await.0),
    }
}

async fn expect_refused(client: &mut Client, prefix: &str, context: &str) {
    let refused = reconcile(client, &json!({}), [], 0).await.unwrap_err();
    assert_eq!(refused.as_array().map(Vec::len), Some(3), "{context}: {refused}");
    assert!(refused[2].as_str().unwrap().starts_with(prefix), "{context}: {refused}");
    // The relay decides about messages that pass through.
    client.fence().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_a_key_is_required_nobody_reconciles_without_one() {
    for (kind, manner) in kinds_and_manners() {
        let folder = tempfile::tempdir().unwrap();
        let database = own_and_others(&folder, kind);
        let attach =
            attach_with(kind, &database, RELAY_URL, manner, |auth| auth.required = true).await;
        let (mut client, author) = (connect(&attach).await, Author::new(1));
        let context = format!("{kind:?}, {manner:?}");
        expect_refused(&mut client, "auth-required: ", &context).await;
        show_key_to(manner, &mut client, &author).await;
        assert_given(&mut client, &database, &json!({}), Some(&author), &context).await;
        // Authentication is valid for one connection.
        expect_refused(&mut connect(&attach).await, "auth-required: ", &context).await;
        // It ends when the relay refuses it.
        assert_eq!(client.ask(&json!([REFUSE])).await[2], false);
        expect_refused(&mut client, "auth-required: ", &context).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_listed_keys_reconcile() {
    for (kind, manner) in kinds_and_manners() {
        let folder = tempfile::tempdir().unwrap();
        let database = own_and_others(&folder, kind);
        let [member, guest] = [1, 2].map(Author::new);
        let attach = attach_with(kind, &database, RELAY_URL, manner, |auth| {
            auth.sync_keys = listed(&member);
        })
        .await;
        let context = format!("{kind:?}, {manner:?}");
        let mut client = connect(&attach).await;
        expect_refused(&mut client, "auth-required: ", &context).await;
        show_key_to(manner, &mut client, &member).await;
        assert_given(&mut client, &database, &json!({}), Some(&member), &context).await;
        let mut client = connect(&attach).await;
        show_key_to(manner, &mut client, &guest).await;
        expect_refused(&mut client, "restricted: ", &context).await;
    }
}

/// An unsigned event: signatures are not tested here.
fn unsigned(number: usize, kind: u16, author: &str) -> Value {
    let at = EPOCH + number as u64 % SPAN_S;
    json!({
        "id": format!("{number:064x}"), "pubkey": author, "created_at": at, "kind": kind,
        "tags": [], "content": "", "sig": "0".repeat(128),
    })
}

/// Public and private events in turn, one commit each: a set contains a prefix of them, whether its
/// public part is cached or scanned. Sets of more than 5,000 items are cached.
#[test]
fn what_is_private_is_of_the_same_moment_as_the_rest() {
    const FIRST: usize = 5_200;
    const LATER: usize = 600;
    /// Events that are published during one round of looks.
    const A_ROUND: usize = 50;
    for kind in KINDS {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("relay.db");
        let database = Database::new(kind, &path);
        let author = Author::new(1).key();
        let event = |number: usize| {
            let is_private = number >= FIRST && number % 2 == 1;
            unsigned(number, if is_private { 4 } else { 1 }, &author)
        };
        (0..FIRST).for_each(|number| database.publish(&event(number)));
        let private = PrivateKinds::new(private_kinds());
        let sets = Sets::attach(
            kind,
            &path,
            AttachedOptions::default().readers(2).private_kinds(private.clone()),
            64 << 20,
        )
        .unwrap();
        let key = faster_hex::hex_decode_array(author.as_bytes()).unwrap();
        let viewer = Viewer::new(private, [key]);
        let filters = [json!({}), json!({ "kinds": [1, 4] }), json!({ "since": EPOCH + 1_000 })];
        let filters = filters.map(|filter| Filter::from_json(&filter).unwrap());
        let published = &AtomicUsize::new(FIRST);
        let (round_begins, rounds) = mpsc::channel();
        std::thread::scope(|scope| {
            let (event, path) = (&event, &path);
            scope.spawn(move || {
                let database = Database::existing(kind, path);
                for number in FIRST..FIRST + LATER {
                    if number % A_ROUND == 0 {
                        // Fails only if the other thread has ended.
                        let _ = rounds.recv();
                    }
                    database.publish(&event(number));
                    published.store(number + 1, Ordering::Release);
                }
            });
            let mut before = FIRST;
            while before < FIRST + LATER {
                // Fails only if the writer has ended.
                let _ = round_begins.send(());
                before = published.load(Ordering::Acquire);
                for filter in &filters {
                    let set = sets.snapshot_for(&viewer, std::slice::from_ref(filter), usize::MAX);
                    let set = set.unwrap();
                    let mut numbers = BTreeSet::new();
                    set.for_each(0..set.len(), &mut |item| {
                        let bytes = *item.id.last_chunk::<8>().unwrap();
                        numbers.insert(u64::from_be_bytes(bytes) as usize);
                    });
                    let after = published.load(Ordering::Acquire) + 1;
                    let last = numbers.last().map_or(0, |last| last + 1);
                    let is_now = before <= last && last <= after;
                    assert!(is_now, "{kind:?}: {last} of {before} to {after}, {filter:?}");
                    let matches = |number: &usize| {
                        let at = EPOCH + *number as u64 % SPAN_S;
                        filter.since.is_none_or(|since| at >= since)
                    };
                    let expected: BTreeSet<usize> = (0..last).filter(matches).collect();
                    assert!(numbers == expected, "{kind:?}: a part of {last}, {filter:?}");
                }
            }
        });
    }
}
