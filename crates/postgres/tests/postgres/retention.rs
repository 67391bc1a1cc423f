//! Rules of retention: both engines keep the same events, all nodes use the rules, and removed
//! events do not come back.

use crate::support::{again, all, event};
use negsync_nostr::VerifiedEvent;
use negsync_postgres::{Address, PostgresStore};
use negsync_store::{
    Clock, EventStore, Filter, KindRange, ManualClock, Outcome, RETIRED, Retention, RetentionRule,
    Store, StoreError, StoreOptions,
};
use negsync_testserver::{self as server, HeardSet, TestServer};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use std::collections::BTreeSet;

const KINDS: [u16; 5] = [0, 1, 7, 30, 30_000];
const AGE_S: u64 = 1_000;
const NOW: u64 = 1_800_000_000;

fn options(now: &ManualClock) -> StoreOptions {
    StoreOptions::default().clock(Clock::from(now))
}

fn open(url: &str, heard: HeardSet) -> PostgresStore {
    open_at(url, heard, &ManualClock::at(NOW))
}

fn open_at(url: &str, heard: HeardSet, now: &ManualClock) -> PostgresStore {
    PostgresStore::open(&Address::parse(url).unwrap(), options(now), Box::new(heard)).unwrap()
}

fn any_rules(rng: &mut StdRng) -> Retention {
    let rules = (0..rng.random_range(0..4)).map(|_| {
        let mut rule = RetentionRule::default();
        for _ in 0..rng.random_range(0..3) {
            let kind = *KINDS.choose(rng).unwrap();
            let range = [KindRange::One(kind), KindRange::FromTo(kind, kind + 6)];
            rule.kinds.push(*range.choose(rng).unwrap());
        }
        rule.max_age_s = rng.random::<bool>().then_some(AGE_S);
        rule.max_per_author = rng.random::<bool>().then(|| rng.random_range(1..30));
        rule
    });
    Retention { rules: rules.collect(), store_bytes: None }
}

fn any_events(rng: &mut StdRng, most: usize, now: u64) -> Vec<VerifiedEvent> {
    let count = rng.random_range(0..=most);
    let made = (0..count).map(|_| {
        let age = rng.random_range(0..2 * AGE_S);
        let tags = format!(r#"[["d","{}"]]"#, rng.random_range(0..50));
        event(rng.random(), rng.random_range(1..4), *KINDS.choose(rng).unwrap(), now - age, &tags)
    });
    made.collect()
}

fn publish(store: &dyn EventStore, events: &[VerifiedEvent]) -> Vec<Outcome> {
    store.publish(events.iter().map(again).collect()).unwrap()
}

#[test]
fn both_engines_keep_the_same_by_any_rules() {
    let Some(server) = TestServer::start() else { return };
    for seed in 0..6 {
        println!("seed {seed}");
        let mut rng = StdRng::seed_from_u64(seed);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store.sqlite");
        let now = ManualClock::at(NOW);
        let sqlite = Store::open(&path, options(&now), Box::new(|_| {})).unwrap();
        let heard = HeardSet::default();
        let url = server.database();
        let postgres = open_at(&url, heard.clone(), &now);
        let engines: [&dyn EventStore; 2] = [&sqlite, &postgres];
        let mut published = Vec::new();
        for step in 0..6 {
            let context = format!("seed {seed}, step {step}");
            let events = any_events(&mut rng, 300, Clock::from(&now).now());
            now.advance(rng.random_range(0..AGE_S / 4));
            let wanted = (rng.random_range(0..3) == 0 || step == 0).then(|| any_rules(&mut rng));
            engines.iter().for_each(|store| drop(publish(*store, &events)));
            published.extend(events);
            for store in engines {
                store.retire().unwrap();
            }
            let kept = engines.map(all);
            assert!(kept[0] == kept[1], "{context}: kept");
            let Some(wanted) = wanted else { continue };
            let seen = engines.map(|store| store.preview(&wanted).unwrap());
            assert_eq!(seen[0], seen[1], "{context}: preview of {wanted:?}");
            for store in engines {
                store.retain(wanted.clone()).unwrap();
                store.retire().unwrap();
            }
            let kept = engines.map(all);
            assert!(kept[0] == kept[1], "{context}: kept by {wanted:?}");
            for filter in ["{}", r#"{"kinds":[1,7]}"#] {
                let filter = Filter::parse(filter).unwrap();
                let window = engines.map(|store| store.retention_window(&filter).unwrap());
                assert_eq!(window[0], window[1], "{context}: window");
            }
        }
        let ids: Vec<[u8; 32]> = published.iter().map(|event| event.item().id).collect();
        let refused = engines.map(|store| store.refused("", &ids).unwrap());
        assert_eq!(refused[0], refused[1], "seed {seed}: not fetched by syncs");
        for store in engines {
            let outcomes = publish(store, &published);
            for id in refused[0].keys() {
                let at = ids.iter().position(|it| it == id).unwrap();
                assert_eq!(outcomes[at], Outcome::Retired, "seed {seed}");
            }
            // Events removed by other rules came again.
            store.retire().unwrap();
        }
        let before = engines.map(all);
        assert!(before[0] == before[1], "seed {seed}: brought once more");
        let outcomes = engines.map(|store| publish(store, &published));
        assert_eq!(outcomes[0], outcomes[1], "seed {seed}: brought again");
        assert!(before == engines.map(all), "seed {seed}: came back");
        let table: BTreeSet<_> = heard.items();
        assert_eq!(table.len(), before[1].len(), "seed {seed}: the listener's set");
        let checked = negsync_postgres::check(&Address::parse(&url).unwrap(), |_, _| {}).unwrap();
        // The events are unsigned.
        let mut found = checked.found.keys();
        assert!(found.all(|what| *what == "signature"), "seed {seed}: {:?}", checked.found);
        sqlite.close();
        postgres.close();
    }
}

fn by_count(kept: u32) -> Retention {
    let rule = RetentionRule { max_per_author: Some(kept), ..RetentionRule::default() };
    Retention { rules: vec![rule], store_bytes: None }
}

fn note(rng: &mut StdRng, author: u8, age: u64) -> VerifiedEvent {
    event(rng.random(), author, 1, NOW - age, "[]")
}

#[test]
fn every_node_goes_by_the_rules_of_the_database() {
    let Some(server) = TestServer::start() else { return };
    let mut rng = StdRng::seed_from_u64(1);
    let (heard, other_heard) = (HeardSet::default(), HeardSet::default());
    let one = open(server.url(), heard.clone());
    let other = open(server.url(), other_heard.clone());
    let by_age = RetentionRule { max_age_s: Some(AGE_S), ..RetentionRule::default() };
    let rules = Retention { rules: [by_count(10).rules, vec![by_age]].concat(), store_bytes: None };
    let notes: Vec<VerifiedEvent> = (0..700).map(|age| note(&mut rng, 1, age)).collect();
    publish(&other, &notes);
    one.retain(rules.clone()).unwrap();
    one.retire().unwrap();
    assert_eq!(all(&one).len(), 10, "in several steps");
    // The other node was not configured with rules, and uses those in the database.
    let came =
        publish(&other, &[note(&mut rng, 2, 2 * AGE_S), again(&notes[600]), note(&mut rng, 2, 5)]);
    assert_eq!(came, [Outcome::Retired, Outcome::Retired, Outcome::Stored]);
    let many: Vec<VerifiedEvent> = (0..30).map(|age| note(&mut rng, 3, age)).collect();
    publish(&other, &many);
    other.retire().unwrap();
    let kept = all(&other).len();
    assert_eq!(kept, 10 + 1 + 10);
    one.follow_others().unwrap();
    assert_eq!((heard.items().len(), other_heard.items().len()), (kept, kept));
    let gone = one.refused("", &[many[29].item().id]).unwrap();
    assert_eq!(gone[&many[29].item().id], RETIRED);

    // The rules stay in the database: a start without a configuration uses them, one with other
    // rules changes them.
    one.close();
    other.close();
    let third = open(server.url(), HeardSet::default());
    assert_eq!(publish(&third, &[again(&many[29])]), [Outcome::Retired]);
    third.retain(Retention::default()).unwrap();
    assert_eq!(publish(&third, &[again(&many[29])]), [Outcome::Stored]);
    third.close();
    let options = options(&ManualClock::at(NOW)).retention(by_count(3));
    let address = Address::parse(server.url()).unwrap();
    let fourth = PostgresStore::open_without_sets(&address, options).unwrap();
    fourth.retire().unwrap();
    assert_eq!(all(&fourth).len(), 3 + 1 + 3);
}

#[test]
fn after_a_backup_is_restored_what_came_back_with_it_goes_again() {
    let Some(server) = TestServer::start() else { return };
    let mut rng = StdRng::seed_from_u64(2);
    let heard = HeardSet::default();
    let store = open(server.url(), heard.clone());
    store.retain(by_count(5)).unwrap();
    publish(&store, &(0..20).map(|age| note(&mut rng, 1, age)).collect::<Vec<_>>());
    store.retire().unwrap();
    assert_eq!(all(&store).len(), 5);
    let restored = "BEGIN;
        INSERT INTO negsync.event (id, pubkey, created_at, kind, seq, json)
            SELECT sha256(number::text::bytea), (SELECT pubkey FROM negsync.event LIMIT 1), number, 1, seq,
                (SELECT json FROM negsync.event LIMIT 1)
            FROM generate_series(1, 40) AS number, negsync.head;
        UPDATE negsync.feed_commit SET mark = mark + 1;
        UPDATE negsync.head SET mark = mark + 1;
        COMMIT";
    server::run(server.url(), restored).unwrap();
    while server::query(server.url(), "SELECT id FROM negsync.event").unwrap().len() > 5 {
        std::thread::yield_now();
    }
    store.follow_others().unwrap();
    assert_eq!(heard.items().len(), 5);
}

#[test]
fn a_rule_of_size_is_refused() {
    let Some(server) = TestServer::start() else { return };
    let by_size = Retention { rules: Vec::new(), store_bytes: Some(1) };
    let store = open(server.url(), HeardSet::default());
    let unsupported = |done: Result<(), StoreError>| {
        assert!(matches!(done, Err(StoreError::Unsupported { .. })));
    };
    unsupported(store.retain(by_size.clone()));
    unsupported(store.preview(&by_size).map(drop));
    let options = StoreOptions::default().retention(by_size);
    let address = Address::parse(server.url()).unwrap();
    unsupported(PostgresStore::open_without_sets(&address, options).map(drop));
}
