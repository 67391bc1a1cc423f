//! The end of the relay, and the state afterwards, with the real binary.

use crate::support::process::RelayProcess;
use crate::support::{TestRelay, events, model};
use serde_json::json;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

#[tokio::test(flavor = "multi_thread")]
async fn on_a_signal_sockets_close_with_1001_the_exit_is_0_and_acknowledged_events_stay() {
    for signal in ["TERM", "INT"] {
        let directory = tempfile::tempdir().unwrap();
        let store = directory.path().join("events.sqlite");
        let relay = RelayProcess::start(&store);
        let mut client = relay.client().await;
        let mut idle = relay.client().await;
        let sent = events::generate(3, 300);
        for event in &sent {
            client.send(&json!(["EVENT", event])).await;
        }
        // The signal comes while events are in flight; answers before the close frame count.
        let mut answered = Vec::new();
        answered.push(client.next("the first OK").await);
        relay.signal(signal);
        assert_eq!(idle.close_code().await, 1001);
        let mut code = None;
        while let Some(frame) = client.next_frame("an OK or a close frame").await {
            if let tokio_tungstenite::tungstenite::Message::Close(Some(frame)) = frame {
                code = Some(u16::from(frame.code));
                break;
            }
            answered.push(serde_json::from_str(frame.to_text().unwrap()).unwrap());
        }
        assert_eq!(code, Some(1001));
        let (status, log) = relay.ended();
        assert_eq!(status.code(), Some(0), "{log}");

        let accepted: Vec<_> = sent
            .iter()
            .filter(|event| answered.iter().any(|ok| ok[1] == event["id"] && ok[2] == true))
            .cloned()
            .collect();
        let relay = RelayProcess::start(&store);
        let mut client = relay.client().await;
        let stored = model::ids(&client.query(&[json!({})]).await);
        // Events that were stored but not answered may be there too, and may have replaced or
        // deleted others.
        let outcomes = client.publish_all(&accepted).await;
        for event in model::kept(&sent, events::unix_now()) {
            let id = event["id"].as_str().unwrap();
            if accepted.contains(&event) {
                assert!(stored.contains(id), "{event} was acknowledged and is gone");
                assert!(outcomes[id].1.starts_with("duplicate:"), "{event}");
            }
        }
    }
}

/// It leaves a single file, which can be copied.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_has_stopped_leaves_no_log_of_sqlite_behind() {
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("events.sqlite");
    let relay = RelayProcess::start(&store);
    let mut client = relay.client().await;
    client.publish_all(&events::generate(5, 50)).await;
    client.query(&[json!({})]).await;
    client.count(&[json!({ "kinds": [1] })]).await;
    assert!(directory.path().join("events.sqlite-wal").exists());
    relay.signal("TERM");
    let (status, log) = relay.ended();
    assert!(status.success(), "{log}");
    let names =
        std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<String> = names.map(|name| name.into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["events.sqlite", "events.sqlite.lock"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_kill_9() {
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("events.sqlite");
    let sent = events::generate(4, 200);
    let relay = RelayProcess::start(&store);
    relay.client().await.publish_all(&sent).await;
    relay.signal("KILL");
    let (status, _) = relay.ended();
    assert!(!status.success());
    let relay = RelayProcess::start(&store);
    let mut client = relay.client().await;
    let kept = model::kept(&sent, events::unix_now());
    assert_eq!(model::ids(&client.query(&[json!({})]).await), model::ids(&kept));
    assert_eq!(client.count(&[json!({})]).await, kept.len() as u64);
}

/// A child process being started holds a copy of every open file for a moment, including the
/// store's lock: a relay started directly after `stop` was occasionally refused the store.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_is_free_as_soon_as_its_relay_has_stopped() {
    let stop = Arc::new(AtomicBool::new(false));
    let children = Arc::clone(&stop);
    let spawning = std::thread::spawn(move || {
        while !children.load(Ordering::Relaxed) {
            Command::new("true").status().unwrap();
        }
    });
    let mut relay = TestRelay::start().await;
    for _ in 0..100 {
        relay = relay.restart_with(|_| {}).await;
    }
    stop.store(true, Ordering::Relaxed);
    spawning.join().unwrap();
}
