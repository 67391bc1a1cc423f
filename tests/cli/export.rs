//! `negsync export`: writes JSON Lines, oldest first.

use super::import::{import, lines};
use crate::support::process::{Ended, RelayProcess, negsync};
use crate::support::{Author, corpora, events, id_of, model};
use negsync::store::Event;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};

fn export(store: &Path, filter: Option<&Value>) -> Ended {
    let filter = filter.map(Value::to_string);
    let mut arguments = vec!["export", "--store", store.to_str().unwrap()];
    arguments.extend(filter.iter().flat_map(|filter| ["--filter", filter.as_str()]));
    negsync(&arguments, "")
}

fn read(ended: &Ended) -> Vec<Value> {
    assert!(ended.status.success(), "{ended:?}");
    ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The events that a filter selects, oldest first.
fn oldest_first(filter: &Value, events: &[Value]) -> Vec<Value> {
    let mut selected: Vec<Value> =
        model::answer(std::slice::from_ref(filter), events).into_iter().cloned().collect();
    selected.reverse();
    selected
}

#[test]
fn what_is_exported_is_what_was_kept_and_imports_into_the_same_store() {
    for corpus in corpora(70, 400) {
        let directory = tempfile::tempdir().unwrap();
        let [one, two] = ["one", "two"].map(|name| directory.path().join(name));
        assert!(import(&one, &[], &lines(&corpus.events)).status.success());
        let kept = model::kept(&corpus.events, events::unix_now());
        let exported = export(&one, None);
        assert_eq!(read(&exported), oldest_first(&json!({}), &kept), "{}", corpus.name);
        assert!(import(&two, &[], &exported.stdout).status.success());
        assert_eq!(export(&two, None).stdout, exported.stdout, "{}", corpus.name);
        for filter in [
            json!({ "kinds": [1, 7] }),
            json!({ "authors": [corpus.events[0]["pubkey"]], "limit": 3 }),
            json!({ "#t": ["nostr"], "since": events::EPOCH }),
            json!({ "limit": 10 }),
            json!({ "ids": [] }),
        ] {
            let exported = read(&export(&one, Some(&filter)));
            assert_eq!(exported, oldest_first(&filter, &kept), "{}: {filter}", corpus.name);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_reads_beside_a_running_relay() {
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("events.sqlite");
    let relay = RelayProcess::start(&store);
    let mut client = relay.client().await;
    let author = Author::new(1);
    let mut stored = Vec::new();
    for second in 0..5 {
        stored.push(author.note(events::EPOCH + second, "x"));
        client.store(&stored[stored.len() - 1]).await;
        assert_eq!(read(&export(&store, None)), stored);
    }
    client.store(&author.note(events::EPOCH + 5, "the relay still writes")).await;
}

/// While an export is read slowly, a relay replaces every event in it.
#[tokio::test(flavor = "multi_thread")]
async fn an_export_is_of_one_moment() {
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("events.sqlite");
    let relay = RelayProcess::start(&store);
    let mut client = relay.client().await;
    let author = Author::new(1);
    let long = "x".repeat(1_000);
    let versions = |second: u64| -> Vec<Value> {
        let version =
            |d: u64| author.event(30_023, second + d, json!([["d", d.to_string()]]), &long);
        (0..400).map(version).collect()
    };
    let before = versions(events::EPOCH);
    client.publish_all(&before).await;
    let mut child = Command::new(env!("CARGO_BIN_EXE_negsync"))
        .args(["export", "--store", store.to_str().unwrap()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut text = String::new();
    // It has begun, and the pipe contains a part of it.
    out.read_line(&mut text).unwrap();
    let after = versions(events::EPOCH + 1_000);
    assert!(client.publish_all(&after).await.values().all(|(accepted, _)| *accepted));
    out.read_to_string(&mut text).unwrap();
    assert!(child.wait().unwrap().success());
    let exported: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(exported, before);
    assert_eq!(read(&export(&store, None)), after);
}

#[test]
fn a_bad_filter_or_a_missing_store_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("events.sqlite");
    let missing = export(&store, None);
    assert!(!missing.status.success(), "{missing:?}");
    assert!(missing.stderr.contains(store.to_str().unwrap()), "{}", missing.stderr);
    assert!(!store.exists(), "an export made a store");
    for (filter, key) in [(json!([]), "filter"), (json!({ "kinds": 1 }), "kinds")] {
        let ended = export(&store, Some(&filter));
        assert!(!ended.status.success() && ended.stderr.contains(key), "{}", ended.stderr);
    }
}

#[test]
fn a_reader_that_stops_early_is_no_failure() {
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("events.sqlite");
    let author = Author::new(1);
    let long = "x".repeat(2_000);
    let notes: Vec<Value> = (0..500).map(|s| author.note(events::EPOCH + s, &long)).collect();
    assert!(import(&store, &["--no-verify"], &lines(&notes)).status.success());
    let mut child = Command::new(env!("CARGO_BIN_EXE_negsync"))
        .args(["export", "--store", store.to_str().unwrap()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&first).unwrap(), notes[0]);
    assert!(child.wait().unwrap().success());
}

/// While no relay runs, expired events stay stored; the export leaves them out, and they do not
/// count towards a limit.
#[test]
fn an_expired_event_takes_no_place_in_the_limit_of_an_export() {
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("events.sqlite");
    let author = Author::new(1);
    let due = events::unix_now() + 2;
    let [older, stays] = [1, 2].map(|second| author.note(events::EPOCH + second, "stays"));
    let tags = json!([["expiration", due.to_string()]]);
    let going = author.event(1, events::EPOCH + 3, tags, "going");
    let all = [older.clone(), stays.clone(), going];
    assert!(import(&store, &[], &lines(&all)).stdout.contains("3 stored"));
    while events::unix_now() < due {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert_eq!(read(&export(&store, None)), [older.clone(), stays.clone()]);
    assert_eq!(read(&export(&store, Some(&json!({ "limit": 2 })))), [older, stays.clone()]);
    assert_eq!(read(&export(&store, Some(&json!({ "limit": 1 })))), [stays]);
}

/// The tables of version 5, which had no requests for tombstones; a version that was deleted by its
/// id kept out all older ones.
const VERSION_5: &str = "
    DROP TABLE sync_mark;
    DROP TABLE sync_peer;
    CREATE TABLE synced (
        peer TEXT NOT NULL, filter TEXT NOT NULL, up_to INTEGER NOT NULL, at INTEGER NOT NULL,
        PRIMARY KEY (peer, filter)
    ) STRICT, WITHOUT ROWID;
    DROP TABLE tombstone;
    CREATE TABLE tombstone (
        id BLOB NOT NULL, pubkey BLOB NOT NULL, PRIMARY KEY (id, pubkey)
    ) STRICT, WITHOUT ROWID;
    DROP TABLE address_tombstone;
    CREATE TABLE address_tombstone (
        pubkey BLOB NOT NULL, kind INTEGER NOT NULL, address TEXT NOT NULL,
        created_at INTEGER NOT NULL, id BLOB NOT NULL DEFAULT x'',
        PRIMARY KEY (pubkey, kind, address)
    ) STRICT, WITHOUT ROWID;
    DROP INDEX event_time;
    DROP INDEX event_time_private;
    DROP TABLE private_time;
    CREATE INDEX event_time ON event (created_at, id, kind);
    ALTER TABLE tag RENAME TO newer;
    CREATE TABLE tag (
        key BLOB NOT NULL, created_at INTEGER NOT NULL, id BLOB NOT NULL, kind INTEGER NOT NULL,
        event INTEGER NOT NULL, PRIMARY KEY (key, created_at, id)
    ) STRICT, WITHOUT ROWID;
    INSERT INTO tag SELECT * FROM newer;
    DROP TABLE newer;
    DROP TABLE removal;
    DROP TABLE deleter;
    DROP TABLE operator_tombstone;
    DROP TRIGGER event_removed;
    DROP TABLE index_mark;
    DROP TABLE removed_item;
    DROP TABLE retention;
    DROP TABLE retention_floor;
    DROP TABLE retired;
    PRAGMA user_version = 5;";

/// Commands that write migrate a store of an older version; an export cannot, and reports it.
#[test]
fn a_store_of_an_older_version_is_brought_up_to_date_by_whoever_writes() {
    let author = Author::new(1);
    let at = events::EPOCH;
    let versions = [1, 2, 3, 4]
        .map(|second| author.event(30_023, at + second, json!([["d", "x"]]), "article"));
    let wrap = Author::new(90).event(1_059, at, json!([["p", author.key()]]), "wrap");
    let by_address =
        author.deletion(at + 1, json!([["a", author.address(30_023, "x")], ["e", "00"]]));
    let by_id = author.deletion(at + 9, json!([["e", id_of(&versions[2])], ["e", id_of(&wrap)]]));
    for version in [2, 5] {
        let directory = tempfile::tempdir().unwrap();
        let store = directory.path().join("events.sqlite");
        assert!(import(&store, &[], &lines(std::slice::from_ref(&wrap))).status.success());
        let database = rusqlite::Connection::open(&store).unwrap();
        database.execute_batch(VERSION_5).unwrap();
        // The state in version 5: the recipient could not delete the wrap, and the version before
        // the deleted one was kept out permanently.
        database
            .execute_batch(&format!(
                "INSERT INTO address_tombstone SELECT unhex('{}'), 30023, 'x', {}, unhex('{}');",
                author.key(),
                at + 3,
                id_of(&versions[2]),
            ))
            .unwrap();
        for request in [&by_address, &by_id] {
            let sql = "INSERT INTO event (id, pubkey, created_at, kind, json)
                VALUES (unhex(?1), unhex(?2), ?3, 5, ?4)";
            let json = Event::parse(&request.to_string()).unwrap().json().to_owned();
            let created_at = request["created_at"].as_i64();
            database.execute(sql, (id_of(request), author.key(), created_at, json)).unwrap();
        }
        if version == 2 {
            database
                .execute_batch(
                    "ALTER TABLE address_tombstone DROP COLUMN id; DROP TABLE vanished;
                     PRAGMA user_version = 2;",
                )
                .unwrap();
        }
        drop(database);
        let refused = export(&store, None);
        assert_eq!(refused.status.code(), Some(1), "{refused:?}");
        for word in [store.to_str().unwrap(), &format!("version {version}"), "import"] {
            assert!(refused.stderr.contains(word), "no {word} in {}", refused.stderr);
        }
        // Exactly the events deleted before stay deleted.
        assert!(import(&store, &[], &lines(&versions[..3])).stdout.contains("2 deleted"));
        let stored = [by_address.clone(), versions[1].clone(), by_id.clone()];
        assert_eq!(read(&export(&store, None)), stored);
        assert!(import(&store, &[], &lines(&versions[3..])).stdout.contains("1 stored"));
        assert!(
            import(&store, &[], &lines(std::slice::from_ref(&wrap))).stdout.contains("1 deleted")
        );
    }
}

/// The events stored since the last export, regardless of their time, and none is missed when row
/// numbers are reused.
#[test]
fn an_export_goes_on_where_the_last_one_ended() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("events.sqlite");
    let (store, mark) = (path.to_str().unwrap(), directory.path().join("mark"));
    let mark = mark.to_str().unwrap();
    let author = Author::new(1);
    let note = |second: u64| author.note(events::EPOCH + second, "n");
    let add = |notes: &[Value]| assert!(import(&path, &[], &lines(notes)).status.success());
    let export = || {
        let ended = negsync(&["export", "--store", store, "--since-last", mark], "");
        assert!(ended.status.success(), "{ended:?}");
        ended
            .stdout
            .lines()
            .map(|line| id_of(&serde_json::from_str(line).unwrap()).to_owned())
            .collect::<Vec<_>>()
    };
    let ids = |notes: &[Value]| notes.iter().map(|note| id_of(note).to_owned()).collect::<Vec<_>>();
    let first: Vec<Value> = (100..110).map(note).collect();
    add(&first);
    assert_eq!(export(), ids(&first));
    assert!(export().is_empty());
    // Older than all exported events.
    let second: Vec<Value> = (0..5).map(note).collect();
    add(&second);
    assert_eq!(export(), ids(&second));
    // The last rows are removed, and their numbers are reused.
    let gone = ids(&second);
    let gone: Vec<&str> = gone.iter().map(String::as_str).collect();
    let ended = negsync(&[&["delete", "--store", store, "--id"], &gone[..]].concat(), "");
    assert!(ended.status.success(), "{ended:?}");
    let third: Vec<Value> = (200..203).map(note).collect();
    add(&third);
    assert_eq!(export(), ids(&third));
    std::fs::write(mark, "something else").unwrap();
    let ended = negsync(&["export", "--store", store, "--since-last", mark], "");
    assert!(ended.stderr.contains("remove it to export everything"), "{ended:?}");
}

#[test]
fn an_export_is_packed_as_import_takes_it() {
    let directory = tempfile::tempdir().unwrap();
    let [from, packed] = ["from.sqlite", "packed"].map(|name| directory.path().join(name));
    let notes: Vec<Value> =
        (0..500).map(|second| Author::new(1).note(events::EPOCH + second, "n")).collect();
    assert!(import(&from, &[], &lines(&notes)).status.success());
    for (flag, begins) in [("--gzip", &[0x1f, 0x8b][..]), ("--zstd", &[0x28, 0xb5, 0x2f, 0xfd])] {
        let out = std::fs::File::create(&packed).unwrap();
        let ended = std::process::Command::new(env!("CARGO_BIN_EXE_negsync"))
            .args(["export", "--store", from.to_str().unwrap(), flag])
            .stdout(out)
            .status()
            .unwrap();
        assert!(ended.success());
        assert!(std::fs::read(&packed).unwrap().starts_with(begins), "{flag}");
        let to = directory.path().join(flag);
        let ended = import(&to, &[packed.to_str().unwrap()], "");
        assert!(ended.stdout.starts_with("500 stored"), "{ended:?}");
    }
}
