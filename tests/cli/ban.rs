//! `negsync ban`, `unban` and `bans`, and the file behind them.

use super::import::{import, lines};
use crate::support::events::EPOCH;
use crate::support::process::{Ended, RelayProcess, negsync};
use crate::support::{Author, Client, id_of};
use nostr::nips::nip19::ToBech32;
use nostr::{EventId, PublicKey};
use serde_json::{Value, json};

fn run(store: &str, arguments: &[&str]) -> Ended {
    let ended = negsync(&[arguments, &["--store", store]].concat(), "");
    assert!(ended.status.success(), "{ended:?}");
    ended
}

fn listed(store: &str) -> Value {
    let ended = run(store, &["bans", "--json"]);
    serde_json::from_str::<Value>(&ended.stdout).unwrap()["bans"].clone()
}

async fn refused(client: &mut Client, event: &Value, text: &str) {
    assert_eq!(client.publish(event).await, (false, text.to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_relay_follows_each_ban_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("events.sqlite");
    let store = path.to_str().unwrap();
    let relay = RelayProcess::start(&path);
    let mut client = relay.client().await;
    let (banned, other) = (Author::new(1), Author::new(2));
    let mut second = EPOCH;
    let mut note = |author: &Author, text: &str| {
        second += 1;
        author.note(second, text)
    };
    let stored = note(&banned, "stored before");
    client.store(&stored).await;

    let npub = PublicKey::from_hex(&banned.key()).unwrap().to_bech32().unwrap();
    let ended = run(store, &["ban", &npub, "--reason", "too loud"]);
    assert!(ended.stdout.contains("1 stored event kept and served"), "{ended:?}");
    let later = note(&banned, "later");
    refused(&mut client, &later, "blocked: this author is banned").await;
    client.store(&note(&other, "of somebody else")).await;
    assert_eq!(
        client.query(&[json!({ "authors": [banned.key()] })]).await,
        std::slice::from_ref(&stored)
    );
    assert_eq!(listed(store), json!([{ "key": banned.key(), "reason": "too loud" }]));

    run(store, &["ban", &banned.key(), "--delete"]);
    assert_eq!(client.count(&[json!({ "authors": [banned.key()] })]).await, 0);
    assert_eq!(listed(store), json!([{ "key": banned.key(), "reason": "" }]));
    run(store, &["unban", &npub]);
    client.store(&later).await;
    refused(&mut client, &stored, "blocked: removed by the relay's operator").await;

    // 64 hex digits that are the id of a stored event.
    run(store, &["ban", id_of(&later), "--delete"]);
    assert_eq!(listed(store), json!([{ "event": id_of(&later), "reason": "" }]));
    refused(&mut client, &later, "blocked: this event is banned").await;
    let unseen = note(&other, "not sent yet");
    let nip19 = EventId::from_hex(id_of(&unseen)).unwrap().to_bech32().unwrap();
    run(store, &["ban", &nip19]);
    refused(&mut client, &unseen, "blocked: this event is banned").await;
    run(store, &["unban", &nip19]);
    client.store(&unseen).await;

    run(store, &["ban", "--word", "Buy \u{dc}ber", "--word", "two"]);
    let spam = note(&other, "now BUY \u{fc}BER cheap");
    refused(&mut client, &spam, "blocked: the content has a banned word").await;
    run(store, &["unban", "--word", "buy \u{fc}ber"]);
    client.store(&spam).await;
    refused(&mut client, &note(&other, "one TWO"), "blocked: the content has a banned word").await;

    run(store, &["ban", "--ip", "127.0.0.0/8"]);
    client.send(&json!(["EVENT", note(&other, "three")])).await;
    client.expect(json!(["NOTICE", "blocked: your address is banned"])).await;
    assert_eq!(client.close_code().await, 1_008);
    assert_eq!(Client::connect_for(relay.url(), "192.0.2.1").await.err(), Some(403));
    run(store, &["unban", "--ip", "127.0.0.0/8"]);
    relay.client().await.store(&note(&other, "three")).await;
    assert!(run(store, &["unban", "--word", "never"]).stdout.starts_with("nothing of it"));
}

/// The file may be edited by hand; a mistake in it changes nothing and is reported.
#[tokio::test(flavor = "multi_thread")]
async fn the_file_is_read_as_soon_as_it_has_changed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("events.sqlite");
    let store = path.to_str().unwrap();
    let file = directory.path().join("list");
    let config = directory.path().join("relay.toml");
    std::fs::write(&config, format!("[moderation]\nfile = {:?}\n", file.to_str().unwrap()))
        .unwrap();
    let relay = RelayProcess::start_with(&path, &["--config", config.to_str().unwrap()]);
    let mut client = relay.client().await;
    let author = Author::new(3);
    let notes: Vec<Value> = (0..8).map(|n| author.note(EPOCH + n, &format!("note {n}"))).collect();
    client.store(&notes[0]).await;
    let head = "# mine\n\nrefuse-kind 7 \n";
    std::fs::write(&file, format!("{head}key {} a reason\n", author.key())).unwrap();
    refused(&mut client, &notes[1], "blocked: this author is banned").await;
    std::fs::write(&file, format!("{head}kye {}\n", author.key())).unwrap();
    refused(&mut client, &notes[1], "blocked: this author is banned").await;
    let line = relay.logged("ban list not read");
    assert!(line.contains("list, line 4") && line.contains("kye"), "{line}");
    let refused_to_start =
        negsync(&["bans", "--store", store, "--config", config.to_str().unwrap()], "");
    assert!(refused_to_start.stderr.contains("line 4"), "{refused_to_start:?}");
    std::fs::write(&file, head).unwrap();
    client.store(&notes[1]).await;
    let reaction = author.event(7, EPOCH, json!([]), "+");
    refused(&mut client, &reaction, "blocked: events of this kind are not taken").await;
    // A command keeps the other lines unchanged.
    let config = config.to_str().unwrap();
    let ended = negsync(&["ban", "--word", "four", "--store", store, "--config", config], "");
    assert!(ended.status.success(), "{ended:?}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), format!("{head}word four\n"));
    std::fs::write(&file, "allow-kind 7\n").unwrap();
    client.store(&reaction).await;
    refused(&mut client, &notes[2], "blocked: events of this kind are not taken").await;
    std::fs::remove_file(&file).unwrap();
    client.store(&notes[2]).await;
}

#[test]
fn imports_are_held_to_the_list_and_wrong_bans_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("events.sqlite");
    let store = path.to_str().unwrap();
    let (banned, other) = (Author::new(4), Author::new(5));
    // The store need not exist yet.
    run(store, &["ban", &banned.key()]);
    let notes = [banned.note(EPOCH, "a"), other.note(EPOCH, "b")];
    let ended = import(&path, &[], &lines(&notes));
    assert!(ended.status.success(), "{ended:?}");
    assert_eq!(ended.stdout.trim(), "1 stored, 0 duplicate, 1 refused (1 banned)");
    for arguments in [
        &["ban", "somebody"][..],
        &["ban"],
        &["ban", "--word", " "],
        &["ban", "--ip", "192.0.2.1/24"],
        &["ban", "--key", "note1x"],
    ] {
        let ended = negsync(&[arguments, &["--store", store]].concat(), "");
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    }
    assert_eq!(listed(store).as_array().unwrap().len(), 1);
}
