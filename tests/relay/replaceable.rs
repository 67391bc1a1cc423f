//! Replaceable and addressable events (NIP-01).

use crate::support::negentropy_client::neg_ids;
use crate::support::{Author, Client, TestRelay, events, model};
use serde_json::{Value, json};

/// Checks by REQ, COUNT and NEG that exactly this event is stored.
async fn expect_only(client: &mut Client, filter: &Value, event: &Value) {
    let filters = std::slice::from_ref(filter);
    assert_eq!(client.query(filters).await, std::slice::from_ref(event));
    assert_eq!(client.count(filters).await, 1);
    assert_eq!(neg_ids(client, filter).await, model::ids([event]));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_newest_version_is_kept_whatever_comes_first() {
    let relay = TestRelay::start().await;
    let mut client = relay.client().await;
    let at = events::EPOCH;
    for (author, kind, tags) in [
        (Author::new(1), 0, json!([])),
        (Author::new(1), 3, json!([["p", Author::new(2).key()]])),
        (Author::new(1), 10_000, json!([])),
        (Author::new(1), 19_999, json!([["d", "means nothing here"]])),
        (Author::new(1), 30_000, json!([["d", "x"]])),
        (Author::new(1), 39_999, json!([])),
    ] {
        let filter = json!({ "kinds": [kind], "authors": [author.key()] });
        let [old, middle, new] =
            [0, 1, 2].map(|second| author.event(kind, at + second, tags.clone(), "x"));
        client.store(&middle).await;
        client.store(&new).await;
        expect_only(&mut client, &filter, &new).await;
        // An event older than the stored one is refused, with the text that clients know.
        for event in [&old, &middle] {
            let (accepted, text) = client.publish(event).await;
            assert_eq!((accepted, text.as_str()), (false, "replaced: have newer event"));
        }
        let (accepted, text) = client.publish(&new).await;
        assert_eq!((accepted, text.as_str()), (true, "duplicate: already have this event"));
        expect_only(&mut client, &filter, &new).await;
    }
    assert_eq!(client.count(&[json!({})]).await, 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_versions_of_one_second_the_lower_id_stays() {
    let relay = TestRelay::start().await;
    let mut client = relay.client().await;
    for (kind, number) in [(0, 1), (0, 2), (30_023, 1), (30_023, 2)] {
        let author = Author::new(number);
        let mut versions = ["one", "two", "three"]
            .map(|content| author.event(kind, events::EPOCH, json!([]), content));
        versions.sort_by_key(|event| event["id"].as_str().unwrap().to_owned());
        let lowest = versions[0].clone();
        if number == 1 {
            versions.reverse();
        }
        client.publish_all(&versions).await;
        let filter = json!({ "kinds": [kind], "authors": [author.key()] });
        expect_only(&mut client, &filter, &lowest).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn author_kind_and_d_keep_events_apart() {
    let relay = TestRelay::start().await;
    let mut client = relay.client().await;
    let (one, two) = (Author::new(1), Author::new(2));
    let at = events::EPOCH;
    let apart = [
        one.event(0, at, json!([]), ""),
        two.event(0, at + 1, json!([]), ""),
        one.event(3, at + 2, json!([]), ""),
        one.event(30_000, at, json!([["d", "x"]]), ""),
        one.event(30_000, at + 1, json!([["d", "y"]]), ""),
        one.event(30_000, at + 2, json!([["d", "X"]]), ""),
        one.event(30_000, at + 3, json!([["d", ""]]), ""),
        one.event(30_001, at, json!([["d", "x"]]), ""),
        two.event(30_000, at, json!([["d", "x"]]), ""),
        // Regular kinds do not replace events.
        one.event(1, at, json!([["d", "x"]]), "a"),
        one.event(1, at, json!([["d", "x"]]), "b"),
    ];
    client.publish_all(&apart).await;
    assert_eq!(model::ids(&client.query(&[json!({})]).await), model::ids(&apart));
    // Only the first d tag counts, and a missing one means an empty one.
    let first = one.event(30_000, at + 5, json!([["d", "x"], ["d", "y"]]), "");
    let none = one.event(30_000, at + 6, json!([["t", "x"]]), "");
    client.store(&first).await;
    client.store(&none).await;
    let mut left: Vec<Value> = apart.to_vec();
    left.retain(|event| *event != apart[3] && *event != apart[6]);
    left.extend([first, none]);
    assert_eq!(model::ids(&client.query(&[json!({})]).await), model::ids(&left));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_version_goes_to_subscriptions_and_an_old_one_does_not() {
    let relay = TestRelay::start().await;
    let mut publisher = relay.client().await;
    let mut subscriber = relay.client().await;
    subscriber.send(&json!(["REQ", "live", {}])).await;
    subscriber.expect(json!(["EOSE", "live"])).await;
    let author = Author::new(1);
    let [old, new, newest] =
        [0, 1, 2].map(|second| author.event(0, events::EPOCH + second, json!([]), ""));
    for event in [&new, &old, &newest] {
        publisher.publish(event).await;
    }
    subscriber.expect(json!(["EVENT", "live", new])).await;
    subscriber.expect(json!(["EVENT", "live", newest])).await;
}
