//! With our own relay: both sides end equal, and a second sync moves nothing.

use super::support::*;
use negsync::sync::{Direction, Method, Options, Reason};
use serde_json::{Value, json};

/// A store and a relay that share 3,000 events and have 300 each of their own.
async fn divided(seed: u64) -> (TestStore, TestRelay) {
    divided_by(seed, 3_000, 300).await
}

/// The same with other numbers.
async fn divided_by(seed: u64, shared: usize, own: usize) -> (TestStore, TestRelay) {
    let (shared, ours, theirs) = (notes(seed, shared), notes(seed + 1, own), notes(seed + 2, own));
    let store = TestStore::new(&[shared.clone(), ours].concat());
    let relay = TestRelay::holding(&[shared, theirs].concat()).await;
    (store, relay)
}

#[tokio::test(flavor = "multi_thread")]
async fn both_sides_end_equal_and_a_second_sync_moves_nothing() {
    // scripts/sync-full-size runs it with 100,000 and 1,000.
    let full_size = std::env::var_os("NEGSYNC_FULL_SIZE").is_some();
    let (shared, own) = if full_size { (99_000, 1_000) } else { (3_000, 300) };
    let (store, relay) = divided_by(10, shared, own).await;
    let report = sync_all(&store, &relay.url()).await;
    assert_same(&store.ids(), &relay.ids(), "");
    assert_eq!(store.ids().len(), shared + 2 * own);
    let own = own as u64;
    assert_eq!((report.need, report.have), (own, own), "{report:?}");
    assert_eq!((report.stored, report.uploaded), (own, own), "{report:?}");
    assert!(report.equal && report.complete && report.error.is_none(), "{report:?}");
    assert_eq!((report.method, report.passes), (Method::Negentropy, 2), "{report:?}");

    let again = sync_all(&store, &relay.url()).await;
    assert!(again.equal && again.complete, "{again:?}");
    assert_eq!((again.stored, again.uploaded, again.duplicates), (0, 0, 0), "{again:?}");
    assert_eq!((again.passes, again.round_trips), (1, 1), "{again:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_store_gets_everything_and_an_empty_relay_too() {
    let events = notes(20, 2_000);
    let (store, relay) = (TestStore::new(&[]), TestRelay::holding(&events).await);
    assert!(sync_all(&store, &relay.url()).await.equal);
    assert_same(&store.ids(), &relay.ids(), "");
    let empty = TestRelay::holding(&[]).await;
    assert!(sync_all(&store, &empty.url()).await.equal);
    assert_same(&store.ids(), &empty.ids(), "");
    assert_eq!(store.ids().len(), 2_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_direction_and_a_filter_leave_the_rest_alone() {
    let (store, relay) = divided(30).await;
    let (before_ours, before_theirs) = (store.ids(), relay.ids());
    let options = Options::default().dry_run(true);
    let (report, _) = sync_with(&store, &relay.url(), &options).await;
    assert_eq!((report.need, report.have, report.stored), (300, 300, 0), "{report:?}");
    assert!(!report.equal && report.complete, "{report:?}");
    assert_same(&store.ids(), &before_ours, "");
    assert_same(&relay.ids(), &before_theirs, "");

    let since = START + 300;
    let newer = filter(&format!(r#"{{"since":{since}}}"#));
    let options = Options::default().direction(Direction::Up).filter(newer);
    let (report, _) = sync_with(&store, &relay.url(), &options).await;
    assert!(report.complete && !report.equal, "{report:?}");
    assert_same(&store.ids(), &before_ours, "");
    assert!(report.uploaded > 0 && report.uploaded < 300, "{report:?}");
    assert_eq!(relay.ids().len() as u64, before_theirs.len() as u64 + report.uploaded);

    let options = Options::default().direction(Direction::Down);
    let (report, _) = sync_with(&store, &relay.url(), &options).await;
    assert!(report.complete && !report.equal, "{report:?}");
    assert!(store.ids().is_superset(&relay.ids()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_kept_is_not_asked_for_again() {
    let author = Author::new(1);
    let shared = notes(40, 500);
    let old = event(&author, 0, START + 1, json!([]), "old");
    let new = event(&author, 0, START + 2, json!([]), "new");
    let gone = note(&author, START + 3, "gone");
    let names = json!([["e", faster_hex::hex_string(&id(&gone))]]);
    let deletion = event(&author, 5, START + 4, names, "");
    let ours = TestStore::new(&[shared.clone(), vec![new.clone(), deletion.clone()]].concat());
    // The relay's filter keeps our events from reaching it.
    let relay = TestRelay::holding(&[shared, vec![old, gone]].concat()).await;
    let options = Options::default().direction(Direction::Down);
    let (report, _) = sync_with(&ours, &relay.url(), &options).await;
    assert_eq!(report.refused.get(&Reason::Superseded), Some(&1), "{report:?}");
    assert_eq!(report.refused.get(&Reason::Deleted), Some(&1), "{report:?}");
    assert!(report.complete && !report.equal, "{report:?}");
    assert_eq!(report.differs.get(&Reason::NotToUpload), Some(&2), "{report:?}");

    let (again, _) = sync_with(&ours, &relay.url(), &options).await;
    assert!(again.refused.is_empty() && again.complete, "{again:?}");
    assert_eq!((again.stored, again.need), (0, 0), "{again:?}");
    assert_eq!(again.differs.get(&Reason::Deleted), Some(&1), "{again:?}");

    // The events that make them obsolete, sent to the relay, make both sides equal.
    let report = sync_all(&ours, &relay.url()).await;
    assert!(report.complete, "{report:?}");
    let report = sync_all(&ours, &relay.url()).await;
    assert!(report.equal, "{report:?}");
    assert_same(&ours.ids(), &relay.ids(), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_refuses_by_size_is_synced_in_windows() {
    let (shared, ours, theirs) = (notes(50, 3_000), notes(51, 200), notes(52, 200));
    let store = TestStore::new(&[shared.clone(), ours].concat());
    let relay = TestRelay::holding_with(&[shared, theirs].concat(), |config| {
        config.negentropy.max_sync_events = 500;
    })
    .await;
    let (report, notes) = sync_with(&store, &relay.url(), &Options::default()).await;
    assert_same(&store.ids(), &relay.ids(), "");
    assert!(report.equal && report.complete, "{report:?}");
    assert_eq!(report.method, Method::Negentropy);
    assert!(notes.iter().any(|note| note.contains("windows of time")), "{notes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_catch_up_asks_for_what_is_newest_at_once() {
    let (store, relay) = divided(60).await;
    assert!(sync_all(&store, &relay.url()).await.equal);
    let author = Author::new(9);
    let fresh: Vec<String> =
        (0..400).map(|n| note(&author, START + 10_000 + n, "newer than all")).collect();
    fill(relay.relay.index(), &fresh);
    let report = sync_all(&store, &relay.url()).await;
    assert!(report.equal, "{report:?}");
    assert_eq!(report.stored, 400, "{report:?}");
    // One question finds them, one proves it; the events came with the first answer.
    assert_eq!((report.passes, report.round_trips), (2, 2), "{report:?}");
    assert_eq!(report.duplicates, 0, "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_that_has_ended_has_written_how_far_the_peer_is_equal() {
    let events = notes(65, 20);
    let relay = TestRelay::holding(&events).await;
    // A command closes the store next: later writes would be lost, with a warning.
    for _ in 0..20 {
        let store = TestStore::new(&[]);
        assert!(sync_all(&store, &relay.url()).await.equal);
        let remembered = store.index.store().sync_mark(&relay.url(), "{}").unwrap();
        let remembered = remembered.equal_up_to;
        assert!(remembered.is_some_and(|second| second > START), "{remembered:?}");
    }
}

/// A deletion by id removes only the named event, whatever either side had before.
#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_one_side_deleted_leaves_both_with_the_older_one() {
    let author = Author::new(1);
    for kind in [0, 30_023] {
        let [older, newer] =
            [1, 2].map(|n| event(&author, kind, START + n, json!([]), &n.to_string()));
        let names = json!([["e", faster_hex::hex_string(&id(&newer))]]);
        let deletion = event(&author, 5, START + 3, names, "");
        // Ours had the older version, and lost it to the newer one before that was deleted.
        let ours = TestStore::new(&[older.clone(), newer, deletion.clone()]);
        let relay = TestRelay::holding(&[older.clone(), deletion.clone()]).await;
        let report = sync_all(&ours, &relay.url()).await;
        assert!(report.equal && report.complete, "{report:?}");
        assert_same(&ours.ids(), &relay.ids(), "");
        assert_eq!(ours.ids(), [id(&older), id(&deletion)].into());
    }
}

/// A sync accepts the events that a relay accepts by its NIP-11 document, in both directions.
#[tokio::test(flavor = "multi_thread")]
async fn events_at_the_limits_of_nip_11_are_synced() {
    let author = Author::new(1);
    let tags =
        |count: usize| -> Value { (0..count).map(|n| json!(["p", format!("{n:064x}")])).collect() };
    let long =
        |at: u64, character: &str| event(&author, 1, at, tags(5_000), &character.repeat(262_144));
    let follows = event(&author, 3, START, tags(3_700), "");
    let store = TestStore::new(&[long(START + 1, "\u{8cfc}")]);
    let relay = TestRelay::holding(&[follows, long(START + 2, "\u{1f98a}")]).await;
    let report = sync_all(&store, &relay.url()).await;
    assert!(report.equal && report.complete, "{report:?}");
    assert_eq!((report.stored, report.uploaded), (2, 1), "{report:?}");
    assert_same(&store.ids(), &relay.ids(), "");
}
