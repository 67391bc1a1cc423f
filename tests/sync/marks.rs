//! The recorded state of a peer without NIP-77: a complete reading is made once, continues after an
//! interruption, and is repeated at intervals.

use super::scripted::{Counts, Script, Scripted, Unknown};
use super::support::*;
use negsync::sync::{Options, Proof, Verdict};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

fn read(events_per_req: usize) -> Script {
    Script { without_negentropy: Some(Unknown::Closed), events_per_req, ..Script::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_third_sync_moves_a_thirtieth_of_what_the_first_did() {
    let (shared, ours, theirs) = (notes(160, 900), notes(161, 50), notes(162, 50));
    let store = TestStore::new(&[shared.clone(), ours].concat());
    let peer = Scripted::start(&[shared, theirs].concat(), read(500)).await;
    let mut bytes = Vec::new();
    for verdict in [Verdict::Equal, Verdict::CaughtUp, Verdict::CaughtUp] {
        let report = sync_all(&store, &peer.url()).await;
        assert_same(&store.ids(), &peer.ids(), &format!("{report:?}"));
        assert_eq!(report.verdict, verdict, "{report:?}");
        bytes.push(report.bytes_up + report.bytes_down);
    }
    assert!(bytes[2] * 100 <= bytes[0] * 3, "{bytes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_reading_that_was_cut_goes_on_where_it_was() {
    let theirs = notes(163, 1_000);
    let whole = {
        let peer = Scripted::start(&theirs, read(100)).await;
        sync_all(&TestStore::new(&[]), &peer.url()).await
    };
    let is_cut = Arc::new(AtomicBool::new(true));
    let cuts = Arc::clone(&is_cut);
    let cuts = Arc::new(move |_, place, _: &_| cuts.load(Ordering::Relaxed) && place >= 650);
    let peer = Scripted::start(&theirs, Script { cuts: Some(cuts), ..read(100) }).await;
    let store = TestStore::new(&[]);
    let once = Options::default().attempts(1);
    let (first, _) = sync_with(&store, &peer.url(), &once).await;
    assert_eq!(first.verdict, Verdict::Incomplete, "{first:?}");
    assert!(first.stored >= 500 && !first.not_seen.is_empty(), "{first:?}");
    is_cut.store(false, Ordering::Relaxed);
    let (second, _) = sync_with(&store, &peer.url(), &once).await;
    assert_same(&store.ids(), &peer.ids(), &format!("{second:?}"));
    // Both readings together have shown everything.
    let verdict = (second.verdict, first.stored + second.stored);
    assert_eq!(verdict, (Verdict::CaughtUp, 1_000), "{second:?}");
    assert!(second.read_whole_at.is_some(), "{second:?}");
    // Only the page at the interruption is requested again.
    assert!(second.bytes_down * 2 < whole.bytes_down, "{second:?} {whole:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_backdated_is_found_by_the_next_whole_reading() {
    let theirs = notes(164, 400);
    let store = TestStore::new(&[]);
    let peer = Scripted::start(&theirs, read(500)).await;
    assert_eq!(sync_all(&store, &peer.url()).await.proof, Some(Proof::Read));
    let late = note(&Author::new(9), START - 86_400, "late");
    peer.add(&late);
    let report = sync_all(&store, &peer.url()).await;
    assert_eq!((report.verdict, report.stored), (Verdict::CaughtUp, 0), "{report:?}");
    assert!(report.read_since > Some(START) && report.read_whole_at.is_some(), "{report:?}");
    let options = Options::default().full_interval_s(0);
    let (report, _) = sync_with(&store, &peer.url(), &options).await;
    assert_eq!((report.verdict, report.stored), (Verdict::Equal, 1), "{report:?}");
    assert_same(&store.ids(), &peer.ids(), &format!("{report:?}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_down_alone_is_not_equal_while_we_hold_more() {
    let (shared, ours) = (notes(165, 60), notes(166, 5));
    for held in [shared.clone(), vec![]] {
        let store = TestStore::new(&[shared.clone(), ours.clone()].concat());
        let peer = Scripted::start(&held, read(500)).await;
        let down = Options::default().direction(negsync::sync::Direction::Down);
        for _ in 0..2 {
            let (report, _) = sync_with(&store, &peer.url(), &down).await;
            assert!(!report.equal && report.verdict != Verdict::Equal, "{report:?}");
        }
        assert_eq!(peer.ids().len(), held.len());
    }
}

/// A peer without NIP-77 that supports COUNT (NIP-45), with the result of `counts`.
fn counting(counts: impl Fn(usize) -> serde_json::Value + Send + Sync + 'static) -> Script {
    let counts: Counts = Arc::new(counts);
    Script { counts: Some(counts), ..read(500) }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_backdated_shows_in_the_counts_of_its_day() {
    let both = notes(167, 400);
    let old: Vec<String> =
        (0..40).map(|n| note(&Author::new(8), START - 90 * 86_400 * n, "old")).collect();
    let store = TestStore::new(&[]);
    let events = [both, old].concat();
    let peer = Scripted::start(&events, counting(|count| json!({ "count": count }))).await;
    assert_eq!(sync_all(&store, &peer.url()).await.proof, Some(Proof::Read));
    // No event is late: two questions show that.
    let report = sync_all(&store, &peer.url()).await;
    assert_eq!((report.verdict, peer.counted()), (Verdict::CaughtUp, 2), "{report:?}");
    let quiet_bytes = report.bytes_up + report.bytes_down;

    peer.add(&note(&Author::new(9), START - 200 * 86_400, "late there"));
    let down = sync_all(&store, &peer.url()).await;
    fill(&store.index, &[note(&Author::new(9), START - 700 * 86_400, "late here")]);
    let up = sync_all(&store, &peer.url()).await;
    assert_eq!((down.stored, down.uploaded), (1, 0), "{down:?}");
    assert_eq!((up.stored, up.uploaded), (0, 1), "{up:?}");
    assert_same(&store.ids(), &peer.ids(), &format!("{up:?}"));
    for report in [down, up] {
        // A hint proves nothing.
        assert_eq!((report.verdict, report.proof), (Verdict::CaughtUp, Some(Proof::ReadSince)));
        let bytes = report.bytes_up + report.bytes_down;
        assert!(bytes < quiet_bytes + 30_000, "{bytes}, not {quiet_bytes}: {report:?}");
    }
    assert!(peer.counted() < 2 * 64, "{} questions", peer.counted());
}

#[tokio::test(flavor = "multi_thread")]
async fn counts_that_are_not_true_cost_little_and_prove_nothing() {
    let events = notes(168, 400);
    let late = note(&Author::new(9), START - 200 * 86_400, "late");
    let lies: [fn(usize) -> serde_json::Value; 4] = [
        |count| json!({ "count": count * 3 + 1 }),
        |_| json!({ "count": 0 }),
        |count| json!({ "count": count + 5, "approximate": true }),
        |_| json!({ "count": "many" }),
    ];
    for (place, lie) in lies.into_iter().enumerate() {
        let store = TestStore::new(&[]);
        let peer = Scripted::start(&events, counting(lie)).await;
        let first = sync_all(&store, &peer.url()).await;
        peer.add(&late);
        let before = peer.counted();
        let second = sync_all(&store, &peer.url()).await;
        assert_eq!(second.verdict, Verdict::CaughtUp, "{place}: {second:?}");
        let asked = peer.counted() - before;
        assert!((1..=64).contains(&asked), "{place}: {asked} questions");
        assert!(second.bytes_down < first.bytes_down, "{place}: {second:?}");
    }
}
