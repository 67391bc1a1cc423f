//! Operating the sidecar: `/health`, `/metrics`, SIGHUP and `[[peer]]`.

use super::database::Database;
use super::passing::{PATIENCE, Stand, echo};
use crate::support::client::Client;
use crate::support::events::{Author, EPOCH};
use crate::support::http::http;
use crate::support::negentropy_client::{EMPTY_SET, neg_ids};
use crate::support::process::{RelayProcess, examples, negsync};
use crate::support::{TestRelay, model};
use futures_util::{SinkExt, StreamExt};
use negsync::config::Config;
use negsync::store::RelayKind;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::Message;

fn watched(config: &mut Config) {
    config.attach.status_listen = Some("127.0.0.1:0".parse().unwrap());
}

/// Requests `/health` until it has the expected status, and returns its text.
async fn health(stand: &Stand, status: u16) -> String {
    let address = stand.attach.status_address().unwrap();
    let began = Instant::now();
    loop {
        let response = http(address, "GET", "/health", &[]).await;
        if response.status == status {
            return response.body;
        }
        assert!(began.elapsed() < PATIENCE, "{} {}", response.status, response.body);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn health_tells_when_the_database_or_the_relay_is_away_and_when_it_is_back() {
    let relay = TestRelay::start().await;
    let address = relay.relay.address();
    let stand = Stand::with(address, watched).await;
    let healthy = json!({ "status": "ok", "reasons": [] });
    let body = health(&stand, 200).await;
    assert_eq!(serde_json::from_str::<Value>(&body).unwrap(), healthy);

    let (path, away) = (stand.database.path.clone(), stand.folder.path().join("away.db"));
    stand.database.connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    std::fs::rename(&path, &away).unwrap();
    let body = health(&stand, 503).await;
    assert!(body.contains("the relay's database cannot be read: "), "{body}");
    assert!(!body.contains("does not answer"), "{body}");
    std::fs::rename(&away, &path).unwrap();
    health(&stand, 200).await;

    let relay = {
        // No other process listens while it is away: its port is used again below.
        let TestRelay { relay, config, .. } = relay;
        relay.stop().await;
        let body = health(&stand, 503).await;
        assert!(body.contains("the relay does not answer: "), "{body}");
        assert!(!body.contains("database"), "{body}");
        config
    };
    let folder = tempfile::tempdir().unwrap();
    let mut config = relay;
    config.relay.listen = address.into();
    config.store.path = folder.path().join("events.sqlite");
    let _back = negsync::relay::Relay::start(config).await.unwrap();
    health(&stand, 200).await;
}

/// Each request checks a hanging relay again.
#[tokio::test(flavor = "multi_thread")]
async fn health_tells_when_the_relay_hangs_and_when_it_goes_on() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stand = Stand::with(listener.local_addr().unwrap(), watched).await;
    let body = health(&stand, 503).await;
    assert!(body.contains("the relay does not answer: nothing within"), "{body}");
    tokio::spawn(async move {
        let mut asked = Vec::new();
        // The first request never gets an answer.
        while let Ok((mut stream, _)) = listener.accept().await {
            if !asked.is_empty() {
                // It must not answer before it has the request.
                assert!(stream.read(&mut [0; 1_024]).await.unwrap() > 0);
                let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
                stream.write_all(answer).await.unwrap();
            }
            asked.push(stream);
        }
    });
    health(&stand, 200).await;
}

/// The relay itself may have these paths.
#[tokio::test(flavor = "multi_thread")]
async fn health_and_metrics_are_on_an_address_of_their_own_and_nowhere_without_one() {
    let stand = Stand::with(echo().await, watched).await;
    let status = stand.attach.status_address().unwrap();
    for path in ["/health", "/metrics"] {
        let relays = http(stand.attach.address(), "GET", path, &[]).await;
        assert!(relays.body.starts_with(&format!("GET {path} ")), "{}", relays.body);
        assert_eq!(http(status, "GET", path, &[]).await.status, 200);
    }
    assert_eq!(http(status, "GET", "/", &[]).await.status, 404);
    let proxied = http(status, "GET", "/metrics", &["X-Forwarded-For: 127.0.0.1"]).await;
    assert_eq!(proxied.status, 403);
    let stand = Stand::with(echo().await, |config| {
        watched(config);
        config.metrics.allow.clear();
    })
    .await;
    let status = stand.attach.status_address().unwrap();
    assert_eq!(http(status, "GET", "/metrics", &[]).await.status, 403);
    let stand = Stand::before(echo().await).await;
    assert_eq!(stand.attach.status_address(), None);
}

/// A value of `/metrics`; `None` if there is none with the name.
async fn sample(stand: &Stand, name: &str) -> Option<f64> {
    let body = http(stand.attach.status_address().unwrap(), "GET", "/metrics", &[]).await.body;
    let line = body.lines().find_map(|line| line.strip_prefix(&format!("{name} ")))?;
    Some(line.parse().unwrap())
}

async fn becomes(stand: &Stand, name: &str, expected: f64) {
    let began = Instant::now();
    loop {
        let found = sample(stand, name).await;
        if found == Some(expected) {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "{name}: {found:?}, not {expected}");
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_count_what_is_answered_here_and_nothing_of_what_passes() {
    let relay = TestRelay::start().await;
    let stand = Stand::with(relay.relay.address(), |config| {
        watched(config);
        config.negentropy.sessions = 1;
        config.connections.per_address = 1;
    })
    .await;
    let mut client = Client::connect(&stand.url()).await;
    client.store(&Author::new(2).note(EPOCH, "passes")).await;
    for id in ["a", "b"] {
        client.ask(&json!(["NEG-OPEN", id, {}, EMPTY_SET])).await;
    }
    client.ask(&json!(["NEG-MSG", "a", EMPTY_SET])).await;
    assert_eq!(Client::connect_for(&stand.url(), "-").await.err(), Some(429));
    let items = stand.ids().len() as f64;
    for (name, value) in [
        ("negsync_connections", 1.0),
        ("negsync_connections_total", 1.0),
        ("negsync_connections_refused_total{reason=\"address\"}", 1.0),
        ("negsync_messages_total{verb=\"NEG-OPEN\"}", 2.0),
        ("negsync_messages_total{verb=\"NEG-MSG\"}", 1.0),
        ("negsync_neg_sessions", 1.0),
        ("negsync_neg_sessions_total", 1.0),
        ("negsync_neg_rounds_total", 2.0),
        ("negsync_neg_refusals_total{reason=\"rate-limited\"}", 1.0),
        ("negsync_neg_set_items_sum", items),
        ("negsync_index_items", items),
    ] {
        becomes(&stand, name, value).await;
    }
    assert!(sample(&stand, "negsync_store_bytes").await > Some(0.0));
    for passed in ["negsync_events_total{outcome=\"stored\"}", "negsync_subscriptions"] {
        assert_eq!(sample(&stand, passed).await, None);
    }
    drop(client);
    becomes(&stand, "negsync_connections", 0.0).await;
    becomes(&stand, "negsync_neg_sessions", 0.0).await;
}

/// A relay that stores each EVENT like nostr-rs-relay, and answers OK.
async fn storing(path: PathBuf) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(store(stream, path.clone()));
        }
    });
    address
}

async fn store(stream: TcpStream, path: PathBuf) {
    let Ok(mut socket) = tokio_tungstenite::accept_async(stream).await else { return };
    let database = Database::existing(RelayKind::NostrRsRelay, &path);
    while let Some(Ok(message)) = socket.next().await {
        let Message::Text(text) = message else { continue };
        let message: Value = serde_json::from_str(&text).unwrap();
        let answer = match message[0].as_str().unwrap() {
            "EVENT" => {
                database.publish(&message[1]);
                json!(["OK", message[1]["id"], true, ""])
            }
            "REQ" => json!(["EOSE", message[1]]),
            _ => continue,
        };
        if socket.send(Message::text(answer.to_string())).await.is_err() {
            return;
        }
    }
}

fn configuration(path: &Path, relay: SocketAddr, more: &str) -> String {
    format!(
        "{more}\n[attach]\nkind = \"nostr-rs-relay\"\npath = {path:?}\nurl = \"ws://{relay}\"\n"
    )
}

/// SIGHUP changes limits, starts a sync with a peer, and refuses an invalid configuration.
#[tokio::test(flavor = "multi_thread")]
async fn on_sighup_limits_change_and_peers_are_kept_in_sync() {
    let folder = tempfile::tempdir().unwrap();
    let [path, file, notes] =
        ["relay.db", "relay.toml", "notes.sqlite"].map(|name| folder.path().join(name));
    // The two relays have different rules for replaced and deleted events.
    let notes_of = |author: u8| -> Vec<Value> {
        (0..60).map(|at| Author::new(author).note(EPOCH + at, "a note")).collect()
    };
    let (ours, theirs) = (notes_of(11), notes_of(12));
    let database = Database::new(RelayKind::NostrRsRelay, &path);
    ours.iter().for_each(|event| database.publish(event));
    let relay = storing(path.clone()).await;
    let peer = TestRelay::start().await;
    peer.client().await.publish_all(&theirs).await;
    let write = |more: &str| std::fs::write(&file, configuration(&path, relay, more)).unwrap();

    write("[negentropy]\nsessions = 1");
    let arguments = ["--config", file.to_str().unwrap(), "--store", notes.to_str().unwrap()];
    let attach = RelayProcess::attach(&arguments);
    let mut client = Client::connect_elsewhere(attach.url()).await;
    let mut kinds = Vec::new();
    for id in ["a", "b"] {
        kinds.push(client.ask(&json!(["NEG-OPEN", id, {}, EMPTY_SET])).await[0].clone());
    }
    assert_eq!(kinds, ["NEG-MSG", "NEG-ERR"]);

    for (wrong, said) in [
        ("[negentropy]\nsessions = 0", "sessions"),
        ("[[peer]]\nurl = \"http://nowhere\"", "nowhere"),
    ] {
        write(wrong);
        attach.signal("HUP");
        attach.logged(said);
        attach.logged("configuration not reloaded, the previous one stays in force");
        assert_eq!(client.ask(&json!(["NEG-OPEN", "b", {}, EMPTY_SET])).await[0], "NEG-ERR");
    }

    write(&format!(
        "[negentropy]\nsessions = 2\n[index]\nmemory_mb = 7\n[[peer]]\nurl = {:?}\nlive = true",
        peer.url()
    ));
    attach.signal("HUP");
    let line = attach.logged("configuration reloaded");
    assert!(line.contains("changed: negentropy.sessions, peer"), "{line}");
    assert!(attach.logged("configuration keys that need a restart").contains("index.memory_mb"));
    assert_eq!(client.ask(&json!(["NEG-OPEN", "b", {}, EMPTY_SET])).await[0], "NEG-MSG");

    let all = model::ids(&[ours, theirs].concat());
    equal(attach.url(), &peer, |ids| *ids == all).await;
    // Live, in both directions.
    let (here, there) = (Author::new(7).note(EPOCH, "here"), Author::new(8).note(EPOCH, "there"));
    database.publish(&here);
    peer.client().await.store(&there).await;
    let new = model::ids([&here, &there]);
    equal(attach.url(), &peer, |ids| ids.is_superset(&new)).await;

    attach.signal("TERM");
    let (status, log) = attach.ended();
    assert!(status.success(), "{log}");
}

/// Waits until the sidecar and its peer have the same, expected events.
async fn equal(
    url: &str,
    peer: &TestRelay,
    is_right: impl Fn(&std::collections::BTreeSet<String>) -> bool,
) {
    let began = Instant::now();
    loop {
        let mut client = Client::connect_elsewhere(url).await;
        let ours = neg_ids(&mut client, &json!({})).await;
        let theirs = neg_ids(&mut peer.client().await, &json!({})).await;
        if ours == theirs && is_right(&ours) {
            return;
        }
        assert!(began.elapsed() < 2 * PATIENCE, "{} here, {} there", ours.len(), theirs.len());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_of_the_library_reloads_too() {
    let relay = TestRelay::start().await;
    let stand = Stand::with(relay.relay.address(), |config| {
        config.connections.per_address = 1;
    })
    .await;
    let _held = Client::connect(&stand.url()).await;
    assert_eq!(Client::connect_for(&stand.url(), "-").await.err(), Some(429));
    let mut config = stand.config.clone();
    config.connections.per_address = 2;
    config.attach.relay_url = "wss://elsewhere.example".into();
    let reloaded = stand.attach.reload(config).unwrap();
    assert_eq!(reloaded.changed, ["connections.per_address"]);
    assert_eq!(reloaded.needs_restart, ["attach.relay_url"]);
    assert!(Client::connect_for(&stand.url(), "-").await.is_ok());
}

/// A file that would make SQLite wait forever, and other objects that are not files.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_file_in_the_databases_place_keeps_nobody_waiting() {
    let relay = TestRelay::start().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("relay.db");
    let pipe = |path: &Path| assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
    let named = format!("nostr-rs-relay:{}", path.display());
    let url = relay.url();
    let arguments = ["attach", "--attach", &named, "--url", &url, "--listen", "127.0.0.1:0"];
    // At the start, which would wait for a writer.
    for place in ["", "-wal", "-shm"] {
        if !place.is_empty() {
            let _ = std::fs::remove_file(&path);
            drop(Database::new(RelayKind::NostrRsRelay, &path));
        }
        let beside = PathBuf::from(format!("{}{place}", path.display()));
        let _ = std::fs::remove_file(&beside);
        pipe(&beside);
        let ended = negsync(&arguments, "");
        assert_eq!(ended.status.code(), Some(1), "{place}: {ended:?}");
        assert!(ended.stderr.contains("is no regular file"), "{place}: {ended:?}");
        std::fs::remove_file(&beside).unwrap();
    }
    let _ = std::fs::remove_file(&path);
    std::fs::create_dir(&path).unwrap();
    let ended = negsync(&arguments, "");
    assert!(ended.stderr.contains("is no regular file"), "{ended:?}");
    std::fs::remove_dir(&path).unwrap();

    // While it runs: each set is refused, and it ends on request.
    drop(Database::new(RelayKind::NostrRsRelay, &path));
    let attach = RelayProcess::attach(&["--attach", &named, "--url", &url]);
    let mut client = attach.client().await;
    let open = json!(["NEG-OPEN", "n", {}, EMPTY_SET]);
    assert_eq!(client.ask(&open).await[0], "NEG-MSG");
    std::fs::remove_file(&path).unwrap();
    pipe(&path);
    assert_eq!(client.ask(&open).await[0], "NEG-ERR");
    attach.signal("TERM");
    let (status, log) = attach.ended();
    assert!(status.success(), "{log}");
}

/// Each example of `negsync attach --help` serves.
#[tokio::test(flavor = "multi_thread")]
async fn each_example_serves_beside_the_relay_that_it_names() {
    let (directory, relay) = (tempfile::tempdir().unwrap(), TestRelay::start().await);
    for (kind, name) in [("nostr-rs-relay", "nostr.db"), ("nostr-relay-py", "nostr.sqlite3")] {
        let kind = RelayKind::named(kind).unwrap();
        Database::new(kind, &directory.path().join(name));
    }
    for example in examples("attach") {
        let words = example.split_whitespace().skip(2).map(|word| match word {
            url if url.starts_with("ws://") => relay.url(),
            word => word
                .replace("/var/lib/nostr/", &format!("{}/", directory.path().display()))
                .replace(":7777", ":0"),
        });
        let mut command = Command::new(env!("CARGO_BIN_EXE_negsync"));
        command.arg("attach").args(words).env("NEGSYNC__RELAY__LISTEN", "127.0.0.1:0");
        command.current_dir(directory.path());
        RelayProcess::serving(command);
    }
}
