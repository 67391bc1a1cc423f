//! The store behind nostr-sdk: saved events are stored, and reconciled sets are never truncated.

use negsync::config::Config;
use negsync::index::Index;
use negsync::nostr_database::Database;
use negsync::relay::Relay;
use negsync::store::Event;
use nostr::{EventBuilder, Filter, JsonUtil, Keys, Kind, Timestamp};
use nostr_sdk::prelude::{Client, NostrDatabase, RejectedReason, SaveEventStatus, SyncOptions};

fn open(path: &std::path::Path) -> Database {
    Database::new(Index::open(path, Default::default(), 64 << 20).unwrap())
}

fn signed(keys: &Keys, kind: u16, second: u64) -> nostr::Event {
    EventBuilder::new(Kind::from_u16(kind), format!("event {second}"))
        .custom_created_at(Timestamp::from_secs(second))
        .sign_with_keys(keys)
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_saved_is_found_until_it_is_deleted() {
    let folder = tempfile::tempdir().unwrap();
    let database = open(&folder.path().join("store.sqlite"));
    let keys = Keys::generate();
    let (old, new) = (signed(&keys, 0, 1_000), signed(&keys, 0, 1_001));
    assert_eq!(database.save_event(&new).await.unwrap(), SaveEventStatus::Success);
    let again = database.save_event(&new).await.unwrap();
    assert_eq!(again, SaveEventStatus::Rejected(RejectedReason::Duplicate));
    let replaced = database.save_event(&old).await.unwrap();
    assert_eq!(replaced, SaveEventStatus::Rejected(RejectedReason::Replaced));
    let notes: Vec<nostr::Event> = (0..50).map(|n| signed(&keys, 1, 2_000 + n)).collect();
    for note in &notes {
        assert!(database.save_event(note).await.unwrap().is_success());
    }
    let newest = Filter::new().kind(Kind::TextNote).limit(10);
    let found = database.query(newest).await.unwrap().to_vec();
    assert_eq!(found, notes.iter().rev().take(10).cloned().collect::<Vec<_>>());
    assert_eq!(database.event_by_id(&notes[3].id).await.unwrap().as_ref(), Some(&notes[3]));
    assert_eq!(database.count(Filter::new()).await.unwrap(), 51);
    database
        .delete(Filter::new().kind(Kind::TextNote).until(Timestamp::from_secs(2_009)))
        .await
        .unwrap();
    assert_eq!(database.count(Filter::new()).await.unwrap(), 41);
    assert_eq!(database.event_by_id(&notes[3].id).await.unwrap(), None);
    assert!(database.save_event(&notes[3]).await.unwrap().is_success());
    database.wipe().await.unwrap();
    assert_eq!(database.count(Filter::new()).await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn nostr_sdk_syncs_more_than_a_query_brings() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = Config::default();
    config.store.path = folder.path().join("relay.sqlite");
    config.relay.listen.set_port(0);
    let relay = Relay::start(config).await.unwrap();
    let keys = Keys::generate();
    let events: Vec<nostr::Event> = (0..1_200).map(|n| signed(&keys, 1, 3_000 + n)).collect();
    let verified = |event: &nostr::Event| Event::parse(&event.as_json()).unwrap().trust();
    relay.index().store().publish(events.iter().map(verified).collect()).unwrap();

    let database = open(&folder.path().join("client.sqlite"));
    let shared = events[..600].iter().map(verified).collect();
    database.index().store().publish(shared).unwrap();
    let items = database.negentropy_items(Filter::new()).await.unwrap();
    assert_eq!(items.len(), 600);
    let client = Client::builder().database(database.clone()).build();
    client.add_relay(format!("ws://{}", relay.address())).await.unwrap();
    client.connect().await;
    client.sync(Filter::new(), &SyncOptions::default()).await.unwrap();
    let items = database.negentropy_items(Filter::new()).await.unwrap();
    let expected: Vec<_> = events.iter().map(|event| (event.id, event.created_at)).collect();
    assert_eq!(items, expected);
}
