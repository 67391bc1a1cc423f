//! nostr-sdk authenticates when it is asked to (NIP-42), and then sees its own private events.

use crate::support::{Author, Client, TestRelay, events, id_of, model};
use nostr_sdk::prelude::{Client as SdkClient, Filter, Keys, Kind, SecretKey};
use nostr_sdk::{EventBuilder, SyncOptions, Tag};
use serde_json::{Value, json};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(10);

/// nostr-sdk with the key of [`Author::new`].
async fn sdk(number: u8, relay: &TestRelay) -> SdkClient {
    let keys = Keys::new(SecretKey::from_slice(&[number; 32]).unwrap());
    let client = SdkClient::builder().signer(keys).build();
    client.add_relay(relay.url()).await.unwrap();
    client.try_connect_relay(relay.url(), PATIENCE).await.unwrap();
    client
}

#[tokio::test(flavor = "multi_thread")]
async fn nostr_sdk_authenticates_and_is_shown_its_own() {
    let relay = TestRelay::start().await;
    let [alice, bob, carol] = [1, 2, 3].map(Author::new);
    let to_bob = alice.event(4, events::EPOCH, json!([["p", bob.key()]]), "to bob");
    let to_carol = alice.event(4, events::EPOCH, json!([["p", carol.key()]]), "to carol");
    let note = alice.note(events::EPOCH, "to all");
    let mut raw: Client = relay.client().await;
    raw.publish_all(&[to_bob.clone(), to_carol.clone(), note.clone()]).await;

    let client = sdk(2, &relay).await;
    let letters = Filter::new().kind(Kind::EncryptedDirectMessage);
    let found = client.fetch_events(letters, PATIENCE).await.unwrap();
    let found: Vec<String> = found.into_iter().map(|event| event.id.to_hex()).collect();
    assert_eq!(found, [id_of(&to_bob)]);

    // NEG on the same connection: all public events, and its own private ones.
    let output = client.sync(Filter::new(), &SyncOptions::default()).await.unwrap();
    assert!(output.failed.is_empty(), "{:?}", output.failed);
    let received: Vec<Value> =
        output.val.received.iter().map(|id| json!({ "id": id.to_hex() })).collect();
    assert_eq!(model::ids(&received), model::ids([&to_bob, &note]));

    // NIP-70: an event that only its author may publish.
    let protected = EventBuilder::text_note("mine").tag(Tag::protected());
    let sent = client.send_event_builder(protected).await.unwrap();
    assert!(sent.failed.is_empty() && !sent.success.is_empty(), "{:?}", sent.failed);
    let filter = json!({ "ids": [sent.val.to_hex()] });
    assert_eq!(raw.query(&[filter]).await.len(), 1);
    client.shutdown().await;
}
