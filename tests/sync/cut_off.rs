//! Peers that hang up while they are asked for events, and one that refuses to be asked.

use super::scripted::{Cuts, Script, Scripted};
use super::support::*;
use crate::support::process::{Ended, negsync};
use negsync::sync::CancellationToken;
use negsync::sync::{Options, Progress, Reason, sync};
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;

async fn peer(events: &[String], cuts: Cuts) -> Scripted {
    Scripted::start(events, Script { cuts: Some(cuts), ..Script::default() }).await
}

/// Runs the command to sync a new store with the peer.
async fn command(peer: &Scripted, arguments: &'static [&'static str]) -> Ended {
    let url = peer.url();
    let run = move || {
        let folder = tempfile::tempdir().unwrap();
        let store = folder.path().join("store.sqlite");
        negsync(&[&["sync", &url, "--store", store.to_str().unwrap()], arguments].concat(), "")
    };
    tokio::task::spawn_blocking(run).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_hangs_up_whenever_it_is_asked_for_events_is_left() {
    let peer = peer(&notes(150, 60), Arc::new(|_, _, _| true)).await;
    let ended = command(&peer, &["--json"]).await;
    assert_eq!(ended.status.code(), Some(2), "{ended:?}");
    let report: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!((&report["reconnects"], &report["stored"]), (&4.into(), &0.into()), "{report}");
    let error = report["error"].as_str().unwrap();
    let words = ["after 5 attempts in a row that moved nothing", "none has come"];
    assert!(words.iter().all(|words| error.contains(words)), "{error}");
    assert!(report["complete"] == false && report["equal"] == false, "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_keeps_nothing_is_told_apart_though_it_hangs_up() {
    // The answer to NEG-OPEN and one OK, then the connection ends.
    let script = Script { forgets: true, cut_every: Some(3), ..Script::default() };
    let peer = Scripted::start(&[], script).await;
    let store = TestStore::new(&notes(156, 5));
    let (report, notes) = sync_with(&store, &peer.url(), &Options::default()).await;
    assert!(report.complete && !report.equal, "{report:?} {notes:?}");
    assert_eq!(report.differs.get(&Reason::NotKept), Some(&5), "{report:?} {notes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_sync_goes_on_with_such_a_peer_after_longer_and_longer_pauses() {
    let peer = peer(&notes(155, 60), Arc::new(|_, _, _| true)).await;
    let store = TestStore::new(&[]);
    let stop = CancellationToken::new();
    let options = Options::default().live(true).attempts(None).stop(stop.clone());
    let mut pauses = Vec::new();
    let url = peer.url();
    let syncing = sync(&store.local, &url, &options, |progress| {
        if let Progress::Waiting { pause, .. } = progress {
            pauses.push(pause);
            if pauses.len() == 3 {
                stop.cancel();
            }
        }
    });
    let report = tokio::time::timeout(PATIENCE, syncing).await.unwrap().unwrap();
    // The first pause is half a second at most; each further one may be twice as long.
    assert!(pauses[2] >= Duration::from_secs(1), "{pauses:?} {report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_brings_an_event_now_and_then_gets_to_its_end() {
    let events = notes(151, 9);
    let peer =
        peer(&events, Arc::new(|connection, place, _| connection % 3 != 2 || place > 0)).await;
    let store = TestStore::new(&notes(152, 5));
    let (report, notes) = sync_with(&store, &peer.url(), &Options::default()).await;
    assert_same(&store.ids(), &peer.ids(), &format!("{report:?} {notes:?}"));
    assert!(report.complete && report.equal, "{report:?} {notes:?}");
    // The last event of a connection counts although nothing follows it.
    assert_eq!((report.stored, report.uploaded), (9, 5), "{report:?}");
    assert!(report.reconnects >= 26, "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_end_the_connection_are_given_up_one_by_one() {
    let events = notes(153, 40);
    let broken = [id(&events[7]), id(&events[31])];
    let peer = peer(&events, Arc::new(move |_, _, id| broken.contains(id))).await;
    let store = TestStore::new(&[]);
    let mut said = Vec::new();
    // A sync that gives up on the peer has made progress, so repeated syncs come to the end.
    let report = loop {
        let (report, _) = sync_with(&store, &peer.url(), &Options::default()).await;
        assert!(said.len() < 3, "{report:?} {said:?}");
        if report.complete {
            break report;
        }
        said.push(report);
    };
    let mut expected = peer.ids();
    expected.retain(|id| !broken.contains(id));
    assert_same(&store.ids(), &expected, &format!("{report:?} {said:?}"));
    assert!(!report.equal, "{report:?} {said:?}");
    assert_eq!(report.differs.get(&Reason::Unreadable), Some(&2), "{report:?} {said:?}");
}

/// There is always something new, so every connection makes progress.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_ends_the_connection_is_given_up_though_others_come() {
    let events = notes(157, 40);
    let mut later = events[3..].iter();
    let broken = id(&events[1]);
    let peer = peer(&events[..3], Arc::new(move |_, _, id| *id == broken)).await;
    let store = TestStore::new(&[]);
    let url = peer.url();
    let options = Options::default();
    let syncing = sync(&store.local, &url, &options, |progress| {
        if let Progress::Waiting { .. } = progress {
            later.next().inspect(|event| peer.add(event));
        }
    });
    let report = tokio::time::timeout(PATIENCE, syncing).await.unwrap().unwrap();
    assert!(report.complete && later.next().is_some(), "{report:?}");
    assert_eq!(report.differs.get(&Reason::Unreadable), Some(&1), "{report:?}");
    let mut expected = peer.ids();
    expected.remove(&broken);
    assert_same(&store.ids(), &expected, &format!("{report:?}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_peer_refuses_a_download_with_is_told() {
    let words = format!("restricted: pay\u{1b}[2J\nfirst {}", "x".repeat(10_000));
    let script = Script { refuses_ids: Some(words), ..Script::default() };
    let peer = Scripted::start(&notes(154, 20), script).await;
    let ended = command(&peer, &[]).await;
    assert_eq!(ended.status.code(), Some(2), "{ended:?}");
    let told = "the peer refuses: restricted: pay [2J first xxx";
    assert!(ended.stdout.contains("20 events could not be moved; "), "{ended:?}");
    assert!(ended.stdout.contains(told), "{ended:?}");
    assert!(ended.stdout.len() < 1_000 && ended.stdout.lines().count() == 1, "{ended:?}");
    let noted = ended.stderr.matches("the peer refuses a download: restricted: pay [2J").count();
    assert_eq!(noted, 1, "{ended:?}");
    assert!(!ended.stderr.contains('\u{1b}'), "{ended:?}");
}
