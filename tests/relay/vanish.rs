//! Requests to vanish (NIP-62): all events of a key are removed permanently, with the gift wraps
//! sent to it.

use crate::support::{Author, Client, TestRelay, events, id_of, model};
use negsync::config::PublicKeys;
use negsync::reconcile::RangeSet;
use negsync::store::{Event, Filter, Outcome};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use std::collections::BTreeSet;

const AT: u64 = events::EPOCH;
const US: &str = "wss://relay.example.com";

fn request(author: &Author, at: u64, relay: &str) -> Value {
    author.event(62, at, json!([["relay", relay]]), "farewell")
}

/// The ids of all stored events, including private kinds.
fn stored(relay: &TestRelay) -> BTreeSet<String> {
    let set = relay.relay.index().snapshot(&[Filter::default()], usize::MAX).unwrap();
    let mut ids = BTreeSet::new();
    set.for_each(0..set.len(), &mut |item| {
        ids.insert(faster_hex::hex_string(&item.id));
    });
    ids
}

/// Events of five authors, some of whom request to vanish. A deletion names older events.
fn some_events(rng: &mut StdRng, count: usize) -> Vec<Value> {
    let authors: Vec<Author> = (1..=5).map(Author::new).collect();
    let mut all: Vec<Value> = Vec::new();
    for number in 0..count {
        let author = &authors[rng.random_range(0..authors.len())];
        let p = authors[rng.random_range(0..authors.len())].key();
        let at = AT + rng.random_range(0..200);
        let content = number.to_string();
        all.push(match rng.random_range(0..100) {
            0..40 => author.event(1, at, json!([["p", p]]), &content),
            40..50 => author.event(4, at, json!([["p", p]]), &content),
            50..70 => Author::new(90).event(1_059, at, json!([["p", p], ["p", "x"]]), &content),
            70..80 => author.event(30_023, at, json!([["d", "one"]]), &content),
            80..96 => {
                let older = |event: &&Value| model::created_at(event) <= at;
                let older: Vec<&Value> = all.iter().filter(older).collect();
                match older.get(rng.random_range(0..older.len().max(1))) {
                    Some(target) => {
                        let address = author.address(30_023, "one");
                        author.deletion(at, json!([["e", id_of(target)], ["a", address]]))
                    }
                    None => author.note(at, &content),
                }
            }
            _ => {
                let relays =
                    ["ALL_RELAYS", "wss://RELAY.example.com:443/", "wss://elsewhere.example"];
                let relay = relays[rng.random_range(0..3)];
                author.event(62, at, json!([["relay", "wss://x"], ["relay", relay]]), &content)
            }
        });
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_is_left_in_whatever_order_requests_and_events_come() {
    for seed in 700..712 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut all = some_events(&mut rng, 120);
        let expected = model::ids(&model::kept_by(&all, events::unix_now(), US));
        assert!(expected.len() < all.len());
        let mut relay = TestRelay::start_with(|config| config.auth.relay_url = US.into()).await;
        for round in 0..2 {
            all.shuffle(&mut rng);
            relay.client().await.publish_all(&all).await;
            assert_eq!(stored(&relay), expected, "seed {seed}, round {round}");
            // Removed events stay away after a restart too.
            relay = relay.restart_with(|_| {}).await;
        }
    }
}

/// Any client may send any `Host`, and a request to vanish from another relay is public.
#[tokio::test(flavor = "multi_thread")]
async fn only_the_configured_url_or_all_relays_names_this_relay() {
    let relay = TestRelay::start().await;
    let mut client = Client::connect_to_host(&relay.url(), "other.example").await;
    let author = Author::new(1);
    let note = author.note(AT, "n");
    client.store(&note).await;
    let elsewhere = request(&author, AT + 9, "wss://other.example");
    client.store(&elsewhere).await;
    let by_address = request(&author, AT + 8, &relay.url());
    client.store(&by_address).await;
    assert_eq!(stored(&relay), model::ids([&note, &elsewhere, &by_address]));
    // A request is followed as soon as the relay has the URL that it names.
    let relay =
        relay.restart_with(|config| config.auth.relay_url = "wss://other.example/".into()).await;
    let all = model::ids([&elsewhere, &by_address]);
    let mut changes = relay.relay.index().subscribe();
    while stored(&relay) != all {
        let change = tokio::time::timeout(crate::support::client::PATIENCE, changes.recv());
        change.await.expect("nothing vanishes").unwrap();
    }
    let mut client = relay.client().await;
    client.expect_blocked(&note).await;
    // An import and a sync give events to the store directly.
    let parsed = || vec![Event::parse(&note.to_string()).unwrap().trust()];
    let store = relay.relay.index().store().clone();
    assert_eq!(store.publish(parsed()).unwrap(), [Outcome::Vanished]);
    // Later events are accepted, and a request cannot be withdrawn.
    let later = author.note(AT + 10, "later");
    client.store(&later).await;
    client.store(&author.deletion(AT + 11, json!([["e", id_of(&elsewhere)]]))).await;
    client.expect_blocked(&note).await;
    assert_eq!(client.query(&[json!({ "ids": [id_of(&elsewhere)] })]).await, [elsewhere]);
}

/// NIP-62: the tag list must include at least one relay.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_names_no_relay_is_refused() {
    let relay = TestRelay::start().await;
    let mut client = relay.client().await;
    let author = Author::new(1);
    client.store(&author.note(AT, "n")).await;
    for tags in
        [json!([]), json!([["relay"]]), json!([["relay", ""]]), json!([["r", "ALL_RELAYS"]])]
    {
        let (accepted, text) = client.publish(&author.event(62, AT, tags, "farewell")).await;
        assert!(!accepted && text.starts_with("invalid: relay: "), "{text}");
    }
    assert_eq!(stored(&relay).len(), 1);
}

/// NIP-62: removed events must not come back; a request is permanent, even with an expiration
/// (NIP-40).
#[tokio::test(flavor = "multi_thread")]
async fn a_request_does_not_expire() {
    let relay = TestRelay::start().await;
    let mut client = relay.client().await;
    let author = Author::new(1);
    let tags = json!([["relay", "ALL_RELAYS"], ["expiration", (AT + 1).to_string()]]);
    let request = author.event(62, AT, tags, "");
    client.store(&request).await;
    client.expect_blocked(&author.note(AT, "n")).await;
    assert_eq!(stored(&relay), model::ids([&request]));
}

/// NIP-62: whatever the user's status.
#[tokio::test(flavor = "multi_thread")]
async fn those_who_may_not_publish_may_vanish() {
    let nobody: PublicKeys = [[7; 32]].into_iter().collect();
    let author = Author::new(1);
    let relay = TestRelay::start().await;
    relay.client().await.store(&author.note(AT, "n")).await;
    let relay = relay
        .restart_with(|config| {
            config.auth.publish_keys = nobody;
            config.auth.required = true;
        })
        .await;
    let mut client = relay.client().await;
    let request = request(&author, AT, "ALL_RELAYS");
    client.store(&request).await;
    assert_eq!(stored(&relay), model::ids([&request]));
}

/// The OK comes when everything is gone, and other clients are answered meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn many_events_vanish_a_part_at_a_time() {
    const EVENTS: u64 = 6_000;
    let relay = TestRelay::start().await;
    let author = Author::new(1);
    let template = author.note(AT, "n");
    // Their signatures are not checked.
    let events = (0..EVENTS)
        .map(|number| {
            let mut event = template.clone();
            event["id"] = json!(format!("{number:064x}"));
            Event::parse(&event.to_string()).unwrap().trust()
        })
        .collect();
    let store = relay.relay.index().store().clone();
    tokio::task::spawn_blocking(move || store.publish(events)).await.unwrap().unwrap();
    assert_eq!(stored(&relay).len() as u64, EVENTS);
    let (mut client, mut other) = (relay.client().await, relay.client().await);
    let request = request(&author, AT, "ALL_RELAYS");
    let mut changes = relay.relay.index().subscribe();
    client.send(&json!(["EVENT", request])).await;
    let neighbour = Author::new(2).note(AT, "meanwhile");
    other.store(&neighbour).await;
    client.expect(json!(["OK", request["id"], true, ""])).await;
    assert_eq!(stored(&relay), model::ids([&request, &neighbour]));
    let mut largest = 0;
    while let Ok(Some(change)) = changes.try_recv() {
        largest = largest.max(change.steps.len());
    }
    assert!((100..=1_000).contains(&largest), "a commit of {largest} steps");
}

/// A killed process continues at its next start.
#[tokio::test(flavor = "multi_thread")]
async fn a_removal_that_was_cut_off_goes_on() {
    let relay = TestRelay::start().await;
    let author = Author::new(1);
    let (gone, stays) = (author.note(AT, "gone"), author.note(AT + 2, "stays"));
    relay.client().await.publish_all(&[gone.clone(), stays.clone()]).await;
    let (path, database) = (relay.store_path(), relay.database_url().map(str::to_owned));
    let key = author.key();
    let relay = relay
        .restart_with(|_| match database {
            None => {
                let connection = rusqlite::Connection::open(&path).unwrap();
                let sql = "INSERT INTO vanished (pubkey, until, pending) VALUES (unhex(?1), ?2, 1)";
                assert_eq!(connection.execute(sql, (key, AT as i64)).unwrap(), 1);
            }
            Some(url) => {
                let sql = format!("INSERT INTO negsync.vanished VALUES ('\\x{key}', {AT}, TRUE)");
                negsync_testserver::run(&url, &sql).unwrap();
            }
        })
        .await;
    let mut changes = relay.relay.index().subscribe();
    while stored(&relay) != model::ids([&stays]) {
        let change = tokio::time::timeout(crate::support::client::PATIENCE, changes.recv());
        change.await.expect("nothing vanishes").unwrap();
    }
    relay.client().await.expect_blocked(&gone).await;
}
