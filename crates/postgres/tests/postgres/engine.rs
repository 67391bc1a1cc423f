//! The store over a real server: equal to the store on SQLite, on every node, and after a crash.

use crate::support::{self, EPOCH, all, event, hex, note, open, open_as, open_by, set, try_open};
use negsync_nostr::VerifiedEvent;
use negsync_postgres::{Address, PostgresStore};
use negsync_reconcile::Item;
use negsync_store::{
    Batches, Clock, Deadline, EventSource, EventStore, Filter, ManualClock, Outcome, PeerTraits,
    ReadMark, RefusedId, Selection, Store, StoreError, StoreOptions, SyncMark, Undelete, View,
};
use negsync_testserver::{HeardSet, TestServer};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

/// Number of histories that both engines get, unless `NEGSYNC_MODEL_RUNS` sets it.
const HISTORIES: u64 = 50;
const AUTHORS: u8 = 4;

fn any_event(rng: &mut StdRng, earlier: &[VerifiedEvent]) -> VerifiedEvent {
    let (author, at) = (rng.random_range(1..AUTHORS), EPOCH + rng.random_range(0..6));
    let someone = hex([rng.random_range(1..AUTHORS); 32]);
    let mut tags = vec![format!(r#"["t","{}"]"#, ["x", "y"][rng.random_range(0..2)])];
    let d = ["", "a"][rng.random_range(0..2)];
    let kind = match rng.random_range(0..40) {
        0 => 62,
        1..5 => 1_059,
        5..12 => 5,
        12..18 => 0,
        18..25 => 30_023,
        25..27 => 20_001,
        _ => 1,
    };
    match kind {
        62 => tags.push(r#"["relay","ALL_RELAYS"]"#.to_owned()),
        1_059 => tags.push(format!(r#"["p","{someone}"]"#)),
        30_023 => tags.push(format!(r#"["d","{d}"]"#)),
        5 => {
            for _ in 0..rng.random_range(0..4) {
                if let Some(target) = earlier.get(rng.random_range(0..earlier.len().max(1))) {
                    tags.push(format!(r#"["e","{}"]"#, hex(target.item().id)));
                }
            }
            if rng.random() {
                tags.push(format!(r#"["a","30023:{}:{d}"]"#, hex([author; 32])));
            }
        }
        _ => {}
    }
    match rng.random_range(0..12) {
        0 => tags.push(format!(r#"["expiration","{EPOCH}"]"#)),
        1 => tags.push(r#"["expiration","32503680000"]"#.to_owned()),
        _ => {}
    }
    event(rng.random(), author, kind, at, &format!("[{}]", tags.join(",")))
}

fn any_filter(rng: &mut StdRng, pool: &[VerifiedEvent]) -> Filter {
    let mut parts = Vec::new();
    if rng.random_ratio(1, 4) {
        let ids: Vec<String> = (0..3)
            .map(|_| format!("\"{}\"", hex(pool[rng.random_range(0..pool.len())].item().id)))
            .collect();
        parts.push(format!(r#""ids":[{}]"#, ids.join(",")));
    }
    if rng.random_ratio(1, 3) {
        let author = hex([rng.random_range(1..AUTHORS); 32]);
        parts.push(format!(r#""authors":["{author}","{}"]"#, hex([1; 32])));
    }
    if rng.random_ratio(1, 2) {
        parts
            .push([r#""kinds":[1,5]"#, r#""kinds":[0,1059,30023]"#][rng.random_range(0..2)].into());
    }
    if rng.random_ratio(1, 3) {
        parts.push([r##""#t":["x"]"##, r##""#t":["x","y"]"##][rng.random_range(0..2)].into());
    }
    if rng.random_ratio(1, 5) {
        parts.push(format!(r##""#p":["{}"]"##, hex([rng.random_range(1..AUTHORS); 32])));
    }
    if rng.random_ratio(1, 4) {
        parts.push(format!(r#""since":{}"#, EPOCH + rng.random_range(0..6)));
    }
    if rng.random_ratio(1, 4) {
        parts.push(format!(r#""until":{}"#, EPOCH + rng.random_range(0..6)));
    }
    if rng.random() {
        parts.push(format!(r#""limit":{}"#, rng.random_range(0..12)));
    }
    let mut filter = Filter::parse(&format!("{{{}}}", parts.join(","))).unwrap();
    if filter.kinds.is_none() && rng.random_ratio(1, 4) {
        filter.without_kinds = vec![1, 1_059];
    }
    filter
}

fn items(source: &dyn EventSource, filter: &Filter) -> BTreeSet<Item> {
    let mut items = BTreeSet::new();
    source
        .items(std::slice::from_ref(filter), &mut |_, item| {
            items.insert(item);
            ControlFlow::Continue(())
        })
        .unwrap();
    items
}

/// The events that a client gets for the filter, and whether any are left out.
fn page(store: &dyn EventStore, filter: &Filter) -> String {
    let mut sent = Vec::new();
    let mut visit = |_: &Item, json: &str| {
        sent.push(json.to_owned());
        ControlFlow::Continue(())
    };
    let views = [View::whole(filter.clone())];
    let page = store.newest_and_first(&views, 10, Clock::system().now(), &mut visit).unwrap();
    format!("{sent:?} {:?}", page.left_out)
}

fn assert_equal(
    one: &dyn EventStore,
    other: &dyn EventStore,
    rng: &mut StdRng,
    seed: u64,
    pool: &[VerifiedEvent],
) {
    assert_eq!(all(one), all(other), "seed {seed}");
    assert_eq!(one.kinds().unwrap(), other.kinds().unwrap(), "seed {seed}");
    for _ in 0..10 {
        let filter = any_filter(rng, pool);
        assert_eq!(page(one, &filter), page(other, &filter), "seed {seed}: {filter:?}");
        assert_eq!(items(one, &filter), items(other, &filter), "seed {seed}: {filter:?}");
    }
}

/// One history in both stores: each event has the same outcome, each answer is the same.
fn live_through(url: &str, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.sqlite");
    let sqlite = Store::open(&path, StoreOptions::default(), Box::new(|_| {})).unwrap();
    let heard = HeardSet::default();
    let postgres = open(url, heard.clone());
    let stores: [&dyn EventStore; 2] = [&sqlite, &postgres];
    let mut pool: Vec<VerifiedEvent> = Vec::new();
    for _ in 0..70 {
        let event = any_event(&mut rng, &pool);
        pool.push(event);
    }
    for _ in 0..rng.random_range(5..20) {
        match rng.random_range(0..12) {
            0 => {
                let ids = (0..3).map(|_| pool[rng.random_range(0..pool.len())].item().id).collect();
                let selection = Selection { ids, filter: None };
                let deleted = stores.map(|store| store.delete(&selection).unwrap());
                assert_eq!(deleted[0], deleted[1], "seed {seed}");
            }
            1 => {
                let [one, other] = stores.map(|store| store.undelete(&Undelete::All).unwrap());
                assert_eq!(one, other, "seed {seed}");
            }
            2 => {
                let filter = any_filter(&mut rng, &pool);
                stores.iter().for_each(|store| store.remove(&filter).unwrap());
            }
            _ => {
                let count = rng.random_range(1..30);
                let batch: Vec<&VerifiedEvent> =
                    (0..count).map(|_| &pool[rng.random_range(0..pool.len())]).collect();
                let again = || batch.iter().map(|event| support::again(event)).collect();
                let outcomes = stores.map(|store| store.publish(again()).unwrap());
                assert_eq!(outcomes[0], outcomes[1], "seed {seed}");
            }
        }
    }
    assert_equal(&sqlite, &postgres, &mut rng, seed, &pool);
    postgres.catch_up().unwrap();
    assert_eq!(heard.items(), items(&postgres, &Filter::default()), "seed {seed}");
    postgres.close();
}

#[test]
fn both_engines_hold_the_same_after_any_history() {
    let Some(server) = TestServer::start() else { return };
    let histories =
        std::env::var("NEGSYNC_MODEL_RUNS").map_or(HISTORIES, |runs| runs.parse().unwrap());
    let first = std::env::var("NEGSYNC_SEED")
        .map_or_else(|_| u64::from(rand::random::<u32>()), |seed| seed.parse().unwrap());
    println!("seeds {first} to {}", first + histories);
    for seed in first..first + histories {
        negsync_testserver::run(server.url(), "DROP SCHEMA IF EXISTS negsync CASCADE").unwrap();
        live_through(server.url(), seed);
    }
}

#[test]
fn each_node_has_what_any_node_has_acknowledged() {
    let Some(server) = TestServer::start() else { return };
    let seed = rand::random();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let (heard, other_heard) = (HeardSet::default(), HeardSet::default());
    let (one, other) = (open(server.url(), heard), open(server.url(), other_heard.clone()));
    let is_done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let busy = scope.spawn(|| {
            let (mut rng, third) =
                (StdRng::seed_from_u64(seed ^ 1), open(server.url(), HeardSet::default()));
            while !is_done.load(Ordering::Relaxed) {
                third.publish(vec![note(&mut rng), note(&mut rng)]).unwrap();
            }
            third.close();
        });
        for _ in 0..100 {
            let events: Vec<_> = (0..rng.random_range(1..4)).map(|_| note(&mut rng)).collect();
            let acknowledged: Vec<Item> = events.iter().map(|event| event.item()).collect();
            assert!(one.publish(events).unwrap().iter().all(|outcome| *outcome == Outcome::Stored));
            let read = set(&other, &other_heard).unwrap();
            assert!(acknowledged.iter().all(|item| read.contains(item)), "seed {seed}");
        }
        is_done.store(true, Ordering::Relaxed);
        busy.join().unwrap();
    });
    other.catch_up().unwrap();
    assert_eq!(other_heard.items(), items(&one, &Filter::default()));
    // Without a read: the commit arrives by itself.
    let late = note(&mut rng);
    let item = late.item();
    one.publish(vec![late]).unwrap();
    while !other_heard.items().contains(&item) {
        std::thread::yield_now();
    }
}

#[test]
fn nothing_acknowledged_is_lost_when_the_server_is_killed() {
    let Some(mut server) = TestServer::start() else { return };
    let mut rng = StdRng::seed_from_u64(7);
    let heard = HeardSet::default();
    let store = open(server.url(), heard.clone());
    let mut acknowledged = BTreeSet::new();
    for _ in 0..3 {
        for _ in 0..20 {
            let events: Vec<_> = (0..5).map(|_| note(&mut rng)).collect();
            let sent: Vec<Item> = events.iter().map(|event| event.item()).collect();
            for (outcome, item) in store.publish(events).unwrap().iter().zip(sent) {
                if matches!(outcome, Outcome::Stored | Outcome::Duplicate) {
                    acknowledged.insert(item);
                }
            }
        }
        if !server.kill_and_restart() {
            return;
        }
    }
    assert!(acknowledged.len() >= 100, "{}", acknowledged.len());
    // A read over a connection from before the crash has to be retried.
    while store.catch_up().is_err() {
        std::thread::yield_now();
    }
    let stored = items(&store, &Filter::default());
    assert!(acknowledged.is_subset(&stored));
    assert_eq!(heard.items(), stored);
}

/// The number of the last commit.
fn head(server: &TestServer) -> i64 {
    let rows = negsync_testserver::query(server.url(), "SELECT seq FROM negsync.head").unwrap();
    rows[0][0].as_ref().unwrap().parse().unwrap()
}

/// Loses the commits after a number, like a fail-over to a lagging replica: numbers are used a
/// second time. Events that they removed do not come back.
fn lose_behind(server: &TestServer, seq: i64) {
    let lose = format!(
        "BEGIN;
        DELETE FROM negsync.tag WHERE id IN (SELECT id FROM negsync.event WHERE seq > {seq});
        DELETE FROM negsync.event WHERE seq > {seq}; DELETE FROM negsync.gone WHERE seq > {seq};
        DELETE FROM negsync.feed_commit WHERE seq > {seq};
        UPDATE negsync.head SET (seq, mark) =
            (SELECT seq, mark FROM negsync.feed_commit WHERE seq = {seq});
        COMMIT"
    );
    negsync_testserver::run(server.url(), &lose).unwrap();
}

/// Lost operator actions are repeated in order, and only if they are lost.
#[test]
fn a_removal_that_is_sent_again_does_not_remove_what_was_published_after_it() {
    let Some(server) = TestServer::start() else { return };
    let mut rng = StdRng::seed_from_u64(11);
    let store = open(server.url(), HeardSet::default());
    let mut last = |store: &PostgresStore| {
        let event = note(&mut rng);
        let item = event.item();
        assert_eq!(store.publish(vec![event]).unwrap(), [Outcome::Stored]);
        item
    };
    let wait_for = |item: &Item| {
        store.catch_up().unwrap();
        while !items(&store, &Filter::default()).contains(item) {
            std::thread::yield_now();
        }
    };
    let target = event([7; 32], 1, 1, EPOCH, "[]");
    let (id, stored) = (target.item().id, [Outcome::Stored]);
    let selection = || Selection { ids: vec![id], filter: None };
    let by_id = Filter { ids: Some(vec![id]), ..Filter::default() };
    let begun = head(&server);
    assert_eq!(store.publish(vec![support::again(&target)]).unwrap(), stored);
    store.remove(&by_id).unwrap();
    assert_eq!(store.publish(vec![support::again(&target)]).unwrap(), stored);
    store.delete(&selection()).unwrap();
    assert_eq!(store.undelete(&Undelete::Selection(selection())).unwrap(), 1);
    assert_eq!(store.publish(vec![support::again(&target)]).unwrap(), stored);
    // The removals are durable, and later commits are lost.
    let safe = head(&server);
    let lost = last(&store);
    lose_behind(&server, safe);
    wait_for(&lost);
    assert!(items(&store, &Filter::default()).contains(&target.item()));
    // All of it is lost, including the undelete.
    lose_behind(&server, begun);
    wait_for(&lost);
    assert!(items(&store, &Filter::default()).contains(&target.item()));
    assert_eq!(store.undeleted(&Undelete::All).unwrap(), [[0; 32]; 0]);
    // Repeated for each loss.
    lose_behind(&server, begun);
    wait_for(&lost);
    assert!(items(&store, &Filter::default()).contains(&target.item()));
}

/// Like a fail-over to a lagging replica: numbers are used a second time.
#[test]
fn a_lost_tail_is_repaired_and_what_was_acknowledged_is_sent_again() {
    let Some(server) = TestServer::start() else { return };
    let mut rng = StdRng::seed_from_u64(9);
    let heard = HeardSet::default();
    let store = open(server.url(), heard.clone());
    for _ in 0..5 {
        store.publish(vec![note(&mut rng)]).unwrap();
    }
    lose_behind(&server, 3);
    let other = open(server.url(), HeardSet::default());
    for _ in 0..4 {
        other.publish(vec![note(&mut rng)]).unwrap();
    }
    store.catch_up().unwrap();
    // The two lost events come back.
    let mut stored = items(&other, &Filter::default());
    while stored.len() < 9 {
        stored = items(&other, &Filter::default());
    }
    store.catch_up().unwrap();
    assert_eq!(heard.items(), stored);
    assert_eq!(heard.begun(), 1, "nothing was read anew");
    // This node's own commits are published in order again.
    store.publish(vec![note(&mut rng)]).unwrap();
    assert_eq!(heard.items(), items(&store, &Filter::default()));
}

#[test]
fn an_import_of_much_leaves_tables_that_are_vacuumed() {
    let Some(server) = TestServer::start() else { return };
    let options = || StoreOptions::default().batches(Batches::Long { bytes: 4 << 20 });
    let address = Address::parse(server.url()).unwrap();
    let mut rng = StdRng::seed_from_u64(11);
    // The part of the table that index scans do not have to visit.
    let is_vacuumed = || {
        let visible =
            "SELECT relallvisible > 0 FROM pg_class WHERE oid = 'negsync.event'::regclass";
        let rows = negsync_testserver::query(server.url(), visible).unwrap();
        rows.concat() == [Some("t".to_owned())]
    };
    for (events, is_much) in [(100, false), (10_000, true)] {
        let store = PostgresStore::open_without_sets(&address, options()).unwrap();
        // So that only the store vacuums.
        let alone = "ALTER TABLE negsync.event SET (autovacuum_enabled = FALSE)";
        negsync_testserver::run(server.url(), alone).unwrap();
        store.publish((0..events).map(|_| note(&mut rng)).collect()).unwrap();
        store.close();
        assert_eq!(is_vacuumed(), is_much, "{events}");
    }
}

#[test]
fn what_expires_leaves_every_node() {
    let Some(server) = TestServer::start() else { return };
    let (one_heard, other_heard) = (HeardSet::default(), HeardSet::default());
    let clock = ManualClock::at(EPOCH);
    let one = open_by(&clock, server.url(), one_heard.clone());
    let other = open_by(&clock, server.url(), other_heard.clone());
    let tags = format!(r#"[["expiration","{}"]]"#, EPOCH + 2);
    let (due, kept) = (event([1; 32], 1, 1, EPOCH, &tags), event([2; 32], 1, 1, EPOCH, "[]"));
    let left = BTreeSet::from([kept.item()]);
    one.publish(vec![due, kept]).unwrap();
    clock.advance(2);
    // A set requested from now on does not contain it.
    other.catch_up().unwrap();
    assert_eq!(other_heard.items(), left);
    assert_eq!(all(&other).len(), 1);
    one.catch_up().unwrap();
    assert_eq!(one_heard.items(), left);
}

/// Anyone may publish requests that name other relays: the cost must not grow with their number.
#[test]
fn stored_requests_to_vanish_are_read_in_pages_and_once_for_each_url() {
    let Some(server) = TestServer::start_own(&[("log_statement", "all")]) else { return };
    let mut rng = StdRng::seed_from_u64(62);
    let anywhere = open(server.url(), HeardSet::default());
    // More than two pages, most of them of one second.
    let requests: Vec<VerifiedEvent> = (0..600)
        .map(|number: u64| {
            let relay = ["wss://here.example", "wss://there.example", "wss://x"];
            let tags = format!(r#"[["relay","{}"]]"#, relay[rng.random_range(0..3)]);
            event(rng.random(), rng.random_range(1..=250), 62, EPOCH + number / 500, &tags)
        })
        .collect();
    let names = |author: u8, relay: &str| {
        let by_author = |event: &&VerifiedEvent| *event.pubkey() == [author; 32];
        requests.iter().filter(by_author).any(|event| event.json().contains(relay))
    };
    let notes = (1..=250).map(|author| event([author; 32], author, 1, EPOCH, "[]")).collect();
    anywhere.publish(requests.iter().map(support::again).collect()).unwrap();
    anywhere.publish(notes).unwrap();
    anywhere.close();
    let kept = |store: &PostgresStore| items(store, &Filter::parse(r#"{"kinds":[1]}"#).unwrap());
    let left = |relays: &[&str]| -> BTreeSet<Item> {
        let stays = |author: &u8| relays.iter().all(|relay| !names(*author, relay));
        (1..=250).filter(stays).map(|author| Item::new(EPOCH, [author; 32])).collect()
    };
    let log = server.folder().unwrap().join("log");
    let reads = || {
        let log = String::from_utf8_lossy(&std::fs::read(&log).unwrap()).into_owned();
        log.matches("AND vanished.until >= ").count()
    };
    let store = open_as("wss://here.example", server.url());
    while kept(&store) != left(&["//here"]) {
        std::thread::yield_now();
    }
    store.close();
    let before = reads();
    let store = open_as("wss://HERE.example:443/", server.url());
    // The second one is written after all work of a new connection.
    for author in [251, 252] {
        store.publish(vec![event([author; 32], author, 1, EPOCH + 9, "[]")]).unwrap();
    }
    store.close();
    assert_eq!(reads(), before, "requests are read again");
    let store = open_as("wss://there.example", server.url());
    let mut both = left(&["//here", "//there"]);
    both.extend([251, 252].map(|author| Item::new(EPOCH + 9, [author; 32])));
    while kept(&store) != both {
        std::thread::yield_now();
    }
}

/// Another node may block the writer that removes expired events.
#[test]
fn who_waits_for_an_expiration_ends_at_the_deadline() {
    let Some(server) = TestServer::start() else { return };
    let heard = HeardSet::default();
    let clock = ManualClock::at(EPOCH);
    let store = open_by(&clock, server.url(), heard.clone());
    // Nothing is removed until the sequence moves, which is visible before the commit.
    let gate = "CREATE SEQUENCE gate; SELECT nextval('gate');
        CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            WHILE (SELECT last_value FROM public.gate) = 1 LOOP PERFORM pg_sleep(0.01); END LOOP;
            RETURN OLD;
        END $$;
        CREATE TRIGGER wait BEFORE DELETE ON negsync.event FOR EACH ROW EXECUTE FUNCTION wait()";
    negsync_testserver::run(server.url(), gate).unwrap();
    let tags = format!(r#"[["expiration","{}"]]"#, EPOCH + 2);
    let due = event([1; 32], 1, 1, EPOCH, &tags);
    assert_eq!(store.publish(vec![due]).unwrap(), [Outcome::Stored]);
    clock.advance(2);
    let looks = AtomicUsize::new(0);
    let is_cancelled = move || looks.fetch_add(1, Ordering::Relaxed) > 100;
    let deadline = Deadline::after(Duration::from_secs(600), is_cancelled);
    let ended = store.with_deadline(deadline).catch_up();
    assert!(matches!(ended, Err(StoreError::Interrupted)), "{ended:?}");
    negsync_testserver::run(server.url(), "SELECT nextval('gate')").unwrap();
    while store.catch_up().is_err() {}
    assert_eq!(heard.items(), BTreeSet::new());
}

#[test]
fn a_tag_whose_event_is_gone_keeps_nobody_vanishing_for_ever() {
    let Some(server) = TestServer::start() else { return };
    let store = open(server.url(), HeardSet::default());
    let (author, wrap) = (9, format!(r#"[["p","{}"]]"#, hex([9; 32])));
    let wraps = [1, 2].map(|id| event([id; 32], 5, 1_059, EPOCH, &wrap));
    store.publish(wraps.into()).unwrap();
    let stray = format!(r"DELETE FROM negsync.event WHERE id = '\x{}'", hex([1; 32]));
    negsync_testserver::run(server.url(), &stray).unwrap();
    let request = event([3; 32], author, 62, EPOCH, r#"[["relay","ALL_RELAYS"]]"#);
    let left = BTreeSet::from([request.item()]);
    assert_eq!(store.publish(vec![request]).unwrap(), [Outcome::Stored]);
    assert_eq!(items(&store, &Filter::default()), left);
}

#[test]
fn ephemeral_events_pass_by_every_node_once() {
    let Some(mut server) = TestServer::start() else { return };
    let (one_heard, other_heard) = (HeardSet::default(), HeardSet::default());
    let one = open(server.url(), one_heard.clone());
    let other = open(server.url(), other_heard.clone());
    let sent: Vec<VerifiedEvent> =
        (1..=40).map(|id| event([id; 32], 1, 20_001, EPOCH, "[]")).collect();
    let again = |range: std::ops::Range<usize>| sent[range].iter().map(support::again).collect();
    let items = |range: std::ops::Range<usize>| -> Vec<Item> {
        sent[range].iter().map(|event| event.item()).collect()
    };
    let wait = |heard: &HeardSet, count: usize| {
        while heard.passed().len() < count {
            std::thread::yield_now();
        }
    };
    assert_eq!(one.publish(again(0..20)).unwrap(), vec![Outcome::PassedOn; 20]);
    wait(&other_heard, 20);
    assert_eq!(one_heard.passed(), items(0..20));
    assert_eq!(other_heard.passed(), items(0..20));
    assert_eq!(all(&other).len(), 0);
    // A later subscriber gets later events only. A crash of the server restarts the numbers.
    let late_heard = HeardSet::default();
    let late = open(server.url(), late_heard.clone());
    server.kill_and_restart();
    for (place, id) in (20..30).enumerate() {
        assert_eq!(other.publish(again(id..id + 1)).unwrap(), [Outcome::PassedOn]);
        wait(&one_heard, 21 + place);
        wait(&late_heard, 1 + place);
    }
    assert_eq!(late_heard.passed(), items(20..30));
    assert_eq!(one_heard.passed(), items(0..30));
    late.close();
}

/// Queries wait for their turn before or after they read the feed, and never while they hold a
/// connection that the writer may need.
#[test]
fn who_looks_at_the_feed_gives_nobody_way() {
    let Some(server) = TestServer::start() else { return };
    let store = open(server.url(), HeardSet::default());
    let (looks, given_way) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let (held, is_held) = channel();
    let (let_go, is_let_go) = channel::<()>();
    std::thread::scope(|scope| {
        // Holds the feed.
        let holder = store.clone();
        scope.spawn(move || {
            let mut beside = || {
                held.send(()).unwrap();
                is_let_go.recv().unwrap();
            };
            holder.read_at_commit(&mut beside, &mut |_| Ok(())).unwrap();
        });
        is_held.recv().unwrap();
        let (waits, gives_way) = (Arc::clone(&looks), Arc::clone(&given_way));
        let deadline = Deadline::giving_way(
            Duration::from_secs(600),
            move || {
                waits.fetch_add(1, Ordering::Relaxed);
                false
            },
            move || {
                gives_way.fetch_add(1, Ordering::Relaxed);
                false
            },
        );
        let waiting = store.with_deadline(deadline);
        let waiting = scope.spawn(move || waiting.wait_until_published());
        // By then it is waiting for the feed.
        while looks.load(Ordering::Relaxed) < 200 {
            std::thread::yield_now();
        }
        let_go.send(()).unwrap();
        waiting.join().unwrap().unwrap();
    });
    assert_eq!(given_way.load(Ordering::Relaxed), 0);
}

#[test]
fn one_node_has_the_lease_until_it_stops_or_its_term_ends() {
    let Some(server) = TestServer::start() else { return };
    let (one, other) =
        (open(server.url(), HeardSet::default()), open(server.url(), HeardSet::default()));
    let term = Duration::from_secs(3_600);
    assert!(one.take_lease(term).unwrap());
    assert!(!other.take_lease(term).unwrap());
    assert!(one.take_lease(term).unwrap());
    one.close();
    // The lease of a dead node is taken when its term ends.
    assert!(other.take_lease(Duration::ZERO).unwrap());
    let third = open(server.url(), HeardSet::default());
    assert!(third.take_lease(term).unwrap());
    assert!(!other.take_lease(term).unwrap());
}

#[test]
fn what_syncs_remember_is_shared() {
    let Some(server) = TestServer::start() else { return };
    let (one, other) =
        (open(server.url(), HeardSet::default()), open(server.url(), HeardSet::default()));
    let refused = |peer: &str, id: u8| RefusedId {
        peer: peer.into(),
        id: [id; 32],
        reason: "deleted\0".into(),
        term_s: 90,
    };
    one.remember_refused(vec![refused("", 1), refused("ws://a", 2), refused("ws://b", 3)]).unwrap();
    let found = other.refused("ws://a", &[[1; 32], [2; 32], [3; 32]]).unwrap();
    assert_eq!(found.keys().map(|id| id[0]).collect::<BTreeSet<_>>(), BTreeSet::from([1, 2]));

    let read = Some(ReadMark { from: 0, to: 9, whole_at: 5 });
    let write = |mark| one.remember_mark("ws://a".into(), "{}".into(), mark).unwrap();
    write(SyncMark { equal_up_to: Some(4), read: None });
    write(SyncMark { equal_up_to: None, read });
    assert_eq!(other.sync_mark("ws://a", "{}").unwrap(), SyncMark { equal_up_to: Some(4), read });
    assert_eq!(other.sync_mark("ws://a", "[]").unwrap(), SyncMark::default());

    let without_negentropy = Some((90, "no answer".to_owned()));
    let traits = PeerTraits { without_negentropy, largest_page: 3 };
    one.remember_traits("ws://a".into(), traits.clone()).unwrap();
    assert_eq!(other.peer_traits("ws://a").unwrap(), traits);
}

#[test]
fn tables_of_a_later_version_are_refused() {
    let Some(server) = TestServer::start() else { return };
    open(server.url(), HeardSet::default()).close();
    negsync_testserver::run(server.url(), "UPDATE negsync.store SET version = 1000").unwrap();
    let error = try_open(server.url(), HeardSet::default()).err().unwrap();
    assert!(error.contains("version 1000"), "{error}");
}
