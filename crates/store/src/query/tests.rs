//! The results of queries, and the number of steps of SQLite's virtual machine that they take.

use super::hit::{FETCH, FETCHED_ROWS};
use super::walks::BY_AUTHOR;
use super::*;
use crate::viewer::{PrivateKinds, Viewer};
use crate::{Deadline, Event, EventStore, Store, StoreOptions, newest, query, schema};
use negsync_nostr::{TagKey, hex};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rusqlite::params;
use std::cmp::Reverse;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

fn event(id: [u8; 32], author: u8, second: u64, kind: u16, tags: &[(char, String)]) -> Event {
    let tags: Vec<String> =
        tags.iter().map(|(letter, value)| format!(r#"["{letter}","{value}"]"#)).collect();
    let json = format!(
        r#"{{"id":"{}","pubkey":"{}","created_at":{second},"kind":{kind},"tags":[{}],"content":"","sig":"{}"}}"#,
        hex::encode(&id),
        format!("{author:02x}").repeat(32),
        tags.join(","),
        "0".repeat(128),
    );
    Event::parse(&json).unwrap()
}

fn copies(events: &[Event]) -> Vec<Event> {
    events.iter().map(|event| Event::parse(event.json()).unwrap()).collect()
}

fn fill(path: &Path, private: Option<&PrivateKinds>, events: Vec<Event>) {
    let options = StoreOptions { private_times: private.cloned(), ..StoreOptions::default() };
    let store = Store::open(path, options, Box::new(|_| {})).unwrap();
    store.publish(events.into_iter().map(Event::trust).collect()).unwrap();
    store.close();
}

/// Runs `work` on the store in `path` and counts the steps of SQLite's virtual machine.
fn steps<T>(path: &Path, work: impl FnOnce(&ReadTransaction<'_>) -> T) -> (T, u64) {
    let mut connection = schema::open_reader(path).unwrap();
    let steps = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&steps);
    let count = move || {
        counted.fetch_add(1, Ordering::Relaxed);
        false
    };
    connection.progress_handler(1, Some(count)).unwrap();
    let deadline = Deadline::default();
    let done = work(&ReadTransaction::new(&connection, &deadline));
    (done, steps.load(Ordering::Relaxed))
}

/// Some of the values, in the normal form of a filter's list.
fn some<T: Ord + Clone>(rng: &mut StdRng, values: &[T]) -> Vec<T> {
    let most = [1, 3, 20, values.len()][rng.random_range(0..4)].min(values.len());
    let mut list: Vec<T> = (0..rng.random_range(1..=most))
        .map(|_| values[rng.random_range(0..values.len())].clone())
        .collect();
    list.sort_unstable();
    list.dedup();
    list
}

/// Short and long lists of every field in all combinations: each index gives the same result as a
/// check of each event.
#[test]
fn whichever_index_is_walked_the_same_is_found() {
    for seed in 0..12 {
        let mut rng = StdRng::seed_from_u64(seed);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store.sqlite");
        let kinds: Vec<u16> =
            [1, 2, 7].into_iter().chain(1_000..1_040).chain([4, 1_059, 9_735]).collect();
        let value = |number: u32| ["x".repeat(number as usize % 40), number.to_string()].concat();
        let values: Vec<String> = (0..400).map(value).collect();
        let ids: Vec<[u8; 32]> = (0..400).map(|_| rng.random()).collect();
        let stored = |rng: &mut StdRng, id: &[u8; 32]| {
            let tags: Vec<(char, String)> = (0..rng.random_range(0..12))
                .map(|_| (['p', 'e', 't'][rng.random_range(0..3)], some(rng, &values)[0].clone()))
                .collect();
            let kind = kinds[rng.random_range(0..kinds.len())];
            event(*id, rng.random_range(0..5), rng.random_range(0..60), kind, &tags)
        };
        let events: Vec<Event> = ids.iter().map(|id| stored(&mut rng, id)).collect();
        let private = PrivateKinds::new([4, 1_059]);
        fill(&path, (seed % 2 == 0).then_some(&private), copies(&events));
        for _ in 0..60 {
            let mut filter = Filter::default();
            if rng.random_bool(0.3) {
                let authors: Vec<[u8; 32]> = (0..=255).map(|author| [author; 32]).collect();
                filter.authors = Some(some(&mut rng, &authors));
            }
            if rng.random_bool(0.5) {
                filter.kinds = Some(some(&mut rng, &kinds));
            }
            if rng.random_bool(0.2) {
                filter.ids = Some(some(&mut rng, &ids));
            }
            for letter in [b'e', b'p', b't'] {
                if rng.random_bool(0.4) {
                    let keys: Vec<TagKey> =
                        values.iter().map(|value| TagKey::new(letter, value)).collect();
                    filter.tags.push(some(&mut rng, &keys));
                }
            }
            if rng.random_bool(0.3) {
                filter.since = Some(rng.random_range(0..60));
            }
            if rng.random_bool(0.3) {
                filter.until = Some(rng.random_range(0..60));
            }
            if rng.random_bool(0.5) {
                filter = private.public_part(&filter);
            }
            let mut expected: Vec<Item> =
                events.iter().filter(|event| filter.matches(event)).map(Event::item).collect();
            expected.sort_unstable_by_key(|item| (Reverse(item.created_at), item.id));
            let context = format!("seed {seed}: {filter:?}");
            let most = rng.random_range(1..100);
            steps(&path, |read| {
                let mut found = Vec::new();
                let mut visit = |item| {
                    found.push(item);
                    ControlFlow::Continue(())
                };
                query::items(read, &filter, &mut visit).unwrap();
                found.sort_unstable_by_key(|item| (Reverse(item.created_at), item.id));
                found.dedup();
                assert_eq!(found, expected, "{context}");
                let found = newest::newest(read, &filter, most, &Expired::none()).unwrap();
                let newest: Vec<Item> = found.hits.iter().map(|hit| hit.item).collect();
                assert_eq!(newest, expected[..most.min(expected.len())], "{context}, {most}");
            });
        }
    }
}

/// Each row's tags were looked up once for each value of the filter.
#[test]
fn a_long_list_costs_a_row_no_more_than_a_short_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.sqlite");
    let mut rng = StdRng::seed_from_u64(1);
    let rows = 2_000;
    let tags = [('p', "popular".to_owned()), ('k', "none".to_owned())];
    let events = (0..rows).map(|second| event(rng.random(), 1, second, 1, &tags));
    fill(&path, None, events.collect());
    let mut keys: Vec<TagKey> =
        (0..5_000).map(|number| TagKey::new(b'k', &number.to_string())).collect();
    keys.sort_unstable();
    let popular = vec![TagKey::new(b'p', "popular")];
    // The other list is equally long: neither is cheaper to walk.
    let others = (0..5_000).map(|number| TagKey::new(b'p', &number.to_string()));
    let mut long: Vec<TagKey> = others.chain(popular.clone()).collect();
    long.sort_unstable();
    for list in [popular, long] {
        let filter = Filter { tags: vec![keys.clone(), list.clone()], ..Filter::default() };
        let count = |read: &ReadTransaction<'_>| {
            let mut found = 0;
            let mut visit = |_| {
                found += 1;
                ControlFlow::Continue(())
            };
            query::items(read, &filter, &mut visit).unwrap();
            found
        };
        let (found, steps) = steps(&path, count);
        assert_eq!(found, 0);
        let walked = rows + keys.len() as u64 + list.len() as u64;
        assert!(steps < 60 * walked, "{steps} steps for {walked} rows and values");
    }
}

/// The kind of each row was looked up again, in the event itself, for each list.
#[test]
fn short_lists_of_tags_are_decided_without_a_look_at_the_events() {
    let folder = tempfile::tempdir().unwrap();
    let connection = schema::open_writer(&folder.path().join("store.sqlite")).unwrap();
    let keys = [TagKey::new(b'p', "somebody"), TagKey::new(b't', "something")];
    for row in 0..20_u8 {
        // Every second event has only one of the tags. The event table is empty.
        for key in &keys[usize::from(row % 2)..] {
            let insert =
                "INSERT INTO tag (key, kind, created_at, id, event) VALUES (?1, 1, ?2, ?3, ?2)";
            connection.execute(insert, params![key.as_bytes(), row, [row; 32]]).unwrap();
        }
    }
    let deadline = Deadline::default();
    let read = ReadTransaction::new(&connection, &deadline);
    let tags = keys.iter().map(|key| vec![*key]).collect();
    let mut found = Vec::new();
    let mut visit = |item: Item| {
        found.push(item.created_at);
        ControlFlow::Continue(())
    };
    query::items(&read, &Filter { tags, ..Filter::default() }, &mut visit).unwrap();
    found.sort_unstable();
    assert!(found.iter().copied().eq((0..20).step_by(2)), "{found:?}");
}

/// The time of an answer does not reveal the number of hidden events: a public scan takes the same
/// steps with and without private events.
#[test]
fn a_scan_for_everybody_does_not_meet_private_events() {
    let private = PrivateKinds::new([4, 14, 1_059]);
    let key = "ab".repeat(32);
    let addressed = [('p', key.clone())];
    let public = |rng: &mut StdRng| {
        let kinds = [1_u16, 2, 7, 8, 1_000, 9_735];
        (0..60_u64)
            .map(|n| event(rng.random(), n as u8 % 3, n, kinds[n as usize % 6], &addressed))
            .collect::<Vec<Event>>()
    };
    let hidden = |rng: &mut StdRng| {
        let kinds = [4, 14, 1_059];
        (0..300_u64)
            .map(|n| event(rng.random(), n as u8 % 3, n % 60, kinds[n as usize % 3], &addressed))
            .collect::<Vec<Event>>()
    };
    let tag = TagKey::new(b'p', &key);
    let long: Vec<u16> = (0..40).chain(1_000..1_080).collect();
    let filters = [
        Filter::default(),
        Filter { since: Some(10), until: Some(20), ..Filter::default() },
        Filter { tags: vec![vec![tag]], ..Filter::default() },
        Filter { tags: vec![vec![tag]], kinds: Some(long.clone()), ..Filter::default() },
        Filter { tags: vec![vec![tag]], kinds: Some(vec![1, 4, 1_059]), ..Filter::default() },
        Filter { authors: Some(vec![[0; 32], [1; 32]]), ..Filter::default() },
        Filter { authors: Some(vec![[1; 32]]), kinds: Some(long), ..Filter::default() },
        Filter { kinds: Some(vec![1, 4, 14]), ..Filter::default() },
    ];
    let folder = tempfile::tempdir().unwrap();
    let mut rng = StdRng::seed_from_u64(2);
    let (bare, full) = (folder.path().join("bare.sqlite"), folder.path().join("full.sqlite"));
    let events = public(&mut rng);
    fill(&bare, Some(&private), public(&mut StdRng::seed_from_u64(2)));
    // Indexed with other private kinds, and then with these: a changed configuration works too.
    let before = PrivateKinds::new([1, 14]);
    fill(&full, Some(&before), events.into_iter().chain(hidden(&mut rng)).collect());
    fill(&full, Some(&private), Vec::new());
    let stranger = Viewer::new(private, []);
    for filter in filters {
        let shown = stranger.view(&filter).public;
        let scan = |read: &ReadTransaction<'_>| {
            let mut found = 0;
            let mut visit = |_| {
                found += 1;
                ControlFlow::Continue(())
            };
            query::items(read, &shown, &mut visit).unwrap();
            let newest = newest::newest(read, &shown, 20, &Expired::none()).unwrap();
            (found, newest.hits.len())
        };
        let ((alone, steps_alone), (beside, steps_beside)) =
            (steps(&bare, scan), steps(&full, scan));
        assert_eq!(alone, beside, "{shown:?}");
        // The end of an index is one step closer than a row after the last one.
        assert!(
            steps_alone.abs_diff(steps_beside) <= 16,
            "{steps_alone}, {steps_beside}: {shown:?}"
        );
    }
}

/// The bundled SQLite has STAT4, with which each binding of an author prepared the statement again.
#[test]
fn no_statement_is_prepared_anew_when_values_are_bound() {
    use rusqlite::StatementStatus::RePrepare;
    use rusqlite::config::DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.sqlite");
    fill(&path, None, (0..100).map(|n| event([n; 32], n, u64::from(n), 1, &[])).collect());
    Connection::open(&path).unwrap().execute_batch("ANALYZE").unwrap();
    let prepares = |keeps_plans: bool| {
        let connection = schema::open_reader(&path).unwrap();
        connection.set_db_config(SQLITE_DBCONFIG_ENABLE_QPSG, keeps_plans).unwrap();
        let mut statement = connection.prepare(BY_AUTHOR).unwrap();
        for author in 0..100_u8 {
            let mut rows = statement.query(params![0, 1_000, [author; 32], 1]).unwrap();
            assert!(rows.next().unwrap().is_some() && rows.next().unwrap().is_none());
        }
        statement.get_status(RePrepare)
    };
    let connection = schema::open_reader(&path).unwrap();
    assert!(connection.db_config(SQLITE_DBCONFIG_ENABLE_QPSG).unwrap());
    assert_eq!(prepares(true), 0);
    // When this fails, the setting is no longer needed.
    assert!(prepares(false) > 50, "{}", prepares(false));
}

/// Five thousand authors and as many kinds fit into one filter, and caused 25 million walks in
/// every store.
#[test]
fn the_walks_of_authors_and_kinds_are_bounded_by_what_is_stored() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.sqlite");
    let connection = schema::open_writer(&path).unwrap();
    for (author, kind) in [(1_u8, 1), (1, 7), (1, 9_000), (2, 300)] {
        connection
            .execute(
                "INSERT INTO event (id, pubkey, created_at, kind, json)
                 VALUES (randomblob(32), ?1, 1, ?2, '')",
                params![[author; 32], kind],
            )
            .unwrap();
    }
    let deadline = Deadline::default();
    let read = ReadTransaction::new(&connection, &deadline);
    let authors: Vec<[u8; 32]> = (0..100).map(|author| [author; 32]).collect();
    for (kinds, expected) in [(0..1_000, 3), (0..10_000, 4), (8..299, 0)] {
        let filter = Filter { kinds: Some(kinds.collect()), ..Filter::default() };
        let mut walks = 0;
        let mut items = 0;
        each_walk(&read, &filter, ScanIndex::Authors(&authors), |walk| {
            walks += 1;
            walk.run(0, &mut |_, _| {
                items += 1;
                Ok(ControlFlow::Continue(()))
            })
        })
        .unwrap();
        assert_eq!((walks, items), (expected, expected));
    }
}

/// A walk ends soon after its query is cancelled, whatever it finds.
#[test]
fn a_query_asks_again_and_again_whether_it_has_to_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.sqlite");
    let rows = 4_000;
    let tagged = |second: u64| [('t', (second % 2).to_string()), ('e', second.to_string())];
    let mut rng = StdRng::seed_from_u64(3);
    let events = (0..rows).map(|second| event(rng.random(), 1, second, 1, &tagged(second)));
    fill(&path, None, events.collect());
    let mut evens: Vec<TagKey> =
        (0..rows / 2).map(|half| TagKey::new(b'e', &(2 * half).to_string())).collect();
    evens.sort_unstable();
    let odd = vec![TagKey::new(b't', "1")];
    let filters = [
        Filter::default(),
        Filter { authors: Some(vec![[1; 32]]), ..Filter::default() },
        Filter { tags: vec![odd.clone()], ..Filter::default() },
        // A filter without matches.
        Filter { tags: vec![evens, odd], ..Filter::default() },
        Filter { authors: Some((0..rows).map(key).collect()), ..Filter::default() },
    ];
    for (place, filter) in filters.iter().enumerate() {
        for looks in [1_u64, 3] {
            let looked = Arc::new(AtomicU64::new(0));
            let counted = Arc::clone(&looked);
            let is_cancelled = move || counted.fetch_add(1, Ordering::Relaxed) + 1 >= looks;
            let deadline = Deadline::after(std::time::Duration::from_secs(3_600), is_cancelled);
            let reader = crate::Reader::open(&path, 1).unwrap().with_deadline(deadline);
            let mut visited = 0;
            let items = reader.items(filter, |_| {
                visited += 1;
                ControlFlow::Continue(())
            });
            let ended = matches!(items, Err(crate::StoreError::Interrupted));
            assert!(ended && visited < rows / 2, "filter {place}: {looks} looks, {visited} items");
        }
    }
}

fn key(number: u64) -> [u8; 32] {
    let mut key = [7; 32];
    key[..8].copy_from_slice(&number.to_be_bytes());
    key
}

/// A home feed: all of its 200 walks were run, and each of its events was read by itself.
#[test]
fn a_feed_of_many_authors_runs_no_more_walks_than_its_limit() {
    use rusqlite::StatementStatus::Run;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.sqlite");
    let mut rng = StdRng::seed_from_u64(3);
    let mut events = Vec::new();
    for author in 0..100 {
        for _ in 0..60 {
            let kind = [1, 6][rng.random_range(0..2)];
            events.push(event(rng.random(), author, rng.random_range(0..100_000), kind, &[]));
        }
    }
    let mut expected: Vec<Item> = events.iter().map(Event::item).collect();
    expected.sort_unstable_by_key(|item| (Reverse(item.created_at), item.id));
    fill(&path, None, events);
    let authors = (0..100).map(|author| [author; 32]).collect();
    let filter = Filter { authors: Some(authors), kinds: Some(vec![1, 6]), ..Filter::default() };
    for most in [1, 10, 100, 199, 200, 1_000] {
        let connection = schema::open_reader(&path).unwrap();
        let deadline = Deadline::default();
        let read = ReadTransaction::new(&connection, &deadline);
        let found = newest::newest(&read, &filter, most, &Expired::none()).unwrap();
        let items: Vec<Item> = found.hits.iter().map(|hit| hit.item).collect();
        assert_eq!(items, expected[..most], "{most}");
        let newest::Rest::Event(rest) = found.rest else { panic!("{most}: {:?}", found.rest) };
        assert!(expected[most..].contains(&rest), "{most}");
        let mut fetched = Vec::new();
        let mut visit = |item: &Item, _: &str| {
            fetched.push(*item);
            ControlFlow::Continue(())
        };
        assert_eq!(fetch(&connection, &found.hits, 0, &mut visit).unwrap(), most);
        assert_eq!(fetched, items, "{most}");
        let runs = |sql| connection.prepare_cached(sql).unwrap().get_status(Run) as usize;
        // Others can be as new as the first one after the limit.
        assert!(runs(BY_AUTHOR) <= most + 5, "{} walks for the newest {most}", runs(BY_AUTHOR));
        assert_eq!(runs(FETCH), most.div_ceil(FETCHED_ROWS), "{most}");
    }
}

/// Removed events and reused rows are skipped, and a break is counted.
#[test]
fn what_is_read_by_rows_is_what_is_still_there() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.sqlite");
    for seed in 0..20 {
        let mut rng = StdRng::seed_from_u64(seed);
        let _ = std::fs::remove_file(&path);
        let events: Vec<Event> =
            (0..40).map(|second| event(rng.random(), 1, second, 1, &[])).collect();
        fill(&path, None, events);
        let connection = schema::open_reader(&path).unwrap();
        let deadline = Deadline::default();
        let read = ReadTransaction::new(&connection, &deadline);
        let all = newest::newest(&read, &Filter::default(), 40, &Expired::none()).unwrap().hits;
        let hits: Vec<(Hit, bool)> = (0..rng.random_range(1..1_500))
            .map(|_| {
                let hit = all[rng.random_range(0..all.len())];
                match rng.random_range(0..4) {
                    0 => (Hit::new(hit.item, hit.row() + 1_000), false),
                    1 => (Hit::new(Item::new(1, rng.random()), hit.row()), false),
                    _ => (hit, true),
                }
            })
            .collect();
        let there: Vec<Item> =
            hits.iter().filter(|(_, is_there)| *is_there).map(|(hit, _)| hit.item).collect();
        let enough = rng.random_range(1..=there.len() + 10);
        let mut fetched = Vec::new();
        let mut visit = |item: &Item, _: &str| {
            fetched.push(*item);
            if fetched.len() < enough { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        };
        let shown: Vec<Hit> = hits.iter().map(|(hit, _)| *hit).collect();
        let looked_at = fetch(&connection, &shown, 0, &mut visit).unwrap();
        assert_eq!(fetched, there[..enough.min(there.len())], "seed {seed}");
        let is_there =
            |(place, (_, is_there)): (usize, &(Hit, bool))| is_there.then_some(place + 1);
        let places = hits.iter().enumerate().filter_map(is_there);
        let expected = places.clone().nth(enough - 1).unwrap_or(hits.len());
        assert_eq!(looked_at, expected, "seed {seed}");
    }
}
