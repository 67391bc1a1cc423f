//! `negsync compact`: the same events in less room.

use super::import::{import, lines};
use crate::support::process::{RelayProcess, negsync};
use crate::support::{Author, events, id_of};
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_gone_takes_no_room_afterwards_and_the_rest_is_as_it_was() {
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("events.sqlite");
    let path = store.to_str().unwrap();
    let author = Author::new(1);
    let long = "x".repeat(20_000);
    let notes: Vec<Value> = (0..200).map(|s| author.note(events::EPOCH + s, &long)).collect();
    let targets: Vec<Value> = notes[..150].iter().map(|note| json!(["e", id_of(note)])).collect();
    let due = events::unix_now() + 1;
    let tags = json!([["expiration", due.to_string()]]);
    let rest = [
        author.deletion(events::EPOCH + 500, Value::Array(targets)),
        author.event(1, events::EPOCH, tags, "going"),
    ];
    assert!(import(&store, &[], &lines(&[&notes[..], &rest].concat())).status.success());
    while events::unix_now() < due {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let export = || negsync(&["export", "--store", path], "").stdout;
    let before = (export(), store.metadata().unwrap().len());
    let relay = RelayProcess::start(&store);
    let refused = negsync(&["compact", "--store", path], "");
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(refused.stderr.contains(path) && refused.stderr.contains("in use"), "{refused:?}");
    drop(relay);
    let ended = negsync(&["compact", "--store", path], "");
    assert!(ended.status.success(), "{ended:?}");
    assert!(!directory.path().join("events.sqlite-wal").exists());
    let after = (export(), store.metadata().unwrap().len());
    assert_eq!(after.0, before.0);
    assert!(after.1 < before.1 / 2, "{before:?} {after:?}");
    for words in ["bytes before", &format!("{} after", after.1), "150 tombstones kept"] {
        assert!(ended.stdout.contains(words), "no {words} in {ended:?}");
    }
    let checked = negsync(&["check", "--store", path], "");
    assert!(checked.status.success() && !checked.stdout.contains("expired"), "{checked:?}");
    // Deleted events stay deleted.
    assert!(import(&store, &[], &lines(&notes)).stdout.contains("150 deleted"));
}

#[test]
fn a_store_that_is_not_there_is_not_made() {
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("events.sqlite");
    let ended = negsync(&["compact", "--store", store.to_str().unwrap()], "");
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(ended.stderr.contains(store.to_str().unwrap()), "{ended:?}");
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}
