//! The two real relays, if they are installed: `NEGSYNC_NOSTR_RELAY_PY` and
//! `NEGSYNC_NOSTR_RS_RELAY` name their programs.

use super::database::{Database, KINDS};
use super::passing::{assert_same, config, converse};
use crate::support::events::{Author, unix_now};
use crate::support::negentropy_client::neg_ids;
use crate::support::{Client, corpora, id_of, model};
use futures_util::{SinkExt, StreamExt};
use negsync::admission::Admission;
use negsync::sidecar::{Attach, open_sets};
use negsync::store::{RelayKind, Store, StoreOptions};
use negsync::sync::{Local, Options, sync};
use nostr_sdk::prelude::{
    Client as SdkClient, Filter as SdkFilter, MemoryDatabase, MemoryDatabaseOptions, SyncDirection,
    SyncOptions,
};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::sync::RwLock;
use tokio_tungstenite::tungstenite::Message;

const PATIENCE: Duration = Duration::from_secs(60);
const REAL_NOTES: usize = 200;

/// A relay's process, on a free port.
struct RealRelay {
    child: Child,
    address: SocketAddr,
    kind: RelayKind,
    folder: PathBuf,
}

/// Its program; reports if there is none.
fn program(kind: RelayKind) -> Option<PathBuf> {
    let variable = match kind {
        RelayKind::NostrRsRelay => "NEGSYNC_NOSTR_RS_RELAY",
        RelayKind::NostrRelayPy | RelayKind::Nostream => "NEGSYNC_NOSTR_RELAY_PY",
    };
    let program = std::env::var_os(variable).map(PathBuf::from);
    if program.is_none() {
        // Past the test harness, which would capture the output.
        let _ = writeln!(
            std::io::stderr(),
            "\n*** LEFT OUT: {} itself. Set {variable} to its program to run with it.\n",
            kind.name()
        );
    }
    program
}

impl RealRelay {
    fn database_path(kind: RelayKind, folder: &Path) -> PathBuf {
        folder.join(match kind {
            RelayKind::NostrRsRelay => "nostr.db",
            RelayKind::NostrRelayPy | RelayKind::Nostream => "nostr.sqlite3",
        })
    }

    /// Starts it in a folder, on `port` or a free one, and waits until it answers.
    fn start(kind: RelayKind, folder: &Path, port: Option<u16>) -> Option<Self> {
        Self::start_with(kind, folder, port, |_| String::new())
    }

    /// Like [`RealRelay::start`]; `more` is added to its configuration.
    fn start_with(
        kind: RelayKind,
        folder: &Path,
        port: Option<u16>,
        more: impl Fn(SocketAddr) -> String,
    ) -> Option<Self> {
        let program = program(kind)?;
        let free =
            || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let port = port.unwrap_or_else(free);
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let database = Self::database_path(kind, folder);
        let mut command = Command::new(program);
        match kind {
            RelayKind::NostrRsRelay => {
                let text = format!(
                    "[info]\nrelay_url = \"ws://{address}\"\n[network]\naddress = \"127.0.0.1\"\n\
                     port = {port}\nremote_ip_header = \"x-forwarded-for\"\n{}",
                    more(address)
                );
                std::fs::write(folder.join("config.toml"), text).unwrap();
                command.arg("--config").arg(folder.join("config.toml")).arg("--db").arg(folder);
            }
            RelayKind::NostrRelayPy | RelayKind::Nostream => {
                let text = format!(
                    "relay_name: real\nstorage:\n  sqlalchemy.url: sqlite+aiosqlite:///{}\n  \
                     validators:\n    - nostr_relay.validators.is_signed\ngunicorn:\n  \
                     bind: {address}\nmax_limit: 100000\n{}",
                    database.display(),
                    more(address)
                );
                std::fs::write(folder.join("config.yaml"), text).unwrap();
                command.arg("-c").arg(folder.join("config.yaml")).args(["serve", "--use-uvicorn"]);
            }
        }
        let log = || Stdio::from(std::fs::File::create(folder.join("log")).unwrap());
        let child = command.current_dir(folder).stdout(log()).stderr(log()).spawn().unwrap();
        let relay = Self { child, address, kind, folder: folder.to_owned() };
        let began = Instant::now();
        while std::net::TcpStream::connect(address).is_err() || !database.exists() {
            let log = std::fs::read_to_string(folder.join("log")).unwrap_or_default();
            assert!(began.elapsed() < PATIENCE, "{kind:?} does not answer: {log}");
            std::thread::sleep(Duration::from_millis(50));
        }
        Some(relay)
    }

    fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        // Fails only if the process has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    async fn attach(&self) -> Attach {
        let path = Self::database_path(self.kind, &self.folder);
        let config = config(self.kind, &path, self.address);
        Attach::start(config.clone(), open_sets(&config).unwrap()).await.unwrap()
    }

    /// A connection to its database.
    fn database(&self) -> Database {
        Database::existing(self.kind, &Self::database_path(self.kind, &self.folder))
    }
}

impl Drop for RealRelay {
    fn drop(&mut self) {
        self.end();
    }
}

fn url(attach: &Attach) -> String {
    format!("ws://{}", attach.address())
}

fn visible(database: &Database) -> BTreeSet<String> {
    model::ids(&database.visible(unix_now()))
}

/// Notes, profiles that replace each other and deletions of notes, in the order of their times.
fn churn(seed: u64, count: u64, from: u64) -> Vec<Value> {
    let mut rng = StdRng::seed_from_u64(seed);
    let authors: Vec<Author> = (1..=4).map(Author::new).collect();
    let mut notes: Vec<(usize, String)> = Vec::new();
    let mut events = Vec::new();
    for second in 0..count {
        let at = from + second;
        let number = rng.random_range(0..authors.len());
        let author = &authors[number];
        let event = match rng.random_range(0..10) {
            0 => author.event(0, at, json!([]), &format!("{{\"name\":\"{second}\"}}")),
            1 => author.event(30_023, at, json!([["d", "one"]]), "an article"),
            2 | 3 if !notes.is_empty() => {
                let (writer, id) = notes.swap_remove(rng.random_range(0..notes.len()));
                authors[writer].deletion(at, json!([["e", id]]))
            }
            _ => {
                let note =
                    author.event(1, at, json!([["t", "churn"]]), &format!("{seed} {second}"));
                notes.push((number, id_of(&note).to_owned()));
                note
            }
        };
        events.push(event);
    }
    events
}

async fn sdk_client(url: &str) -> SdkClient {
    let options = MemoryDatabaseOptions { events: true, max_events: None };
    let client = SdkClient::builder().database(MemoryDatabase::with_opts(options)).build();
    client.add_relay(url).await.unwrap();
    client.try_connect_relay(url, Duration::from_secs(10)).await.unwrap();
    client
}

async fn sdk_sync(client: &SdkClient, direction: SyncDirection) {
    let options = SyncOptions::new().direction(direction);
    let output = client.sync(SdkFilter::new(), &options).await.unwrap();
    assert!(output.failed.is_empty() && !output.success.is_empty(), "{:?}", output.failed);
}

async fn sdk_held(client: &SdkClient) -> BTreeSet<String> {
    let events = client.database().query(SdkFilter::new()).await.unwrap();
    events.iter().map(|event| event.id.to_hex()).collect()
}

fn seeds() -> u64 {
    std::env::var("NEGSYNC_SEEDS").map_or(2, |text| text.parse().unwrap())
}

/// Events are published and deleted through the sidecar during the syncs; each acknowledged one is
/// in the next set, and at the end all three are equal.
#[tokio::test(flavor = "multi_thread")]
async fn nostr_sdk_syncs_while_events_come_and_go() {
    for kind in KINDS {
        for seed in 0..seeds() {
            let folder = tempfile::tempdir().unwrap();
            let Some(relay) = RealRelay::start(kind, folder.path(), None) else { break };
            let attach = relay.attach().await;
            let address = url(&attach);
            let context = format!("{kind:?}, seed {seed}");
            let events = churn(seed, 240, unix_now() - 1_000);
            let publishing = tokio::spawn({
                let (address, events, context) = (address.clone(), events.clone(), context.clone());
                async move {
                    let mut client = Client::connect_elsewhere(&address).await;
                    let mut asking = Client::connect_elsewhere(&address).await;
                    for (number, event) in events.iter().enumerate() {
                        client.store(event).await;
                        if number % 8 == 0 {
                            let found = neg_ids(&mut asking, &json!({})).await;
                            assert!(found.contains(id_of(event)), "{context}: {number}");
                        }
                    }
                }
            });
            let client = sdk_client(&address).await;
            let mut syncs = 0;
            while !publishing.is_finished() {
                sdk_sync(&client, SyncDirection::Down).await;
                syncs += 1;
            }
            publishing.await.unwrap();
            assert!(syncs > 0, "{context}: all was over before the first sync");
            println!("{context}: {syncs} syncs while {} events came and went", events.len());
            sdk_sync(&client, SyncDirection::Down).await;
            let expected = visible(&relay.database());
            assert_eq!(sdk_held(&client).await, expected, "{context}");
            let mut asking = Client::connect_elsewhere(&address).await;
            assert_eq!(neg_ids(&mut asking, &json!({})).await, expected, "{context}");
            // Events that only the client has are uploaded through the same address.
            let author = Author::new(50);
            for second in 0..20 {
                let note = author.note(unix_now() - 100 + second, "its own").to_string();
                let note = nostr_sdk::JsonUtil::from_json(note).unwrap();
                client.database().save_event(&note).await.unwrap();
            }
            sdk_sync(&client, SyncDirection::Both).await;
            let expected = visible(&relay.database());
            assert_eq!(sdk_held(&client).await, expected, "{context}");
            assert_eq!(neg_ids(&mut asking, &json!({})).await, expected, "{context}");
            client.shutdown().await;
            attach.stop().await;
        }
    }
}

/// A client that has authenticated gets its own private events, like from the relay itself; one
/// that was refused gets none. nostr-rs-relay withholds kind 4, nostr-relay nothing.
#[tokio::test(flavor = "multi_thread")]
async fn who_the_relay_believes_is_given_its_own() {
    for kind in KINDS {
        let folder = tempfile::tempdir().unwrap();
        let more = |address: SocketAddr| match kind {
            RelayKind::NostrRsRelay => {
                "[authorization]\nnip42_auth = true\nnip42_dms = true\n".to_owned()
            }
            RelayKind::NostrRelayPy | RelayKind::Nostream => {
                format!("authentication:\n  enabled: true\n  relay_urls:\n    - ws://{address}\n")
            }
        };
        let relay = RealRelay::start_with(kind, folder.path(), None, more);
        let Some(relay) = relay else { continue };
        let own = format!("ws://{}", relay.address);
        let path = RealRelay::database_path(kind, folder.path());
        let mut config = config(kind, &path, relay.address);
        config.attach.relay_url = own.clone();
        let attach = Attach::start(config.clone(), open_sets(&config).unwrap()).await.unwrap();
        let authors: Vec<Author> = (1..=3).map(Author::new).collect();
        let mut publishing = Client::connect(&url(&attach)).await;
        for (number, author) in authors.iter().enumerate() {
            let at = unix_now() - 100 + number as u64;
            publishing.store(&author.note(at, "for everybody")).await;
            for other in &authors {
                publishing
                    .store(&author.event(4, at, json!([["p", other.key()]]), "for one"))
                    .await;
            }
        }
        let stored = relay.database().visible(unix_now());
        for (author, relay_url, is_believed) in [
            (&authors[0], own.as_str(), true),
            (&authors[1], own.as_str(), true),
            (&Author::new(9), own.as_str(), true),
            (&authors[0], "ws://elsewhere.example", false),
        ] {
            let mut client = Client::connect(&url(&attach)).await;
            let event = author.authentication(unix_now(), relay_url, &client.challenge);
            client.send(&json!(["AUTH", event])).await;
            if !is_believed {
                let refusal = client.next("a refusal").await;
                assert!(refusal[0] == "OK" || refusal[0] == "NOTICE", "{kind:?}: {refusal}");
            }
            let keys: Vec<String> = is_believed.then(|| author.key()).into_iter().collect();
            let private = negsync::config::AuthConfig::default().private_kinds;
            let expected = model::ids(&model::visible(&stored, &private, &keys));
            let filter = json!({ "kinds": [1, 4] });
            let context = format!("{kind:?}, {}, {relay_url}", author.key());
            assert_eq!(neg_ids(&mut client, &filter).await, expected, "{context}");
            if kind == RelayKind::NostrRsRelay {
                let given = model::ids(&client.query(std::slice::from_ref(&filter)).await);
                assert_eq!(given, expected, "{context}");
            }
        }
        attach.stop().await;
    }
}

/// Our side of a sync for a relay: its database, and the storage through the relay.
fn local(relay: &RealRelay, folder: &TempDir) -> Local {
    let path = RealRelay::database_path(relay.kind, &relay.folder);
    let config = config(relay.kind, &path, relay.address);
    let notes = folder.path().join(format!("notes-{}.sqlite", relay.kind.name()));
    let notes = Store::open(&notes, StoreOptions::default(), Box::new(|_| {})).unwrap();
    let sets = open_sets(&config).unwrap();
    Local::attached(sets, Arc::new(notes), Admission::start(config).unwrap()).unwrap()
}

/// From one relay's database to the other relay through its sidecar, in both directions; with only
/// one of them installed, between two instances of it.
#[tokio::test(flavor = "multi_thread")]
async fn relay_to_relay_ends_equal() {
    let installed: Vec<RelayKind> =
        KINDS.into_iter().filter(|kind| program(*kind).is_some()).collect();
    let (Some(first), Some(last)) = (installed.first(), installed.last()) else { return };
    for seed in 0..seeds() {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let ours = RealRelay::start(*first, folders[0].path(), None).unwrap();
        let theirs = RealRelay::start(*last, folders[1].path(), None).unwrap();
        let attach = theirs.attach().await;
        // Deletions come after their targets, and replaced events are not on the other side: the
        // relays differ in their other rules.
        let events = churn(seed, 200, unix_now() - 1_000);
        let mut shared: Vec<Value> = model::kept(&events, unix_now());
        shared.extend(real_notes(seed));
        let mut rng = StdRng::seed_from_u64(seed);
        let mut halves = [Vec::new(), Vec::new()];
        for event in shared {
            let side = rng.random_range(0..3);
            for (number, half) in halves.iter_mut().enumerate() {
                if side != number {
                    half.push(event.clone());
                }
            }
        }
        for (relay, half) in [(&ours, &halves[0]), (&theirs, &halves[1])] {
            let mut client = Client::connect_elsewhere(&format!("ws://{}", relay.address)).await;
            for event in half {
                client.store(event).await;
            }
        }
        let local = local(&ours, &folders[0]);
        let report = sync(&local, &url(&attach), &Options::default(), |_| {}).await.unwrap();
        let (one, other) = (visible(&ours.database()), visible(&theirs.database()));
        assert_eq!(one, other, "seed {seed}: {report:?}");
        assert!(report.complete && report.equal, "seed {seed}: {report:?}");
        assert!(report.stored > 0 && report.uploaded > 0, "seed {seed}: {report:?}");
        attach.stop().await;
    }
}

/// Notes of real authors, if `NEGSYNC_REAL_EVENTS` names them; another part for each seed.
fn real_notes(seed: u64) -> Vec<Value> {
    let named = corpora(0, 0).into_iter().nth(1);
    let events = named.map_or(Vec::new(), |corpus| corpus.events);
    // Neither relay accepts an expired event.
    let stays = |event: &Value| !event["tags"].to_string().contains("\"expiration\"");
    let notes = events.into_iter().filter(|event| event["kind"] == 1 && stays(event));
    notes.skip(seed as usize * REAL_NOTES).take(REAL_NOTES).collect()
}

/// Events that the relay refuses are counted, recorded and not requested again.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_relay_does_not_take_is_not_asked_for_again() {
    for kind in KINDS {
        let folder = tempfile::tempdir().unwrap();
        let Some(relay) = RealRelay::start(kind, folder.path(), None) else { continue };
        let author = Author::new(3);
        let at = unix_now() - 500;
        let newer = author.event(10_002, at + 9, json!([]), "newer");
        let mut client = Client::connect_elsewhere(&format!("ws://{}", relay.address)).await;
        client.store(&newer).await;
        // Our own relay has an older version, deletes nothing, and has an acceptable note.
        let peer = crate::support::TestRelay::start().await;
        let note = author.note(at, "fits");
        let older = author.event(10_002, at, json!([]), "older");
        peer.client().await.publish_all(&[note.clone(), older.clone()]).await;
        let local = local(&relay, &folder);
        let options = || Options::default().direction(negsync::sync::Direction::Down);
        let first = sync(&local, &peer.url(), &options(), |_| {}).await.unwrap();
        assert!(visible(&relay.database()).contains(id_of(&note)), "{kind:?}: {first:?}");
        if kind == RelayKind::NostrRsRelay {
            assert_eq!(
                first.refused.get(&negsync::sync::Reason::Superseded),
                Some(&1),
                "{first:?}"
            );
            let second = sync(&local, &peer.url(), &options(), |_| {}).await.unwrap();
            assert_eq!((second.stored, second.need), (0, 0), "{second:?}");
        }
    }
}

/// A conversation without NEG verbs, recorded at the relay and through the sidecar, each with a new
/// relay.
#[tokio::test(flavor = "multi_thread")]
async fn a_recorded_conversation_is_the_same_to_the_byte() {
    for (kind, seed) in
        KINDS.into_iter().flat_map(|kind| (0..seeds()).map(move |seed| (kind, seed)))
    {
        let author = Author::new(1);
        let at = unix_now() - 100;
        let note = author.note(at, "short");
        let mut bad = note.clone();
        bad["sig"] = json!("00".repeat(64));
        let mut steps = vec![
            (json!(["REQ", "none", {}]), r#"["EOSE","none"]"#),
            (json!(["CLOSE", "none"]), ""),
            (json!(["EVENT", note]), "true"),
            (json!(["EVENT", author.note(at + 1, &"long ".repeat(14_000))]), "true"),
            (json!(["EVENT", note]), "duplicate"),
            (json!(["REQ", "all", { "kinds": [1] }]), r#"["EOSE","all"]"#),
            (json!(["CLOSE", "all"]), ""),
            (json!(["COUNT", "c", {}]), ""),
            (json!(["NEGATE", "x"]), ""),
            (json!({ "NEG-OPEN": 1 }), ""),
        ];
        if kind == RelayKind::NostrRsRelay {
            steps.push((json!(["EVENT", bad]), "false"));
        }
        let mut recorded = Vec::new();
        for is_direct in [true, false] {
            let folder = tempfile::tempdir().unwrap();
            let Some(relay) = RealRelay::start(kind, folder.path(), None) else { break };
            let attach = relay.attach().await;
            let address = if is_direct { relay.address } else { attach.address() };
            recorded
                .push(converse(address, "", &steps, kind == RelayKind::NostrRsRelay, seed).await);
            attach.stop().await;
        }
        if let [direct, through] = recorded.as_slice() {
            assert_same(direct, through, &format!("{kind:?}, seed {seed}"));
        }
    }
}

type CancellationFlag = Arc<AtomicBool>;

/// Shared by writers, and exclusive for comparisons.
type Gate = Arc<RwLock<()>>;

/// Publishes and deletes until stopped, even while the relay restarts.
async fn load(address: String, gate: Gate, stop: CancellationFlag) {
    let mut events = churn(77, 5_000, unix_now() - 10_000).into_iter();
    while !stop.load(Ordering::Relaxed) {
        let Ok((mut socket, _)) = tokio_tungstenite::connect_async(&address).await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        while !stop.load(Ordering::Relaxed) {
            let _writing = gate.read().await;
            let Some(event) = events.next() else { return };
            let message = Message::text(json!(["EVENT", event]).to_string());
            if socket.send(message).await.is_err() || !matches!(socket.next().await, Some(Ok(_))) {
                break;
            }
        }
    }
}

/// The set through the sidecar equals a scan. Nothing is published meanwhile; events in transit
/// when a connection broke may still be stored.
async fn assert_equal(attach: &Attach, database: &Database, gate: &Gate, context: &str) {
    let began = Instant::now();
    let mut client = Client::connect_elsewhere(&url(attach)).await;
    let _alone = gate.write().await;
    loop {
        let before = visible(database);
        let found = neg_ids(&mut client, &json!({})).await;
        if visible(database) == before {
            let missing: Vec<_> = before.difference(&found).collect();
            let extra: Vec<_> = found.difference(&before).collect();
            assert!(missing.is_empty() && extra.is_empty(), "{context}: {missing:?}, {extra:?}");
            return;
        }
        assert!(began.elapsed() < PATIENCE, "{context}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_restarting_vacuuming_and_replacing_under_load_never_gives_a_wrong_set() {
    for kind in KINDS {
        let folder = tempfile::tempdir().unwrap();
        let Some(mut relay) = RealRelay::start(kind, folder.path(), None) else { continue };
        let attach = relay.attach().await;
        let (gate, stop) = (Gate::default(), CancellationFlag::default());
        let loading = tokio::spawn(load(url(&attach), Arc::clone(&gate), Arc::clone(&stop)));
        for round in 0..3 {
            let context = |what: &str| format!("{kind:?}, round {round}: {what}");
            let began = Instant::now();
            let wanted = 20 * (round + 1);
            while visible(&relay.database()).len() < wanted {
                assert!(began.elapsed() < PATIENCE, "{}", context("nothing is published"));
                assert_equal(&attach, &relay.database(), &gate, &context("under load")).await;
            }
            let vacuum = relay.database();
            vacuum.connection.busy_timeout(PATIENCE).unwrap();
            vacuum.vacuum();
            drop(vacuum);
            assert_equal(&attach, &relay.database(), &gate, &context("vacuumed")).await;

            let mut client = Client::connect_elsewhere(&url(&attach)).await;
            assert!(!neg_ids(&mut client, &json!({})).await.is_empty());
            let port = relay.address.port();
            relay.stop();
            let code = client.close_code().await;
            assert!([1001, 1012].contains(&code), "{}: {code}", context("closed"));
            let path = RealRelay::database_path(kind, folder.path());
            if round == 1 {
                // Another file in its place: the relay starts with it.
                for suffix in ["", "-wal", "-shm"] {
                    let mut name = path.clone().into_os_string();
                    name.push(suffix);
                    let _ = std::fs::rename(&name, folder.path().join(format!("old{suffix}")));
                }
            }
            relay = RealRelay::start(kind, folder.path(), Some(port)).unwrap();
            assert_equal(&attach, &relay.database(), &gate, &context("restarted")).await;
        }
        stop.store(true, Ordering::Relaxed);
        loading.await.unwrap();
        assert_equal(&attach, &relay.database(), &gate, "at last").await;
        attach.stop().await;
    }
}

#[test]
fn the_made_up_databases_are_like_the_real_ones() {
    for kind in KINDS {
        let folder = tempfile::tempdir().unwrap();
        let Some(relay) = RealRelay::start(kind, folder.path(), None) else { continue };
        let (real, made_up) =
            (relay.database(), Database::new(kind, &folder.path().join("made-up")));
        let described = |database: &Database| -> Vec<String> {
            let tables = match kind {
                RelayKind::NostrRsRelay => ["event", "tag"],
                RelayKind::NostrRelayPy | RelayKind::Nostream => ["events", "tags"],
            };
            let query = |sql: String| -> Vec<String> {
                let mut statement = database.connection.prepare(&sql).unwrap();
                let rows = statement.query_map([], |row| row.get(0)).unwrap();
                rows.map(Result::unwrap).collect()
            };
            let of_table = |table: &str| {
                let columns =
                    format!("SELECT name || ' ' || type FROM pragma_table_info('{table}')");
                let indexes = format!(
                    "SELECT list.name || ' ' || group_concat(info.name) FROM
                     pragma_index_list('{table}') list, pragma_index_info(list.name) info
                     WHERE list.name NOT LIKE 'sqlite%' GROUP BY list.name ORDER BY list.name"
                );
                [query(columns), query(indexes)].concat()
            };
            tables.iter().flat_map(|table| of_table(table)).collect()
        };
        assert_eq!(described(&made_up), described(&real), "{kind:?}");
    }
}
