//! Clients that do not read: they delay only themselves.

use crate::support::client::PATIENCE;
use crate::support::http::http;
use crate::support::negentropy_client::{EMPTY_SET, neg_msg};
use crate::support::{Author, TestRelay, events};
use negsync::store::{Event, Synchronous, VerifiedEvent};
use serde_json::{Value, json};
use std::ops::Range;

fn trusted(event: &Value) -> VerifiedEvent {
    Event::parse(&event.to_string()).unwrap().trust()
}

/// More than the sockets between the relay and its clients can hold.
fn fill(relay: &TestRelay) -> usize {
    let (author, long) = (Author::new(1), "x".repeat(100_000));
    let notes = (0..300).map(|second| trusted(&author.note(events::EPOCH + second, &long)));
    relay.relay.index().store().publish(notes.collect()).unwrap().len()
}

/// A REQ occupied a blocking thread as long as its client took. There are a few hundred threads,
/// and every REQ, COUNT and NEG-OPEN needs one.
#[test]
fn clients_that_do_not_read_take_no_thread_from_others() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .max_blocking_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let relay = TestRelay::start().await;
        let stored = fill(&relay);
        let mut slow = Vec::new();
        for _ in 0..3 {
            let mut client = relay.client().await;
            client.send(&json!(["REQ", "all", {}])).await;
            // The answer has begun; the rest has no room.
            client.next("the first event").await;
            slow.push(client);
        }
        let mut other = relay.client().await;
        assert_eq!(other.count(&[json!({})]).await, stored as u64);
        assert_eq!(other.query(&[json!({ "limit": 3 })]).await.len(), 3);
        neg_msg(&other.ask(&json!(["NEG-OPEN", "n", {}, EMPTY_SET])).await, "n");
        // A client that finally reads gets everything.
        for mut client in slow {
            for _ in 1..stored {
                assert_eq!(client.next("an event").await[0], "EVENT");
            }
            client.expect(json!(["EOSE", "all"])).await;
        }
    });
}

/// Each may have 4 MB waiting; all together have a quarter of a megabyte, plus a chunk each.
#[tokio::test(flavor = "multi_thread")]
async fn many_clients_that_do_not_read_hold_no_more_than_a_sum() {
    const CLIENTS: usize = 8;
    const CHUNK: usize = 200_000;
    let relay = TestRelay::start_with(|config| {
        config.connections.outbound_bytes = 4 << 20;
        config.connections.outbound_bytes_in_all = 256 << 10;
    })
    .await;
    let stored = fill(&relay);
    let mut slow = Vec::new();
    for _ in 0..CLIENTS {
        let mut client = relay.client().await;
        client.send(&json!(["REQ", "all", {}])).await;
        client.next("the first event").await;
        slow.push(client);
    }
    // A reading client gets everything meanwhile.
    let mut other = relay.client().await;
    assert_eq!(other.query(&[json!({})]).await.len(), stored);
    let metrics = http(relay.relay.address(), "GET", "/metrics", &[]).await;
    let waiting =
        metrics.body.lines().find_map(|line| line.strip_prefix("negsync_outbound_bytes "));
    let waiting: usize = waiting.unwrap().parse().unwrap();
    assert!((1..=(256 << 10) + CLIENTS * CHUNK).contains(&waiting), "{waiting} bytes");
    for mut client in slow {
        for _ in 1..stored {
            assert_eq!(client.next("an event").await[0], "EVENT");
        }
        client.expect(json!(["EOSE", "all"])).await;
    }
}

/// Notes that differ only in their ids.
fn numbered(numbers: Range<u64>) -> Vec<VerifiedEvent> {
    let mut note = Author::new(1).note(events::EPOCH, "x");
    let notes = numbers.map(|number| {
        note["id"] = json!(format!("{number:064x}"));
        trusted(&note)
    });
    notes.collect()
}

/// A client without subscriptions misses no commits: a sync over a slow connection was closed after
/// a thousand commits of others during one of its messages.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_without_subscriptions_cannot_fall_behind() {
    const COMMITS: u64 = 1_100;
    let relay =
        TestRelay::start_with(|config| config.store.synchronous = Synchronous::Normal).await;
    let mut client = relay.client().await;
    let id = "x".repeat(60);
    // Answers that fill the sockets, so that the relay cannot send more. Each contains all ids.
    let store = relay.relay.index().store().clone();
    store.publish(numbered(0..15_000)).unwrap();
    const SESSIONS: usize = 16;
    for _ in 0..SESSIONS {
        client.send(&json!(["NEG-OPEN", id, {}, EMPTY_SET])).await;
    }
    let first = neg_msg(&client.next("the first NEG-MSG").await, &id);
    assert!(first.len() > 400_000, "{}", first.len());
    tokio::task::spawn_blocking(move || {
        for note in numbered(15_000..15_000 + COMMITS) {
            store.publish(vec![note]).unwrap();
        }
    })
    .await
    .unwrap();
    for _ in 1..SESSIONS {
        neg_msg(&client.next("a NEG-MSG").await, &id);
    }
    client.fence().await;
    let answer = tokio::time::timeout(PATIENCE, client.count(&[json!({})])).await.unwrap();
    assert_eq!(answer, 15_000 + COMMITS);
}
