//! Events that only their author may publish (NIP-70), and those of vanished keys (NIP-62), between
//! relays.

use super::support::*;
use negsync::config::Config;
use negsync::sync::{Options, Reason};
use serde_json::json;

fn protected(author_number: u8, content: &str) -> String {
    event(&Author::new(author_number), 1, START, json!([["-"]]), content)
}

#[tokio::test(flavor = "multi_thread")]
async fn protected_events_stay_where_their_author_put_them() {
    let shared = notes(160, 50);
    let (ours, theirs) = (protected(1, "ours"), protected(2, "theirs"));
    let repost = event(&Author::new(3), 6, START, json!([]), &theirs);
    let store = TestStore::new(&[shared.clone(), vec![ours.clone()]].concat());
    let relay =
        TestRelay::holding(&[shared.clone(), vec![theirs.clone(), repost.clone()]].concat()).await;
    for stored_before in [false, true] {
        let report = sync_all(&store, &relay.url()).await;
        assert!(report.complete, "{report:?}");
        assert_eq!((report.stored, report.uploaded), (0, 0), "{report:?}");
        assert_eq!((store.ids().len(), relay.ids().len()), (51, 52), "{stored_before}");
        assert_eq!(report.differs.get(&Reason::Protected), Some(&3), "{report:?}");
        // The second time they are not even requested.
        assert_eq!(report.refused.is_empty(), stored_before, "{report:?}");
    }
}

/// Makes the store's syncs move protected events.
fn move_protected(store: &TestStore) {
    let mut config = Config::default();
    config.sync.protected = true;
    store.local.admission.reload(config).unwrap();
}

/// For relays of one operator, the operator may allow it.
#[tokio::test(flavor = "multi_thread")]
async fn protected_events_are_taken_where_the_operator_says_so() {
    let theirs = protected(2, "theirs");
    let store = TestStore::new(&notes(161, 10));
    move_protected(&store);
    let relay = TestRelay::holding(std::slice::from_ref(&theirs)).await;
    let (report, _) = sync_with(&store, &relay.url(), &Options::default()).await;
    assert!(report.complete, "{report:?}");
    assert!(store.ids().contains(&id(&theirs)));
}

/// Two relays of one operator: with a mirror key, private kinds become equal too.
#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_moves_private_and_protected_events() {
    let mirror = Author::new(9);
    let to = json!([["p", Author::new(3).key()]]);
    let letters = |number: u8| {
        let letter = |n: u64| {
            event(&Author::new(number), [4, 1_059][n as usize % 2], START + n, to.clone(), "")
        };
        (0..40).map(letter).collect::<Vec<_>>()
    };
    let mut store = TestStore::new(&[letters(1), vec![protected(1, "ours")]].concat());
    let change = |config: &mut negsync::config::Config| {
        config.auth.required = true;
        config.auth.mirror_keys = [mirror.keys().public_key().to_bytes()].into_iter().collect();
    };
    let theirs = [letters(2), vec![protected(2, "theirs")]].concat();
    let relay = TestRelay::holding_with(&theirs, change).await;
    move_protected(&store);
    store.local.keys = Some(mirror.keys().clone());
    let report = sync_all(&store, &relay.url()).await;
    assert!(report.complete, "{report:?}");
    assert_eq!(store.ids().len(), 82, "{report:?}");
    assert_same(&store.ids(), &relay.ids(), &format!("{report:?}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_vanished_does_not_come_back_from_a_peer() {
    let (gone, stays) = (notes(162, 30), notes(163, 30));
    let key = Author::new(163);
    let request = event(&key, 62, START + 1_000, json!([["relay", "ALL_RELAYS"]]), "");
    let store = TestStore::new(&[stays.clone(), vec![request.clone()]].concat());
    let relay = TestRelay::holding(&gone).await;
    let report = sync_all(&store, &relay.url()).await;
    // The request is sent, and removes everything there too.
    assert!(report.complete, "{report:?}");
    assert_eq!(report.stored, 0, "{report:?}");
    assert_same(&store.ids(), &relay.ids(), &format!("{report:?}"));
    assert_eq!(store.ids().len(), 31);
}
