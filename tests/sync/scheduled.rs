//! Relays that sync with their peers by a schedule.

use super::support::*;
use crate::support::events::unix_now;
use futures_util::{SinkExt, StreamExt};
use negsync::config::PeerConfig;
use negsync::sync::{Options, Progress, Schedule, Verdict, sync};
use negsync::sync::{PeerState, PeerStatus};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio_tungstenite::connect_async;
use tokio_tungstenite::tungstenite::Message;

fn peer(url: &str, live: bool) -> PeerConfig {
    let mut peer = PeerConfig::new(url.parse().unwrap());
    (peer.interval_s, peer.live) = (1, live);
    peer
}

/// Keeps `relay` in sync with the relays at `urls`.
fn schedule(relay: &TestRelay, urls: &[String], live: bool) -> Schedule {
    let mut config = relay.config.clone();
    config.peers = urls.iter().map(|url| peer(url, live)).collect();
    relay.relay.reload(config).unwrap();
    Schedule::start(relay.relay.index(), relay.relay.admission(), relay.relay.peers()).unwrap()
}

/// Publishes over a socket and reads every OK.
async fn publish(url: &str, events: &[String]) {
    let (mut socket, _) = connect_async(url).await.unwrap();
    let challenge = socket.next().await.unwrap().unwrap().into_text().unwrap();
    assert!(challenge.starts_with(r#"["AUTH","#), "{challenge}");
    for event in events {
        socket.send(Message::text(format!(r#"["EVENT",{event}]"#))).await.unwrap();
        let answer = socket.next().await.unwrap().unwrap().into_text().unwrap();
        assert!(answer.contains("true"), "{answer}");
    }
}

/// Waits until all relays have the expected number of events, and the same ones.
async fn converge(relays: &[&TestRelay], expected: usize) {
    let began = Instant::now();
    loop {
        let sets: Vec<BTreeSet<[u8; 32]>> = relays.iter().map(|relay| relay.ids()).collect();
        if sets.iter().all(|set| set.len() == expected) {
            sets.iter().for_each(|set| assert_same(set, &sets[0], ""));
            return;
        }
        let sizes: Vec<usize> = sets.iter().map(BTreeSet::len).collect();
        assert!(began.elapsed() < PATIENCE, "{sizes:?} instead of {expected} each");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_of_three_ends_equal_while_all_are_written_to() {
    for live in [true, false] {
        let first = TestRelay::holding(&notes(110, 300)).await;
        let middle = TestRelay::holding(&notes(111, 300)).await;
        let last = TestRelay::holding(&notes(112, 300)).await;
        let schedules =
            [schedule(&first, &[middle.url()], live), schedule(&last, &[middle.url()], live)];
        let written = [notes(113, 100), notes(114, 100), notes(115, 100)];
        let urls = [first.url(), middle.url(), last.url()];
        let writers = urls.iter().zip(&written).map(|(url, events)| publish(url, events));
        futures_util::future::join_all(writers).await;
        converge(&[&first, &middle, &last], 1_200).await;
        // Events published when all are equal are passed to all relays too.
        publish(&last.url(), &notes(116, 50)).await;
        converge(&[&first, &middle, &last], 1_250).await;
        for schedule in schedules {
            schedule.stop().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_is_away_holds_up_no_other_and_is_caught_up_with() {
    let here = TestRelay::holding(&notes(120, 100)).await;
    let there = TestRelay::holding(&notes(121, 100)).await;
    let reserved = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = reserved.local_addr().unwrap();
    drop(reserved);
    let schedule = schedule(&here, &[format!("ws://{address}"), there.url()], true);
    converge(&[&here, &there], 200).await;
    let late =
        TestRelay::holding_with(&notes(122, 100), |config| config.relay.listen = address.into())
            .await;
    converge(&[&here, &there, &late], 300).await;
    schedule.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_not_sent_back_to_where_it_came_from() {
    let store = TestStore::new(&notes(125, 100));
    let relay = TestRelay::holding(&notes(126, 100)).await;
    let stop = negsync::sync::CancellationToken::new();
    let options = Options::default().live(true).stop(stop.clone());
    let (local, url) = (store.local.clone(), relay.url());
    let (live, is_live) = tokio::sync::oneshot::channel();
    let mut live = Some(live);
    let uploaded = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&uploaded);
    let syncing = tokio::spawn(async move {
        let told = |progress| match progress {
            Progress::Live => live.take().unwrap().send(()).unwrap(),
            Progress::Moved(counts) => counted.store(counts.tally.uploaded, Ordering::Relaxed),
            _ => {}
        };
        sync(&local, &url, &options, told).await.unwrap()
    });
    is_live.await.unwrap();
    assert_same(&store.ids(), &relay.ids(), "");
    publish(&relay.url(), &notes(127, 80)).await;
    fill(&store.index, &notes(128, 60));
    let began = Instant::now();
    // The peer may have an event before we have read its OK.
    while store.ids().len() < 340 || uploaded.load(Ordering::Relaxed) < 160 {
        assert!(began.elapsed() < PATIENCE, "{} {uploaded:?}", store.ids().len());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    stop.cancel();
    let report = syncing.await.unwrap();
    assert_eq!((report.stored, report.uploaded), (180, 160), "{report:?}");
    // The live subscription returns the newest stored event, and events that we sent.
    assert!(report.duplicates <= 161, "{report:?}");
    assert_same(&store.ids(), &relay.ids(), "");
}

/// Waits until the only peer of `relay` has the expected state.
async fn status_when(
    relay: &TestRelay,
    what: &str,
    is_so: impl Fn(&PeerStatus) -> bool,
) -> PeerStatus {
    let began = Instant::now();
    loop {
        let status = relay.relay.peers().all(unix_now()).pop();
        match status {
            Some(status) if is_so(&status) => return status,
            status => assert!(began.elapsed() < PATIENCE, "not {what}: {status:?}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn how_a_peer_stands_is_known_all_the_time() {
    for live in [true, false] {
        let here = TestRelay::holding(&notes(140, 120)).await;
        let there = TestRelay::holding(&notes(141, 80)).await;
        let schedule = schedule(&here, &[there.url()], live);
        let status = status_when(&here, "synced", |status| status.syncs > 0).await;
        assert_eq!((status.name.as_str(), status.live), (there.url().as_str(), live));
        assert_eq!(status.last_converged.map(|then| unix_now() - then < 10), Some(true));
        assert_eq!((status.have, status.need, status.differs_since), (0, 0, None));
        let last = status.last_sync.unwrap();
        let tally = last.tally;
        assert_eq!((tally.have, tally.need), (120, 80));
        assert_eq!((tally.stored, tally.uploaded), (80, 120));
        assert!(tally.round_trips > 0 && tally.bytes_up > 0 && tally.bytes_down > 0);
        assert_eq!(last.verdict, Verdict::Equal);
        // Later events are moved, and counted once.
        publish(&there.url(), &notes(142, 30)).await;
        let status = status_when(&here, "at 110", |status| status.totals.stored == 110).await;
        if live {
            assert!(status.connected && status.in_step, "{status:?}");
        }
        let errors = status.errors;
        drop(there);
        let status = status_when(&here, "lost", |status| status.errors > errors).await;
        assert!(!status.connected && !status.in_step && status.last_error.is_some(), "{status:?}");
        schedule.stop().await;
    }
}

/// The reported state of a peer is accurate: a reached peer is never "not reached", and only a peer
/// without differences is called equal.
#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_refuses_is_told_from_one_that_is_away() {
    let shared = notes(150, 20);
    let blocks = r#"while IFS= read -r line; do id=${line#*'"id":"'}; id=${id%%'"'*}
echo "{\"id\":\"$id\",\"action\":\"reject\",\"msg\":\"blocked: all\"}"; done"#;
    let refuses_writes =
        TestRelay::holding_with(&shared, |config| config.write_policy.command = blocks.into())
            .await;
    let refuses_all = TestRelay::holding_with(&shared, |config| config.auth.required = true).await;
    let away = "ws://127.0.0.1:1".to_owned();
    for (url, state) in [
        (refuses_writes.url(), PeerState::RefusesWrites),
        (refuses_all.url(), PeerState::Incomplete),
        (away, PeerState::NotReached),
    ] {
        let here = TestRelay::holding(&[&shared[..], &notes(151, 5)].concat()).await;
        let schedule = schedule(&here, std::slice::from_ref(&url), false);
        let status = status_when(&here, state.words(), |status| status.state() == state).await;
        if state == PeerState::RefusesWrites {
            let last = status.last_sync.unwrap();
            assert_eq!(last.differs, [("refused by the peer: blocked".to_owned(), 5)].into());
        }
        schedule.stop().await;
    }
}
