//! Syncs with other relays.

use super::support::*;
use nostr_relay_builder::builder::RateLimit;
use nostr_relay_builder::prelude::{MemoryDatabase, MemoryDatabaseOptions, NostrDatabase};
use nostr_relay_builder::{LocalRelay, RelayBuilder};
use std::collections::BTreeSet;
use std::sync::Arc;

#[tokio::test(flavor = "multi_thread")]
async fn nostr_relay_builder_ends_equal() {
    let (shared, ours, theirs) = (notes(100, 2_000), notes(101, 200), notes(102, 200));
    let store = TestStore::new(&[shared.clone(), ours].concat());
    let database = Arc::new(MemoryDatabase::with_opts(MemoryDatabaseOptions {
        events: true,
        max_events: None,
    }));
    for json in shared.iter().chain(&theirs) {
        database.save_event(&nostr::JsonUtil::from_json(json).unwrap()).await.unwrap();
    }
    let rate_limit = RateLimit { notes_per_minute: 2_400, ..RateLimit::default() };
    let builder = RelayBuilder::default().database(Arc::clone(&database)).rate_limit(rate_limit);
    let relay = LocalRelay::new(builder);
    relay.run().await.unwrap();
    let url = relay.url().await.to_string();
    let report = sync_all(&store, &url).await;
    let held = database.query(nostr::Filter::new()).await.unwrap();
    let held: BTreeSet<[u8; 32]> = held.into_iter().map(|event| event.id.to_bytes()).collect();
    assert_same(&store.ids(), &held, &format!("{report:?}"));
    assert_eq!((report.need, report.have), (200, 200), "{report:?}");
    assert!(report.equal && report.complete, "{report:?}");
    let again = sync_all(&store, &url).await;
    assert_eq!((again.stored, again.uploaded), (0, 0), "{again:?}");
}
