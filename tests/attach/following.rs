//! After any writes of the relay, each set equals a scan of the events that it shows.

use super::database::{Database, KINDS};
use crate::support::events::{Author, EPOCH, SPAN_S, generate, unix_now};
use crate::support::model;
use negsync::config::AuthConfig;
use negsync::hex;
use negsync::index::Sets;
use negsync::reconcile::RangeSet;
use negsync::store::{Attached, AttachedOptions, EventSource, Filter, PrivateKinds, RelayKind};
use negsync_testserver::HeardSet;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

const MEMORY_BYTES: usize = 64 << 20;
/// Timeout for changes that are not visible at once.
const PATIENCE: Duration = Duration::from_secs(60);

/// The private kinds of the default configuration.
fn private() -> PrivateKinds {
    PrivateKinds::new(AuthConfig::default().private_kinds)
}

fn options() -> AttachedOptions {
    AttachedOptions::default().readers(2).private_kinds(private())
}

fn attach(database: &Database) -> Sets {
    Sets::attach(database.kind, &database.path, options(), MEMORY_BYTES).unwrap()
}

fn ids(sets: &Sets, filters: &[Value]) -> BTreeSet<String> {
    let filters: Vec<Filter> = filters.iter().map(|f| Filter::from_json(f).unwrap()).collect();
    let set = sets.snapshot(&filters, usize::MAX).unwrap();
    let mut ids = BTreeSet::new();
    set.for_each(0..set.len(), &mut |item| {
        assert!(ids.insert(faster_hex::hex_string(&item.id)));
    });
    ids
}

fn filters(author: &Author) -> Vec<Vec<Value>> {
    let long = "a topic of more than thirty-two bytes";
    vec![
        vec![json!({})],
        vec![json!({ "kinds": [1, 5] })],
        vec![json!({ "kinds": [0, 10_002, 30_023] })],
        vec![json!({ "authors": [author.key()] })],
        vec![json!({ "authors": [author.key()], "kinds": [1], "since": EPOCH + SPAN_S / 2 })],
        vec![json!({ "#t": ["nostr", "sync"] })],
        vec![json!({ "#t": [""] })],
        vec![json!({ "#t": [long], "#p": [author.key()] })],
        vec![json!({ "#p": [author.key()], "until": EPOCH + SPAN_S / 2 })],
        vec![json!({ "#d": ["one", ""] }), json!({ "kinds": [7], "limit": 5 })],
        vec![json!({ "limit": 17 })],
    ]
}

fn assert_exact(sets: &Sets, database: &Database, asked: &[Vec<Value>], context: &str) {
    for filters in asked {
        // Both within one second, because events expire.
        let (expected, found) = loop {
            let now = unix_now();
            let visible = database.visible(now);
            let expected = model::ids(model::answer(filters, &visible));
            let found = ids(sets, filters);
            if unix_now() == now {
                break (expected, found);
            }
        };
        let missing: Vec<_> = expected.difference(&found).collect();
        let extra: Vec<_> = found.difference(&expected).collect();
        assert!(
            missing.is_empty() && extra.is_empty(),
            "{context}, {filters:?}: {missing:?} missing, {extra:?} extra"
        );
    }
}

/// One step of the random test. Changes that no row explains must be detected too, if the number of
/// rows reveals them.
fn step(rng: &mut StdRng, database: &Database, events: &mut Vec<Value>) -> &'static str {
    match rng.random_range(0..40) {
        0 => {
            database.collect_garbage(unix_now());
            "garbage collected"
        }
        1 => {
            database.vacuum();
            "vacuum"
        }
        2 => {
            database.remove_by_hand(rng.random_range(0..200));
            "removed by hand"
        }
        3 => {
            database.write_elsewhere(rng.random());
            "written elsewhere"
        }
        4 => {
            let sql = format!(
                "CREATE INDEX extra_{} ON {}(created_at)",
                rng.random::<u32>(),
                database.table()
            );
            database.connection.execute_batch(&sql).unwrap();
            "an index more"
        }
        _ => {
            for _ in 0..rng.random_range(1..6) {
                if let Some(event) = events.pop() {
                    database.publish(&event);
                }
            }
            "published"
        }
    }
}

#[test]
fn sets_equal_a_scan_whatever_the_relay_writes() {
    let seeds = std::env::var("NEGSYNC_SEEDS").map_or(2, |text| text.parse().unwrap());
    for (kind, seed) in KINDS.into_iter().flat_map(|kind| (0..seeds).map(move |seed| (kind, seed)))
    {
        let folder = tempfile::tempdir().unwrap();
        let database = Database::new(kind, &folder.path().join("relay.db"));
        let mut rng = StdRng::seed_from_u64(seed);
        let mut events = generate(seed, 500);
        let author = Author::new(1);
        // Events that expire while sets are cached.
        for number in 0..40 {
            let second = (unix_now() + rng.random_range(1..4)).to_string();
            let tags = json!([["expiration", second], ["t", "sync"]]);
            let at = rng.random_range(0..events.len());
            events.insert(at, author.event(1, EPOCH + number, tags, "soon gone"));
        }
        let before = rng.random_range(0..400);
        for _ in 0..before {
            let event = events.pop().unwrap();
            database.publish(&event);
        }
        let sets = attach(&database);
        let asked = filters(&author);
        assert_exact(&sets, &database, &asked, &format!("{kind:?}, seed {seed}, at first"));
        let mut steps = 0;
        while !events.is_empty() {
            let done = step(&mut rng, &database, &mut events);
            steps += 1;
            let context = format!("{kind:?}, seed {seed}, step {steps}: {done}");
            // The complete set each time, so that a later step cannot hide a fault.
            let some: Vec<Vec<Value>> = asked
                .iter()
                .enumerate()
                .filter(|(place, _)| *place == 0 || rng.random_range(0..5) == 0)
                .map(|(_, filters)| filters.clone())
                .collect();
            assert_exact(&sets, &database, &some, &context);
        }
        assert_exact(&sets, &database, &asked, &format!("{kind:?}, seed {seed}, at last"));
    }
}

#[test]
fn events_are_given_as_the_relay_has_them() {
    for kind in KINDS {
        let folder = tempfile::tempdir().unwrap();
        let database = Database::new(kind, &folder.path().join("relay.db"));
        generate(9, 200).iter().for_each(|event| database.publish(event));
        let sets = attach(&database);
        let visible = database.visible(unix_now());
        let wanted: Vec<[u8; 32]> = visible
            .iter()
            .map(|event| faster_hex::hex_decode_array(event["id"].as_str().unwrap().as_bytes()))
            .map(Result::unwrap)
            .collect();
        let mut given = Vec::new();
        sets.source()
            .events(&wanted, &mut |_, json| given.push(serde_json::from_str(json).unwrap()))
            .unwrap();
        let sorted = |mut events: Vec<Value>| {
            events.sort_by_key(|event| event["id"].to_string());
            events
        };
        assert_eq!(sorted(given), sorted(visible), "{kind:?}");
    }
}

/// `auth.private_kinds` sets the private kinds, before another relay too.
#[test]
fn only_kinds_that_are_configured_as_private_are_left_out() {
    for kind in KINDS {
        let folder = tempfile::tempdir().unwrap();
        let database = Database::new(kind, &folder.path().join("relay.db"));
        let author = Author::new(1);
        let events = [4, 7, 1_059].map(|kind| author.event(kind, EPOCH, json!([]), "for some"));
        let sets = |private: &[u16]| {
            let private = PrivateKinds::new(private.iter().copied());
            Sets::attach(kind, &database.path, options().private_kinds(private), MEMORY_BYTES)
                .unwrap()
        };
        let (none, seven) = (sets(&[]), sets(&[7]));
        events.iter().for_each(|event| database.publish(event));
        for (sets, expected) in [
            (&none, model::ids(&events)),
            (&seven, model::ids([&events[0], &events[2]])),
            (&attach(&database), model::ids([&events[1]])),
        ] {
            assert_eq!(ids(sets, &[json!({})]), expected, "{kind:?}");
            assert_eq!(ids(sets, &[json!({ "kinds": [4, 7, 1_059] })]), expected, "{kind:?}");
        }
    }
}

/// A flag set by hand does not change the number of rows: only a comparison finds it.
#[test]
fn what_is_hidden_by_hand_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let database = Database::new(RelayKind::NostrRsRelay, &folder.path().join("relay.db"));
    generate(3, 300).iter().for_each(|event| database.publish(event));
    let sets = attach(&database);
    let all = [json!({})];
    assert_eq!(ids(&sets, &all), model::ids(&database.visible(unix_now())));
    database.connection.execute_batch("UPDATE event SET hidden = 1 WHERE id % 3 = 0").unwrap();
    let expected = model::ids(&database.visible(unix_now()));
    let began = Instant::now();
    while ids(&sets, &all) != expected {
        assert!(began.elapsed() < PATIENCE, "{} of {}", ids(&sets, &all).len(), expected.len());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn another_database_is_refused_with_its_name_and_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |kind, path: &std::path::Path| {
        let error = Sets::attach(kind, path, options(), MEMORY_BYTES).err().unwrap().to_string();
        assert!(error.contains(path.to_str().unwrap()), "{error}");
        error
    };
    let path = folder.path().join("rs.db");
    let rs = Database::new(RelayKind::NostrRsRelay, &path);
    assert!(refused(RelayKind::NostrRelayPy, &path).contains("not a database of nostr-relay"));
    rs.connection.execute_batch("PRAGMA user_version = 19").unwrap();
    assert!(refused(RelayKind::NostrRsRelay, &path).contains("schema 19"));
    let path = folder.path().join("py.db");
    let py = Database::new(RelayKind::NostrRelayPy, &path);
    assert!(refused(RelayKind::NostrRsRelay, &path).contains("not a database of nostr-rs-relay"));
    py.connection.execute_batch("UPDATE alembic_version SET version_num = 'feed'").unwrap();
    assert!(refused(RelayKind::NostrRelayPy, &path).contains("migration feed"));
    refused(RelayKind::NostrRelayPy, &folder.path().join("none.db"));
    assert!(!folder.path().join("none.db").exists());
}

/// A migration while the database is followed: no set is answered by rules that may no longer
/// apply.
#[test]
fn a_schema_that_becomes_unknown_ends_the_answers_and_a_known_one_begins_them() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("relay.db");
    let database = Database::new(RelayKind::NostrRsRelay, &path);
    generate(4, 50).iter().for_each(|event| database.publish(event));
    let sets = attach(&database);
    database
        .connection
        .execute_batch("PRAGMA user_version = 19; ALTER TABLE event ADD COLUMN more INTEGER;")
        .unwrap();
    let error = sets.snapshot(&[Filter::default()], usize::MAX).unwrap_err().to_string();
    assert!(error.contains("schema 19"), "{error}");
    database.connection.execute_batch("PRAGMA user_version = 18").unwrap();
    assert_exact(&sets, &database, &filters(&Author::new(1)), "known again");
}

/// The file is moved away, replaced by another one, and put back: the set is always that of the
/// current file, and without a file there is none.
#[test]
fn another_file_in_its_place_is_another_set() {
    for kind in KINDS {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("relay.db");
        let kept: Vec<Database> = (0..3)
            .map(|number| {
                let path = folder.path().join(format!("kept{number}.db"));
                let database = Database::new(kind, &path);
                generate(number, 150).iter().for_each(|event| database.publish(event));
                // Everything in a single file, which can then be moved.
                database.connection.execute_batch("PRAGMA journal_mode = DELETE").unwrap();
                database
            })
            .collect();
        std::fs::rename(&kept[0].path, &path).unwrap();
        let sets = Sets::attach(kind, &path, options(), MEMORY_BYTES).unwrap();
        let asked = filters(&Author::new(1));
        assert_exact(&sets, &kept[0], &asked, "the first");
        for (place, database) in [(1, &kept[1]), (2, &kept[2])] {
            std::fs::rename(&path, folder.path().join(format!("away{place}.db"))).unwrap();
            let error = sets.snapshot(&[Filter::default()], usize::MAX).unwrap_err().to_string();
            assert!(error.contains("is not there"), "{error}");
            std::fs::rename(folder.path().join(format!("kept{place}.db")), &path).unwrap();
            assert_exact(&sets, database, &asked, &format!("{kind:?}, file {place}"));
        }
    }
}

/// A change that was interrupted by a panic does not count as applied.
#[test]
fn everything_is_read_anew_after_a_look_that_panicked() {
    for kind in KINDS {
        let folder = tempfile::tempdir().unwrap();
        let database = Database::new(kind, &folder.path().join("relay.db"));
        let heard = HeardSet::exact();
        let listener = Box::new(heard.clone());
        let source = Attached::open(kind, &database.path, options(), listener).unwrap();
        heard.fail_next();
        let mut second = EPOCH;
        while heard.is_to_fail() {
            second += 1;
            database.publish(&Author::new(1).note(second, "n"));
            // It panics here or on the watching thread.
            let _ = catch_unwind(AssertUnwindSafe(|| source.catch_up()));
        }
        source.catch_up().unwrap();
        let known: BTreeSet<String> =
            heard.items().iter().map(|item| hex::encode(&item.id)).collect();
        assert_eq!(known, model::ids(&database.visible(unix_now())), "{kind:?}");
    }
}
