//! nostr-relay-builder as the other relay: a client that syncs with both makes them equal.

use super::nostr_sdk_client::{connect, halves, held, sdk_client, sync};
use crate::support::client::Client;
use crate::support::negentropy_client::{neg_ids, reconcile};
use crate::support::{TestRelay, corpora, model};
use nostr_relay_builder::prelude::{
    JsonUtil, LocalRelay, MemoryDatabase, MemoryDatabaseOptions, NostrDatabase, RateLimit,
    RelayBuilder,
};
use nostr_sdk::prelude::SyncDirection;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;

async fn peer(events: &[Value]) -> (LocalRelay, Arc<MemoryDatabase>) {
    let options = MemoryDatabaseOptions { events: true, max_events: None };
    let database = Arc::new(MemoryDatabase::with_opts(options));
    for event in events {
        let event = nostr_sdk::Event::from_json(event.to_string()).unwrap();
        assert!(database.save_event(&event).await.unwrap().is_success());
    }
    let rate_limit = RateLimit { max_reqs: 1_000, notes_per_minute: 1_000_000 };
    let builder = RelayBuilder::default().database(Arc::clone(&database)).rate_limit(rate_limit);
    let relay = LocalRelay::new(builder);
    relay.run().await.unwrap();
    (relay, database)
}

async fn stored(database: &MemoryDatabase) -> BTreeSet<String> {
    let events = database.query(nostr_sdk::Filter::new()).await.unwrap();
    events.iter().map(|event| event.id.to_hex()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_between_two_relays_makes_all_three_equal() {
    for corpus in corpora(95, 400) {
        let seed = 96;
        let (all, [ours, theirs]) = halves(&model::public(&corpus.events), seed);
        let all = model::ids(&all);
        let relay = TestRelay::start().await;
        let mut raw = relay.client().await;
        raw.publish_all(&ours).await;
        let (peer, database) = peer(&theirs).await;
        let client = sdk_client(&[]).await;
        let peer_url = peer.url().await.to_string();
        for url in [relay.url(), peer_url.clone(), relay.url()] {
            connect(&client, &url).await;
            sync(&client, SyncDirection::Both).await;
            client.force_remove_all_relays().await;
        }
        let context = format!("{}, seed {seed}", corpus.name);
        assert_eq!(held(&client).await, all, "{context}");
        assert_eq!(stored(&database).await, all, "{context}");
        assert_eq!(neg_ids(&mut raw, &json!({})).await, all, "{context}");
        // Neither relay finds a difference to the other's set.
        let events = raw.query(&[json!({})]).await;
        let mut at_peer = Client::connect_elsewhere(&peer_url).await;
        let difference = reconcile(&mut at_peer, &json!({}), &events, 0).await.unwrap();
        assert!(difference.have.is_empty() && difference.need.is_empty(), "{context}");
        client.shutdown().await;
        peer.shutdown();
    }
}
