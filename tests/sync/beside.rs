//! Commands beside a relay on the same store, and `negsync peers`, which asks it.

use super::support::*;
use crate::support::disk::write_secret;
use crate::support::process::{RelayProcess, negsync};
use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;

/// A store of notes in `folder`, imported by the program.
fn imported(folder: &Path, events: &[String]) -> String {
    let (file, store) = (folder.join("events.jsonl"), folder.join("store.sqlite"));
    std::fs::write(&file, events.join("\n")).unwrap();
    let store = store.to_str().unwrap().to_owned();
    let ended = negsync(&["import", file.to_str().unwrap(), "--store", &store], "");
    assert!(ended.status.success(), "{ended:?}");
    store
}

#[tokio::test(flavor = "multi_thread")]
async fn diff_and_a_dry_run_need_no_lock() {
    let folder = tempfile::tempdir().unwrap();
    let shared = notes(180, 60);
    let store = imported(folder.path(), &[shared.clone(), notes(181, 7)].concat());
    let other = TestRelay::holding(&[shared, notes(182, 9)].concat()).await;
    let running = RelayProcess::start(Path::new(&store));
    let url = other.url();
    let ended = tokio::task::spawn_blocking(move || {
        let run = |arguments: &[&str]| negsync(&[arguments, &["--store", &store]].concat(), "");
        for by in ["day", "kind"] {
            let ended = run(&["diff", &url, "--by", by, "--json"]);
            assert_eq!(ended.status.code(), Some(3), "{ended:?}");
            let found: Value = serde_json::from_str(&ended.stdout).unwrap();
            let sum = |side: &str| -> u64 {
                let rows = found["rows"].as_array().unwrap().iter();
                rows.map(|row| row[side].as_u64().unwrap()).sum()
            };
            assert_eq!((sum("have"), sum("need")), (7, 9), "{found}");
        }
        let ended = run(&["sync", &url, "--dry-run", "--json"]);
        let report: Value = serde_json::from_str(&ended.stdout).unwrap();
        assert_eq!((&report["have"], &report["need"]), (&7.into(), &9.into()), "{report}");
        assert_eq!(report["stored"], 0, "{report}");
        run(&["sync", &url])
    });
    let ended = ended.await.unwrap();
    // Commands that would move events are refused, with the alternative.
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    for words in ["in use", "[[peer]]", "--dry-run"] {
        assert!(ended.stderr.contains(words), "{words}: {ended:?}");
    }
    assert_eq!(other.ids().len(), 69);
    drop(running);
}

#[tokio::test(flavor = "multi_thread")]
async fn import_hands_over_to_a_relay_that_runs() {
    let folder = tempfile::tempdir().unwrap();
    let key = Author::new(9);
    let relay = TestRelay::holding_with(&notes(184, 10), |config| {
        config.auth.mirror_keys = [key.keys().public_key().to_bytes()].into_iter().collect();
    })
    .await;
    let protected = event(&Author::new(1), 1, START, json!([["-"]]), "for members");
    let events = [notes(184, 10), notes(185, 500), vec![protected]].concat();
    let (file, key_file) = (folder.path().join("events.jsonl"), folder.path().join("key"));
    std::fs::write(&file, events.join("\n")).unwrap();
    let config = folder.path().join("import.toml");
    std::fs::write(&config, format!("[sync]\nkey_file = {key_file:?}\n")).unwrap();
    write_secret(&key_file, &key.keys().secret_key().to_secret_hex());
    let arguments = [
        "import",
        file.to_str().unwrap(),
        "--into",
        &relay.url(),
        "--config",
        config.to_str().unwrap(),
    ];
    let arguments = arguments.map(str::to_owned);
    let ended =
        tokio::task::spawn_blocking(move || negsync(&arguments.each_ref().map(String::as_str), ""));
    let ended = ended.await.unwrap();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert!(ended.stdout.contains("501 to send, 501 taken"), "{ended:?}");
    assert_eq!(relay.ids().len(), 511);
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_asks_the_relay_and_prints_how_each_stands() {
    let folder = tempfile::tempdir().unwrap();
    let other = TestRelay::holding(&notes(183, 12)).await;
    let config = folder.path().join("relay.toml");
    let text = format!(
        "[[peer]]\nurl = {:?}\n[[peer]]\nurl = \"ws://127.0.0.1:9\"\ninterval_s = 1\n",
        other.url()
    );
    std::fs::write(&config, text).unwrap();
    let store = folder.path().join("store.sqlite");
    let running = RelayProcess::start_with(&store, &["--config", config.to_str().unwrap()]);
    let address = running.url().trim_start_matches("ws://").trim_end_matches('/').to_owned();
    let peer = other.url();
    let asked = tokio::task::spawn_blocking(move || {
        let ask = |more: &[&str]| negsync(&[&["peers", "--relay", &address], more].concat(), "");
        let deadline = std::time::Instant::now() + PATIENCE;
        loop {
            let ended = ask(&["--json"]);
            assert_eq!(ended.status.code(), Some(0), "{ended:?}");
            let answer: Value = serde_json::from_str(&ended.stdout).unwrap();
            let states = [&answer["peers"][0]["state"], &answer["peers"][1]["state"]];
            if states == ["equal", "not reached"] {
                assert_eq!(answer["peers"][0]["name"], peer);
                assert_eq!(answer["peers"][0]["totals"]["stored"], 12);
                break;
            }
            assert!(std::time::Instant::now() < deadline, "{answer}");
            std::thread::sleep(Duration::from_millis(50));
        }
        let table = ask(&[]);
        let lines: Vec<&str> = table.stdout.lines().collect();
        assert!(lines[0].starts_with("PEER") && lines[0].contains("WE LACK"), "{table:?}");
        assert!(lines[1].starts_with(&peer) && lines[1].contains("equal"), "{table:?}");
        assert!(lines[2].starts_with("ws://127.0.0.1:9") && lines[2].contains("not reached"));
        assert!(lines[3].trim_start().starts_with("last error"), "{table:?}");
        let nobody = negsync(&["peers", "--relay", "127.0.0.1:9"], "");
        assert_eq!(nobody.status.code(), Some(1), "{nobody:?}");
        assert!(nobody.stderr.contains("--relay"), "{nobody:?}");
    });
    asked.await.unwrap();
    drop(running);
}

/// Peers' names and errors are for the operator: as for `/metrics`, requests through a proxy are
/// refused.
#[tokio::test(flavor = "multi_thread")]
async fn the_status_is_shown_to_the_operator_alone() {
    use crate::support::http::http;
    let relay = TestRelay::holding(&[]).await;
    let address = relay.relay.address();
    assert_eq!(http(address, "GET", "/status", &[]).await.status, 200);
    for header in ["X-Forwarded-For: 127.0.0.1", "Forwarded: for=127.0.0.1"] {
        assert_eq!(http(address, "GET", "/status", &[header]).await.status, 403, "{header}");
    }
    let closed = TestRelay::holding_with(&[], |config| config.metrics.allow = Vec::new()).await;
    assert_eq!(http(closed.relay.address(), "GET", "/status", &[]).await.status, 403);
}
