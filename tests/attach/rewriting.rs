//! A database that is overwritten, locked or vacuumed under the sets: answers are correct, or there
//! are none.

use super::database::{Database, KINDS};
use super::passing::config;
use crate::support::events::{Author, EPOCH, generate, unix_now};
use crate::support::negentropy_client::{Session, neg_ids, reconcile};
use crate::support::{Client, TestRelay, model};
use negsync::config::AuthConfig;
use negsync::index::Sets;
use negsync::reconcile::RangeSet;
use negsync::sidecar::{Attach, open_sets};
use negsync::store::{AttachedOptions, Filter, PrivateKinds, RelayKind};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);

fn attach(kind: RelayKind, path: &Path) -> Sets {
    let private = PrivateKinds::new(AuthConfig::default().private_kinds);
    Sets::attach(kind, path, AttachedOptions::default().readers(2).private_kinds(private), 64 << 20)
        .unwrap()
}

fn given(sets: &Sets, filter: &Value) -> Result<BTreeSet<String>, String> {
    let filter = Filter::from_json(filter).unwrap();
    let set = sets.snapshot(&[filter], usize::MAX).map_err(|error| error.to_string())?;
    let mut ids = BTreeSet::new();
    set.for_each(0..set.len(), &mut |item| {
        ids.insert(faster_hex::hex_string(&item.id));
    });
    Ok(ids)
}

/// Like [`given`], after refusals to readers that began slightly earlier.
fn given_at_last(sets: &Sets, filter: &Value) -> BTreeSet<String> {
    let began = Instant::now();
    loop {
        match given(sets, filter) {
            Ok(ids) => return ids,
            Err(error) => assert!(began.elapsed() < PATIENCE, "{error}"),
        }
    }
}

fn scan(database: &Database, filter: &Value) -> BTreeSet<String> {
    let visible = database.visible(unix_now());
    model::ids(model::answer(std::slice::from_ref(filter), &visible))
}

/// Like `cp`, in another process: in this one it would drop SQLite's locks.
fn overwrite(path: &Path, with: &Path) {
    assert!(Command::new("cp").arg(with).arg(path).status().unwrap().success());
}

/// A database in one file that is not open, and its contents.
fn closed(kind: RelayKind, path: &Path, events: &[Value]) -> BTreeSet<String> {
    let database = Database::new(kind, path);
    events.iter().for_each(|event| database.publish(event));
    database.connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    scan(&database, &json!({}))
}

/// A database whose file gets several contents in turn.
struct Overwritten {
    folder: TempDir,
    path: PathBuf,
    // One, another, and the first one in a slightly earlier state. The file has the first.
    contents: Vec<(PathBuf, BTreeSet<String>)>,
    sets: Sets,
}

impl Overwritten {
    fn new(kind: RelayKind) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("relay.db");
        let (one, other) = (generate(1, 400), generate(2, 300));
        let contents: Vec<_> = [&one[..], &other, &one[..390]]
            .iter()
            .enumerate()
            .map(|(number, events)| {
                let path = folder.path().join(format!("content{number}.db"));
                let ids = closed(kind, &path, events);
                (path, ids)
            })
            .collect();
        overwrite(&path, &contents[0].0);
        let sets = attach(kind, &path);
        Self { folder, path, contents, sets }
    }
}

#[test]
fn a_file_that_is_overwritten_in_its_place_is_read_anew() {
    for kind in KINDS {
        let Overwritten { folder: _folder, path, contents, sets } = Overwritten::new(kind);
        let all = json!({});
        for number in [1, 0, 2, 0, 2, 1] {
            let (content, expected) = &contents[number];
            overwrite(&path, content);
            let ids = given_at_last(&sets, &all);
            assert!(ids == *expected, "{kind:?}, content {number}: {}", ids.len());
            let some = json!({ "kinds": [1, 7] });
            let database = Database::existing(kind, content);
            assert!(given(&sets, &some) == Ok(scan(&database, &some)), "{kind:?}");
        }
        // The relay continues with it.
        let database = Database::existing(kind, &path);
        for event in generate(3, 40) {
            database.publish(&event);
            assert!(given(&sets, &all) == Ok(scan(&database, &all)), "{kind:?}");
        }
    }
}

/// During an overwrite a reader gets one content or the other, or nothing.
#[test]
fn no_set_is_a_mixture_of_two_contents() {
    for kind in KINDS {
        let Overwritten { folder: _folder, path, contents, sets } = Overwritten::new(kind);
        let filters = [json!({}), json!({ "kinds": [1] })];
        let expected = filters.clone().map(|filter| {
            let of = |(path, _): &(PathBuf, _)| scan(&Database::existing(kind, path), &filter);
            contents.iter().map(of).collect::<Vec<_>>()
        });
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for (filter, expected) in filters.iter().zip(&expected) {
                let (sets, done) = (&sets, &done);
                scope.spawn(move || {
                    while !done.load(Ordering::Relaxed) {
                        if let Ok(ids) = given(sets, filter) {
                            assert!(expected.contains(&ids), "{kind:?}, {filter}: {}", ids.len());
                        }
                    }
                });
            }
            let mut last = 0;
            for number in 0..30 {
                last = (number * 7 + 1) % contents.len();
                overwrite(&path, &contents[last].0);
            }
            done.store(true, Ordering::Relaxed);
            for (filter, expected) in filters.iter().zip(&expected) {
                let ids = given_at_last(&sets, filter);
                assert!(ids == expected[last], "{kind:?}, {filter}: {}", ids.len());
            }
        });
    }
}

/// The sidecar over a database, before a relay that lacks its events.
async fn stand(kind: RelayKind, path: &Path) -> (TestRelay, Attach, Client) {
    let relay = TestRelay::start().await;
    let config = config(kind, path, relay.relay.address());
    let attach = Attach::start(config.clone(), open_sets(&config).unwrap()).await.unwrap();
    let client = Client::connect(&format!("ws://{}", attach.address())).await;
    (relay, attach, client)
}

/// A lock that excludes readers: all of them are refused, and everything else continues.
#[tokio::test(flavor = "multi_thread")]
async fn while_it_is_locked_nothing_is_answered_and_afterwards_what_is_there() {
    for kind in KINDS {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("relay.db");
        let database = Database::new(kind, &path);
        // In WAL mode readers cannot be excluded.
        database.connection.execute_batch("PRAGMA journal_mode = DELETE").unwrap();
        generate(1, 120).iter().for_each(|event| database.publish(event));
        let (_relay, attach, mut client) = stand(kind, &path).await;
        let all = json!({});
        assert_eq!(neg_ids(&mut client, &all).await, scan(&database, &all), "{kind:?}");
        let session = Session::open(&mut client, "open", &all, [], 4_096).await.unwrap();
        let opened = scan(&database, &all);
        database.connection.execute_batch("BEGIN EXCLUSIVE").unwrap();
        let asking = (0..3).map(|_| async {
            let mut client = Client::connect(&format!("ws://{}", attach.address())).await;
            let refused = client.ask(&json!(["NEG-OPEN", "n", {}, "6100000200"])).await;
            assert_eq!(refused[0], "NEG-ERR", "{refused}");
            let text = refused[2].as_str().unwrap();
            assert!(text.starts_with("error:") && !text.contains("relay.db"), "{text}");
            client.fence().await;
        });
        futures_util::future::join_all(asking).await;
        let sql = format!("DELETE FROM {} WHERE rowid % 3 = 0", database.table());
        database.connection.execute_batch(&format!("{sql}; COMMIT")).unwrap();
        // Readers that began to wait before may still be refused.
        let began = Instant::now();
        let found = loop {
            match reconcile(&mut client, &all, [], 0).await {
                Ok(found) => break found.need,
                Err(refused) => assert!(began.elapsed() < PATIENCE, "{refused}"),
            }
        };
        assert_eq!(found, scan(&database, &all), "{kind:?}");
        // The open session is unchanged.
        assert_eq!(session.finish(&mut client).await.unwrap().need, opened, "{kind:?}");
    }
}

/// A session keeps its set; the next one has the current contents.
#[tokio::test(flavor = "multi_thread")]
async fn a_vacuum_during_sessions_changes_none_of_them() {
    for kind in KINDS {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("relay.db");
        let database = Database::new(kind, &path);
        let author = Author::new(1);
        let notes: Vec<Value> =
            (0..400).map(|at| author.note(EPOCH + at, &"x".repeat(400))).collect();
        notes.iter().for_each(|note| database.publish(note));
        let (_relay, _attach, mut client) = stand(kind, &path).await;
        let all = json!({});
        for round in 0..5 {
            let before = scan(&database, &all);
            let session = Session::open(&mut client, "open", &all, &notes[..9], 4_096).await;
            let session = session.unwrap();
            // Room that a vacuum frees, and rows that it renumbers.
            (0..20).for_each(|place| database.remove_by_hand(place * 3));
            database.publish(&author.note(EPOCH + 1_000 + round, "later"));
            database.vacuum();
            database.publish(&author.note(EPOCH + 2_000 + round, "last"));
            let context = format!("{kind:?}, round {round}");
            assert_eq!(neg_ids(&mut client, &all).await, scan(&database, &all), "{context}");
            let found = session.finish(&mut client).await.unwrap();
            let own = model::ids(&notes[..9]);
            assert_eq!(found.need, before.difference(&own).cloned().collect(), "{context}");
            assert_eq!(found.have, own.difference(&before).cloned().collect(), "{context}");
        }
    }
}

#[test]
fn a_database_that_is_overwritten_with_something_else_is_refused_until_it_is_one_again() {
    let Overwritten { folder, path, contents, sets } = Overwritten::new(RelayKind::NostrRsRelay);
    let rubbish = folder.path().join("rubbish");
    std::fs::write(&rubbish, "no database ".repeat(10_000)).unwrap();
    for rubbish in [rubbish.as_path(), Path::new("/dev/null")] {
        overwrite(&path, rubbish);
        given(&sets, &json!({})).unwrap_err();
        overwrite(&path, &contents[1].0);
        assert!(given_at_last(&sets, &json!({})) == contents[1].1);
    }
}
