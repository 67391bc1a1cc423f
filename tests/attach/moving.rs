//! Moving from another relay, by the commands of docs/moving.md.

use super::database::{Database, KINDS};
use crate::support::events::{generate, unix_now};
use crate::support::process::{Ended, exported_ids, negsync};
use crate::support::{TestRelay, model};
use negsync::store::RelayKind;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;

const GUIDE: &str = include_str!("../../docs/moving.md");

/// The query for a table in the guide.
fn query_of_the_guide(table: &str) -> &'static str {
    GUIDE
        .lines()
        .filter(|line| line.starts_with("sqlite3 "))
        .filter_map(|line| line.split('"').nth(1))
        .find(|sql| sql.contains(&format!(" FROM {table}")) && sql.contains("SELECT"))
        .unwrap()
}

fn import(store: &Path, lines: &[String]) -> Ended {
    let ended = negsync(&["import", "--store", store.to_str().unwrap()], &lines.join("\n"));
    assert!(ended.status.success(), "{}", ended.stderr);
    ended
}

fn kept(lines: &[String]) -> BTreeSet<String> {
    let events: Vec<Value> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    model::ids(&model::kept(&events, unix_now()))
}

#[test]
fn the_databases_of_both_relays_are_copied_by_the_queries_of_the_guide() {
    for kind in KINDS {
        let directory = tempfile::tempdir().unwrap();
        let database = Database::new(kind, &directory.path().join("old.db"));
        generate(31, 300).iter().for_each(|event| database.publish(event));
        let table = if kind == RelayKind::NostrRsRelay { "event WHERE" } else { "events" };
        let mut query = database.connection.prepare(query_of_the_guide(table)).unwrap();
        let lines: Vec<String> =
            query.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
        let store = directory.path().join("new.sqlite");
        import(&store, &lines);
        let new = exported_ids(&store);
        assert_eq!(new, kept(&lines), "{}", kind.name());
        let shown = model::ids(&model::kept(&database.visible(unix_now()), unix_now()));
        assert!(new.is_superset(&shown) && shown.len() > 100, "{}", kind.name());
        // A second copy changes nothing.
        assert!(import(&store, &lines).stdout.starts_with("0 stored"), "{}", kind.name());
    }
}

/// The output of `strfry export`, with `--fried` too, and of `eventstore query`.
#[test]
fn the_exports_of_other_relays_are_taken_as_they_are() {
    let lines: Vec<String> = generate(32, 120).iter().map(Value::to_string).collect();
    let fried = |line: &String| format!("{},\"fried\":\"0a0bff\"}}", line.trim_end_matches('}'));
    for written in [lines.clone(), lines.iter().map(fried).collect()] {
        let directory = tempfile::tempdir().unwrap();
        let store = directory.path().join("new.sqlite");
        import(&store, &written);
        assert_eq!(exported_ids(&store), kept(&lines));
        let ended = negsync(&["export", "--store", store.to_str().unwrap()], "");
        assert!(!ended.stdout.contains("fried"));
    }
}

/// Events that reached the old relay after the copy are synced over its socket.
#[tokio::test(flavor = "multi_thread")]
async fn what_came_since_the_copy_is_synced() {
    let old = TestRelay::start().await;
    let mut client = old.client().await;
    let events = generate(33, 200);
    let (before, since) = events.split_at(100);
    client.publish_all(before).await;
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("new.sqlite");
    let copied: Vec<String> =
        client.query(&[json!({})]).await.iter().map(Value::to_string).collect();
    let (command, at) = (store.clone(), old.url());
    let copied = tokio::task::spawn_blocking(move || import(&command, &copied)).await.unwrap();
    assert!(!copied.stdout.starts_with("0 stored"), "{}", copied.stdout);
    client.publish_all(since).await;
    let ended = tokio::task::spawn_blocking(move || {
        let store = store.to_str().unwrap();
        let synced = negsync(&["sync", &at, "--direction", "down", "--store", store], "");
        assert!(synced.status.success(), "{}", synced.stderr);
        negsync(&["diff", &at, "--store", store], "")
    })
    .await
    .unwrap();
    // Only events deleted between the copy and the sync may be missing.
    assert!(ended.stdout.contains(" 0 only there") || ended.status.success(), "{}", ended.stdout);
}
