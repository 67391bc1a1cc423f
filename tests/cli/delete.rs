//! `negsync delete` and `negsync undelete`: removed events do not come back until the ban is
//! lifted.

use super::import::{import, lines};
use crate::support::events::EPOCH;
use crate::support::negentropy_client::neg_ids;
use crate::support::process::{Ended, RelayProcess, exported_ids, negsync};
use crate::support::{Author, id_of};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;

const REMOVED: &str = "blocked: removed by the relay's operator";

fn report(ended: &Ended) -> Value {
    assert!(ended.status.success(), "{ended:?}");
    serde_json::from_str(&ended.stdout).unwrap()
}

#[test]
fn in_a_store_that_nobody_serves_events_go_by_filter_and_id_and_stay_out() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("events.sqlite");
    let store = path.to_str().unwrap();
    let (spammer, other) = (Author::new(1), Author::new(2));
    let note = |author: &Author, second| author.note(EPOCH + second, "n");
    let gone = note(&spammer, 0);
    let mut all: Vec<Value> = (1..200).map(|second| note(&spammer, second)).collect();
    all.extend((0..20).map(|second| note(&other, second)));
    all.push(spammer.deletion(EPOCH + 300, json!([["e", id_of(&gone)]])));
    assert!(import(&path, &[], &lines(&all)).status.success());
    let filter = json!({ "authors": [spammer.key()] }).to_string();
    let (by_filter, absent) = (["delete", "--store", store, "--filter", &filter], "ab".repeat(32));

    let ended = negsync(&[&by_filter[..], &["--dry-run", "--json"]].concat(), "");
    let expected = json!({ "dry_run": true, "removed": 199, "kept_out": 199, "requests_left": 1 });
    assert_eq!(report(&ended), expected);
    assert_eq!(exported_ids(store).len(), all.len());
    let named = id_of(&all[199]);
    let ended = negsync(&[&by_filter[..], &["--id", named, &absent]].concat(), "");
    assert!(ended.status.success(), "{ended:?}");
    assert!(
        ended.stdout.starts_with("200 events removed and kept out; 1 id not stored are"),
        "{ended:?}"
    );
    assert!(ended.stdout.contains("1 request to delete or to vanish match and stay"), "{ended:?}");
    let left: BTreeSet<String> = all[200..].iter().map(|event| id_of(event).to_owned()).collect();
    assert_eq!(exported_ids(store), left);
    let checked = negsync(&["check", "--store", store], "");
    assert!(checked.status.success(), "{checked:?}");

    let again = import(&path, &[], &lines(&all));
    assert!(again.stdout.contains("200 removed by the operator"), "{again:?}");
    // The kept request still keeps its targets out.
    let again = import(&path, &[], &lines(std::slice::from_ref(&gone)));
    assert!(again.stdout.contains("1 deleted"), "{again:?}");

    let half = json!({ "authors": [spammer.key()], "until": EPOCH + 99 }).to_string();
    let undelete = ["undelete", "--json", "--store", store];
    assert_eq!(report(&negsync(&[&undelete[..], &["--filter", &half]].concat(), ""))["let_in"], 99);
    assert_eq!(report(&negsync(&[&undelete[..], &["--id", named]].concat(), ""))["let_in"], 1);
    let tags = negsync(&[&undelete[..], &["--filter", "{\"#t\":[\"a\"]}"]].concat(), "");
    assert_eq!(tags.status.code(), Some(1), "{tags:?}");
    assert!(tags.stderr.contains("leave tags out"), "{tags:?}");
    let again = import(&path, &[], &lines(&all));
    assert!(
        again.stdout.contains("100 stored") && again.stdout.contains("100 removed by"),
        "{again:?}"
    );
    assert_eq!(report(&negsync(&[&undelete[..], &["--all"]].concat(), ""))["let_in"], 101);
    assert!(import(&path, &[], &lines(&all)).stdout.contains("100 stored"));
    assert_eq!(exported_ids(store).len(), all.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn beside_a_running_relay_it_removes_at_once() {
    let directory = tempfile::tempdir().unwrap();
    // Above the maximum length of a socket's address.
    let folder = directory.path().join("a".repeat(90)).join("b".repeat(90));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("events.sqlite");
    let store = path.to_str().unwrap();
    let relay = RelayProcess::start(&path);
    let mut client = relay.client().await;
    let notes: Vec<Value> =
        (0..50).map(|second| Author::new(3).note(EPOCH + second, "n")).collect();
    client.publish_all(&notes).await;
    let early = json!({ "until": EPOCH + 29 }).to_string();
    let ended = negsync(&["delete", "--store", store, "--filter", &early, "--json"], "");
    assert_eq!(report(&ended)["removed"], 30);
    assert_eq!(client.count(&[json!({})]).await, 20);
    assert_eq!(neg_ids(&mut client, &json!({})).await.len(), 20);
    assert_eq!(client.publish(&notes[0]).await, (false, REMOVED.to_owned()));
    let line = relay.logged("operator's request followed");
    assert!(line.contains("removed=30"), "{line}");

    let ended = negsync(&["undelete", "--store", store, "--id", id_of(&notes[0]), "--json"], "");
    assert_eq!(report(&ended)["let_in"], 1);
    client.store(&notes[0]).await;
    assert_eq!(client.publish(&notes[1]).await, (false, REMOVED.to_owned()));
    // A killed relay leaves its socket behind.
    relay.signal("KILL");
    relay.ended();
    let relay = RelayProcess::start(&path);
    let ended = negsync(&["delete", "--store", store, "--id", id_of(&notes[49]), "--json"], "");
    assert_eq!(report(&ended)["removed"], 1);
    assert_eq!(relay.client().await.count(&[json!({})]).await, 20);
    relay.signal("TERM");
    assert!(relay.ended().0.success());
    assert!(!path.with_added_extension("control").exists());
}

#[test]
fn wrong_command_lines_change_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("events.sqlite");
    let store = path.to_str().unwrap();
    let refused = |arguments: &[&str], words: &str| {
        let ended = negsync(arguments, "");
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        assert!(ended.stderr.contains(words), "no {words:?} in {ended:?}");
    };
    refused(&["delete", "--store", store, "--filter", "{}"], store);
    assert!(!path.exists());
    let note = Author::new(4).note(EPOCH, "n");
    assert!(import(Path::new(store), &[], &lines(&[note])).status.success());
    refused(&["delete", "--store", store], "--filter");
    refused(&["delete", "--store", store, "--filter", "{\"kind\":1}"], "kind");
    refused(&["delete", "--store", store, "--id", "note1x"], "no event id");
    refused(&["undelete", "--store", store, "--all", "--filter", "{}"], "--all");
    assert_eq!(exported_ids(store).len(), 1);
}
