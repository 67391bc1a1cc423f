//! `kill -9` at random times of publishing and syncing, with the real binary: acknowledged events
//! are there, the file is sound, and the index equals the table.

use crate::support::client::PATIENCE;
use crate::support::negentropy_client::neg_ids;
use crate::support::process::{RelayProcess, negsync};
use crate::support::{Author, TestRelay, events, id_of, model};
use futures_util::{SinkExt, StreamExt};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rusqlite::{Connection, OpenFlags};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use tokio_tungstenite::tungstenite::Message;

/// Kills of one store; afterwards it must become equal to its peer.
const KILLS_A_STORE: usize = 50;
/// Events of each client until the kill.
const EVENTS: usize = 400;
const CLIENTS: usize = 2;
/// Events that the peer gets for each kill.
const PEER_EVENTS: usize = 200;
/// Minimum number of comparisons of index and table before they count as different.
const COMPARED: usize = 5;
const LATEST_KILL_MS: u64 = 250;

/// Makes events and records which must be in the store.
struct Publisher {
    rng: StdRng,
    author: Author,
    made: u64,
    // Acknowledged, and not removed by any event published later.
    must_stay: BTreeSet<String>,
    // Deleted or replaced by a published event, acknowledged or not.
    doomed: BTreeSet<String>,
    // The newest published version of each address.
    newest: BTreeMap<u32, String>,
    notes: Vec<String>,
}

impl Publisher {
    fn new(seed: u64, author: u8) -> Self {
        Self {
            rng: StdRng::seed_from_u64(seed),
            author: Author::new(author),
            made: 0,
            must_stay: BTreeSet::new(),
            doomed: BTreeSet::new(),
            newest: BTreeMap::new(),
            notes: Vec::new(),
        }
    }

    fn event(&mut self) -> Value {
        self.made += 1;
        let at = events::EPOCH + self.made;
        match self.rng.random_range(0..10) {
            0 => {
                let d = self.rng.random_range(0..20);
                let event = self.author.event(30_023, at, json!([["d", d.to_string()]]), "version");
                if let Some(older) = self.newest.insert(d, id_of(&event).to_owned()) {
                    self.doom(older);
                }
                event
            }
            1 if !self.notes.is_empty() => {
                let id = self.notes.swap_remove(self.rng.random_range(0..self.notes.len()));
                let event = self.author.deletion(at, json!([["e", id]]));
                self.doom(id);
                event
            }
            _ => {
                let bytes = self.rng.random_range(0..2_000);
                let event = self.author.event(1, at, json!([["t", "kill"]]), &"x".repeat(bytes));
                self.notes.push(id_of(&event).to_owned());
                event
            }
        }
    }

    fn doom(&mut self, id: String) {
        self.must_stay.remove(&id);
        self.doomed.insert(id);
    }

    fn acknowledged(&mut self, id: String) {
        if !self.doomed.contains(&id) {
            self.must_stay.insert(id);
        }
    }
}

/// Sends events, and returns the ids acknowledged before the relay was gone.
async fn publish(url: String, events: Vec<Value>) -> Vec<String> {
    let mut acknowledged = Vec::new();
    let Ok((socket, _)) = tokio_tungstenite::connect_async(url).await else { return acknowledged };
    let (mut sink, mut stream) = socket.split();
    let sending = async {
        for event in &events {
            if sink.send(Message::text(json!(["EVENT", event]).to_string())).await.is_err() {
                break;
            }
        }
    };
    let hearing = async {
        // The challenge of NIP-42.
        let _ = stream.next().await;
        while let Some(Ok(Message::Text(text))) = stream.next().await {
            let message: Value = serde_json::from_str(&text).unwrap();
            // Events are verified concurrently: a deletion may overtake its target, and a version
            // an older one.
            let overtaken = ["blocked: deleted by its author", "replaced: have newer event"];
            let is_overtaken = overtaken.iter().any(|text| message[3] == *text);
            assert!(message[0] == "OK" && (message[2] == true || is_overtaken), "{message}");
            if message[2] == true {
                acknowledged.push(message[1].as_str().unwrap().to_owned());
            }
        }
    };
    tokio::join!(sending, hearing);
    acknowledged
}

fn read(store: &Path) -> Connection {
    Connection::open_with_flags(store, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap()
}

/// Runs SQLite's check on the file of a store in use.
fn assert_sound(store: &Path, about: &str) {
    let verdict: String =
        read(store).query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(verdict, "ok", "{about}");
}

/// The ids in a store in use.
fn ids_in(store: &Path) -> BTreeSet<String> {
    let connection = read(store);
    let mut select = connection.prepare("SELECT lower(hex(id)) FROM event").unwrap();
    let ids = select.query_map([], |row| row.get(0)).unwrap();
    ids.collect::<Result<_, _>>().unwrap()
}

/// Lines that `import --no-verify` accepts as `count` events.
fn unsigned(count: usize) -> String {
    let mut rng = StdRng::seed_from_u64(7);
    let mut lines = String::new();
    for number in 0..count {
        let mut hex = |bytes: usize| -> String {
            (0..bytes).fold(String::new(), |mut hex, _| {
                let _ = write!(hex, "{:02x}", rng.random::<u8>());
                hex
            })
        };
        let (id, pubkey, sig) = (hex(32), format!("{:064x}", number % 1_000), hex(64));
        let (at, content) = (events::EPOCH - 1 - number as u64, "x".repeat(200));
        let _ = writeln!(
            lines,
            r#"{{"id":"{id}","pubkey":"{pubkey}","created_at":{at},"kind":1,"tags":[["t","kill"]],"content":"{content}","sig":"{sig}"}}"#
        );
    }
    lines
}

pub(crate) fn number(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// `NEGSYNC_KILLS` sets the number; scripts/kill-publish runs five hundred. `NEGSYNC_EVENTS` sets
/// the initial number of events in each store.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_kills_at_random_moments() {
    let (kills, events) = (number("NEGSYNC_KILLS", 10), number("NEGSYNC_EVENTS", 0));
    let began = Instant::now();
    let (mut acknowledged, mut readies) = (0, Vec::new());
    for seed in (0..kills).step_by(KILLS_A_STORE) {
        let kills = KILLS_A_STORE.min(kills - seed);
        acknowledged += one_store(seed as u64, kills, events, &mut readies).await;
    }
    readies.sort_unstable();
    let ms = |duration: Duration| duration.as_secs_f64() * 1_000.0;
    let published = kills * CLIENTS * EVENTS;
    println!(
        "{kills} kills in {:.0} s: {acknowledged} of {published} events acknowledged, 0 missing; integrity_check \
         ok and index equal to the table each time; ready in {:.0} ms (median), {:.0} ms (worst)",
        began.elapsed().as_secs_f64(),
        ms(readies[readies.len() / 2]),
        ms(readies[readies.len() - 1])
    );
}

/// Kills a relay repeatedly on one store, with a peer beside it. Returns the number of acknowledged
/// events.
async fn one_store(seed: u64, kills: usize, events: usize, readies: &mut Vec<Duration>) -> usize {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("events.sqlite");
    let store_text = store.to_str().unwrap().to_owned();
    if events > 0 {
        let file = folder.path().join("events.jsonl");
        std::fs::write(&file, unsigned(events)).unwrap();
        let mut import = Command::new(env!("CARGO_BIN_EXE_negsync"));
        import.args(["import", "--no-verify", "--store", &store_text]).arg(&file);
        assert!(import.status().unwrap().success());
    }
    let peer = TestRelay::start().await;
    let mut peer_client = peer.client().await;
    let config = folder.path().join("relay.toml");
    // The initial events of the store are not synced.
    let since = format!("filter = {{ since = {} }}", events::EPOCH);
    let section =
        format!("[[peer]]\nurl = \"{}\"\n{since}\ninterval_s = 1\nlive = true\n", peer.url());
    std::fs::write(&config, section).unwrap();
    let mut publishers: Vec<Publisher> =
        (0..CLIENTS).map(|n| Publisher::new(seed * 10 + n as u64, n as u8 + 1)).collect();
    let (theirs, mut rng) = (Author::new(9), StdRng::seed_from_u64(seed));
    let mut acknowledged = 0;
    for kill in 0..=kills {
        let about = format!("seed {seed}, after kill {kill}");
        let starting = Instant::now();
        let command = Command::new(env!("CARGO_BIN_EXE_negsync"));
        let relay =
            RelayProcess::start_by(command, &store, &["--config", config.to_str().unwrap()]);
        let mut client = relay.client().await;
        // The set of all events is loaded; an empty range of it is a part of it.
        let none = json!({ "since": events::EPOCH + 1_000_000_000 });
        assert!(neg_ids(&mut client, &none).await.is_empty());
        readies.push(starting.elapsed());
        assert_sound(&store, &about);
        // The peer's events arrive meanwhile, and a commit is in the table before it is published.
        let deadline = Instant::now() + PATIENCE;
        let mut compared = 0;
        let stored = loop {
            compared += 1;
            let (indexed, stored) = (neg_ids(&mut client, &json!({})).await, ids_in(&store));
            let differ = indexed.symmetric_difference(&stored).count();
            if differ == 0 {
                break stored;
            }
            // With a million events each comparison takes a while.
            let may_go_on = compared < COMPARED || Instant::now() < deadline;
            assert!(may_go_on, "{about}: {differ} are not in index and table");
        };
        for publisher in &publishers {
            let missing: Vec<&String> = publisher.must_stay.difference(&stored).collect();
            assert!(missing.is_empty(), "{about}: acknowledged and gone: {missing:?}");
        }
        if kill == kills {
            relay.signal("TERM");
            let (status, log) = relay.ended();
            assert!(status.success(), "{log}");
            break;
        }
        let fresh: Vec<Value> = (0..PEER_EVENTS as u64)
            .map(|n| note_of_peer(&theirs, kill as u64 * PEER_EVENTS as u64 + n))
            .collect();
        let publishing: Vec<_> = publishers
            .iter_mut()
            .map(|publisher| {
                let events = (0..EVENTS).map(|_| publisher.event()).collect();
                tokio::spawn(publish(relay.url().to_owned(), events))
            })
            .collect();
        let filling = tokio::spawn(async move {
            peer_client.publish_all(&fresh).await;
            peer_client
        });
        // The seed determines the time of the kill, but not the state at that time.
        tokio::time::sleep(Duration::from_millis(rng.random_range(1..LATEST_KILL_MS))).await;
        relay.signal("KILL");
        relay.ended();
        for (publisher, publishing) in publishers.iter_mut().zip(publishing) {
            let ids = publishing.await.unwrap();
            acknowledged += ids.len();
            ids.into_iter().for_each(|id| publisher.acknowledged(id));
        }
        peer_client = filling.await.unwrap();
    }
    // The recorded sync marks are correct: another sync makes both sides equal.
    let filter = json!({ "since": events::EPOCH }).to_string();
    let arguments = ["sync", &peer.url(), "--store", &store_text, "--filter", &filter, "--json"];
    let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
    let ended = tokio::task::spawn_blocking(move || {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        negsync(&arguments, "")
    });
    let ended = ended.await.unwrap();
    assert_eq!(ended.status.code(), Some(0), "seed {seed}: {ended:?}");
    let report: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(report["equal"], true, "seed {seed}: {report}");
    let theirs = neg_ids(&mut peer_client, &json!({})).await;
    assert_sound(&store, "at the end");
    let mut ours = ids_in(&store);
    let exported = negsync(&["export", "--store", &store_text, "--filter", &filter], "");
    let exported: Vec<Value> =
        exported.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let exported = model::ids(&exported);
    assert_eq!(ours.len(), exported.len() + events, "seed {seed}");
    ours.retain(|id| exported.contains(id));
    assert_eq!(ours.symmetric_difference(&theirs).count(), 0, "seed {seed}");
    acknowledged
}

fn note_of_peer(author: &Author, number: u64) -> Value {
    author.event(1, events::EPOCH + number, json!([["t", "peer"]]), &number.to_string())
}
