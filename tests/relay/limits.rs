//! The resources of a client are bounded; the bounds are reported, and resources are returned.

use crate::support::client::PATIENCE;
use crate::support::negentropy_client::{EMPTY_SET, neg_msg};
use crate::support::{Author, Client, TestRelay, events};
use negsync::store::Event;
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn subscriptions_have_a_limit_that_close_gives_back() {
    let relay = TestRelay::start_with(|config| config.limits.subscriptions = 2).await;
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
        config.limits.subscriptions = 1;
        config.negentropy.sessions = 2;
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
    let relay = TestRelay::start_with(|config| config.limits.events_per_filter = 3).await;
    let mut client = relay.client().await;
    let author = Author::new(1);
    let notes: Vec<Value> =
        (0..10).map(|second| author.note(events::EPOCH + second, "x")).collect();
    client.publish_all(&notes).await;
    let newest: Vec<Value> = notes.iter().rev().take(3).cloned().collect();
    assert_eq!(client.query(&[json!({})]).await, newest);
    assert_eq!(client.query(&[json!({ "limit": 100 })]).await, newest);
    assert_eq!(client.query(&[json!({ "limit": 2 })]).await, newest[..2]);
    // The sets of COUNT and NEG are complete nevertheless.
    assert_eq!(client.count(&[json!({})]).await, 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn neg_sessions_of_all_connections_have_a_limit_that_a_lost_connection_gives_back() {
    let relay = TestRelay::start_with(|config| config.negentropy.sessions_in_all = 3).await;
    let (mut one, mut other) = (relay.client().await, relay.client().await);
    let open = |id: &str| json!(["NEG-OPEN", id, {}, EMPTY_SET]);
    for id in ["a", "b", "a"] {
        neg_msg(&one.ask(&open(id)).await, id);
    }
    neg_msg(&other.ask(&open("a")).await, "a");
    for client in [&mut one, &mut other] {
        let answer = client.ask(&open("c")).await;
        assert_eq!((&answer[0], &answer[1]), (&json!("NEG-ERR"), &json!("c")));
        assert!(answer[2].as_str().unwrap().starts_with("rate-limited: "), "{answer}");
    }
    // A session that could not be opened takes no slot, and neither does one that ended by an
    // error.
    assert_eq!(one.ask(&json!(["NEG-MSG", "b", "6100"])).await[0], "NEG-ERR");
    assert_eq!(other.ask(&json!(["NEG-OPEN", "c", {}, "6100"])).await[0], "NEG-ERR");
    neg_msg(&other.ask(&open("c")).await, "c");
    drop(other);
    let reopened = async {
        while one.ask(&open("d")).await[0] != "NEG-MSG" {}
        neg_msg(&one.ask(&open("e")).await, "e");
    };
    tokio::time::timeout(PATIENCE, reopened).await.expect("the places are not given back");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_neg_session_that_is_asked_nothing_is_closed_and_one_that_is_stays() {
    let relay = TestRelay::start_with(|config| {
        config.negentropy.idle_timeout_s = 1;
    })
    .await;
    let mut client = relay.client().await;
    for id in ["idle", "busy"] {
        neg_msg(&client.ask(&json!(["NEG-OPEN", id, {}, EMPTY_SET])).await, id);
    }
    let closed = loop {
        let answer = client.ask(&json!(["NEG-MSG", "busy", EMPTY_SET])).await;
        if answer[0] == "NEG-ERR" {
            break answer;
        }
        neg_msg(&answer, "busy");
    };
    assert_eq!(closed[1], "idle");
    assert!(closed[2].as_str().unwrap().starts_with("closed: "), "{closed}");
    neg_msg(&client.next("the answer to the busy one").await, "busy");
    neg_msg(&client.ask(&json!(["NEG-OPEN", "idle", {}, EMPTY_SET])).await, "idle");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_filters_of_a_connections_subscriptions_hold_so_many_values_together() {
    let relay = TestRelay::start_with(|config| config.limits.subscription_values = 5).await;
    let mut client = relay.client().await;
    let three = json!({ "kinds": [1, 2], "#p": ["x"] });
    assert_eq!(client.ask(&json!(["REQ", "a", three])).await, json!(["EOSE", "a"]));
    let answer = client.ask(&json!(["REQ", "b", three])).await;
    assert_eq!((&answer[0], &answer[1]), (&json!("CLOSED"), &json!("b")));
    assert!(answer[2].as_str().unwrap().starts_with("rate-limited: "), "{answer}");
    // A replaced subscription does not count.
    for filter in [&three, &json!({ "kinds": [1, 2, 3, 4, 5] }), &three] {
        assert_eq!(client.ask(&json!(["REQ", "a", filter])).await, json!(["EOSE", "a"]));
    }
    client.send(&json!(["CLOSE", "a"])).await;
    assert_eq!(client.ask(&json!(["REQ", "b", three])).await, json!(["EOSE", "b"]));
}

/// A thousand connections, each within its limits, took gigabytes. Memory beyond a small part of
/// each connection is bounded for its address and in total.
#[tokio::test(flavor = "multi_thread")]
async fn the_filters_of_all_subscriptions_take_so_much_memory() {
    let relay = TestRelay::start_with(|config| {
        config.limits.subscription_memory_mb = 1;
        config.connections.trusted_proxies = vec!["127.0.0.1".parse().unwrap()];
    })
    .await;
    let url = relay.url();
    let client = async |address: usize| {
        Client::connect_for(&url, &format!("192.0.2.{address}")).await.ok().unwrap()
    };
    let values = |count: usize| {
        let values: Vec<String> = (0..count).map(|value| format!("{value:064x}")).collect();
        json!(["REQ", "s", { "#e": values, "limit": 0 }])
    };
    let refused = |answer: &Value, reason: &str| {
        let text = answer[2].as_str().unwrap_or_default();
        assert_eq!((&answer[0], &answer[1]), (&json!("CLOSED"), &json!("s")), "{answer}");
        assert!(text.starts_with("rate-limited: ") && text.contains(reason), "{answer}");
    };
    let taken = json!(["EOSE", "s"]);
    let mut clients = Vec::new();
    for address in 0..4 {
        let mut of_address = client(address).await;
        assert_eq!(of_address.ask(&values(3_600)).await, taken);
        let mut other = client(address).await;
        refused(&other.ask(&values(3_600)).await, "your address");
        // Each connection has a part of its own, and refused filters take no memory.
        assert_eq!(other.ask(&values(200)).await, taken);
        clients.extend([of_address, other]);
    }
    let mut late = client(9).await;
    refused(&late.ask(&values(2_000)).await, "try again later");
    assert_eq!(late.ask(&values(200)).await, taken);
    clients[0].send(&json!(["CLOSE", "s"])).await;
    clients[0].fence().await;
    assert_eq!(late.ask(&values(2_000)).await, taken);
    // A replaced subscription does not count.
    assert_eq!(late.ask(&values(3_600)).await, taken);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_over_a_limit_is_refused_under_its_id() {
    let relay = TestRelay::start_with(|config| {
        config.limits.event_bytes = 1_000;
        config.limits.content_chars = 10;
        config.limits.created_at_behind_s = 3_600;
    })
    .await;
    let mut client = relay.client().await;
    let (author, now) = (Author::new(1), events::unix_now());
    let mut refused = async |event: Value, field: &str| {
        let (accepted, text) = client.publish(&event).await;
        assert!(!accepted && text.starts_with(&format!("invalid: {field}: ")), "{text}");
    };
    refused(author.note(now, &"x".repeat(1_000)), "event").await;
    refused(author.note(now, &"x".repeat(11)), "content").await;
    refused(author.note(now - 4_000, "x"), "created_at").await;
    // NIP-11 counts characters, not bytes.
    client.store(&author.note(now, &"ü".repeat(10))).await;
    client.store(&author.note(now - 3_000, "x")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sets_that_only_sessions_hold_have_a_memory_that_is_given_back() {
    let relay = TestRelay::start_with(|config| config.negentropy.memory_mb = 1).await;
    let (author, mut notes) = (Author::new(1), Vec::new());
    for number in 0..4_000 {
        let mut note = author.note(events::EPOCH + number, "x");
        note["id"] = json!(format!("{number:064x}"));
        notes.push(Event::parse(&note.to_string()).unwrap().trust());
    }
    relay.relay.index().store().publish(notes).unwrap();
    let mut client = relay.client().await;
    let open = |number: usize| {
        let filter = json!({ "kinds": [1, 100 + number] });
        json!(["NEG-OPEN", format!("n{number}"), filter, EMPTY_SET])
    };
    // Each has a filter of its own, and is too cheap to be cached.
    let mut opened = 0;
    let refusal = loop {
        let answer = client.ask(&open(opened)).await;
        if answer[0] == "NEG-ERR" {
            break answer;
        }
        opened += 1;
    };
    assert!((3..30).contains(&opened), "{opened}");
    assert!(refusal[2].as_str().unwrap().starts_with("rate-limited: "), "{refusal}");
    // A set that is in memory anyway takes no additional memory.
    neg_msg(&client.ask(&json!(["NEG-OPEN", "all", {}, EMPTY_SET])).await, "all");
    for number in 0..opened {
        client.send(&json!(["NEG-CLOSE", format!("n{number}")])).await;
    }
    for number in 0..opened {
        neg_msg(&client.ask(&open(number)).await, &format!("n{number}"));
    }
    drop(client);
    let sets = relay.relay.index().sets();
    let given_back = async {
        while sets.session_bytes() > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, given_back).await.expect("a lost connection holds sets");
}
