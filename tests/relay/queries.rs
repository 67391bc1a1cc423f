//! Long queries: they end at their deadline, delay no other client, and end with the relay.

use crate::support::client::Client;
use crate::support::{Author, TestRelay, engine, events};
use negsync::config::Config;
use negsync::store::{Event, EventStore, Store, StoreOptions};
use serde_json::{Value, json};
use std::path::Path;

const EVENTS: u64 = 4_000;
/// Number of values in a filter's long list.
const VALUES: u64 = 2_000;
/// Number of filters in a message.
const FILTERS: u64 = 32;
/// Tags that no filter can name. All tags of an event are parsed to find those that a filter names.
const OTHER_TAGS: usize = 500;

/// Generated events; every second one has the same `t` tag, and each has an `e` tag of its own.
fn fill(path: &Path) {
    let store = Store::open(path, StoreOptions::default(), Box::new(|_| {})).unwrap();
    let event = |number: u64| {
        let mut tags =
            vec![json!(["t", (number % 2).to_string()]), json!(["e", number.to_string()])];
        tags.resize(tags.len() + OTHER_TAGS, json!(["other", "1"]));
        let json = json!({
            "id": format!("{number:064x}"), "pubkey": "11".repeat(32), "kind": 1,
            "created_at": events::EPOCH + number,
            "tags": tags, "content": "", "sig": "22".repeat(64),
        });
        Event::parse(&json.to_string()).unwrap().trust()
    };
    store.publish((0..EVENTS).map(event).collect()).unwrap();
    store.close();
}

async fn relay(change: impl FnOnce(&mut Config)) -> TestRelay {
    TestRelay::start_with(|config| {
        fill(&config.store.path);
        config.connections.trusted_proxies = vec!["127.0.0.1".parse().unwrap()];
        change(config);
    })
    .await
}

/// Filters without matches, although both of their lists have many events: each filter has to check
/// half of all events.
fn costly() -> Vec<Value> {
    let filter = |part: u64| {
        let evens: Vec<String> =
            (0..VALUES).map(|number| (2 * number + 2 * part).to_string()).collect();
        // More values than are looked up one by one for an event.
        let tags: Vec<String> = (0..40).map(|number| format!("{}", 2 * number + 1)).collect();
        json!({ "#t": tags, "#e": evens })
    };
    (0..FILTERS).map(filter).collect()
}

fn message(start: &[&str], filters: &[Value]) -> Value {
    start.iter().map(|text| json!(text)).chain(filters.iter().cloned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_ends_at_its_deadline_and_is_told_so() {
    if engine::is_left_out("what costs SQLite much and PostgreSQL little") {
        return;
    }
    let relay = relay(|config| config.limits.query_timeout_s = 1).await;
    let mut client = relay.client().await;
    let filters = costly();
    let timeout = "error: query timeout";
    let answer = client.ask(&message(&["REQ", "r"], &filters)).await;
    assert_eq!(answer, json!(["CLOSED", "r", timeout]));
    let answer = client.ask(&message(&["COUNT", "c"], &filters)).await;
    assert_eq!(answer, json!(["CLOSED", "c", timeout]));
    let answer = client.ask(&json!(["NEG-OPEN", "n", filters, "6100000200"])).await;
    assert_eq!(answer, json!(["NEG-ERR", "n", timeout]));
    // The subscription has ended: a matching event is not sent.
    let matching = Author::new(1).event(1, events::EPOCH, json!([["t", "1"], ["e", "64"]]), "");
    client.store(&matching).await;
    client.fence().await;
    assert_eq!(client.query(&[json!({ "limit": 1, "kinds": [1] })]).await.len(), 1);
}

/// Six clients at two addresses occupied all readers of the store, and a signal did not end the
/// relay.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_waits_for_the_costly_queries_of_others_and_a_stop_ends_them() {
    if engine::is_left_out("what costs SQLite much and PostgreSQL little") {
        return;
    }
    let relay = relay(|config| config.limits.query_timeout_s = 3_600).await;
    let mut strangers = Vec::new();
    for number in 0..6 {
        let address = format!("192.0.2.{}", number % 2);
        let mut client = Client::connect_for(&relay.url(), &address).await.unwrap();
        client.send(&message(&["REQ", "r"], &costly())).await;
        strangers.push(client);
    }
    let mut client = Client::connect_for(&relay.url(), "192.0.2.9").await.unwrap();
    for round in 0..20 {
        let tagged = json!({ "#e": [round.to_string()] });
        assert_eq!(client.query(std::slice::from_ref(&tagged)).await.len(), 1);
        assert_eq!(client.count(&[tagged]).await, 1);
    }
    relay.relay.stop().await;
    // None of them was complete before.
    for mut stranger in strangers {
        let answer = stranger.next("the answer to a costly REQ").await;
        assert_eq!(answer, json!(["CLOSED", "r", "error: query timeout"]));
    }
}
