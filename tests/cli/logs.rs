//! The relay's log as JSON lines: one line for each sync with its figures, and no contents of
//! events or keys at any level.

use crate::support::Author;
use crate::support::client::Client;
use crate::support::disk::write_secret;
use crate::support::events::EPOCH;
use crate::support::http::http;
use crate::support::process::{RelayProcess, negsync};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;

/// Words in the content of every event of these tests, which no log may contain.
const CONTENT: &str = "what-nobody-but-the-reader-may-see";
const SECRET: &str = "4242424242424242424242424242424242424242424242424242424242424242";

fn start(directory: &Path, name: &str, config: &str) -> RelayProcess {
    let path = directory.join(format!("{name}.toml"));
    std::fs::write(&path, format!("[log]\nlevel = \"trace\"\nformat = \"json\"\n{config}"))
        .unwrap();
    let store = directory.join(format!("{name}.sqlite"));
    RelayProcess::start_with(&store, &["--config", path.to_str().unwrap()])
}

/// The lines of a log as objects.
fn lines(log: &str) -> Vec<Value> {
    let line =
        |line: &str| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in {line}"));
    log.lines().map(line).collect()
}

fn with_message<'log>(lines: &'log [Value], message: &str) -> Vec<&'log Value> {
    let fields = lines.iter().map(|line| &line["fields"]);
    fields.filter(|fields| fields["message"] == message).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_is_one_line_and_neither_content_nor_keys_are_logged() {
    let directory: TempDir = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let there = start(directory, "there", "");
    write_secret(&directory.join("key"), SECRET);
    let author = Author::new(1);
    let mut client = there.client().await;
    for n in 0..5 {
        client.store(&author.note(EPOCH + n, &format!("{CONTENT} {n}"))).await;
    }
    let config = format!(
        "[sync]\nkey_file = {:?}\n[[peer]]\nurl = {:?}\ninterval_s = 3600\n",
        directory.join("key"),
        there.url()
    );
    let here = start(directory, "here", &config);
    here.logged("\"synced\"");
    // Refusals and failures must not reveal them either.
    let mut client = here.client().await;
    let mut forged = author.note(EPOCH, CONTENT);
    forged["content"] = json!(format!("{CONTENT}, forged"));
    assert!(!client.publish(&forged).await.0);
    client.store(&author.event(1, EPOCH, json!([["d", CONTENT]]), CONTENT)).await;
    client.query(&[json!({ "authors": [author.key()] })]).await;
    client.ask(&json!(["NEG-OPEN", CONTENT, { "#d": [CONTENT] }, "6100000200"])).await;
    client.ask(&json!(["NEG-OPEN", CONTENT, { "#d": [CONTENT] }, "61ff"])).await;
    client.ask_text(&format!("[\"{CONTENT}\"")).await;
    drop(client);
    let ended = [here, there].map(|relay| {
        relay.signal("TERM");
        let (status, log) = relay.ended();
        assert!(status.success());
        log
    });
    let secret = nostr::SecretKey::from_hex(SECRET).unwrap();
    let nsec = nostr::nips::nip19::ToBech32::to_bech32(&secret).unwrap();
    for log in &ended {
        assert!(log.contains("serving") && log.contains("stopped"), "{log}");
        for hidden in [CONTENT, SECRET, &nsec, &faster_hex::hex_string(CONTENT.as_bytes())] {
            let line = log.lines().find(|line| line.contains(hidden));
            assert!(line.is_none(), "{hidden} is logged: {}", line.unwrap_or_default());
        }
    }
    let [here, there] = ended.map(|log| lines(&log));
    let synced = with_message(&here, "synced");
    let [line] = &synced[..] else { panic!("not one line: {synced:?}") };
    let expected = json!({
        "direction": "both", "have": 0, "need": 5, "stored": 5, "uploaded": 0, "refused": 0,
        "verdict": "equal", "proof": "negentropy",
    });
    for (key, value) in expected.as_object().unwrap() {
        assert_eq!(&line[key], value, "{key} in {line}");
    }
    for key in ["round_trips", "bytes_up", "bytes_down", "elapsed_s"] {
        assert!(line[key].as_f64().unwrap() > 0.0, "{key} in {line}");
    }
    let sessions = with_message(&there, "NEG session ended");
    assert!(sessions.iter().any(|line| line["items"] == 5), "{sessions:?}");
    let refused = here.iter().find_map(|line| {
        let text = line["fields"]["message"].as_str()?;
        text.strip_prefix("refused since the last such line: ")
    });
    let refused = refused.expect("a line about refusals");
    assert!(refused.contains("1 events (invalid)"), "{refused}");
    assert!(refused.contains("1 NEG messages (invalid)"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_cannot_be_written_ends_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("events.sqlite");
    let mut command = Command::new("sh");
    command.args(["-c", r#"exec "$0" "$@" 2>/dev/full"#, env!("CARGO_BIN_EXE_negsync")]);
    let config = folder.path().join("relay.toml");
    std::fs::write(&config, "[log]\nlevel = \"trace\"\n").unwrap();
    let arguments = ["--config", config.to_str().unwrap()];
    let relay = RelayProcess::start_by(command, &store, &arguments);
    let mut client = relay.client().await;
    client.store(&Author::new(1).note(EPOCH, CONTENT)).await;
    assert_eq!(client.query(&[json!({})]).await.len(), 1);
    relay.signal("TERM");
    let (status, _) = relay.ended();
    assert!(status.success(), "{status}");
}

/// A token in a peer's URL is visible only to the peer.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_peers_url_holds_for_the_peer_alone_is_nowhere_else() {
    let directory: TempDir = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let there = start(directory, "there", "");
    there.client().await.store(&Author::new(1).note(EPOCH, "hello")).await;
    let tokens = ["hush-hush", "not-a-word"];
    let peers = [
        format!("{}/?token={}", there.url().replace("ws:", "WS:"), tokens[0]),
        // One that is out of reach.
        format!("ws://127.0.0.1:9/?{}", tokens[1]),
    ];
    let sections = peers.each_ref().map(|url| format!("[[peer]]\nurl = {url:?}\ninterval_s = 1\n"));
    let page = "[page]\nenabled = true\noperator = [\"127.0.0.1\"]\n";
    let here = start(directory, "here", &[page, &sections.concat()].concat());
    here.logged("\"synced\"");
    here.logged("nothing serves at");
    let address = here.url().trim_start_matches("ws://").parse().unwrap();
    let mut said = Vec::new();
    for path in ["/", "/metrics", "/status"] {
        let body = http(address, "GET", path, &["Accept: text/html"]).await.body;
        assert!(body.contains("token=..."), "{path}: {body}");
        said.push(body);
    }
    let store = directory.join("a.sqlite");
    let commands = ["sync", "sync --json", "sync --trace", "diff --json", "diff"];
    let away = std::iter::once(("sync", &peers[1]));
    for (arguments, url) in commands.map(|command| (command, &peers[0])).into_iter().chain(away) {
        let mut words: Vec<&str> = arguments.split(' ').collect();
        words.insert(1, url);
        let ended = negsync(&[&words[..], &["--store", store.to_str().unwrap()]].concat(), "");
        said.push(format!("{}\n{}", ended.stdout, ended.stderr));
    }
    // Refused at once.
    for url in ["ws://hush-hush@a.example", "ws://a.example:99999/?token=hush-hush"] {
        let ended = negsync(&["sync", url, "--store", store.to_str().unwrap()], "");
        assert!(!ended.status.success());
        said.push(ended.stderr);
    }
    for relay in [here, there] {
        relay.signal("TERM");
        said.push(relay.ended().1);
    }
    for text in said {
        let line = text.lines().find(|line| tokens.iter().any(|token| line.contains(token)));
        assert!(line.is_none(), "{}", line.unwrap_or_default());
    }
}

/// A proxy that is not trusted is reported once; clients' addresses are logged at debug level only.
#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_is_not_trusted_is_named_once() {
    let directory = tempfile::tempdir().unwrap();
    let relay = RelayProcess::start(&directory.path().join("events.sqlite"));
    for number in 0..40 {
        let connected = Client::connect_for(relay.url(), &format!("192.0.2.{number}")).await;
        connected.unwrap().fence().await;
    }
    let line = relay.logged("proxy not trusted");
    assert!(line.contains("WARN") && line.contains("proxy=127.0.0.1"), "{line}");
    assert!(line.contains("connections.trusted_proxies"), "{line}");
    relay.signal("TERM");
    let (_, log) = relay.ended();
    assert_eq!(log.matches("proxy not trusted").count(), 1, "{log}");
    assert!(!log.contains("192.0.2."), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trusted_proxy_is_not_named() {
    let directory = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_negsync"));
    command.env("NEGSYNC__CONNECTIONS__TRUSTED_PROXIES", "127.0.0.1");
    command.env("NEGSYNC__LOG__LEVEL", "debug");
    let relay = RelayProcess::start_by(command, &directory.path().join("events.sqlite"), &[]);
    for number in 0..40 {
        let connected = Client::connect_for(relay.url(), &format!("192.0.2.{number}")).await;
        connected.unwrap().fence().await;
    }
    let line = relay.logged("client=192.0.2.39");
    assert!(line.contains("DEBUG"), "{line}");
    relay.signal("TERM");
    let (_, log) = relay.ended();
    assert!(!log.contains("proxy not trusted"), "{log}");
}
