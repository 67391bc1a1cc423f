//! Expiration (NIP-40), with a clock that the tests set.

use crate::support::client::PATIENCE;
use crate::support::negentropy_client::neg_ids;
use crate::support::{Author, TestRelay, engine, events, id_of, model};
use negsync::store::ManualClock;
use serde_json::{Value, json};
use std::time::Instant;

/// The start of the tests.
const NOW: u64 = events::EPOCH + 1_000_000;

fn expiring(author: &Author, second: u64, content: &str) -> Value {
    let tags = json!([["expiration", second.to_string()], ["t", "short-lived"]]);
    author.event(1, events::EPOCH, tags, content)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_expired_is_refused() {
    let relay = TestRelay::start_by(&ManualClock::at(NOW), |_| {}).await;
    let mut client = relay.client().await;
    let (author, now) = (Author::new(1), NOW);
    for second in [0, 1, now - 1, now] {
        let (accepted, text) = client.publish(&expiring(&author, second, "late")).await;
        assert!(!accepted && text.starts_with("invalid: expiration"), "{second}: {text}");
    }
    // Ephemeral events expire too, and a tag without a time is ignored.
    let ephemeral = author.event(20_001, now, json!([["expiration", "1"]]), "");
    assert!(!client.publish(&ephemeral).await.0);
    let mut stored = vec![expiring(&author, now + 1_000_000, "early")];
    for value in ["", "never", "-1", "1.5", "99999999999999999999999"] {
        stored.push(author.event(1, now, json!([["expiration", value]]), ""));
    }
    for event in &stored {
        client.store(event).await;
    }
    assert_eq!(model::ids(&client.query(&[json!({})]).await), model::ids(&stored));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_due_is_gone_from_req_count_and_neg() {
    let clock = ManualClock::at(NOW);
    let relay = TestRelay::start_by(&clock, |_| {}).await;
    let mut client = relay.client().await;
    let author = Author::new(1);
    let stays = author.event(1, events::EPOCH, json!([["t", "short-lived"]]), "stays");
    client.store(&stays).await;
    for (round, filter) in [json!({}), json!({ "#t": ["short-lived"] })].into_iter().enumerate() {
        let going = expiring(&author, clock.now() + 2, &format!("round {round}"));
        client.store(&going).await;
        let filters = std::slice::from_ref(&filter);
        for left in [model::ids([&stays, &going]), model::ids([&stays])] {
            // The second before the expiration, and the second of it.
            clock.advance(1);
            let found = model::ids(&client.query(filters).await);
            let counted = client.count(filters).await;
            let reconciled = neg_ids(&mut client, &filter).await;
            assert_eq!((found, counted, reconciled), (left.clone(), left.len() as u64, left));
        }
        // It does not come back.
        assert!(!client.publish(&going).await.0);
    }
}

/// An event that was due but not yet removed counted towards a limit: a REQ with `limit` 1 returned
/// nothing.
#[tokio::test(flavor = "multi_thread")]
async fn an_expired_event_takes_no_place_in_a_limit() {
    let clock = ManualClock::at(NOW);
    let relay = TestRelay::start_by(&clock, |_| {}).await;
    let mut client = relay.client().await;
    let author = Author::new(1);
    let stays = author.note(events::EPOCH - 1, "older, and stays");
    client.store(&stays).await;
    let going: Vec<Value> =
        (0..3).map(|number| expiring(&author, NOW + 1, &number.to_string())).collect();
    client.publish_all(&going).await;
    let newest = [json!({ "limit": 1 })];
    let found = client.query(&newest).await;
    assert!(going.iter().any(|event| id_of(event) == id_of(&found[0])), "{found:?}");
    clock.advance(1);
    // At once, whether the writer has removed them or not.
    for _ in 0..50 {
        assert_eq!(client.query(&newest).await, std::slice::from_ref(&stays));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_expires_while_the_relay_is_down_is_gone_when_it_is_back() {
    let clock = ManualClock::at(NOW);
    let relay = TestRelay::start_by(&clock, |_| {}).await;
    let going = expiring(&Author::new(1), NOW + 2, "x");
    relay.client().await.store(&going).await;
    let path = relay.store_path();
    let relay = relay.restart_with(|_| clock.advance(2)).await;
    let mut client = relay.client().await;
    assert_eq!(client.count(&[json!({})]).await, 0, "{}", path.display());
    assert_eq!(neg_ids(&mut client, &json!({})).await, model::ids([]));
    assert_eq!(client.query(&[json!({})]).await, Vec::<Value>::new());
}

/// Expired events that the store cannot remove are in no set and no answer, whether the set existed
/// before or is built meanwhile; they are removed as soon as that works.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_due_and_cannot_be_removed_is_gone_from_all_answers() {
    if engine::is_left_out("sets, which are refused there until what is due is removed") {
        return;
    }
    let clock = ManualClock::at(NOW);
    let relay = TestRelay::start_by(&clock, |_| {}).await;
    let mut client = relay.client().await;
    let author = Author::new(1);
    let stays = author.event(1, events::EPOCH, json!([["t", "short-lived"]]), "stays");
    let going = expiring(&author, NOW + 2, "going");
    client.store(&stays).await;
    client.store(&going).await;
    let disk = rusqlite::Connection::open(relay.store_path()).unwrap();
    disk.busy_timeout(PATIENCE).unwrap();
    disk.execute_batch(
        "CREATE TRIGGER full BEFORE DELETE ON event BEGIN SELECT RAISE(ABORT, 'no space'); END",
    )
    .unwrap();
    clock.advance(2);
    let mut left = vec![stays];
    for round in 0..3 {
        for filter in [json!({}), json!({ "kinds": [1] }), json!({ "#t": ["short-lived"] })] {
            let left = model::ids(&left);
            assert_eq!(neg_ids(&mut client, &filter).await, left, "{round} {filter}");
            let filters = [filter.clone(), json!({ "ids": [id_of(&going)] })];
            assert_eq!(client.count(&filters).await, left.len() as u64, "{round} {filter}");
            assert_eq!(model::ids(&client.query(&filters).await), left, "{round} {filter}");
        }
        // Other commits make no difference.
        let tags = json!([["t", "short-lived"]]);
        left.push(author.event(1, events::EPOCH + 1 + round, tags, "more"));
        client.store(&left[left.len() - 1]).await;
        assert!(!client.publish(&going).await.0);
    }
    let rows =
        || -> i64 { disk.query_row("SELECT count(*) FROM event", [], |row| row.get(0)).unwrap() };
    assert_eq!(rows(), 5);
    disk.execute_batch("DROP TRIGGER full").unwrap();
    let deadline = Instant::now() + PATIENCE;
    while rows() != 4 {
        assert!(Instant::now() < deadline, "it is still there");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_eq!(neg_ids(&mut client, &json!({})).await, model::ids(&left));
}

/// Found by random operations: for a quarter of a second the event was reported as a duplicate.
#[tokio::test(flavor = "multi_thread")]
async fn what_has_expired_this_second_is_refused_though_it_was_stored() {
    let clock = ManualClock::at(NOW);
    let relay = TestRelay::start_by(&clock, |_| {}).await;
    let mut client = relay.client().await;
    let event = expiring(&Author::new(1), NOW + 1, "soon");
    client.store(&event).await;
    clock.advance(1);
    let (accepted, text) = client.publish(&event).await;
    assert!(!accepted && text.starts_with("invalid: expiration"), "{text}");
}
