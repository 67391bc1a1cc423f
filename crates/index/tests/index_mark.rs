//! A mark of index files stands in a store that has all commits of the files.

use negsync_store::{Event, EventStore, MarkedStore, Store, StoreOptions, VerifiedEvent, backup};

/// Signatures are not tested here: the event counts as verified.
fn note(number: u64) -> VerifiedEvent {
    let event = format!(
        r#"{{"id":"{number:064x}","pubkey":"{:064x}","created_at":{number},"kind":1,"tags":[],"content":"","sig":"{}"}}"#,
        1,
        "0".repeat(128)
    );
    Event::parse(&event).unwrap().trust()
}

/// Such a copy took the files for its own, with an event that it lacks.
#[test]
fn a_mark_does_not_stand_in_a_copy_that_lacks_a_commit_of_its_files() {
    let folder = tempfile::tempdir().unwrap();
    let [path, early, late] =
        ["store", "early", "late"].map(|name| folder.path().join(format!("{name}.sqlite")));
    let open = |path| Store::open(path, StoreOptions::default(), Box::new(|_| {})).unwrap();
    let store = open(&path);
    store.publish(vec![note(1)]).unwrap();
    let mut take = || {
        backup(&path, &early, |_, _| {}).unwrap();
        store.publish(vec![note(2)]).unwrap();
    };
    let mark = store.begin_index_mark(&mut take).unwrap();
    assert!(store.standing_marks(&[mark]).unwrap().is_empty(), "before the files are complete");
    store.keep_index_mark(Some(mark)).unwrap();
    backup(&path, &late, |_, _| {}).unwrap();
    assert_eq!(store.standing_marks(&[mark]).unwrap(), [mark]);
    store.close();
    assert!(open(&early).standing_marks(&[mark]).unwrap().is_empty(), "it lacks an event");
    assert_eq!(open(&late).standing_marks(&[mark]).unwrap(), [mark]);
}
