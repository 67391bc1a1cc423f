//! `[retention]`: the events that rules remove do not come back.

use super::import::{import, lines};
use crate::support::events::unix_now;
use crate::support::process::{RelayProcess, exported_ids, negsync};
use crate::support::{Author, id_of, model};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

const DAY: u64 = 86_400;

fn configured(directory: &Path, text: &str) -> PathBuf {
    let config = directory.join("relay.toml");
    std::fs::write(&config, text).unwrap();
    config
}

#[test]
fn a_preview_says_what_goes_and_then_it_goes_and_stays_out() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("events.sqlite");
    let store = path.to_str().unwrap();
    let now = unix_now();
    let authors: Vec<Author> = (1..=6).map(Author::new).collect();
    let of = |kind: u16, author: &Author, age: u64| author.event(kind, now - age, json!([]), "x");
    let old_reactions: Vec<Value> = (0..300).map(|n| of(7, &authors[0], 40 * DAY + n)).collect();
    let new_reactions: Vec<Value> = (0..10).map(|n| of(7, &authors[0], DAY + n)).collect();
    let old_notes: Vec<Value> = (0..10).map(|n| of(1, &authors[1], 400 * DAY + n)).collect();
    let zaps: Vec<Value> = (0..10).map(|n| of(9_735, &authors[2], 40 * DAY + n)).collect();
    // Newest first.
    let many: Vec<Value> = (0..200).map(|n| of(30, &authors[3], 1_000 + n)).collect();
    let few: Vec<Value> = (0..20).map(|n| of(30, &authors[4], 1_000 + n)).collect();
    let deletion = authors[5].deletion(now - 400 * DAY, json!([["e", id_of(&few[0])]]));
    let mut all: Vec<Value> = [&old_reactions, &new_reactions, &old_notes, &zaps, &many, &few]
        .into_iter()
        .flatten()
        .cloned()
        .collect();
    all.push(deletion.clone());
    assert!(import(&path, &[], &lines(&all)).status.success());

    let config = configured(
        directory.path(),
        "[retention]\nrules = [{ kinds = [7, [9000, 9999]], max_age_s = 2592000 }, \
         { kinds = [30], max_per_author = 50 }, { max_age_s = 31536000 }]\n",
    );
    let config = config.to_str().unwrap();
    let run = |arguments: &[&str]| {
        let rest = ["--store", store, "--config", config];
        let ended = negsync(&[&["retention"], arguments, &rest].concat(), "");
        assert!(ended.status.success(), "{ended:?}");
        ended.stdout
    };
    let preview: Value = serde_json::from_str(&run(&["--dry-run", "--json"])).unwrap();
    let counts: Vec<(&Value, &Value)> = preview["rules"]
        .as_array()
        .unwrap()
        .iter()
        .map(|rule| (&rule["too_old"], &rule["surplus"]))
        .collect();
    let expected = [(310, 0), (0, 150), (10, 0)].map(|(old, surplus)| (json!(old), json!(surplus)));
    assert_eq!(counts, expected.iter().map(|(old, surplus)| (old, surplus)).collect::<Vec<_>>());
    assert_eq!(exported_ids(store).len(), all.len());
    let said = run(&[]);
    assert!(said.contains("kinds 30, max_per_author = 50: 150 events went"), "{said}");
    let kept: BTreeSet<String> =
        model::ids(new_reactions.iter().chain(&many[..50]).chain(&few).chain([&deletion]));
    assert_eq!(exported_ids(store), kept);
    assert!(negsync(&["check", "--store", store], "").status.success());

    // By the rules recorded in the store, whatever the configuration of the import.
    for arguments in [&[][..], &["--config", config]] {
        let again = import(&path, arguments, &lines(&all));
        assert!(again.stdout.contains("470 past retention"), "{again:?}");
        assert_eq!(exported_ids(store), kept);
    }
    // The newest event of an author is never refused.
    let newer = [of(30, &authors[3], 10)];
    assert!(import(&path, &[], &lines(&newer)).stdout.contains("1 stored"));
    run(&[]);
    let newest: BTreeSet<String> = model::ids(
        new_reactions.iter().chain(&many[..49]).chain(&few).chain([&deletion, &newer[0]]),
    );
    assert_eq!(exported_ids(store), newest);
    // Other rules accept the events that they keep.
    let config = configured(
        directory.path(),
        "[retention]\nrules = [{ kinds = [7], max_age_s = 2592000 }]\n",
    );
    let again = import(&path, &["--config", config.to_str().unwrap()], &lines(&all));
    assert!(again.stdout.contains("300 past retention"), "{again:?}");
    assert_eq!(exported_ids(store).len(), all.len() - 300 + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_too_large_loses_its_oldest_events() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("events.sqlite");
    let (author, now) = (Author::new(1), unix_now());
    let text = "x".repeat(4_000);
    let notes: Vec<Value> = (0..600).map(|n| author.note(now - 1_000 + n, &text)).collect();
    assert!(import(&path, &[], &lines(&notes)).status.success());
    let config = configured(directory.path(), "[retention]\nstore_mb = 2\n");
    let config = config.to_str().unwrap();
    let relay = RelayProcess::start_with(&path, &["--config", config]);
    let mut client = relay.client().await;
    // The store was made small at the start; this waits for it.
    let ended = negsync(&["retention", "--config", config, "--store", path.to_str().unwrap()], "");
    assert!(ended.status.success(), "{ended:?}");
    let left = client.query(&[json!({})]).await;
    assert!(left.len() > 100 && left.len() < 500, "{}", left.len());
    let newest: Vec<&Value> = notes.iter().rev().take(left.len()).collect();
    assert_eq!(left.iter().collect::<Vec<_>>(), newest);
    let gone = &notes[0];
    let refused = (false, "blocked: retention: older than what this relay keeps".to_owned());
    assert_eq!(client.publish(gone).await, refused);
    client.store(&author.note(now, "new")).await;
    // A larger maximum accepts it again, without a restart.
    std::fs::write(config, "[retention]\nstore_mb = 2000\n").unwrap();
    relay.signal("HUP");
    relay.logged("configuration reloaded; changed: retention.store_mb");
    client.store(gone).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_relay_keeps_the_newest_of_each_author() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("events.sqlite");
    let config = configured(
        directory.path(),
        "[retention]\nrules = [{ kinds = [1], max_per_author = 20 }, { max_age_s = 86400 }]\n",
    );
    let config = config.to_str().unwrap();
    let relay = RelayProcess::start_with(&path, &["--config", config]);
    let mut client = relay.client().await;
    let (author, now) = (Author::new(1), unix_now());
    let notes: Vec<Value> = (0..300).map(|n| author.note(now - 300 + n, "n")).collect();
    client.publish_all(&notes).await;
    let wait =
        || negsync(&["retention", "--config", config, "--store", path.to_str().unwrap()], "");
    assert!(wait().status.success());
    let mut kept: Vec<Value> = notes[280..].to_vec();
    kept.reverse();
    assert_eq!(client.query(&[json!({})]).await, kept);
    let refused = (false, "blocked: retention: older than what this relay keeps".to_owned());
    assert_eq!(client.publish(&notes[279]).await, refused);
    let old = Author::new(2).note(now - 2 * DAY, "old");
    assert_eq!(client.publish(&old).await, refused);
    // NIP-11, Event Retention.
    let address = relay.url().trim_start_matches("ws://").parse().unwrap();
    let accept = ["Accept: application/nostr+json"];
    let document = crate::support::http::http(address, "GET", "/", &accept).await;
    let document: Value = serde_json::from_str(&document.body).unwrap();
    assert_eq!(document["retention"], json!([{ "kinds": [1], "count": 20 }, { "time": 86_400 }]));
}

/// A sync does not even list events that the rules would remove, and reports it; requests to delete
/// are requested at any age.
#[tokio::test(flavor = "multi_thread")]
async fn a_sync_does_not_ask_for_what_is_too_old() {
    let (directory, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (path, peer) = (directory.path().join("ours.sqlite"), other.path().join("theirs.sqlite"));
    let (author, now) = (Author::new(1), unix_now());
    let old: Vec<Value> = (0..2_000).map(|n| author.note(now - 40 * DAY - n, "old")).collect();
    let new: Vec<Value> = (0..20).map(|n| author.note(now - DAY - n, "new")).collect();
    let request = author.deletion(now - 60 * DAY, json!([["e", "ab".repeat(32)]]));
    let all = lines(&[&old[..], &new, std::slice::from_ref(&request)].concat());
    assert!(import(&peer, &[], &all).status.success());
    let peer = RelayProcess::start(&peer);
    let config = |rules: &str| configured(directory.path(), &format!("[retention]\n{rules}\n"));
    let run = |command: &str, config: &Path| {
        let at = ["--store", path.to_str().unwrap(), "--config", config.to_str().unwrap()];
        let ended = negsync(&[&[command, peer.url(), "--json"], &at[..]].concat(), "");
        assert!(ended.status.success(), "{ended:?}");
        serde_json::from_str::<Value>(&ended.stdout).unwrap()
    };
    let rules = config("rules = [{ max_age_s = 2592000 }]");
    let report = run("sync", &rules);
    assert_eq!((&report["stored"], &report["verdict"]), (&json!(21), &json!("equal")), "{report}");
    let since = report["kept_since"].as_u64().unwrap();
    assert!((now - 30 * DAY..=unix_now() - 30 * DAY).contains(&since), "{report}");
    let kept = model::ids(new.iter().chain([&request]));
    assert_eq!(exported_ids(path.to_str().unwrap()), kept);
    for command in ["sync", "diff"] {
        let report = run(command, &rules);
        assert_eq!((&report["equal"], &report["need"]), (&json!(true), &json!(0)), "{report}");
        // A list of the ids of all old events would take 128,000 bytes.
        assert!(report["bytes_down"].as_u64().unwrap() < 20_000, "{report}");
    }
    let store = path.to_str().unwrap();
    let said = negsync(&["sync", peer.url(), "--store", store], "").stdout;
    assert!(said.contains("equal; not compared: ") && said.contains("(past retention)"), "{said}");
    // A rule for some kinds only keeps no window of time.
    let report = run("sync", &config("rules = [{ kinds = [7], max_age_s = 60 }]"));
    assert_eq!(
        (&report["stored"], &report["kept_since"]),
        (&json!(2_000), &Value::Null),
        "{report}"
    );
}
