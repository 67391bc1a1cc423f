//! nostr-sdk's own negentropy client: down, up and both, with equal sets at the end.

use crate::support::process::{RelayProcess, negsync};
use crate::support::{TestRelay, corpora, events, id_of, model};
use nostr_sdk::prelude::{
    Client, Filter, JsonUtil, MemoryDatabase, MemoryDatabaseOptions, Reconciliation, SyncDirection,
    SyncOptions,
};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::Duration;

/// A client with its own database, which contains these events.
pub async fn sdk_client(events: &[Value]) -> Client {
    let options = MemoryDatabaseOptions { events: true, max_events: None };
    let client = Client::builder().database(MemoryDatabase::with_opts(options)).build();
    for event in events {
        let event = nostr_sdk::Event::from_json(event.to_string()).unwrap();
        let saved = client.database().save_event(&event).await.unwrap();
        assert!(saved.is_success(), "nostr-sdk does not hold {}", event.as_json());
    }
    client
}

pub async fn connect(client: &Client, url: &str) {
    client.add_relay(url).await.unwrap();
    client.try_connect_relay(url, Duration::from_secs(10)).await.unwrap();
}

pub async fn sync(client: &Client, direction: SyncDirection) -> Reconciliation {
    let options = SyncOptions::new().direction(direction);
    let output = client.sync(Filter::new(), &options).await.unwrap();
    assert!(output.failed.is_empty() && !output.success.is_empty(), "{:?}", output.failed);
    assert!(output.val.send_failures.is_empty(), "{:?}", output.val.send_failures);
    output.val
}

pub async fn held(client: &Client) -> BTreeSet<String> {
    let events = client.database().query(Filter::new()).await.unwrap();
    events.iter().map(|event| event.id.to_hex()).collect()
}

/// The events without the deletion requests that nostr-sdk's database handles differently from a
/// relay. It refuses one that names another author's event, which we store and ignore. For an
/// address with an empty `d` it deletes the author's events of that kind with any `d`.
pub fn holdable(events: &[Value]) -> Vec<Value> {
    let is_otherwise = |deletion: &Value, tag: &Value| match tag[0].as_str() {
        Some("e") => events
            .iter()
            .any(|event| event["id"] == tag[1] && event["pubkey"] != deletion["pubkey"]),
        Some("a") => tag[1].as_str().is_some_and(|address| address.ends_with(':')),
        _ => false,
    };
    let holds = |event: &Value| {
        let mut tags = event["tags"].as_array().unwrap().iter();
        event["kind"] != 5 || !tags.any(|tag| is_otherwise(event, tag))
    };
    events.iter().filter(|event| holds(event)).cloned().collect()
}

/// Events that no rule removes from either side, and a random half of them for each side.
pub fn halves(events: &[Value], seed: u64) -> (Vec<Value>, [Vec<Value>; 2]) {
    let kept = model::kept(&holdable(events), events::unix_now());
    let mut rng = StdRng::seed_from_u64(seed);
    let mut halves = [Vec::new(), Vec::new()];
    for event in &kept {
        // One in four is on both sides.
        let side = rng.random_range(0..4);
        for (number, half) in halves.iter_mut().enumerate() {
            if side != number {
                half.push(event.clone());
            }
        }
    }
    (kept, halves)
}

#[tokio::test(flavor = "multi_thread")]
async fn down_up_and_both_end_as_they_should() {
    for corpus in corpora(80, 400) {
        let seed = 81;
        let (all, [ours, theirs]) = halves(&model::public(&corpus.events), seed);
        let context = format!("{}, seed {seed}", corpus.name);
        let (all_ids, our_ids, their_ids) =
            (model::ids(&all), model::ids(&ours), model::ids(&theirs));
        for direction in [SyncDirection::Down, SyncDirection::Up, SyncDirection::Both] {
            let relay = TestRelay::start().await;
            let mut raw = relay.client().await;
            raw.publish_all(&theirs).await;
            let client = sdk_client(&ours).await;
            connect(&client, &relay.url()).await;
            let found = sync(&client, direction).await;
            assert_eq!(found.local.len(), our_ids.difference(&their_ids).count(), "{context}");
            assert_eq!(found.remote.len(), their_ids.difference(&our_ids).count(), "{context}");
            let goes_down = direction != SyncDirection::Up;
            let goes_up = direction != SyncDirection::Down;
            let expected = if goes_down { &all_ids } else { &our_ids };
            assert_eq!(held(&client).await, *expected, "{context}, {direction:?}");
            let on_relay = model::ids(&raw.query(&[json!({})]).await);
            let expected = if goes_up { &all_ids } else { &their_ids };
            assert_eq!(on_relay, *expected, "{context}, {direction:?}");
            if goes_down && goes_up {
                let nothing = sync(&client, direction).await;
                assert!(nothing.local.is_empty() && nothing.remote.is_empty(), "{context}");
            }
            client.shutdown().await;
        }
    }
}

/// A typical use: import, run the relay, and sync a client that has a random half of the events and
/// some of its own.
#[tokio::test(flavor = "multi_thread")]
async fn after_an_import_a_client_with_half_of_the_events_reaches_equality_both_ways() {
    for corpus in corpora(90, 400) {
        let directory = tempfile::tempdir().unwrap();
        let store = directory.path().join("events.sqlite");
        let imported = model::public(&holdable(&corpus.events));
        let text: String = imported.iter().map(|event| format!("{event}\n")).collect();
        let ended = negsync(&["import", "--store", store.to_str().unwrap()], &text);
        assert!(ended.status.success(), "{ended:?}");
        let kept = model::kept(&imported, events::unix_now());
        let seed = 91;
        let mut rng = StdRng::seed_from_u64(seed);
        let mut local: Vec<Value> =
            kept.iter().filter(|_| rng.random_ratio(1, 2)).cloned().collect();
        let author = events::Author::new(99);
        local.extend((0..250).map(|second| author.note(events::EPOCH + second, "its own")));
        let all: BTreeSet<String> =
            kept.iter().chain(&local).map(|e| id_of(e).to_owned()).collect();

        let relay = RelayProcess::start(&store);
        let client = sdk_client(&local).await;
        connect(&client, relay.url()).await;
        sync(&client, SyncDirection::Both).await;
        assert_eq!(held(&client).await, all, "{}, seed {seed}", corpus.name);
        let on_relay = model::ids(&relay.client().await.query(&[json!({})]).await);
        assert_eq!(on_relay, all, "{}, seed {seed}", corpus.name);
        client.shutdown().await;
    }
}
