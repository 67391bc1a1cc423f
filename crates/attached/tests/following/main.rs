//! After any commits of the relay, the set equals a scan of the events that it shows.

mod encryption;

use negsync_attached::AttachedPostgres;
use negsync_nostr::hex;
use negsync_reconcile::Item;
use negsync_store::{AttachedOptions, Clock, Event, EventSource, Filter, PrivateKinds, RelayKind};
use negsync_testserver::{HeardSet, RelayTables, TestServer, query, run};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// Timeout for reading everything again.
const PATIENCE: Duration = Duration::from_secs(60);
const EPOCH: u64 = 1_700_000_000;
const SPAN_S: u64 = 1_000;
const AUTHORS: u8 = 4;
const PRIVATE: u16 = 4;

/// A server that allows its changes to be followed.
fn server() -> Option<TestServer> {
    server_with(&[])
}

/// As [`server`], with more settings.
fn server_with(settings: &[(&'static str, &str)]) -> Option<TestServer> {
    let followed = [("wal_level", "logical"), ("max_slot_wal_keep_size", "1GB"), ("fsync", "off")];
    TestServer::start_own(&[&followed, settings].concat())
}

/// An unsigned event: signatures are not checked here.
fn event(rng: &mut StdRng, earlier: &[Value]) -> Value {
    let kind = match rng.random_range(0..60) {
        0 => 62,
        1..4 => PRIVATE,
        4..7 => 20_001,
        7..14 => [0, 3, 41, 10_002][rng.random_range(0..4)],
        14..22 => 30_023,
        22..28 => 5,
        _ => 1,
    };
    let (digits, long) = ("ab".repeat(32), "long ".repeat(20));
    let topic =
        ["nostr", "it's", &digits, &long, "\u{1f98a} \\ \"quoted\""][rng.random_range(0..5)];
    let mut tags = vec![json!(["t", topic]), json!(["p", "cd".repeat(32)])];
    if rng.random_range(0..6) == 0 {
        tags.push(json!([
            "expiration",
            (Clock::system().now() + rng.random_range(1..4)).to_string()
        ]));
    }
    if kind == 30_023 && rng.random_range(0..4) > 0 {
        let d = ["", "one", "ab"][rng.random_range(0..3)];
        tags.push(json!(["d", d]));
    }
    let mut author = hex::encode(&[rng.random_range(1..AUTHORS); 32]);
    if kind == 5 && !earlier.is_empty() {
        for _ in 0..rng.random_range(1..3) {
            let target = &earlier[rng.random_range(0..earlier.len())];
            tags.push(json!(["e", target["id"]]));
            author = target["pubkey"].as_str().unwrap().to_owned();
        }
    }
    json!({
        "id": hex::encode(&rng.random::<[u8; 32]>()),
        "pubkey": author,
        "created_at": EPOCH + rng.random_range(0..SPAN_S),
        "kind": kind,
        "tags": tags,
        // Some contents are stored out of line.
        "content": "it's \"long\" ".repeat([1, 2_000][usize::from(rng.random_range(0..5) == 0)]),
        "sig": hex::encode(&[7; 64]),
    })
}

/// A relay's database, without the relay.
struct Relay {
    tables: RelayTables,
    url: String,
    // The published events, newest last.
    events: Vec<Value>,
}

impl Relay {
    fn new(server: &TestServer, tables: RelayTables) -> Self {
        let relay = Self { tables, url: server.database(), events: Vec::new() };
        relay.run(tables.schema());
        relay
    }

    fn kind(&self) -> RelayKind {
        match self.tables {
            RelayTables::Nostream => RelayKind::Nostream,
            RelayTables::NostrRsRelay => RelayKind::NostrRsRelay,
        }
    }

    fn run(&self, sql: &str) {
        run(&self.url, sql).unwrap_or_else(|error| panic!("{error:?}: {sql}"));
    }

    /// Each of the transactions with which the relay stores a new event.
    fn publish(&mut self, rng: &mut StdRng) -> Vec<String> {
        let event = event(rng, &self.events);
        let transactions = self.tables.publish(&event);
        self.events.push(event);
        transactions
    }

    /// The statements of one transaction: mostly the relay's own, sometimes a manual change.
    fn statements(&mut self, rng: &mut StdRng) -> String {
        let events = self.tables.events();
        let (hide, show) = match self.tables {
            RelayTables::Nostream => ("deleted_at = now()", "deleted_at = NULL"),
            RelayTables::NostrRsRelay => ("hidden = B'1'", "hidden = B'0'"),
        };
        let any = format!("ctid IN (SELECT ctid FROM {events} ORDER BY random() LIMIT 3)");
        match rng.random_range(0..16) {
            0 => format!("UPDATE {events} SET {hide} WHERE {any}"),
            1 => format!("UPDATE {events} SET {show} WHERE {any}"),
            2 => format!("DELETE FROM {events} WHERE {any}"),
            3 => {
                self.tables.clean_up(Clock::system().now(), EPOCH + rng.random_range(0..SPAN_S / 4))
            }
            _ => self.publish(rng).join("; "),
        }
    }

    /// The events that the relay shows at `now`, by a direct scan.
    fn visible(&self, now: u64) -> Vec<Event> {
        let rows = query(&self.url, &self.tables.shown(now)).unwrap();
        let json = rows.iter().map(|row| row[0].as_deref().unwrap());
        json.map(|json| Event::parse(json).unwrap()).collect()
    }

    /// The public ones among them.
    fn shown(&self, now: u64) -> BTreeSet<Item> {
        let events = self.visible(now);
        events.iter().filter(|event| event.kind() != PRIVATE).map(Event::item).collect()
    }
}

fn attach(relay: &Relay, heard: &HeardSet) -> AttachedPostgres {
    let listener = Box::new(heard.clone());
    let private = PrivateKinds::new([PRIVATE]);
    let options = AttachedOptions::default().private_kinds(private);
    AttachedPostgres::open(relay.kind(), &relay.url, options, listener).unwrap()
}

fn scanned(source: &AttachedPostgres, filter: &Value) -> BTreeSet<Item> {
    let mut items = BTreeSet::new();
    let filter = Filter::from_json(filter).unwrap();
    source
        .read_snapshot(&mut |moment| {
            moment.items(&filter, &mut |item| {
                items.insert(item);
                ControlFlow::Continue(())
            })
        })
        .unwrap();
    items
}

/// Events may expire during the check: the set is that of one of the seconds in which it was read.
fn assert_exact(relay: &Relay, source: &AttachedPostgres, heard: &HeardSet, context: &str) {
    let before = Clock::system().now();
    source.catch_up().unwrap();
    let found = heard.items();
    let public = PrivateKinds::new([PRIVATE]).public_part(&Filter::default());
    let (mut scan, mut at_commit) = (BTreeSet::new(), None);
    source
        .read_at_commit(&mut || at_commit = Some(heard.items()), &mut |moment| {
            moment.items(&public, &mut |item| {
                scan.insert(item);
                ControlFlow::Continue(())
            })
        })
        .unwrap();
    assert_eq!(at_commit.as_ref(), Some(&scan), "{context}");
    let expected: Vec<BTreeSet<Item>> =
        (before..=Clock::system().now()).map(|second| relay.shown(second)).collect();
    for known in [&found, &scan] {
        if !expected.contains(known) {
            assert_eq!(Some(known), expected.last(), "{context}");
        }
    }
}

#[test]
fn sets_equal_a_scan_whatever_the_relay_commits() {
    let Some(server) = server() else { return };
    let seeds = std::env::var("NEGSYNC_SEEDS").map_or(2, |text| text.parse().unwrap());
    for tables in RelayTables::ALL {
        for seed in 0..seeds {
            eprintln!("{tables:?}, seed {seed}");
            follow_random_writes(Relay::new(&server, tables), seed);
        }
    }
}

fn follow_random_writes(mut relay: Relay, seed: u64) {
    let name = format!("{:?}, seed {seed}", relay.tables);
    let mut rng = StdRng::seed_from_u64(seed);
    for _ in 0..20 {
        let statements = relay.statements(&mut rng);
        relay.run(&statements);
    }
    let heard = HeardSet::exact();
    let source = attach(&relay, &heard);
    assert_exact(&relay, &source, &heard, &format!("{name}, at first"));
    for step in 0..30 {
        let count = rng.random_range(1..6);
        let all: Vec<String> = (0..count).map(|_| relay.statements(&mut rng)).collect();
        let end = ["COMMIT", "COMMIT", "COMMIT", "ROLLBACK"][rng.random_range(0..4)];
        let begin = ["", "SET synchronous_commit = off; "][rng.random_range(0..2)];
        relay.run(&format!("{begin}BEGIN; {}; {end}", all.join("; ")));
        assert_exact(&relay, &source, &heard, &format!("{name}, step {step}"));
    }
    assert_eq!(heard.begun(), 1, "read anew without a reason");
    // Nothing expires between two scans.
    relay.run(&format!("DELETE FROM {} WHERE expires_at IS NOT NULL", relay.tables.events()));
    let topic = json!({ "#t": ["it's"], "kinds": [1] });
    let long = json!({ "#t": ["long ".repeat(20), "nostr", "\u{1f98a} \\ \"quoted\""] });
    let hex = json!({ "#t": ["ab".repeat(32)], "#d": ["", "ab", "one"] });
    let person = json!({ "#p": ["cd".repeat(32)], "since": EPOCH + SPAN_S / 2 });
    let visible = relay.visible(Clock::system().now());
    for asked in [&topic, &long, &hex, &person, &json!({ "authors": ["02".repeat(32)] })] {
        let filter = Filter::from_json(asked).unwrap();
        let matching = visible.iter().filter(|event| filter.matches(event)).map(Event::item);
        assert_eq!(scanned(&source, asked), matching.collect(), "{name}: {asked}");
    }
}

/// After a restart and after a TRUNCATE everything is read again, and no set is answered until
/// then.
#[test]
fn a_lost_feed_is_begun_anew() {
    let Some(mut server) = server() else { return };
    let heard = HeardSet::exact();
    let mut rng = StdRng::seed_from_u64(1);
    let (source, url) = {
        let mut relay = Relay::new(&server, RelayTables::Nostream);
        for _ in 0..10 {
            relay.publish(&mut rng).iter().for_each(|sql| relay.run(sql));
        }
        let source = attach(&relay, &heard);
        assert_exact(&relay, &source, &heard, "at first");
        relay.run("TRUNCATE events");
        // Unless the watching thread was faster, and has read everything already.
        if let Err(error) = source.catch_up() {
            assert!(error.to_string().contains("truncated"), "{error}");
        }
        begun_anew(&heard, 2);
        assert_exact(&relay, &source, &heard, "after a TRUNCATE");
        // An additional column is ignored.
        relay.run("ALTER TABLE events ADD COLUMN note text DEFAULT 'x'");
        relay.publish(&mut rng).iter().for_each(|sql| relay.run(sql));
        assert_exact(&relay, &source, &heard, "after a column more");
        assert_eq!(heard.begun(), 2);
        (source, relay.url)
    };
    server.kill_and_restart();
    let relay = Relay { tables: RelayTables::Nostream, url, events: Vec::new() };
    begun_anew(&heard, 3);
    assert_exact(&relay, &source, &heard, "after a restart");
    relay.run("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots");
    begun_anew(&heard, 4);
    assert_exact(&relay, &source, &heard, "after the slot was lost");
}

/// Changes that a partial publication leaves out would be missing permanently.
#[test]
fn a_publication_that_leaves_something_out_ends_the_answers_until_it_is_whole_again() {
    let Some(server) = server() else { return };
    let mut rng = StdRng::seed_from_u64(3);
    let mut relay = Relay::new(&server, RelayTables::Nostream);
    let heard = HeardSet::exact();
    let source = attach(&relay, &heard);
    let changes = [
        ("SET TABLE events WHERE (event_kind = 1)", "SET TABLE events"),
        ("SET (publish = 'insert')", "SET (publish = 'insert, update, delete, truncate')"),
    ];
    for (part, whole) in changes {
        let begun = heard.begun();
        relay.run(&format!("ALTER PUBLICATION negsync_attach {part}"));
        relay.publish(&mut rng).iter().for_each(|sql| relay.run(sql));
        source.catch_up().expect_err(part);
        relay.run(&format!("ALTER PUBLICATION negsync_attach {whole}"));
        begun_anew(&heard, begun + 1);
        assert_exact(&relay, &source, &heard, part);
    }
}

/// The feed decodes a change with the publication of its time.
#[test]
fn a_publication_that_left_something_out_for_a_time_has_everything_read_anew() {
    let Some(server) = server() else { return };
    let mut rng = StdRng::seed_from_u64(4);
    let mut relay = Relay::new(&server, RelayTables::Nostream);
    relay.publish(&mut rng).iter().for_each(|sql| relay.run(sql));
    let heard = HeardSet::exact();
    let source = attach(&relay, &heard);
    let changes = [
        (
            "ALTER PUBLICATION negsync_attach SET (publish = 'insert')",
            "ALTER PUBLICATION negsync_attach SET (publish = 'insert, update, delete, truncate')",
        ),
        ("DROP PUBLICATION negsync_attach", "CREATE PUBLICATION negsync_attach FOR TABLE events"),
    ];
    for (part, whole) in changes {
        let begun = heard.begun();
        relay.run(&format!("BEGIN; {part}; DELETE FROM events; {whole}; COMMIT"));
        begun_anew(&heard, begun + 1);
        assert_exact(&relay, &source, &heard, part);
        relay.publish(&mut rng).iter().for_each(|sql| relay.run(sql));
        assert_exact(&relay, &source, &heard, whole);
    }
}

/// A change that was interrupted by a panic does not count as applied.
#[test]
fn everything_is_read_anew_after_a_look_that_panicked() {
    let Some(server) = server() else { return };
    let mut rng = StdRng::seed_from_u64(2);
    for tables in RelayTables::ALL {
        let mut relay = Relay::new(&server, tables);
        let heard = HeardSet::exact();
        let source = attach(&relay, &heard);
        heard.fail_next();
        while heard.is_to_fail() {
            relay.publish(&mut rng).iter().for_each(|sql| relay.run(sql));
            // It panics here or on the watching thread.
            let _ = catch_unwind(AssertUnwindSafe(|| source.catch_up()));
        }
        begun_anew(&heard, 2);
        assert_exact(&relay, &source, &heard, &format!("{tables:?}"));
    }
}

fn begun_anew(heard: &HeardSet, times: usize) {
    let began = Instant::now();
    while heard.begun() < times {
        assert!(began.elapsed() < PATIENCE, "not read anew");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn an_unknown_database_is_refused_and_named_without_its_password() {
    let Some(server) = server() else { return };
    let refused = |kind, sql: &str| {
        let url = server.database();
        run(&url, sql).unwrap();
        let listener = Box::new(HeardSet::exact());
        let url = url.replace("postgres@", "postgres:hush@");
        let opened = AttachedPostgres::open(kind, &url, AttachedOptions::default(), listener);
        let error = opened.err().unwrap().to_string();
        assert!(!error.contains("hush"), "{error}");
        error
    };
    let (nostream, rs) = (RelayTables::Nostream.schema(), RelayTables::NostrRsRelay.schema());
    for (kind, sql, named) in [
        (RelayKind::Nostream, "".to_owned(), "no table events"),
        (RelayKind::NostrRelayPy, "".to_owned(), "does not work with PostgreSQL"),
        (RelayKind::NostrRsRelay, rs.replace("(4), (5)", "(4), (5), (6)"), "schema 6"),
        (
            RelayKind::Nostream,
            format!("{nostream} ALTER TABLE events DROP deleted_at"),
            "no column deleted_at",
        ),
        (
            RelayKind::Nostream,
            format!("{nostream} ALTER TABLE events ALTER event_signature TYPE text"),
            "event_signature is text",
        ),
    ] {
        let error = refused(kind, &sql);
        assert!(error.contains(named), "{error}");
    }
}
