//! A new configuration without a restart: by SIGHUP to the real binary, and by the library.

use crate::support::TestRelay;
use crate::support::process::RelayProcess;
use negsync::config::Within;
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn on_sighup_limits_change_and_a_bad_file_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("relay.toml");
    let write = |text: &str| std::fs::write(&file, text).unwrap();
    write("[limits]\nsubscriptions = 1\n");
    let store = directory.path().join("events.sqlite");
    let relay = RelayProcess::start_with(&store, &["--config", file.to_str().unwrap()]);
    let mut client = relay.client().await;
    assert_eq!(client.ask(&json!(["REQ", "a", {}])).await, json!(["EOSE", "a"]));
    assert_eq!(client.ask(&json!(["REQ", "b", {}])).await[0], "CLOSED");

    write("[limits]\n\nsubscriptions = 0\n");
    relay.signal("HUP");
    let line = relay.logged("the configuration stays as it was");
    assert!(line.contains("relay.toml, line 3: subscriptions: "), "{line}");
    assert_eq!(client.ask(&json!(["REQ", "b", {}])).await[0], "CLOSED");

    write("[limits]\nsubscriptions = 2\nmessage_bytes = 2000\nevent_bytes = 3000\n");
    relay.signal("HUP");
    let line = relay.logged("relay.toml, line 4: event_bytes: ");
    assert!(line.contains("the configuration stays as it was"), "{line}");
    assert!(line.contains("lower event_bytes or raise message_bytes"), "{line}");
    assert_eq!(client.ask(&json!(["REQ", "b", {}])).await[0], "CLOSED");

    write("[limits]\nsubscriptions = 2\n[store]\nreaders = 1\n[log]\nlevel = \"debug\"\n");
    relay.signal("HUP");
    let line = relay.logged("the configuration was read anew");
    assert!(line.contains("changed: limits.subscriptions, log.level"), "{line}");
    let line = relay.logged("only a restart");
    assert!(line.contains("store.readers"), "{line}");
    assert_eq!(client.ask(&json!(["REQ", "b", {}])).await, json!(["EOSE", "b"]));
    // Where it listens and what it serves is on the command line, and stays.
    relay.client().await.fence().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_of_the_library_reloads_too() {
    let relay = TestRelay::start_with(|config| config.limits.subscriptions = Within::new(1)).await;
    let mut client = relay.client().await;
    assert_eq!(client.ask(&json!(["REQ", "a", {}])).await, json!(["EOSE", "a"]));
    assert_eq!(client.ask(&json!(["REQ", "b", {}])).await[0], "CLOSED");
    let mut config = relay.config.clone();
    config.limits.subscriptions = Within::new(2);
    config.index.memory_mb = Within::new(1);
    let reloaded = relay.relay.reload(config);
    assert_eq!(reloaded.changed, ["limits.subscriptions"]);
    assert_eq!(reloaded.needs_restart, ["index.memory_mb"]);
    assert_eq!(client.ask(&json!(["REQ", "b", {}])).await, json!(["EOSE", "b"]));
}
