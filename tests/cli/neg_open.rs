//! `negsync neg-open`: the line that opens a session over a set.

use super::import::{import, lines};
use crate::support::process::{Ended, RelayProcess, negsync};
use crate::support::{Author, corpora, events, id_of, model};
use negsync::item::Item;
use negsync::reconcile::{Difference, Initiator, InitiatorOptions, InitiatorStep, SortedItems};
use serde_json::{Value, json};
use std::path::Path;

fn neg_open(filter: &Value, arguments: &[&str]) -> Value {
    let ended = negsync(&[&["neg-open", &filter.to_string()], arguments].concat(), "");
    assert!(ended.status.success() && ended.stderr.is_empty(), "{ended:?}");
    assert_eq!(ended.stdout.lines().count(), 1);
    serde_json::from_str(&ended.stdout).unwrap()
}

/// The expected line for the events that a filter selects.
fn expected(filter: &Value, id: &str, events: &[Value]) -> (Value, SortedItems) {
    let items = model::answer(std::slice::from_ref(filter), events).into_iter().map(|event| {
        let mut id = [0; 32];
        faster_hex::hex_decode(id_of(event).as_bytes(), &mut id).unwrap();
        Item::new(event["created_at"].as_u64().unwrap(), id)
    });
    let set: SortedItems = items.collect();
    let message = Initiator::new(&set, InitiatorOptions::reference(0)).unwrap().open();
    (json!(["NEG-OPEN", id, filter, faster_hex::hex_string(&message)]), set)
}

#[test]
fn the_empty_set_needs_no_file() {
    let line = neg_open(&json!({"kinds": [1]}), &["--empty"]);
    assert_eq!(line, json!(["NEG-OPEN", "neg", {"kinds": [1]}, "6100000200"]));
    let line = neg_open(&json!({}), &["--empty", "--id", "a \"b\""]);
    assert_eq!(line, json!(["NEG-OPEN", "a \"b\"", {}, "6100000200"]));
}

#[test]
fn a_store_and_a_file_of_the_same_events_open_alike() {
    for corpus in corpora(72, 400) {
        let directory = tempfile::tempdir().unwrap();
        let [store, file] = ["store", "file"].map(|name| directory.path().join(name));
        assert!(import(&store, &[], &lines(&corpus.events)).status.success());
        let kept = model::kept(&corpus.events, events::unix_now());
        // A duplicate in a file is in the set once.
        std::fs::write(&file, lines(&kept) + "\n" + &lines(&kept[..3])).unwrap();
        let before = std::fs::read(&store).unwrap();
        for filter in [
            json!({}),
            json!({ "kinds": [1, 7] }),
            json!({ "authors": [corpus.events[0]["pubkey"]], "limit": 3 }),
            json!({ "#t": ["nostr"], "since": events::EPOCH }),
            json!({ "limit": 0 }),
            json!({ "ids": [] }),
        ] {
            let (line, _) = expected(&filter, "neg", &kept);
            for way in [["--store", store.to_str().unwrap()], ["--events", file.to_str().unwrap()]]
            {
                assert_eq!(neg_open(&filter, &way), line, "{}, {way:?}: {filter}", corpus.name);
            }
        }
        assert_eq!(std::fs::read(&store).unwrap(), before, "the store was written");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_pasted_finds_what_is_lacking() {
    let author = Author::new(1);
    let notes: Vec<Value> =
        (0..300).map(|second| author.note(events::EPOCH + second, "n")).collect();
    let lacking = |place: usize| place % 97 == 5;
    let some: Vec<Value> =
        (0..300).filter(|place| !lacking(*place)).map(|place| notes[place].clone()).collect();
    let directory = tempfile::tempdir().unwrap();
    let [ours, theirs] = ["ours", "theirs"].map(|name| directory.path().join(name));
    assert!(import(&ours, &[], &lines(&some)).status.success());
    assert!(import(&theirs, &[], &lines(&notes)).status.success());
    // It reads beside a relay on the same store.
    let _ours = RelayProcess::start(&ours);
    let relay = RelayProcess::start(&theirs);
    let mut client = relay.client().await;
    let line = neg_open(&json!({"kinds": [1]}), &["--store", ours.to_str().unwrap()]);
    let (_, set) = expected(&json!({"kinds": [1]}), "neg", &some);
    let mut initiator = Initiator::new(&set, InitiatorOptions::reference(0)).unwrap();
    let mut found = Difference::new();
    let mut answer = client.ask(&line).await;
    loop {
        let message = faster_hex::hex_decode_vec(answer[2].as_str().unwrap().as_bytes()).unwrap();
        match initiator.receive(&message, &mut found).unwrap() {
            InitiatorStep::Done => break,
            InitiatorStep::Send(next) => {
                answer =
                    client.ask(&json!(["NEG-MSG", "neg", faster_hex::hex_string(&next)])).await;
            }
        }
    }
    let mut need: Vec<String> = found.need.iter().map(|id| faster_hex::hex_string(id)).collect();
    need.sort();
    let mut expected: Vec<&str> =
        (0..300).filter(|place| lacking(*place)).map(|place| id_of(&notes[place])).collect();
    expected.sort_unstable();
    assert_eq!((need, found.have.len()), (expected.iter().map(|id| id.to_string()).collect(), 0));
}

fn refused(arguments: &[&str], reason: &str) -> Ended {
    let ended = negsync(&[&["neg-open"], arguments].concat(), "");
    assert_eq!(ended.status.code(), Some(1), "{arguments:?}: {ended:?}");
    assert!(ended.stdout.is_empty(), "{ended:?}");
    assert!(ended.stderr.contains(reason), "{arguments:?}: no {reason:?} in {}", ended.stderr);
    ended
}

#[test]
fn what_cannot_be_opened_is_named() {
    refused(&["{kinds:[1]}", "--empty"], r#"the filter "{kinds:[1]}", see NIP-01: filter: is not"#);
    refused(&[r#"{"kinds":1}"#, "--empty"], "kinds: ");
    refused(&[r#"{"kind":[1]}"#, "--empty"], "kind: not a filter key");
    refused(&["{}", "--empty", "--id", ""], "--id takes 1 to 64");
    refused(&["{}", "--empty", "--id", &"x".repeat(65)], "--id takes 1 to 64");
    refused(&["{}", "--empty", "--store", "x"], "cannot be used with");
    refused(&["{}", "--events", "x", "--store", "y"], "cannot be used with");
    refused(&["{}", "--events", "/nowhere/x.jsonl"], "/nowhere/x.jsonl");
    refused(&["{}", "--store", "/nowhere/x.sqlite"], "/nowhere/x.sqlite");
    refused(&["{}", "--store", "/nowhere/x.sqlite"], "--empty");
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("events.jsonl");
    let note = Author::new(1).note(events::EPOCH, "n");
    std::fs::write(&file, format!("{note}\n\n{{\"id\":5}}\n")).unwrap();
    refused(&["{}", "--events", path(&file)], "events.jsonl, line 3: id: ");
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}
