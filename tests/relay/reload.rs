//! A new configuration without a restart: by SIGHUP to the real binary, and by the library.

use crate::support::disk::write_secret;
use crate::support::events::{Author, unix_now};
use crate::support::process::RelayProcess;
use crate::support::{TestRelay, id_of};
use negsync::config::{Config, TakesEffect};
use negsync::sync::{Local, Options, sync};
use serde_json::json;
use std::path::Path;
use std::process::Command;
use toml::{Table, Value};

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
    let line = relay.logged("configuration not reloaded, the previous one stays in force");
    assert!(line.contains("relay.toml, line 3: subscriptions: "), "{line}");
    assert_eq!(client.ask(&json!(["REQ", "b", {}])).await[0], "CLOSED");

    write("[limits]\nsubscriptions = 2\nmessage_bytes = 2000\nevent_bytes = 3000\n");
    relay.signal("HUP");
    let line = relay.logged("relay.toml, line 4: event_bytes: ");
    assert!(line.contains("configuration not reloaded, the previous one stays in force"), "{line}");
    assert!(line.contains("lower event_bytes or raise message_bytes"), "{line}");
    assert_eq!(client.ask(&json!(["REQ", "b", {}])).await[0], "CLOSED");

    write("[limits]\nsubscriptions = 2\n[store]\nreaders = 1\n[log]\nlevel = \"debug\"\n");
    relay.signal("HUP");
    let line = relay.logged("configuration reloaded");
    assert!(line.contains("changed: limits.subscriptions, log.level"), "{line}");
    let line = relay.logged("configuration keys that need a restart");
    assert!(line.contains("store.readers"), "{line}");
    assert_eq!(client.ask(&json!(["REQ", "b", {}])).await, json!(["EOSE", "b"]));
    // Its address and its store are set on the command line, and stay.
    relay.client().await.fence().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_of_the_library_reloads_too() {
    let relay = TestRelay::start_with(|config| config.limits.subscriptions = 1).await;
    let mut client = relay.client().await;
    assert_eq!(client.ask(&json!(["REQ", "a", {}])).await, json!(["EOSE", "a"]));
    assert_eq!(client.ask(&json!(["REQ", "b", {}])).await[0], "CLOSED");
    let mut config = relay.config.clone();
    config.limits.subscriptions = 2;
    config.index.memory_mb = 1;
    let reloaded = relay.relay.reload(config).unwrap();
    assert_eq!(reloaded.changed, ["limits.subscriptions"]);
    assert_eq!(reloaded.needs_restart, ["index.memory_mb"]);
    assert_eq!(client.ask(&json!(["REQ", "b", {}])).await, json!(["EOSE", "b"]));
}

/// The configuration as a table in which `key`, such as `limits.filters`, has another valid value.
/// Values for texts and lists are found by trying.
fn with_another_value(config: &Table, key: &str, folder: &Path) -> Table {
    let (section, key) = key.split_once('.').unwrap_or(("", key));
    let file = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    if section.is_empty() {
        let peer = toml::from_str::<Table>("url = \"ws://127.0.0.1:9\"").unwrap();
        let mut config = config.clone();
        config.insert(key.to_owned(), vec![Value::Table(peer)].into());
        return config;
    }
    let texts = [
        ("key_file", file("key")),
        ("ca_file", file("ca.pem")),
        ("path", file("another.sqlite")),
        ("url", "postgres://me@db.example/events".into()),
        ("forward_header", "X-Real-IP".into()),
    ];
    let named = texts.into_iter().filter(|(name, _)| *name == key).map(|(_, text)| text.into());
    let hex = "ab".repeat(32);
    let texts = [
        "debug",
        "json",
        "normal",
        "nostr-rs-relay",
        "127.0.0.1:1",
        "wss://a.example",
        "socks5://a.example",
        "https://a.example",
        &hex,
    ];
    let texts = texts.into_iter().map(Value::from);
    let list = |value: Value| Value::Array(vec![value]);
    let rule = toml::from_str::<Table>("max_age_s = 99999999999").unwrap();
    let lists =
        [list(rule.into()), list(1.into()), list("192.0.2.1/32".into()), list(hex.clone().into())];
    let value = &config[section][key];
    let candidates: Vec<Value> = match value {
        Value::Integer(number) => [1, 2, number + 1, number - 1].map(Value::from).to_vec(),
        Value::Boolean(is) => vec![Value::from(!is)],
        Value::Array(_) => lists.to_vec(),
        _ => named.chain(texts).chain([Value::from("true")]).collect(),
    };
    let changed = candidates.into_iter().find_map(|candidate| {
        let mut config = config.clone();
        let keys = config[section].as_table_mut().unwrap();
        keys.insert(key.to_owned(), candidate.clone());
        if (section, key) == ("store", "url") {
            // A store has one of the two.
            keys.remove("path");
        }
        (candidate != *value && config.clone().try_into::<Config>().is_ok()).then_some(config)
    });
    changed.unwrap_or_else(|| panic!("no other value is allowed for {section}.{key}"))
}

/// The files that keys name.
fn files(folder: &Path) {
    write_secret(&folder.join("key"), &"01".repeat(32));
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=a", "-out", "ca.pem"])
        .args(["-keyout", "ca.key"])
        .current_dir(folder)
        .output()
        .expect("openssl, which .ci/run installs");
    assert!(made.status.success(), "{made:?}");
}

fn table(config: &Config) -> Table {
    Table::try_from(config).unwrap()
}

/// For every key: the log says whether its new value is in effect.
#[tokio::test(flavor = "multi_thread")]
async fn on_sighup_every_key_changes_or_is_said_to_need_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let folder = directory.path();
    files(folder);
    let file = folder.join("relay.toml");
    let mut config = Config::default();
    config.relay.listen = "127.0.0.1:0".parse().unwrap();
    config.store.path = folder.join("events.sqlite");
    let mut config = table(&config);
    let write = |config: &Table| std::fs::write(&file, toml::to_string(config).unwrap()).unwrap();
    write(&config);
    let relay = RelayProcess::configured(&file);
    let (mut restarts, mut warned) = (Vec::new(), 0);
    for (place, key) in Config::keys().into_iter().enumerate() {
        config = with_another_value(&config, &key.name, folder);
        write(&config);
        relay.signal("HUP");
        let line = relay.logged_again("configuration reloaded; changed: ", place);
        let changed = line.split("changed: ").nth(1).unwrap();
        if key.takes_effect == TakesEffect::Restart {
            assert_eq!(changed, "nothing", "{}", key.name);
            restarts.push(key.name);
            restarts.sort();
        } else {
            assert_eq!(changed, key.name);
        }
        if !restarts.is_empty() {
            let line = relay.logged_again("configuration keys that need a restart: ", warned);
            assert_eq!(line.split("restart: ").nth(1).unwrap(), restarts.join(", "));
            warned += 1;
        }
    }
    // One of the keys requires authentication.
    let answer = relay.client().await.ask(&json!(["REQ", "a", {}])).await;
    assert!(answer[2].as_str().unwrap().starts_with("auth-required: "), "{answer}");
}

/// The relay and the syncs use one configuration.
#[tokio::test(flavor = "multi_thread")]
async fn every_key_that_a_reload_changes_is_in_force_for_the_relay_and_its_syncs() {
    let directory = tempfile::tempdir().unwrap();
    files(directory.path());
    let relay = TestRelay::start().await;
    let admission = relay.relay.admission().clone();
    let local = Local::configured(relay.relay.index().clone(), admission).unwrap();
    let mut config = table(&relay.config);
    let mut in_force = config.clone();
    for key in Config::keys() {
        config = with_another_value(&config, &key.name, directory.path());
        let reloaded = relay.relay.reload(config.clone().try_into().unwrap()).unwrap();
        if key.takes_effect == TakesEffect::Restart {
            assert!(reloaded.needs_restart.contains(&key.name), "{reloaded:?}");
        } else {
            assert_eq!(reloaded.changed, std::slice::from_ref(&key.name));
            in_force = with_another_value(&in_force, &key.name, directory.path());
        }
        for read in [relay.relay.admission().config(), local.admission.config()] {
            let expected: Config = in_force.clone().try_into().unwrap();
            assert_eq!(*read, expected, "{}", key.name);
        }
    }
}

/// Answers that every event is blocked.
const BLOCKS: &str = r#"while IFS= read -r line; do id=${line#*'"id":"'}; id=${id%%'"'*}
echo "{\"id\":\"$id\",\"action\":\"reject\",\"msg\":\"blocked: all\"}"; done"#;

/// Limits and the write policy apply to clients and peers from the reload on.
#[tokio::test(flavor = "multi_thread")]
async fn a_reloaded_limit_or_write_policy_holds_for_clients_and_peers() {
    let (ours, theirs) = (TestRelay::start().await, TestRelay::start().await);
    let (mut client, mut at_peer) = (ours.client().await, theirs.client().await);
    let admission = ours.relay.admission().clone();
    let local = Local::configured(ours.relay.index().clone(), admission).unwrap();
    type Change = fn(&mut Config);
    let changes: [(Change, &str, &str); 6] = [
        (|it| it.limits.event_bytes = 512, "over limits", "invalid: event"),
        (|it| it.limits.event_tags = 1, "over limits", "invalid: tags"),
        (|it| it.limits.content_chars = 9, "over limits", "invalid: content"),
        (|it| it.limits.created_at_ahead_s = 5, "over limits", "invalid: created_at"),
        (|it| it.limits.created_at_behind_s = 5, "over limits", "invalid: created_at"),
        (
            |it| it.write_policy.command = BLOCKS.into(),
            "refused by the write policy",
            "blocked: all",
        ),
    ];
    let mut number = 0;
    let mut events = || {
        number += 1;
        let (tags, content) = (json!([["t", "a"], ["t", "b"]]), "x".repeat(700));
        let at = |ahead: i64| unix_now().checked_add_signed(ahead).unwrap() + number % 10;
        // Ahead of the clock, and behind it.
        [(1, 100), (2, -100)].map(|(author, ahead)| {
            Author::new(author).event(1, at(ahead), tags.clone(), &format!("{content} {number}"))
        })
    };
    let url = theirs.url();
    let is_refused = |event: &serde_json::Value, text: &str| match text {
        // One of the two is on the right side of the clock.
        "invalid: created_at" => event["created_at"].as_u64(),
        _ => None,
    };
    for (change, reason, text) in changes {
        let mut config = ours.config.clone();
        change(&mut config);
        let behind = config.limits.created_at_behind_s > 0;
        let is_taken = |event: &serde_json::Value| {
            is_refused(event, text).is_some_and(|at| (at < unix_now()) != behind)
        };
        ours.relay.reload(config).unwrap();
        let mut refused = 0;
        for event in events() {
            let (accepted, said) = client.publish(&event).await;
            assert_eq!(accepted, is_taken(&event), "{said}");
            assert!(accepted || said.starts_with(text), "{said}");
            refused += u64::from(!accepted);
        }
        for event in events() {
            at_peer.store(&event).await;
        }
        let report = sync(&local, &url, &Options::default(), |_| {}).await.unwrap();
        let counted = report.refused.iter().find(|(counted, _)| counted.name() == reason);
        assert_eq!(counted.map(|(_, count)| *count), Some(refused), "{text}: {report:?}");
        ours.relay.reload(ours.config.clone()).unwrap();
        for event in events() {
            let outcome = client.publish(&event).await;
            assert_eq!(outcome, (true, String::new()), "{text}");
        }
        let [brought, _] = events();
        at_peer.store(&brought).await;
        let report = sync(&local, &url, &Options::default(), |_| {}).await.unwrap();
        assert!(report.complete, "{report:?}");
        assert_eq!(client.count(&[json!({ "ids": [id_of(&brought)] })]).await, 1, "{text}");
    }
}
