//! `negsync backup` and `negsync restore`: a copy beside a relay that is being written, and back.

use super::import::{import, lines};
use crate::support::process::{RelayProcess, exported, exported_ids, negsync, negsync_in};
use crate::support::{Author, events, id_of};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;

fn path(directory: &Path, name: &str) -> String {
    directory.join(name).to_str().unwrap().to_owned()
}

/// The copy is one snapshot while commits continue: it contains events acknowledged before it and
/// none published after it, and it is sound.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_beside_a_relay_that_is_written_to_is_of_one_moment() {
    let directory = tempfile::tempdir().unwrap();
    let [store, copy, restored] =
        ["events.sqlite", "copy.sqlite", "restored.sqlite"].map(|it| path(directory.path(), it));
    let author = Author::new(3);
    let notes: Vec<Value> = (0..2_000).map(|s| author.note(events::EPOCH + s, "note")).collect();
    let (before, meanwhile) = notes.split_at(1_500);
    assert!(import(Path::new(&store), &[], &lines(before)).status.success());
    let relay = RelayProcess::start(Path::new(&store));
    let (url, meanwhile) = (relay.url().to_owned(), meanwhile.to_vec());
    let publishing = tokio::spawn(async move {
        let mut client = crate::support::client::Client::connect(&url).await;
        for chunk in meanwhile.chunks(10) {
            client.publish_all(chunk).await;
        }
    });
    let (from, to) = (store.clone(), copy.clone());
    let backup = move || negsync(&["backup", &to, "--store", &from, "--verify"], "");
    let ended = tokio::task::spawn_blocking(backup).await.unwrap();
    assert!(ended.status.success(), "{ended:?}");
    assert!(ended.stdout.contains("nothing is wrong"), "{ended:?}");
    publishing.await.unwrap();
    let after = notes[0].clone();
    drop(relay);
    let copied = exported_ids(&copy);
    let acknowledged_before: BTreeSet<String> =
        before.iter().map(|event| id_of(event).to_owned()).collect();
    assert!(copied.is_superset(&acknowledged_before) && copied.contains(id_of(&after)));
    assert!(copied.is_subset(&notes.iter().map(|event| id_of(event).to_owned()).collect()));
    // There is one writer: the copy has a prefix of its writes.
    let written: Vec<bool> = notes.iter().map(|note| copied.contains(id_of(note))).collect();
    let groups = written.chunks(10).map(|group| group.contains(&true)).collect::<Vec<_>>();
    assert!(groups.is_sorted_by(|earlier, later| earlier >= later), "not of one moment");

    let ended = negsync(&["restore", &copy, "--store", &restored], "");
    assert!(ended.status.success(), "{ended:?}");
    assert!(ended.stdout.contains(&format!("{} events", copied.len())), "{ended:?}");
    assert_eq!(exported(&restored), exported(&copy));
    let checked = negsync(&["check", "--store", &restored], "");
    assert!(checked.status.success(), "{checked:?}");
    // A relay can run on it.
    let relay = RelayProcess::start(Path::new(&restored));
    let mut client = relay.client().await;
    assert!(client.publish(&author.note(events::EPOCH + 9_000, "later")).await.0);
}

#[test]
fn nothing_is_overwritten_and_nothing_half_done_is_left() {
    let directory = tempfile::tempdir().unwrap();
    let [store, copy, other] =
        ["events.sqlite", "copy.sqlite", "other"].map(|it| path(directory.path(), it));
    let notes = [Author::new(4).note(events::EPOCH, "one")];
    assert!(import(Path::new(&store), &[], &lines(&notes)).status.success());
    std::fs::write(&other, "not a store").unwrap();
    let refused = |arguments: &[&str], words: &str| {
        let ended = negsync(arguments, "");
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        assert!(ended.stderr.contains(words), "no {words} in {ended:?}");
    };
    refused(&["backup", &other, "--store", &store], "exists already");
    refused(&["restore", &store, "--store", &store], "exists already");
    refused(&["restore", &other, "--store", &copy], &other);
    refused(&["backup", &copy, "--store", &path(directory.path(), "none")], "none");
    assert_eq!(std::fs::read(&other).unwrap(), b"not a store");
    // Left behind by a copy that was killed.
    std::fs::write(format!("{copy}.partial"), "half").unwrap();
    let ended = negsync(&["backup", &copy, "--store", &store, "--json"], "");
    assert!(ended.status.success(), "{ended:?}");
    let report: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!((&report["events"], &report["sound"]), (&1.into(), &Value::Null));
    let names: BTreeSet<String> = std::fs::read_dir(directory.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains("partial") || name.starts_with("none"))
        .collect();
    assert!(names.is_empty(), "{names:?}");
    assert_eq!(exported(&copy), exported(&store));
}

/// A log of one of `notes` of another store: SQLite takes each page of it into the database of the
/// same name.
fn log_of_another_store(directory: &Path, journal_mode: &str, suffix: &str) -> Vec<u8> {
    let store = directory.join(format!("another{suffix}"));
    let author = Author::new(7);
    let notes: Vec<Value> =
        (0..200).map(|number| author.note(events::EPOCH + number, &"x".repeat(500))).collect();
    assert!(import(&store, &[], &lines(&notes)).status.success());
    let other = rusqlite::Connection::open(&store).unwrap();
    let statements = format!(
        "PRAGMA journal_mode = {journal_mode}; PRAGMA wal_autocheckpoint = 0; PRAGMA cache_size = 1;
         BEGIN; UPDATE event SET json = json || ' ';"
    );
    other.execute_batch(&statements).unwrap();
    if suffix == "-wal" {
        other.execute_batch("COMMIT").unwrap();
    }
    let log = std::fs::read(format!("{}{suffix}", store.display())).unwrap();
    assert!(log.len() > 100_000, "{}", log.len());
    log
}

#[test]
fn a_log_of_another_database_gets_into_no_copy_and_into_no_store() {
    let directory = tempfile::tempdir().unwrap();
    let [store, copy] = ["events.sqlite", "copy.sqlite"].map(|it| path(directory.path(), it));
    let author = Author::new(8);
    let notes: Vec<Value> =
        (0..300).map(|number| author.note(events::EPOCH + number, &"y".repeat(400))).collect();
    assert!(import(Path::new(&store), &[], &lines(&notes)).status.success());
    let events = exported(&store);
    for (journal_mode, suffix) in [("WAL", "-wal"), ("DELETE", "-journal")] {
        let log = log_of_another_store(directory.path(), journal_mode, suffix);
        let beside = format!("{copy}{suffix}");
        std::fs::write(&beside, &log).unwrap();
        for arguments in
            [["backup", &copy, "--store", &store], ["restore", &store, "--store", &copy]]
        {
            let ended = negsync(&arguments, "");
            assert_eq!(ended.status.code(), Some(1), "{arguments:?}: {ended:?}");
            let words = format!("{suffix} is the log of another database");
            assert!(ended.stderr.contains(&words), "{arguments:?}: {ended:?}");
            assert!(!Path::new(&copy).exists());
        }
        assert_eq!(std::fs::read(&beside).unwrap(), log);
        // An empty log has no effect.
        std::fs::write(&beside, "").unwrap();
        assert!(negsync(&["backup", &copy, "--store", &store], "").status.success());
        assert_eq!(exported(&copy), events);
        std::fs::remove_file(&copy).unwrap();
        let _ = std::fs::remove_file(&beside);
    }
    let journal = format!("{store}-journal");
    let log = log_of_another_store(directory.path(), "DELETE", "-journal");
    std::fs::write(&journal, &log).unwrap();
    let before = std::fs::read(&store).unwrap();
    let commands: [&[&str]; 5] =
        [&["import"], &["export"], &["check"], &["compact"], &["relay", "--listen", "127.0.0.1:0"]];
    for command in commands {
        let ended = negsync(&[command, &["--store", &store]].concat(), "");
        assert_eq!(ended.status.code(), Some(1), "{command:?}: {ended:?}");
        assert!(ended.stderr.contains("-journal is a rollback journal"), "{command:?}: {ended:?}");
    }
    // Where no store is, SQLite would remove it.
    std::fs::write(format!("{copy}-journal"), &log).unwrap();
    let ended = negsync(&["import", "--store", &copy], &lines(&notes));
    assert!(ended.stderr.contains("-journal is a rollback journal"), "{ended:?}");
    assert_eq!(std::fs::read(format!("{copy}-journal")).unwrap(), log);
    assert_eq!(std::fs::read(&journal).unwrap(), log);
    assert!(std::fs::read(&store).unwrap() == before);
    std::fs::remove_file(&journal).unwrap();
    assert_eq!(exported(&store), events);
}

#[test]
fn a_name_that_sqlite_gives_a_meaning_is_the_name_of_a_file() {
    let directory = tempfile::tempdir().unwrap();
    let note = Author::new(9).note(events::EPOCH, "one");
    let run = |arguments: &[&str], stdin: &str| {
        let ended = negsync_in(directory.path(), arguments, stdin);
        assert!(ended.status.success(), "{arguments:?}: {ended:?}");
        ended.stdout
    };
    for name in [":memory:", "file:events?mode=memory", "file:events.sqlite"] {
        run(&["import", "--store", name], &lines(std::slice::from_ref(&note)));
        let copy = format!("{name}2");
        run(&["backup", &copy, "--store", name, "--verify"], "");
        for store in [name, &copy] {
            let exported = run(&["export", "--store", store], "");
            assert!(exported.contains(id_of(&note)) && exported.lines().count() == 1, "{exported}");
            assert!(directory.path().join(store).metadata().unwrap().len() > 0, "{store}");
        }
    }
    assert!(!directory.path().join("events.sqlite").exists());
}
