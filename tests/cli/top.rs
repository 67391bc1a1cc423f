//! `negsync top`: its output when it is not on a terminal.

use crate::support::Author;
use crate::support::events::EPOCH;
use crate::support::process::{RelayProcess, negsync};
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn it_says_who_is_served_and_what_is_stored() {
    let directory = tempfile::tempdir().unwrap();
    let relay = RelayProcess::start(&directory.path().join("events.sqlite"));
    let mut client = relay.client().await;
    for second in 0..3 {
        client.store(&Author::new(1).note(EPOCH + second, "n")).await;
    }
    let _other = relay.client().await;
    client.ask(&json!(["NEG-OPEN", "n", {}, "6100000200"])).await;
    let address = relay.url().trim_start_matches("ws://").to_owned();
    let ended = negsync(&["top", "--relay", &address], "");
    assert!(ended.status.success(), "{ended:?}");
    let words: Vec<Vec<&str>> =
        ended.stdout.lines().map(|line| line.split_whitespace().collect()).collect();
    let line = |begin: &[&str]| words.iter().find(|line| line.starts_with(begin)).unwrap();
    assert!(line(&["negsync"]).windows(2).any(|pair| pair == ["3", "events,"]), "{ended:?}");
    assert_eq!(line(&["connections"])[1], "2", "{ended:?}");
    assert_eq!(line(&["NEG", "sessions"])[2], "1", "{ended:?}");
    assert_eq!(line(&["commits"])[1], "3", "{ended:?}");
    assert!(line(&["events"]).contains(&"stored/s"), "{ended:?}");
    assert!(ended.stdout.ends_with("no peers are configured\n"), "{ended:?}");
    assert!(!ended.stdout.contains('\x1b'), "{ended:?}");
    let ended = negsync(&["top", "--relay", &address, "--once", "--json"], "");
    let status: Value = serde_json::from_str(&ended.stdout).unwrap();
    let figures = ["stored_events", "connections", "neg_sessions"].map(|name| &status[name]);
    assert_eq!(figures, [3, 2, 1], "{ended:?}");
    drop(relay);
    let away = negsync(&["top", "--relay", &address], "");
    assert_eq!(away.status.code(), Some(1), "{away:?}");
    assert!(away.stderr.contains("no relay answers at"), "{away:?}");
}
