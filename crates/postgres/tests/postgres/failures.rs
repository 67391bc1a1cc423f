//! A node when the server or the network fails: sets are refused or correct, acknowledged events
//! are there, and everything recovers by itself.

use crate::support::proxy::{self, Network};
use crate::support::{self, EPOCH, event, hex, note, open, set};
use negsync_nostr::VerifiedEvent;
use negsync_postgres::PostgresStore;
use negsync_reconcile::Item;
use negsync_store::{EventSource, EventStore, Filter, Outcome, Selection, SourceSnapshot};
use negsync_testserver::{self as server, HeardSet, TestServer};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// Like [`set`], retried until it succeeds.
fn set_again(store: &PostgresStore, heard: &HeardSet) -> BTreeSet<Item> {
    loop {
        match set(store, heard) {
            Ok(set) => return set,
            Err(_) => std::thread::yield_now(),
        }
    }
}

/// Stores events one by one; each gets an answer.
fn store_all(store: &PostgresStore, events: &[VerifiedEvent]) {
    for event in events {
        let outcomes = store.publish(vec![support::again(event)]).unwrap();
        assert!(matches!(outcomes[..], [Outcome::Stored | Outcome::Duplicate]), "{outcomes:?}");
    }
}

fn notes(rng: &mut StdRng, count: usize) -> Vec<VerifiedEvent> {
    (0..count).map(|_| note(rng)).collect()
}

fn items(events: &[VerifiedEvent]) -> BTreeSet<Item> {
    events.iter().map(|event| event.item()).collect()
}

/// Two nodes of one database, and the network between the first and the server.
struct Nodes {
    network: Arc<Network>,
    one: PostgresStore,
    heard: HeardSet,
    other: PostgresStore,
    other_heard: HeardSet,
}

impl Nodes {
    fn open(server: &mut TestServer) -> Self {
        let (network, url) = proxy::start(server);
        let (heard, other_heard) = (HeardSet::default(), HeardSet::default());
        let one = open(&url, heard.clone());
        let other = open(server.url(), other_heard.clone());
        Self { network, one, heard, other, other_heard }
    }
}

/// The log of all threads of this program from then on. Only one test of the program may start it.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn begin() -> Self {
        let log = Self::default();
        let written = log.clone();
        let subscriber =
            tracing_subscriber::fmt().with_ansi(false).with_max_level(tracing::Level::WARN);
        let subscriber = subscriber.with_writer(move || written.clone()).finish();
        tracing::subscriber::set_global_default(subscriber).unwrap();
        log
    }

    /// Whether a line contains both texts. Other tests write to the same log.
    fn has_line(&self, phrase: &str, detail: &str) -> bool {
        let text = String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned();
        text.lines().any(|line| line.contains(phrase) && line.contains(detail))
    }
}

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn an_asynchronous_replica_that_is_promoted_lost_a_tail_which_is_named_and_sent_again() {
    let Some(mut primary) = TestServer::start_own(&[]) else { return };
    let log = Log::begin();
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut replica = primary.server().replica();
    let url = primary.url_with(&replica);
    let (heard, other_heard) = (HeardSet::default(), HeardSet::default());
    let (one, other) = (open(&url, heard.clone()), open(&url, other_heard.clone()));
    let (kept, lost) = (notes(&mut rng, 20), notes(&mut rng, 20));
    store_all(&one, &kept);
    let buried = kept[3].item().id;
    // The replica receives nothing from here on.
    let here = "SELECT 1 / CASE WHEN pg_current_wal_lsn() <= replay_lsn THEN 1 ELSE 0 END \
        FROM pg_stat_replication";
    while server::run(&primary.server().url(), here).is_err() {}
    replica.kill();
    store_all(&one, &lost);
    one.delete(&Selection { ids: vec![buried], filter: None }).unwrap();
    other.catch_up().unwrap();
    assert_eq!(heard.items(), other_heard.items());
    primary.server().kill();
    replica.start();
    replica.promote();
    // Every set equals the table, from the first one on.
    set_again(&other, &other_heard);
    set_again(&one, &heard);
    // Events that this node acknowledged come back by themselves, and so does the removal.
    let mut all = items(&kept);
    all.extend(items(&lost));
    all.remove(&kept[3].item());
    while set_again(&other, &other_heard) != all {}
    assert_eq!(set_again(&one, &heard), all);
    assert_eq!((heard.begun(), other_heard.begun()), (1, 1), "nothing was read anew");
    // Repeated operations are logged before the writer ends.
    one.close();
    let is_named =
        |event: &VerifiedEvent| log.has_line("database lost commits", &hex(event.item().id));
    assert!(lost.iter().any(is_named));
    assert!(log.has_line("acknowledged removal sent again after commits were lost", "ids=1"));
}

#[test]
fn a_synchronous_replica_that_is_promoted_has_everything() {
    let Some(mut primary) = TestServer::start_own(&[]) else { return };
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let replica = primary.server().replica();
    let primary_url = primary.server().url();
    server::run(&primary_url, "ALTER SYSTEM SET synchronous_standby_names = '*'").unwrap();
    server::run(&primary_url, "SELECT pg_reload_conf()").unwrap();
    let is_set = "SELECT 1 / count(*) FROM pg_stat_replication WHERE sync_state = 'sync'";
    while server::run(&primary_url, is_set).is_err() {}
    let url = primary.url_with(&replica);
    let heard = HeardSet::default();
    let store = open(&url, heard.clone());
    let (acknowledged, is_over) = (Mutex::new(BTreeSet::new()), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for writer in 0..3 {
            let (store, acknowledged, is_over) = (store.clone(), &acknowledged, &is_over);
            scope.spawn(move || {
                let mut rng = StdRng::seed_from_u64(seed ^ writer);
                while !is_over.load(Ordering::Relaxed) {
                    let event = note(&mut rng);
                    let item = event.item();
                    let outcomes = store.publish(vec![event]).unwrap();
                    if matches!(outcomes[..], [Outcome::Stored | Outcome::Duplicate]) {
                        acknowledged.lock().unwrap().insert(item);
                    }
                }
            });
        }
        let count = || acknowledged.lock().unwrap().len();
        while count() < 200 {
            std::thread::yield_now();
        }
        primary.server().kill();
        let before = count();
        replica.promote();
        // Commits no longer wait for a replica of the replica.
        server::run(&replica.url(), "ALTER SYSTEM SET synchronous_standby_names = ''").unwrap();
        server::run(&replica.url(), "SELECT pg_reload_conf()").unwrap();
        while count() < before + 100 {
            std::thread::yield_now();
        }
        is_over.store(true, Ordering::Relaxed);
    });
    let stored = set_again(&store, &heard);
    assert!(acknowledged.lock().unwrap().is_subset(&stored));
    assert_eq!(heard.begun(), 1, "no commit was lost, and nothing read anew");
}

#[test]
fn a_node_that_was_away_longer_than_the_feed_reaches_reads_everything_anew() {
    let Some(mut server) = TestServer::start_own(&[]) else { return };
    let mut rng = StdRng::seed_from_u64(4);
    let Nodes { network, one, heard, other, other_heard } = Nodes::open(&mut server);
    store_all(&one, &notes(&mut rng, 5));
    network.is_cut.store(true, Ordering::Relaxed);
    network.drop_all();
    store_all(&other, &notes(&mut rng, 5));
    assert!(set(&one, &heard).is_err());
    assert!(!one.is_durable());
    // As many commits as are kept, and one more, with which older ones are removed.
    let skipped = "BEGIN; INSERT INTO negsync.feed_commit (seq, mark, added, removed)
            SELECT seq, seq, 0, 0 FROM generate_series(11, 110999) AS seq;
        UPDATE negsync.head SET (seq, mark) = (110999, 110999); COMMIT";
    server::run(server.url(), skipped).unwrap();
    store_all(&other, &notes(&mut rng, 2));
    let pruned = "SELECT 1 / (SELECT count(*) FROM negsync.feed_commit WHERE seq <= 11000)";
    assert!(server::run(server.url(), pruned).is_err(), "the feed is not pruned");
    network.is_cut.store(false, Ordering::Relaxed);
    let stored = set_again(&one, &heard);
    assert_eq!((stored.len(), heard.begun()), (12, 2));
    assert_eq!(stored, set(&other, &other_heard).unwrap());
}

#[test]
fn over_a_network_that_fails_sets_are_refused_or_right() {
    let Some(mut server) = TestServer::start_own(&[]) else { return };
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let Nodes { network, one, heard, other, other_heard } = Nodes::open(&mut server);
    let mut acknowledged = BTreeSet::new();
    for _ in 0..12 {
        match rng.random_range(0..4) {
            0 => network.drop_all(),
            1 => {
                network.is_cut.store(true, Ordering::Relaxed);
                network.drop_all();
            }
            2 => network.is_stalled.store(true, Ordering::Relaxed),
            _ => {}
        }
        let event = note(&mut rng);
        acknowledged.insert(event.item());
        store_all(&other, &[event]);
        let event = note(&mut rng);
        let item = event.item();
        let outcomes = std::thread::scope(|scope| {
            let published = scope.spawn(|| one.publish(vec![event]).unwrap());
            if let Ok(set) = set(&one, &heard) {
                assert!(acknowledged.is_subset(&set), "seed {seed}");
            }
            network.is_cut.store(false, Ordering::Relaxed);
            network.is_stalled.store(false, Ordering::Relaxed);
            published.join().unwrap()
        });
        match outcomes[..] {
            [Outcome::Stored | Outcome::Duplicate] => drop(acknowledged.insert(item)),
            [Outcome::Failed(_)] => {}
            ref other => panic!("{other:?}"),
        }
        let stored = set_again(&one, &heard);
        assert!(acknowledged.is_subset(&stored), "seed {seed}");
    }
    assert_eq!(set_again(&one, &heard), set(&other, &other_heard).unwrap());
    assert_eq!(heard.begun(), 1);
}

#[test]
fn a_commit_whose_answer_is_lost_is_done_once() {
    let Some(mut server) = TestServer::start_own(&[]) else { return };
    let mut rng = StdRng::seed_from_u64(6);
    let Nodes { network, one, heard, other, other_heard } = Nodes::open(&mut server);
    let events = notes(&mut rng, 5);
    for event in &events {
        network.loses_commit_answer.store(true, Ordering::Relaxed);
        store_all(&one, std::slice::from_ref(event));
        assert!(!network.loses_commit_answer.load(Ordering::Relaxed));
    }
    assert_eq!(set_again(&one, &heard), items(&events));
    // Other nodes get an ephemeral event once.
    let passed: Vec<Item> = [1, 2].map(|id| Item::new(EPOCH, [id; 32])).into();
    for item in &passed {
        network.loses_commit_answer.store(true, Ordering::Relaxed);
        let ephemeral = event(item.id, 1, 20_001, EPOCH, "[]");
        assert_eq!(one.publish(vec![ephemeral]).unwrap(), [Outcome::PassedOn]);
    }
    while !other_heard.passed().contains(&passed[1]) {
        std::thread::yield_now();
    }
    assert_eq!((heard.passed(), other_heard.passed()), (passed.clone(), passed));
    // A request is performed although no node was notified that it is stored.
    let author = *events[0].pubkey();
    let vanish = event([9; 32], author[0], 62, EPOCH + 5_000, r#"[["relay","ALL_RELAYS"]]"#);
    network.loses_commit_answer.store(true, Ordering::Relaxed);
    store_all(&one, &[vanish]);
    let left = |set: &BTreeSet<Item>| {
        events.iter().any(|event| *event.pubkey() == author && set.contains(&event.item()))
    };
    while left(&set_again(&other, &other_heard)) {}
}

/// Stores rows in one commit, like another node; `json` is SQL.
fn store_rows(server: &TestServer, rows: usize, json: &str) {
    let commit = format!(
        "BEGIN;
         INSERT INTO negsync.event (id, pubkey, created_at, kind, seq, json)
            SELECT sha256(number::text::bytea), '\\x01', 1700000000 + number, 1, seq + 1, {json}
            FROM generate_series(1, {rows}) AS number, negsync.head;
         INSERT INTO negsync.feed_commit (seq, mark, added, removed)
            SELECT seq + 1, 7, {rows}, 0 FROM negsync.head;
         UPDATE negsync.head SET (seq, mark) = (seq + 1, 7); COMMIT"
    );
    server::run(server.url(), &commit).unwrap();
}

#[test]
fn a_backlog_of_removals_or_of_long_events_is_not_read_one_by_one() {
    let Some(server) = TestServer::start() else { return };
    let heard = HeardSet::default();
    let store = open(server.url(), heard.clone());
    // 84 MB in total, which the server compresses.
    store_rows(&server, 21, "repeat('x', 4000000)");
    assert_eq!(set(&store, &heard).unwrap().len(), 21);
    assert_eq!(heard.begun(), 2, "long events were read one by one");
    let removals = "BEGIN;
        INSERT INTO negsync.gone (seq, id, created_at)
            SELECT seq + 1, sha256(number::text::bytea), 1700000000 + number
            FROM generate_series(1, 50001) AS number, negsync.head;
        INSERT INTO negsync.feed_commit (seq, mark, added, removed)
            SELECT seq + 1, 8, 0, 50001 FROM negsync.head;
        DELETE FROM negsync.event;
        UPDATE negsync.head SET (seq, mark) = (seq + 1, 8); COMMIT";
    server::run(server.url(), removals).unwrap();
    assert_eq!(set(&store, &heard).unwrap().len(), 0);
    assert_eq!(heard.begun(), 3, "removals were read one by one");
}

#[test]
fn a_query_without_an_answer_in_time_is_ended_on_the_server() {
    let Some(mut server) = TestServer::start_own(&[]) else { return };
    let (_, url) = proxy::start(&mut server);
    let store = open(&url, HeardSet::default());
    std::thread::scope(|scope| {
        let locked = "BEGIN; LOCK TABLE negsync.refused; SELECT pg_sleep(120)";
        scope.spawn(|| server::run(server.url(), locked));
        let count = |filter: &str| {
            let counted = server::query(server.url(), &format!("SELECT count(*) {filter}"));
            counted.unwrap().remove(0).remove(0).unwrap()
        };
        let held = "FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND granted
            AND relation = 'negsync.refused'::regclass";
        while count(held) == "0" {}
        let error = store.refused("wss://peer", &[[1; 32]]).unwrap_err();
        assert!(error.to_string().contains("PostgreSQL"), "{error}");
        while count("FROM pg_locks WHERE NOT granted") != "0" {}
        assert_eq!(count(held), "1", "the query waited until the lock was given up");
        let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
            WHERE pid <> pg_backend_pid() AND query LIKE '%pg_sleep(120)%'";
        server::run(server.url(), end).unwrap();
    });
}

#[test]
fn of_a_result_that_is_broken_off_the_rest_is_not_sent() {
    const ROWS: usize = 100_000;
    let Some(mut server) = TestServer::start_own(&[]) else { return };
    let (network, url) = proxy::start(&mut server);
    let store = open(&url, HeardSet::default());
    store_rows(&server, ROWS, "''");
    store.catch_up().unwrap();
    let filter = Filter { kinds: Some(vec![1]), ..Filter::default() };
    let read = |most: usize| {
        let (before, mut seen) = (network.bytes_down.load(Ordering::Relaxed), 0);
        let mut visit = |_: &Item| {
            seen += 1;
            if seen == most { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let mut work =
            |snapshot: &dyn SourceSnapshot| snapshot.items(&filter, &mut |item| visit(&item));
        store.read_snapshot(&mut work).unwrap();
        (seen, network.bytes_down.load(Ordering::Relaxed) - before)
    };
    let (all, whole_bytes) = read(usize::MAX);
    let (few, few_bytes) = read(5);
    assert_eq!((all, few), (ROWS, 5));
    assert!(few_bytes * 8 < whole_bytes, "{few_bytes} of {whole_bytes} bytes were sent");
}

#[test]
fn where_the_server_does_not_say_what_is_new_a_node_looks_by_itself() {
    let Some(mut server) = TestServer::start_own(&[]) else { return };
    let mut rng = StdRng::seed_from_u64(7);
    let (network, url) = proxy::start(&mut server);
    network.has_no_listen.store(true, Ordering::Relaxed);
    let heard = HeardSet::default();
    let (_one, other) = (open(&url, heard.clone()), open(server.url(), HeardSet::default()));
    for event in notes(&mut rng, 10) {
        store_all(&other, std::slice::from_ref(&event));
        heard.wait_for(&event.item());
    }
}

/// A file system in memory, unmounted when dropped.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn mount(folder: &std::path::Path, size: &str) -> Option<Self> {
        let options = format!("size={size},uid=65534,gid=65534,mode=700");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(folder);
        let done = mount.output().is_ok_and(|done| done.status.success());
        done.then(|| Self(folder.to_owned()))
    }

    fn grow(&self, size: &str) {
        let options = format!("remount,size={size}");
        assert!(
            Command::new("mount").args(["-o", &options]).arg(&self.0).status().unwrap().success()
        );
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[test]
fn where_the_disk_of_the_server_is_full_events_are_refused_and_what_is_acknowledged_stays() {
    let Some(mut server) = TestServer::start_own(&[]) else { return };
    let folder = server.server().folder().join("small");
    std::fs::create_dir(&folder).unwrap();
    let Some(disk) = SmallDisk::mount(&folder, "20m") else {
        server::left_out("a full disk at the server. It takes a user who may mount file systems");
        return;
    };
    let database = server.database_name().to_owned();
    let admin = server.server().url();
    let make = format!("CREATE TABLESPACE small LOCATION '{}'", folder.display());
    server::run(&admin, &make).unwrap();
    server::run(&admin, &format!("ALTER DATABASE {database} SET TABLESPACE small")).unwrap();
    let heard = HeardSet::default();
    let store = open(server.url(), heard.clone());
    let mut acknowledged = BTreeSet::new();
    // The server compresses long values; this one is incompressible.
    let mut rng = StdRng::seed_from_u64(8);
    let mut long = || {
        let noise: String = (0..1_000).map(|_| hex(rng.random())).collect();
        event(rng.random(), 1, 1, EPOCH, &format!(r#"[["x","{noise}"]]"#))
    };
    let is_full = |store: &PostgresStore,
                   acknowledged: &mut BTreeSet<Item>,
                   event: VerifiedEvent| {
        let item = event.item();
        match &store.publish(vec![event]).unwrap()[..] {
            [Outcome::Stored] => {
                acknowledged.insert(item);
                false
            }
            [Outcome::Failed(reason)] => {
                assert!(reason.contains("No space left") || reason.contains("53100"), "{reason}");
                true
            }
            other => panic!("{other:?}"),
        }
    };
    while !is_full(&store, &mut acknowledged, long()) {}
    assert_eq!(set(&store, &heard).unwrap(), acknowledged);
    assert!(is_full(&store, &mut acknowledged, long()));
    disk.grow("60m");
    assert!(!is_full(&store, &mut acknowledged, long()));
    assert_eq!(set(&store, &heard).unwrap(), acknowledged);
    store.close();
    server.server().kill();
}

#[test]
fn without_the_order_of_commits_nothing_is_read_or_written() {
    let Some(server) = TestServer::start() else { return };
    let mut rng = StdRng::seed_from_u64(5);
    let (heard, other_heard) = (HeardSet::default(), HeardSet::default());
    let (one, other) = (open(server.url(), heard.clone()), open(server.url(), other_heard.clone()));
    let (stored, refused, later) = (notes(&mut rng, 5), notes(&mut rng, 5), notes(&mut rng, 5));
    store_all(&one, &stored);
    // A restore that is not one transaction fills the tables one after the other.
    let before = "CREATE TABLE kept AS SELECT * FROM negsync.head; DELETE FROM negsync.head";
    server::run(server.url(), before).unwrap();
    for event in &refused {
        let outcomes = one.publish(vec![support::again(event)]).unwrap();
        let is_named = |said: &str| said.contains("negsync.head is empty");
        assert!(matches!(&outcomes[..], [Outcome::Failed(said)] if is_named(said)), "{outcomes:?}");
    }
    assert!(set(&one, &heard).is_err());
    assert!(set(&other, &other_heard).is_err());
    assert!(other.follow_others().is_err());
    server::run(server.url(), "INSERT INTO negsync.head SELECT * FROM kept").unwrap();
    assert_eq!(set(&other, &other_heard).unwrap(), items(&stored));
    store_all(&other, &later);
    let all = &items(&stored) | &items(&later);
    assert_eq!(set(&one, &heard).unwrap(), all);
    assert_eq!((heard.begun(), other_heard.begun()), (1, 1), "nothing was read anew");
}
