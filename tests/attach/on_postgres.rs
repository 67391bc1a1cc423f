//! `negsync attach` before a relay on PostgreSQL: the next set contains exactly the acknowledged
//! events, while the relay replaces, deletes, expires and cleans up.

use super::stored_relay::StoredRelay;
use crate::support::events::{Author, EPOCH, SPAN_S, id_of, unix_now};
use crate::support::negentropy_client::neg_ids;
use crate::support::process::RelayProcess;
use crate::support::{Client, model};
use negsync::config::AuthConfig;
use negsync_testserver::{RelayTables, TestServer};
use nostr_sdk::prelude::{
    Client as SdkClient, Filter as SdkFilter, MemoryDatabase, MemoryDatabaseOptions, SyncDirection,
    SyncOptions,
};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);
const AUTHORS: u8 = 4;
const STEPS: usize = 25;
const EVENTS_BESIDE_SYNCS: u64 = 80;

/// A server that allows its changes to be followed.
pub fn server() -> Option<TestServer> {
    TestServer::start_own(&[
        ("wal_level", "logical"),
        ("max_slot_wal_keep_size", "1GB"),
        ("fsync", "off"),
    ])
}

/// `negsync attach` before a relay, without rate limits.
pub struct Sidecar {
    pub process: RelayProcess,
    _folder: TempDir,
}

impl Sidecar {
    pub fn before(relay: &StoredRelay) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("relay.toml");
        std::fs::write(&config, "[rates]\nneg_per_s = 0\nother_per_s = 0\n").unwrap();
        let database = format!("{}:{}", relay.kind().name(), relay.database_url);
        let url = format!("ws://{}", relay.address);
        let process = tokio::task::block_in_place(|| {
            let config = config.to_str().unwrap();
            RelayProcess::attach(&["--attach", &database, "--url", &url, "--config", config])
        });
        Self { process, _folder: folder }
    }

    pub async fn client(&self) -> Client {
        Client::connect(self.process.url()).await
    }
}

/// The public events.
pub fn public(events: &[Value]) -> Vec<Value> {
    let events = model::visible(events, &AuthConfig::default().private_kinds, &[]);
    let is_kept = |event: &Value| !(20_000..30_000).contains(&event["kind"].as_u64().unwrap());
    events.into_iter().filter(is_kept).collect()
}

/// Writes events of a few authors: notes with and without expiration, replacements, and deletions
/// of the author's own events.
struct Writer {
    rng: StdRng,
    earlier: Vec<(u8, String)>,
    written: u64,
}

impl Writer {
    fn new(seed: u64) -> Self {
        Self { rng: StdRng::seed_from_u64(seed), earlier: Vec::new(), written: 0 }
    }

    fn event(&mut self) -> Value {
        self.written += 1;
        let (rng, number) = (&mut self.rng, self.written);
        let mut author = rng.random_range(1..=AUTHORS);
        // One version is newer than the other, or of the same second.
        let at = EPOCH + number / 2;
        let peer = Author::new(rng.random_range(1..=AUTHORS)).key();
        let (topic, d) = (["nostr", "it's"], ["", "one", "ab"]);
        let mut tags = vec![json!(["t", topic[rng.random_range(0..2)]])];
        let kind = match rng.random_range(0..20) {
            0..3 => [0, 3, 10_002][rng.random_range(0..3)],
            3..6 => 30_023,
            6..8 => 5,
            8 => 4,
            9 => 20_001,
            _ => 1,
        };
        match kind {
            30_023 => tags.push(json!(["d", d[rng.random_range(0..3)]])),
            5 if !self.earlier.is_empty() => {
                let (writer, id) = &self.earlier[rng.random_range(0..self.earlier.len())];
                (author, tags) = (*writer, vec![json!(["e", id])]);
            }
            4 => tags.push(json!(["p", peer])),
            1 if rng.random_range(0..4) == 0 => {
                let second = unix_now() + rng.random_range(1..4);
                tags.push(json!(["expiration", second.to_string()]));
            }
            _ => {}
        }
        // Some contents are stored out of line.
        let words = [1, 1_000][usize::from(rng.random_range(0..8) == 0)];
        let content = format!("{number} \u{1f98a} \"quoted\" \\ \n").repeat(words);
        let event = Author::new(author).event(kind, at, json!(tags), &content);
        if kind != 5 {
            self.earlier.push((author, id_of(&event).to_owned()));
        }
        event
    }

    /// A change of the table other than an event: the relay's clean-up, or a manual one.
    fn statement(&mut self, tables: RelayTables) -> String {
        let events = tables.events();
        let any = format!("ctid IN (SELECT ctid FROM {events} ORDER BY random() LIMIT 2)");
        match self.rng.random_range(0..3) {
            0 => format!("DELETE FROM {events} WHERE {any}"),
            1 => "SELECT".into(),
            _ => {
                tables.clean_up(unix_now(), EPOCH + self.rng.random_range(0..1 + self.written / 8))
            }
        }
    }
}

/// Compares the sets for some filters with a scan. Events may expire during the check: a set is
/// that of one of the seconds in which it was requested.
async fn assert_exact(client: &mut Client, relay: &StoredRelay, context: &str) {
    let author = Author::new(1).key();
    for filter in [
        json!({}),
        json!({ "kinds": [0, 5, 30_023] }),
        json!({ "authors": [author], "since": EPOCH + 5 }),
        json!({ "#t": ["it's"], "until": EPOCH + SPAN_S }),
        json!({ "#d": ["", "ab"], "limit": 3 }),
    ] {
        let asked = unix_now();
        let found = neg_ids(client, &filter).await;
        let answered = unix_now();
        let expected = |second| {
            let visible = public(&relay.visible(second));
            model::ids(model::answer(std::slice::from_ref(&filter), &visible))
        };
        if !(asked..=answered).any(|second| expected(second) == found) {
            assert_eq!(found, expected(answered), "{context}: {filter}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sets_equal_a_scan_and_clients_sync_while_the_relay_writes() {
    let Some(server) = tokio::task::block_in_place(server) else { return };
    let seeds = std::env::var("NEGSYNC_SEEDS").map_or(2, |text| text.parse().unwrap());
    for tables in RelayTables::ALL {
        for seed in 0..seeds {
            eprintln!("{tables:?}, seed {seed}");
            let database_url = tokio::task::block_in_place(|| server.database());
            let relay = StoredRelay::start(tables, database_url).await;
            let mut writer = Writer::new(seed);
            follow(&relay, &mut writer, &format!("{tables:?}, seed {seed}")).await;
        }
    }
}

/// The same before a real nostream (`scripts/interop-nostream`).
#[tokio::test(flavor = "multi_thread")]
async fn nostream_itself_is_followed_while_it_writes() {
    let Some(relay) = StoredRelay::real_nostream() else { return };
    let seeds = std::env::var("NEGSYNC_SEEDS").map_or(2, |text| text.parse().unwrap());
    for seed in 0..seeds {
        relay.run("DELETE FROM events");
        follow(&relay, &mut Writer::new(seed), &format!("nostream, seed {seed}")).await;
    }
}

async fn follow(relay: &StoredRelay, writer: &mut Writer, context: &str) {
    let mut before = Client::connect(&format!("ws://{}", relay.address)).await;
    for _ in 0..30 {
        before.store(&writer.event()).await;
    }
    let sidecar = Sidecar::before(relay);
    let mut client = sidecar.client().await;
    assert_exact(&mut client, relay, &format!("{context}, at first")).await;
    for step in 0..STEPS {
        // One after the other: nostream handles messages concurrently, and a deletion may overtake
        // its event.
        for _ in 0..writer.rng.random_range(1..5) {
            client.store(&writer.event()).await;
        }
        if step % 4 == 0 {
            relay.run(&writer.statement(relay.tables));
        }
        assert_exact(&mut client, relay, &format!("{context}, step {step}")).await;
    }
    sync_beside(relay, &sidecar, writer, context).await;
    assert_exact(&mut client, relay, &format!("{context}, at last")).await;
}

/// nostr-sdk syncs repeatedly while the relay writes, and is equal to it at the end.
async fn sync_beside(relay: &StoredRelay, sidecar: &Sidecar, writer: &mut Writer, context: &str) {
    let options = MemoryDatabaseOptions { events: true, max_events: None };
    let sdk = SdkClient::builder().database(MemoryDatabase::with_opts(options)).build();
    sdk.add_relay(sidecar.process.url()).await.unwrap();
    sdk.try_connect_relay(sidecar.process.url(), PATIENCE).await.unwrap();
    let mut client = sidecar.client().await;
    let is_written = AtomicBool::new(false);
    let writes = async {
        for number in 0..EVENTS_BESIDE_SYNCS {
            client.store(&writer.event()).await;
            if number % 20 == 0 {
                relay.run(&relay.tables.clean_up(unix_now(), EPOCH + number / 8));
            }
        }
        is_written.store(true, Ordering::Relaxed);
    };
    let syncs = async {
        while !is_written.load(Ordering::Relaxed) {
            sync(&sdk).await;
        }
    };
    tokio::join!(writes, syncs);
    sync(&sdk).await;
    let held = sdk.database().query(SdkFilter::new()).await.unwrap();
    let held: BTreeSet<String> = held.iter().map(|event| event.id.to_hex()).collect();
    // Expired events need not be there.
    let shown = public(&relay.visible(unix_now()));
    let missing: Vec<&Value> = shown.iter().filter(|event| !held.contains(id_of(event))).collect();
    assert!(shown.len() > 20, "{context}: {}", shown.len());
    assert!(missing.is_empty(), "{context}: {missing:?}");
    sdk.shutdown().await;
}

async fn sync(client: &SdkClient) {
    let options = SyncOptions::new().direction(SyncDirection::Down);
    let output = client.sync(SdkFilter::new(), &options).await.unwrap();
    assert!(output.failed.is_empty() && !output.success.is_empty(), "{:?}", output.failed);
}
