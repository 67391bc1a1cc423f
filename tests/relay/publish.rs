//! EVENT and OK (NIP-01).

use crate::support::{Author, TestRelay, corpora, events, id_of, model};
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_published_is_what_comes_back() {
    for corpus in corpora(10, 400) {
        let relay = TestRelay::start().await;
        let mut client = relay.client().await;
        let outcomes = client.publish_all(&corpus.events).await;
        let now = events::unix_now();
        let kept = model::kept(&corpus.events, now);
        for event in &kept {
            let (accepted, text) = &outcomes[id_of(event)];
            assert!(accepted, "{}: {event} was refused: {text}", corpus.name);
        }
        // Every field of every event, in order.
        let kept = model::public(&kept);
        let expected: Vec<Value> =
            model::answer(&[json!({})], &kept).into_iter().cloned().collect();
        assert_eq!(client.query(&[json!({})]).await, expected, "{}", corpus.name);
        assert_eq!(client.count(&[json!({})]).await, kept.len() as u64);
        // And again after a restart.
        let relay = relay.restart_with(|_| {}).await;
        assert_eq!(relay.client().await.query(&[json!({})]).await, expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_event_again_is_accepted_as_a_duplicate() {
    let relay = TestRelay::start().await;
    let mut client = relay.client().await;
    let note = Author::new(1).note(events::EPOCH, "once");
    assert_eq!(client.publish(&note).await, (true, String::new()));
    let mut other = relay.client().await;
    for client in [&mut client, &mut other] {
        let (accepted, text) = client.publish(&note).await;
        assert!(accepted && text.starts_with("duplicate:"), "{text}");
    }
    // Twice in one batch.
    let note = Author::new(1).note(events::EPOCH, "twice at once");
    client.send(&json!(["EVENT", note])).await;
    client.send(&json!(["EVENT", note])).await;
    let mut texts = Vec::new();
    for _ in 0..2 {
        let ok = client.next("an OK").await;
        assert_eq!((&ok[0], &ok[1], &ok[2]), (&json!("OK"), &note["id"], &json!(true)));
        texts.push(ok[3].as_str().unwrap().starts_with("duplicate:"));
    }
    texts.sort_unstable();
    assert_eq!(texts, [false, true]);
    assert_eq!(client.query(&[json!({})]).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn ephemeral_events_are_passed_on_and_never_stored() {
    let relay = TestRelay::start().await;
    let mut publisher = relay.client().await;
    let mut subscriber = relay.client().await;
    let all = json!({ "kinds": [20_000, 25_000, 29_999] });
    subscriber.send(&json!(["REQ", "live", all])).await;
    subscriber.expect(json!(["EOSE", "live"])).await;
    for kind in [20_000, 25_000, 29_999] {
        let event = Author::new(1).event(kind, events::EPOCH, json!([]), "now");
        assert_eq!(publisher.publish(&event).await, (true, String::new()));
        subscriber.expect(json!(["EVENT", "live", event])).await;
    }
    assert_eq!(publisher.query(&[json!({})]).await, Vec::<Value>::new());
    assert_eq!(publisher.count(&[json!({})]).await, 0);
    let answer = publisher.ask(&json!(["NEG-OPEN", "n", {}, "6100000200"])).await;
    assert_eq!(answer, json!(["NEG-MSG", "n", "6100000200"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_but_good_events_come_back_as_they_were() {
    let relay = TestRelay::start().await;
    let mut client = relay.client().await;
    let author = Author::new(1);
    let tags = json!([
        ["t"],
        ["t", ""],
        ["t", "a\u{0}b"],
        ["T", "\u{1f98a}"],
        ["long", "x"],
        ["t", "y".repeat(1_000)],
        ["é", "x"],
        ["e", "not an id"],
        ["t", "\"\\/\u{8}\u{c}\n\r\t"]
    ]);
    let odd = [
        author.event(1, events::EPOCH, tags, "\u{0} \u{7f} \u{2028} \"\\/\u{8}\u{c}\n\r\t"),
        author.event(65_535, 0, json!([]), ""),
        author.event(39_999, events::EPOCH, json!([["d", "a\u{0}b"]]), ""),
        author.event(30_000, events::EPOCH, json!([]), "no d tag"),
    ];
    for event in &odd {
        client.store(event).await;
        assert_eq!(
            client.query(&[json!({ "ids": [event["id"]] })]).await,
            std::slice::from_ref(event)
        );
    }
    for (letter, value) in
        [("t", ""), ("t", "a\u{0}b"), ("T", "\u{1f98a}"), ("e", "not an id"), ("d", "a\u{0}b")]
    {
        let filter = json!({ format!("#{letter}"): [value] });
        let found = client.query(std::slice::from_ref(&filter)).await;
        let expected: Vec<Value> = model::answer(&[filter], &odd).into_iter().cloned().collect();
        assert_eq!(found.len(), 1);
        assert_eq!(found, expected);
    }
}
