//! What a client may hold is bounded, said in words, and given back.

use crate::support::negentropy_client::{EMPTY_SET, neg_msg};
use crate::support::{Author, TestRelay, events};
use negsync::config::Within;
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn subscriptions_have_a_limit_that_close_gives_back() {
    let relay = TestRelay::start_with(|config| config.limits.subscriptions = Within::new(2)).await;
    let mut client = relay.client().await;
    for id in ["a", "b", "a"] {
        assert_eq!(client.ask(&json!(["REQ", id, {}])).await, json!(["EOSE", id]));
    }
    let answer = client.ask(&json!(["REQ", "c", {}])).await;
    assert_eq!((&answer[0], &answer[1]), (&json!("CLOSED"), &json!("c")));
    assert!(answer[2].as_str().unwrap().starts_with("rate-limited: "), "{answer}");
    client.send(&json!(["CLOSE", "a"])).await;
    assert_eq!(client.ask(&json!(["REQ", "c", {}])).await, json!(["EOSE", "c"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn neg_sessions_have_a_limit_of_their_own_that_neg_close_gives_back() {
    let relay = TestRelay::start_with(|config| {
        config.limits.subscriptions = Within::new(1);
        config.negentropy.sessions = Within::new(2);
    })
    .await;
    let mut client = relay.client().await;
    assert_eq!(client.ask(&json!(["REQ", "a", {}])).await, json!(["EOSE", "a"]));
    for id in ["a", "b", "a"] {
        neg_msg(&client.ask(&json!(["NEG-OPEN", id, {}, EMPTY_SET])).await, id);
    }
    let answer = client.ask(&json!(["NEG-OPEN", "c", {}, EMPTY_SET])).await;
    assert_eq!((&answer[0], &answer[1]), (&json!("NEG-ERR"), &json!("c")));
    assert!(answer[2].as_str().unwrap().starts_with("rate-limited: "), "{answer}");
    assert_eq!(answer.as_array().unwrap().len(), 3);
    client.send(&json!(["NEG-CLOSE", "b"])).await;
    neg_msg(&client.ask(&json!(["NEG-OPEN", "c", {}, EMPTY_SET])).await, "c");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_is_answered_with_the_newest_events_up_to_the_relays_limit() {
    let relay =
        TestRelay::start_with(|config| config.limits.events_per_filter = Within::new(3)).await;
    let mut client = relay.client().await;
    let author = Author::new(1);
    let notes: Vec<Value> =
        (0..10).map(|second| author.note(events::EPOCH + second, "x")).collect();
    client.publish_all(&notes).await;
    let newest: Vec<Value> = notes.iter().rev().take(3).cloned().collect();
    assert_eq!(client.query(&[json!({})]).await, newest);
    assert_eq!(client.query(&[json!({ "limit": 100 })]).await, newest);
    assert_eq!(client.query(&[json!({ "limit": 2 })]).await, newest[..2]);
    // The sets of COUNT and NEG are whole all the same.
    assert_eq!(client.count(&[json!({})]).await, 10);
}
