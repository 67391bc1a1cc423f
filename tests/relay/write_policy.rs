//! Write-policy plugins: strfry's protocol, programs that die, hang and write invalid output, and
//! the same policy for syncs. The plugins are shell scripts, like those of operators.

use crate::support::client::{Client, PATIENCE};
use crate::support::process::{RelayProcess, negsync};
use crate::support::{Author, TestRelay, events, id_of, model};
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;
use tempfile::TempDir;

/// Reads lines and answers each by its content; `$seen` is a file with the lines.
const BY_CONTENT: &str = r#"
while IFS= read -r line; do
    printf '%s\n' "$line" >> "$seen"
    id=${line#*'"id":"'}
    id=${id%%'"'*}
    case $line in
        *'"content":"spam'*) echo "{\"id\":\"$id\",\"action\":\"reject\",\"msg\":\"blocked: spam\"}" ;;
        *'"content":"rude'*) echo "{\"id\":\"$id\",\"action\":\"reject\"}" ;;
        *'"content":"shadow'*) echo "{\"id\":\"$id\",\"action\":\"shadowReject\",\"msg\":\"\"}" ;;
        *'"content":"odd'*) echo "{\"id\":\"$id\",\"action\":\"perhaps\"}" ;;
        *'"content":"chatty'*) echo "what a day"; echo '{"id":"00","action":"accept"}'
            echo "{\"id\":\"$id\",\"action\":\"accept\",\"msg\":\"\"}" ;;
        *'"content":"long'*) head -c 100000 /dev/zero | tr '\0' x; echo ;;
        *'"content":"die'*) echo "oh no" >&2; exit 3 ;;
        *'"content":"hang'*) sleep 1000; echo never ;;
        *) echo "{\"id\":\"$id\",\"action\":\"accept\",\"msg\":\"\"}" ;;
    esac
done
"#;

/// Delays its answers until fifty events have come, and gives them in reverse order.
const FIFTY_IN_REVERSE: &str = r#"
answers=
count=0
while IFS= read -r line; do
    id=${line#*'"id":"'}
    id=${id%%'"'*}
    answers="{\"id\":\"$id\",\"action\":\"accept\"}
$answers"
    count=$((count + 1))
    if [ $count = 50 ]; then printf %s "$answers"; answers=; count=0; fi
done
"#;

struct Plugin {
    directory: TempDir,
}

impl Plugin {
    fn new(script: &str) -> Self {
        let plugin = Self { directory: tempfile::tempdir().unwrap() };
        plugin.write(script);
        plugin
    }

    fn write(&self, script: &str) {
        let seen = self.directory.path().join("seen");
        let text = format!("#!/bin/sh\nseen='{}'\n{script}", seen.display());
        // Written to another file and renamed: a file that is open for writing cannot be executed.
        let beside = self.directory.path().join("beside");
        std::fs::write(&beside, text).unwrap();
        std::fs::set_permissions(&beside, PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::rename(beside, self.path()).unwrap();
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("policy")
    }

    fn seen(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.directory.path().join("seen")).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    async fn relay(&self) -> TestRelay {
        TestRelay::start_with(|config| {
            config.write_policy.command = self.path().to_str().unwrap().into();
            config.write_policy.timeout_s = 1;
        })
        .await
    }
}

fn note(content: &str, number: u64) -> Value {
    Author::new(1).note(events::EPOCH + number, content)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_event_is_put_to_the_program_and_what_it_says_is_done() {
    let plugin = Plugin::new(BY_CONTENT);
    let relay = plugin.relay().await;
    let mut client = relay.client().await;
    let before = events::unix_now();
    let mut stored = Vec::new();
    for (number, (content, accepted, text)) in [
        ("hello", true, ""),
        ("spam", false, "blocked: spam"),
        ("rude", false, "blocked: not wanted by this relay"),
        ("shadow", true, ""),
        ("odd", false, "error: the write policy does not answer; try again"),
        ("chatty", true, ""),
        ("hello \"again\" \u{1f98a}\n", true, ""),
    ]
    .into_iter()
    .enumerate()
    {
        let event = note(content, number as u64);
        let outcome = client.publish(&event).await;
        assert_eq!(outcome, (accepted, text.to_owned()), "{content}");
        let seen = plugin.seen().pop().unwrap();
        assert_eq!(seen["type"], "new");
        assert_eq!(seen["event"], event);
        assert_eq!(
            (&seen["sourceType"], &seen["sourceInfo"]),
            (&json!("IP4"), &json!("127.0.0.1"))
        );
        let received = seen["receivedAt"].as_u64().unwrap();
        assert!((before..=events::unix_now()).contains(&received), "{seen}");
        if accepted && content != "shadow" {
            stored.push(event);
        }
    }
    assert_eq!(model::ids(&client.query(&[json!({})]).await), model::ids(&stored));
    // It is not asked about known events and events with a wrong signature.
    let asked = plugin.seen().len();
    assert!(client.publish(&stored[0]).await.1.starts_with("duplicate:"));
    let mut forged = note("forged", 50);
    forged["sig"] = note("other", 51)["sig"].clone();
    assert!(!client.publish(&forged).await.0);
    assert_eq!(plugin.seen().len(), asked);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_events_are_on_their_way_to_the_program_at_once_and_answers_may_come_in_any_order() {
    let plugin = Plugin::new(FIFTY_IN_REVERSE);
    let relay = plugin.relay().await;
    let mut client = relay.client().await;
    let sent: Vec<Value> = (0..200).map(|number| note("one of many", number)).collect();
    let outcomes = client.publish_all(&sent).await;
    assert!(outcomes.values().all(|(accepted, _)| *accepted), "{outcomes:?}");
    assert_eq!(client.count(&[json!({})]).await, 200);
}

/// Answers nothing until a file exists.
const GATED: &str = r#"
while [ ! -e "$seen.open" ]; do sleep 0.01; done
while IFS= read -r line; do
    printf '%s\n' "$line" >> "$seen"
    id=${line#*'"id":"'}
    id=${id%%'"'*}
    echo "{\"id\":\"$id\",\"action\":\"accept\"}"
done
"#;

/// An address with hundreds of events delayed all others at the program.
#[tokio::test(flavor = "multi_thread")]
async fn addresses_take_turns_at_the_program() {
    const MANY: u64 = 500;
    let plugin = Plugin::new(GATED);
    let relay = TestRelay::start_with(|config| {
        config.write_policy.command = plugin.path().to_str().unwrap().into();
        config.write_policy.timeout_s = 60;
        config.connections.trusted_proxies = vec!["127.0.0.1".parse().unwrap()];
    })
    .await;
    let mut busy = Client::connect_for(&relay.url(), "192.0.2.1").await.unwrap();
    for number in 0..MANY {
        busy.send(&json!(["EVENT", note("one of many", number)])).await;
    }
    // All of them are in the program or waiting for it.
    busy.ask(&json!(["COUNT", "c", {}])).await;
    let mut other = Client::connect_for(&relay.url(), "192.0.2.2").await.unwrap();
    let single = note("the only one", MANY);
    other.send(&json!(["EVENT", single])).await;
    other.ask(&json!(["COUNT", "c", {}])).await;
    std::fs::write(plugin.directory.path().join("seen.open"), "").unwrap();
    other.expect(json!(["OK", id_of(&single), true, ""])).await;
    let asked = plugin.seen().iter().position(|line| line["event"] == single).unwrap();
    assert!(asked < 100, "it was asked about after {asked} others");
}

/// Whatever ends or stalls the program: pending events are not accepted, and the program is
/// restarted.
#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_dies_hangs_or_floods_is_started_again_and_nothing_is_accepted_meanwhile() {
    for fault in ["die", "hang", "long"] {
        let plugin = Plugin::new(BY_CONTENT);
        let relay = plugin.relay().await;
        let mut client = relay.client().await;
        client.store(&note("before", 0)).await;
        for round in 0..2 {
            let (accepted, text) = client.publish(&note(fault, 1 + round)).await;
            assert!(!accepted && text.starts_with("error: "), "{fault}: {text}");
            let deadline = Instant::now() + PATIENCE;
            let (mut number, mut refused) = (1_000 * (round + 1), Vec::new());
            loop {
                number += 1;
                let event = note("afterwards", number);
                let (accepted, text) = client.publish(&event).await;
                if accepted {
                    break;
                }
                assert!(text.starts_with("error: "), "{fault}: {text}");
                assert!(Instant::now() < deadline, "{fault}: it is not started again");
                refused.push(id_of(&event).to_owned());
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
            assert_eq!(client.count(&[json!({ "ids": refused })]).await, 0, "{fault}");
        }
        assert_eq!(client.count(&[json!({})]).await, 3, "{fault}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_cannot_be_run_accepts_nothing_and_reads_go_on() {
    let relay = TestRelay::start_with(|config| {
        config.write_policy.command = "/nowhere/at-all --strict".into();
    })
    .await;
    let mut client = relay.client().await;
    for number in 0..5 {
        let (accepted, text) = client.publish(&note("hello", number)).await;
        assert!(!accepted && text.starts_with("error: "), "{text}");
    }
    assert_eq!(client.count(&[json!({})]).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_script_that_was_changed_is_loaded_again() {
    let plugin = Plugin::new(BY_CONTENT);
    let relay = plugin.relay().await;
    let mut client = relay.client().await;
    client.store(&note("hello", 0)).await;
    plugin.write(&BY_CONTENT.replace("content\":\"spam", "content\":\"hello"));
    let deadline = Instant::now() + PATIENCE;
    let mut number = 1;
    while client.publish(&note("hello", number)).await != (false, "blocked: spam".to_owned()) {
        assert!(Instant::now() < deadline, "the old script goes on");
        number += 1;
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    client.store(&note("spam", 0)).await;
}

/// Events of a peer that the policy refuses are recorded, and not requested again.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_sync_brings_passes_the_same_policy() {
    let peer = TestRelay::start().await;
    let contents = ["hello", "spam", "shadow", "rude", "hello again"];
    let held: Vec<Value> = (0..).zip(contents).map(|(n, content)| note(content, n)).collect();
    peer.client().await.publish_all(&held).await;
    let plugin = Plugin::new(BY_CONTENT);
    let folder = tempfile::tempdir().unwrap();
    let (store, config) = (folder.path().join("store.sqlite"), folder.path().join("relay.toml"));
    let section = format!("[write_policy]\ncommand = \"{}\"\n", plugin.path().display());
    std::fs::write(&config, section).unwrap();
    let run = |url: String| {
        let (store, config) = (store.clone(), config.clone());
        tokio::task::spawn_blocking(move || sync(&store, &config, &url))
    };
    let report = run(peer.url()).await.unwrap();
    assert_eq!((&report["stored"], &report["complete"]), (&json!(2), &json!(true)), "{report}");
    assert_eq!(report["refused"]["refused by the write policy"], 3, "{report}");
    let seen = plugin.seen();
    assert_eq!(seen.len(), 5);
    for line in &seen {
        assert_eq!(line["sourceType"], "Sync", "{line}");
        let url = line["sourceInfo"].as_str().unwrap();
        assert_eq!(url.trim_end_matches('/'), peer.url(), "{line}");
    }
    let report = run(peer.url()).await.unwrap();
    assert_eq!((&report["stored"], &report["complete"]), (&json!(0), &json!(true)), "{report}");
    assert_eq!(report["differs"]["refused by the write policy"], 3, "{report}");
    assert_eq!(plugin.seen().len(), 5, "it was asked again");
}

fn sync(store: &Path, config: &Path, url: &str) -> Value {
    let [store, config] = [store, config].map(|path| path.to_str().unwrap());
    let arguments = ["sync", url, "--store", store, "--config", config, "--direction", "down"];
    let ended = negsync(&[&arguments[..], &["--json"]].concat(), "");
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    serde_json::from_str(&ended.stdout).unwrap()
}

/// The real relay with the plugin as its write policy, and with these environment variables.
fn process(plugin: &Plugin, variables: &[(&str, &str)]) -> RelayProcess {
    let folder = plugin.directory.path();
    let config = folder.join("relay.toml");
    let section = format!("[write_policy]\ncommand = \"{}\"\n", plugin.path().display());
    std::fs::write(&config, section).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_negsync"));
    command.envs(variables.iter().copied());
    let arguments = ["--config", config.to_str().unwrap()];
    RelayProcess::start_by(command, &folder.join("store.sqlite"), &arguments)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_program_inherits_no_secrets() {
    let plugin = Plugin::new(&format!("env > \"$(dirname \"$seen\")/env\"\n{BY_CONTENT}"));
    let secrets =
        [("NEGSYNC_KEY", "01"), ("AWS_SECRET_ACCESS_KEY", "hush"), ("PGPASSWORD", "hush")];
    let key = "01".repeat(32);
    let secrets = secrets.map(|(name, value)| (name, if value == "01" { &*key } else { value }));
    let relay = process(&plugin, &[&secrets[..], &[("TZ", "UTC"), ("LC_ALL", "C")]].concat());
    relay.client().await.store(&note("hello", 0)).await;
    let inherited = std::fs::read_to_string(plugin.directory.path().join("env")).unwrap();
    for (name, value) in secrets {
        assert!(!inherited.contains(name) && !inherited.contains(value), "{inherited}");
    }
    for expected in ["PATH=", "TZ=UTC", "LC_ALL=C"] {
        assert!(inherited.lines().any(|line| line.starts_with(expected)), "{inherited}");
    }
}

/// The log gets a bounded part of the program's output on both streams.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_program_says_is_logged_at_a_bounded_rate() {
    let chatters = r#"
        i=0
        while [ $i -lt 2000 ]; do echo "word $i" >&2; echo "nonsense $i"; i=$((i + 1)); done
        head -c 300000 /dev/zero | tr '\0' y >&2
        echo >&2
    "#;
    let plugin = Plugin::new(&format!("{chatters}{BY_CONTENT}"));
    let relay = process(&plugin, &[]);
    let mut client = relay.client().await;
    client.store(&note("hello", 0)).await;
    client.store(&note("hello", 1)).await;
    relay.logged("lines in 60 s reached");
    relay.signal("TERM");
    let (_, log) = relay.ended();
    assert!(log.contains("write policy: word 0"), "{log}");
    assert!(log.contains("nonsense 0"), "{log}");
    assert!(log.len() < 2 * 60 * 1_200, "{} bytes", log.len());
}
