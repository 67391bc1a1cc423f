//! Several relays over one PostgreSQL database: the next answer of each contains the acknowledged
//! events of all.

use crate::support::events::unix_now;
use crate::support::http::http;
use crate::support::negentropy_client::expect_all;
use crate::support::process::{RelayProcess, negsync, negsync_with};
use crate::support::{Author, id_of};
use negsync_testserver::TestServer;
use serde_json::{Value, json};
use std::path::Path;

/// A node on the server's database.
fn node(server: &TestServer) -> RelayProcess {
    RelayProcess::start(Path::new(server.url()))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_node_has_acknowledged_every_node_answers_with() {
    let Some(server) = TestServer::start() else { return };
    let (one, other) = (node(&server), node(&server));
    let (mut writer, mut reader) = (one.client().await, other.client().await);
    let (author, now) = (Author::new(1), unix_now());
    let mut notes = Vec::new();
    for number in 0..50 {
        let note = author.event(1, now - number, json!([["t", "x"]]), "a note");
        writer.store(&note).await;
        notes.push(note);
        expect_all(&mut reader, &notes.iter().collect::<Vec<_>>()).await;
    }
    let deletion = author.deletion(now, json!([["e", id_of(&notes[0])]]));
    writer.store(&deletion).await;
    let left: Vec<&Value> = notes[1..].iter().chain([&deletion]).collect();
    expect_all(&mut reader, &left).await;
    // The other node no longer has it in its sets, and refuses it when it is sent again.
    let (is_taken, reason) = reader.publish(&notes[0]).await;
    assert!(!is_taken && reason.starts_with("blocked: "), "{reason}");
    // And in the other direction.
    let last = author.note(now + 1, "the last");
    reader.store(&last).await;
    expect_all(&mut writer, &left.into_iter().chain([&last]).collect::<Vec<_>>()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_another_node_has_removed_is_no_duplicate() {
    let Some(server) = TestServer::start() else { return };
    let (one, other) = (node(&server), node(&server));
    let (mut writer, mut remover) = (one.client().await, other.client().await);
    for number in 0..20 {
        let (author, now) = (Author::new(2), unix_now());
        let note = author.note(now, &format!("goes {number}"));
        writer.store(&note).await;
        remover.store(&author.deletion(now, json!([["e", id_of(&note)]]))).await;
        let (is_taken, reason) = writer.publish(&note).await;
        assert!(!is_taken, "round {number}: {reason}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_database_and_not_the_index_says_what_is_a_duplicate() {
    let Some(server) = TestServer::start() else { return };
    let relay = node(&server);
    let mut client = relay.client().await;
    let note = Author::new(2).note(unix_now(), "a note");
    client.store(&note).await;
    let (is_taken, reason) = client.publish(&note).await;
    assert!(is_taken && reason.starts_with("duplicate: "), "{reason}");
    // Only a lookup in the index makes the signature check unnecessary.
    let mut wrong = note.clone();
    wrong["sig"] = json!("0".repeat(128));
    let (is_taken, reason) = client.publish(&wrong).await;
    assert!(!is_taken && reason.starts_with("invalid: "), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_subscription_hears_once_what_other_nodes_store() {
    let Some(server) = TestServer::start() else { return };
    let (one, other) = (node(&server), node(&server));
    let (mut writer, mut reader) = (one.client().await, other.client().await);
    let (author, now) = (Author::new(3), unix_now());
    for number in 0..30 {
        let id = format!("live-{number}");
        let tag = json!([["t", id]]);
        let before = author.event(1, now, tag.clone(), "before");
        writer.store(&before).await;
        // Stored before the REQ: it comes before EOSE, and not again.
        reader.send(&json!(["REQ", id, { "#t": [id] }])).await;
        reader.expect(json!(["EVENT", id, before])).await;
        reader.expect(json!(["EOSE", id])).await;
        let after = author.event(1, now, tag, "after");
        writer.store(&after).await;
        reader.expect(json!(["EVENT", id, after])).await;
        reader.send(&json!(["CLOSE", id])).await;
    }
    reader.fence().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_stops_starts_and_reads_its_configuration_anew() {
    let Some(server) = TestServer::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("relay.toml");
    let text = |name: &str| {
        let url = server.url();
        format!("[relay]\nlisten = \"127.0.0.1:0\"\nname = \"{name}\"\n[store]\nurl = \"{url}\"\n")
    };
    std::fs::write(&config, text("first")).unwrap();
    let relay = RelayProcess::configured(&config);
    let replica = relay.logged("acknowledged events are on one server");
    assert!(replica.contains("synchronous_replica=\"none\""), "{replica}");
    let note = Author::new(4).note(unix_now(), "stays");
    relay.client().await.store(&note).await;
    std::fs::write(&config, text("second")).unwrap();
    relay.signal("HUP");
    relay.logged("changed: relay.name");
    relay.signal("TERM");
    let (status, log) = relay.ended();
    assert!(status.success(), "{log}");
    let relay = RelayProcess::configured(&config);
    expect_all(&mut relay.client().await, &[&note]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_password_is_shown_nowhere() {
    let Some(server) = TestServer::start() else { return };
    let url = server.url().replacen("postgres@", "postgres:hush@", 1);
    assert!(url.contains("hush"));
    let relay = RelayProcess::start_with(Path::new(&url), &["--config", "relay.toml"]);
    relay.client().await.store(&Author::new(5).note(unix_now(), "a note")).await;
    let address = relay.url().strip_prefix("ws://").unwrap().parse().unwrap();
    for path in ["/health", "/metrics", "/status", "/"] {
        let response = http(address, "GET", path, &[]).await;
        assert_eq!(response.status, 200, "{path}: {}", response.body);
        assert!(!response.body.contains("hush"), "{path}: {}", response.body);
    }
    let shown = negsync(&["config", "show", "--store", &url], "");
    assert!(shown.status.success() && !shown.stdout.contains("hush"), "{shown:?}");
    // An invalid variable is reported without its value.
    let wrong = url.replacen("postgres://", "postgre://", 1);
    let checked = negsync_with(&[("NEGSYNC__STORE__URL", &wrong)], &["config", "check"], "");
    assert!(!checked.status.success() && !checked.stderr.contains("hush"), "{checked:?}");
    let nowhere = url.replacen("_test_", "_nowhere_", 1);
    let failed = negsync(&["export", "--store", &nowhere], "");
    assert!(!failed.status.success() && !failed.stderr.contains("hush"), "{failed:?}");
    relay.signal("TERM");
    let (status, log) = relay.ended();
    assert!(status.success() && !log.contains("hush"), "{log}");
}

#[test]
fn a_file_and_a_database_are_refused_together() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("relay.toml");
    let text = "[store]\npath = \"a.sqlite\"\nurl = \"postgres://me@db.example/events\"\n";
    std::fs::write(&config, text).unwrap();
    let file = config.to_str().unwrap();
    let checked = negsync(&["config", "check", file], "");
    assert!(!checked.status.success());
    assert!(checked.stderr.contains("line 3: url: store.path is set as well"), "{checked:?}");
    // The more specific setting overrides the other.
    let variable = [("NEGSYNC__STORE__URL", "postgres://me@db.example/other")];
    std::fs::write(&config, "[store]\npath = \"a.sqlite\"\n").unwrap();
    assert!(negsync_with(&variable, &["config", "check", file], "").status.success());
    let shown = negsync(&["config", "show", "--store", "b.sqlite"], "");
    assert!(shown.stdout.contains("path = \"b.sqlite\""), "{shown:?}");
}
