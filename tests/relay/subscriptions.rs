//! REQ, EOSE, CLOSE and COUNT (NIP-01, NIP-45).

use crate::support::http::http;
use crate::support::{Author, Client, TestRelay, corpora, events, id_of, model};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use std::collections::HashMap;
use tokio_tungstenite::tungstenite::Message;

/// Random filters over `events`, most of which match some.
pub fn random_filter(rng: &mut StdRng, events: &[Value]) -> Value {
    let mut filter = json!({});
    let some = |rng: &mut StdRng, field: &str| -> Vec<Value> {
        let count = rng.random_range(1..4);
        let mut values: Vec<Value> =
            (0..count).map(|_| events[rng.random_range(0..events.len())][field].clone()).collect();
        values.dedup();
        values
    };
    if rng.random_ratio(1, 3) {
        filter["authors"] = json!(some(rng, "pubkey"));
    }
    if rng.random_ratio(1, 3) {
        filter["kinds"] = json!(some(rng, "kind"));
    }
    if rng.random_ratio(1, 10) {
        filter["ids"] = json!(some(rng, "id"));
    }
    if rng.random_ratio(1, 3) {
        // The tags of one event: two names should sometimes match together.
        let event = &events[rng.random_range(0..events.len())];
        for tag in event["tags"].as_array().unwrap().iter().take(rng.random_range(1..3)) {
            if let (Some(name @ ("e" | "p" | "t" | "d" | "r" | "k" | "a")), true) =
                (tag[0].as_str(), tag[1].is_string())
            {
                filter[format!("#{name}")] = json!([tag[1], "something else"]);
            }
        }
    }
    let time = |rng: &mut StdRng| model::created_at(&events[rng.random_range(0..events.len())]);
    if rng.random_ratio(1, 4) {
        filter["since"] = json!(time(rng));
    }
    if rng.random_ratio(1, 4) {
        filter["until"] = json!(time(rng));
    }
    if rng.random_ratio(1, 3) {
        filter["limit"] = json!(rng.random_range(0..80));
    }
    filter
}

#[tokio::test(flavor = "multi_thread")]
async fn random_filters_are_answered_as_computed_naively() {
    for corpus in corpora(30, 500) {
        let relay = TestRelay::start().await;
        let mut client = relay.client().await;
        client.publish_all(&corpus.events).await;
        let stored = model::public(&model::kept(&corpus.events, events::unix_now()));
        // A filter of private kinds only is refused, whatever is stored.
        let shown = model::public(&corpus.events);
        let seed = 31;
        let mut rng = StdRng::seed_from_u64(seed);
        for round in 0..150 {
            let filters: Vec<Value> =
                (0..rng.random_range(1..4)).map(|_| random_filter(&mut rng, &shown)).collect();
            let context = format!("{}, seed {seed}, round {round}: {filters:?}", corpus.name);
            let expected: Vec<Value> =
                model::answer(&filters, &stored).into_iter().cloned().collect();
            assert_eq!(client.query(&filters).await, expected, "{context}");
            assert_eq!(client.count(&filters).await, expected.len() as u64, "{context}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_filter_has_its_own_limit() {
    let relay = TestRelay::start().await;
    let mut client = relay.client().await;
    let author = Author::new(1);
    let notes: Vec<Value> = (0..5).map(|s| author.note(events::EPOCH + s, "n")).collect();
    let likes: Vec<Value> =
        (0..5).map(|s| author.event(7, events::EPOCH + 10 + s, json!([]), "+")).collect();
    client.publish_all(&[&notes[..], &likes[..]].concat()).await;
    let filters = [json!({ "kinds": [1], "limit": 2 }), json!({ "kinds": [7], "limit": 3 })];
    let expected: Vec<Value> =
        likes.iter().rev().take(3).chain(notes.iter().rev().take(2)).cloned().collect();
    assert_eq!(client.query(&filters).await, expected);
    // An event that two filters match comes once.
    let overlapping = [json!({ "kinds": [7], "limit": 1 }), json!({ "limit": 2 })];
    assert_eq!(client.query(&overlapping).await, expected[..2]);
}

async fn subscribe(client: &mut Client, id: &str, filter: Value) {
    client.send(&json!(["REQ", id, filter])).await;
    client.expect(json!(["EOSE", id])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn live_events_come_once_a_subscription_and_only_where_they_match() {
    let relay = TestRelay::start().await;
    let mut publisher = relay.client().await;
    let mut client = relay.client().await;
    let author = Author::new(1);
    subscribe(&mut client, "notes", json!({ "kinds": [1] })).await;
    subscribe(&mut client, "likes", json!({ "kinds": [7] })).await;
    // A limit applies to stored events only; live ones come nevertheless.
    subscribe(&mut client, "none", json!({ "limit": 0, "kinds": [6] })).await;
    let note = author.note(events::EPOCH, "n");
    publisher.store(&note).await;
    publisher.store(&note).await;
    client.expect(json!(["EVENT", "notes", note])).await;
    client.fence().await;
    let like = author.event(7, events::EPOCH, json!([]), "+");
    publisher.store(&like).await;
    client.expect(json!(["EVENT", "likes", like])).await;
    let repost = author.event(6, events::EPOCH, json!([]), "");
    publisher.store(&repost).await;
    client.expect(json!(["EVENT", "none", repost])).await;
    // A REQ with an open id replaces that subscription.
    client.send(&json!(["REQ", "notes", { "kinds": [7] }])).await;
    client.expect(json!(["EVENT", "notes", like])).await;
    client.expect(json!(["EOSE", "notes"])).await;
    client.send(&json!(["CLOSE", "likes"])).await;
    client.fence().await;
    publisher.store(&author.note(events::EPOCH, "nobody listens")).await;
    let like = author.event(7, events::EPOCH + 1, json!([]), "+");
    publisher.store(&like).await;
    client.expect(json!(["EVENT", "notes", like])).await;
    client.send(&json!(["CLOSE", "notes"])).await;
    client.fence().await;
    publisher.store(&author.event(7, events::EPOCH + 2, json!([]), "+")).await;
    client.fence().await;
}

/// Subscriptions opened during a stream of events get each event once, as a stored or a live one.
/// An event came twice if the REQ read its commit before that was dispatched.
#[tokio::test(flavor = "multi_thread")]
async fn no_event_is_lost_or_doubled_between_stored_and_live() {
    // The commit must fall into a short interval: most rounds hit it at least once.
    for _ in 0..4 {
        subscribe_amid_a_stream().await;
    }
}

async fn subscribe_amid_a_stream() {
    const SUBSCRIPTIONS: usize = 40;
    const PUBLISHERS: u8 = 4;
    const EVENTS: u64 = 200;
    let relay = TestRelay::start().await;
    let mut publishing = Vec::new();
    for author in 1..=PUBLISHERS {
        let author = Author::new(author);
        let notes: Vec<Value> = (0..EVENTS)
            .map(|second| author.note(events::EPOCH + second, &second.to_string()))
            .collect();
        let mut publisher = relay.client().await;
        // A few at a time, for many commits.
        publishing.push(tokio::spawn(async move {
            for notes in notes.chunks(5) {
                publisher.publish_all(notes).await;
            }
        }));
    }
    let mut client = relay.client().await;
    let all = usize::from(PUBLISHERS) * EVENTS as usize;
    let mut counts: Vec<HashMap<String, usize>> = vec![HashMap::new(); SUBSCRIPTIONS];
    let (mut begun, mut live, mut received) = (0, 0, 0);
    while live < SUBSCRIPTIONS || received < SUBSCRIPTIONS * all {
        if begun == live && begun < SUBSCRIPTIONS {
            client.send(&json!(["REQ", begun.to_string(), {}])).await;
            begun += 1;
        }
        let message = client.next("an EVENT or EOSE").await;
        let subscription: usize = message[1].as_str().unwrap().parse().unwrap();
        if message[0] == "EOSE" {
            assert_eq!(subscription, live);
            live += 1;
            continue;
        }
        let count = counts[subscription].entry(id_of(&message[2]).to_owned()).or_default();
        *count += 1;
        assert_eq!(*count, 1, "subscription {subscription} got {} twice", message[2]);
        received += 1;
    }
    for publishing in publishing {
        publishing.await.unwrap();
    }
    client.fence().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn close_of_an_unknown_id_is_silent_and_a_ping_is_answered() {
    let relay = TestRelay::start().await;
    let mut client = relay.client().await;
    client.send(&json!(["CLOSE", "never opened"])).await;
    client.fence().await;
    client.send_frame(Message::Ping(vec![1, 2, 3].into())).await;
    match client.next_frame("a pong").await {
        Some(Message::Pong(payload)) => assert_eq!(payload.to_vec(), [1, 2, 3]),
        other => panic!("{other:?} instead of a pong"),
    }
    client.send_frame(Message::Close(None)).await;
    assert!(matches!(client.next_frame("a close frame").await, Some(Message::Close(_))));
}

/// Each commit woke every connection: 12.8 ms of CPU time for an event beside 4,000 idle ones.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_wakes_only_the_connections_that_it_matches() {
    let relay = TestRelay::start().await;
    let wakeups = async || {
        let text = http(relay.relay.address(), "GET", "/metrics", &[]).await.body;
        let line = text.lines().find_map(|it| it.strip_prefix("negsync_live_wakeups_total "));
        line.unwrap().parse::<u64>().unwrap()
    };
    let mut others = Vec::new();
    for number in 0..20 {
        let mut client = relay.client().await;
        match number % 3 {
            0 => {}
            1 => subscribe(&mut client, "other kinds", json!({ "kinds": [7] })).await,
            _ => subscribe(&mut client, "other tags", json!({ "#t": ["else"] })).await,
        }
        others.push(client);
    }
    let mut client = relay.client().await;
    for id in ["notes", "tagged"] {
        let filter = if id == "notes" { json!({ "kinds": [1] }) } else { json!({ "#t": ["x"] }) };
        subscribe(&mut client, id, filter).await;
    }
    let mut publisher = relay.client().await;
    let author = Author::new(1);
    for second in 0..10 {
        let note = author.event(1, events::EPOCH + second, json!([["t", "x"]]), "");
        publisher.store(&note).await;
        let mut to = [client.next("an event").await, client.next("an event").await];
        to.sort_by_key(|message| message[1].to_string());
        assert_eq!(to, [json!(["EVENT", "notes", note]), json!(["EVENT", "tagged", note])]);
    }
    assert_eq!(wakeups().await, 10);
    let like = author.event(7, events::EPOCH, json!([]), "+");
    publisher.store(&like).await;
    for client in others.iter_mut().skip(1).step_by(3) {
        client.expect(json!(["EVENT", "other kinds", like])).await;
    }
    assert_eq!(wakeups().await, 10 + 7);
    for client in &mut others {
        client.fence().await;
    }
}

/// NIP-67: `finish` if all matching events were sent, by the naive answer without limits; `more`
/// only if not.
#[tokio::test(flavor = "multi_thread")]
async fn an_eose_says_whether_a_limit_left_events_out() {
    let seed = 40;
    let mut rng = StdRng::seed_from_u64(seed);
    let relay = TestRelay::start_with(|config| {
        config.limits.events_per_filter = 60;
    })
    .await;
    let mut client = relay.client().await;
    let all = events::generate(seed, 400);
    client.publish_all(&all).await;
    let stored = model::public(&model::kept(&all, events::unix_now()));
    let mut seen: HashMap<Option<String>, usize> = HashMap::new();
    for _ in 0..300 {
        let count = rng.random_range(1..3);
        let filters: Vec<Value> = (0..count).map(|_| random_filter(&mut rng, &stored)).collect();
        let mut unlimited = filters.clone();
        unlimited.iter_mut().for_each(|filter| {
            filter.as_object_mut().unwrap().remove("limit");
        });
        let matching = model::answer(&unlimited, &stored).len();
        let sent = client.query(&filters).await.len();
        let context = format!("seed {seed}: {sent} of {matching}, {:?}, {filters:?}", client.hints);
        assert!(client.hints.len() < 2, "{context}");
        let hint = client.hints.first().cloned();
        match hint.as_deref() {
            Some("finish") => assert_eq!(sent, matching, "{context}"),
            Some("more") => assert!(sent < matching, "{context}"),
            None => assert!(filters.len() > 1 || filters[0]["limit"] == 0, "{context}"),
            _ => panic!("{context}"),
        }
        *seen.entry(hint).or_default() += 1;
    }
    for hint in ["finish", "more"] {
        assert!(seen[&Some(hint.to_owned())] > 50, "{seen:?}");
    }
    // For a limit of 0 it is unknown, and an empty list matches nothing.
    for (filter, hints) in [(json!({ "limit": 0 }), vec![]), (json!({ "ids": [] }), vec!["finish"])]
    {
        assert_eq!(client.query(&[filter]).await, Vec::<Value>::new());
        assert_eq!(client.hints, hints);
    }
}

/// NIP-01: CLOSED ends a subscription. It was sent, but events still came.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_req_ends_the_subscription_of_its_id() {
    let relay = TestRelay::start_with(|config| {
        config.limits.subscriptions = 1;
        config.limits.subscription_values = 10;
        config.limits.filter_values = 20;
    })
    .await;
    let (mut client, mut publisher) = (relay.client().await, relay.client().await);
    let author = Author::new(1);
    let many = |count: u32| (0..count).collect::<Vec<u32>>();
    let refused = [
        json!(["REQ", "s", { "kinds": ["x"] }]),
        json!(["REQ", "s"]),
        json!(["REQ", "s", { "kinds": many(21) }]),
        json!(["REQ", "s", { "kinds": many(11) }]),
        json!(["REQ", "s", { "kinds": [4] }]),
    ];
    for (second, request) in refused.iter().enumerate() {
        subscribe(&mut client, "s", json!({ "kinds": [1], "limit": 0 })).await;
        let answer = client.ask(request).await;
        assert_eq!((&answer[0], &answer[1]), (&json!("CLOSED"), &json!("s")), "{request}");
        publisher.store(&author.note(events::EPOCH + second as u64, "after CLOSED")).await;
        // Its slot is free, and nothing else comes.
        subscribe(&mut client, "t", json!({ "kinds": [7] })).await;
        client.send(&json!(["CLOSE", "t"])).await;
    }
    // A COUNT has an id of its own.
    subscribe(&mut client, "s", json!({ "kinds": [1], "limit": 0 })).await;
    assert_eq!(client.ask(&json!(["COUNT", "s", { "kinds": ["x"] }])).await[0], "CLOSED");
    let note = author.note(events::EPOCH + 100, "still live");
    publisher.store(&note).await;
    client.expect(json!(["EVENT", "s", note])).await;
}

/// NIP-01: an id has at most 64 characters, whatever their number of bytes.
#[tokio::test(flavor = "multi_thread")]
async fn subscription_ids_are_counted_in_characters() {
    let relay = TestRelay::start().await;
    let mut client = relay.client().await;
    for (letter, long) in [("a", false), ("購", false), ("a", true), ("購", true)] {
        let id = letter.repeat(if long { 65 } else { 64 });
        let shown = letter.repeat(64);
        for (request, verb) in [
            (json!(["REQ", id, { "limit": 0 }]), if long { "CLOSED" } else { "EOSE" }),
            (json!(["COUNT", id, {}]), if long { "CLOSED" } else { "COUNT" }),
            (json!(["NEG-OPEN", id, {}, "6100000200"]), if long { "NEG-ERR" } else { "NEG-MSG" }),
            (json!(["NEG-MSG", id, "6100000200"]), if long { "NEG-ERR" } else { "NEG-MSG" }),
        ] {
            let answer = client.ask(&request).await;
            assert_eq!((&answer[0], &answer[1]), (&json!(verb), &json!(shown)), "{request}");
            let refused = answer[2].as_str().is_some_and(|text| text.starts_with("invalid: "));
            assert_eq!(refused, long, "{answer}");
        }
    }
    let answer = client.ask(&json!(["REQ", "", {}])).await;
    assert_eq!((&answer[0], &answer[1]), (&json!("CLOSED"), &json!("")));
    assert_eq!(client.ask(&json!(["REQ", 1, {}])).await[0], "NOTICE");
}

/// A client that has seen enough does not get the rest.
#[tokio::test(flavor = "multi_thread")]
async fn close_ends_the_stored_events_that_are_still_to_be_sent() {
    const EVENTS: usize = 300;
    let relay = TestRelay::start().await;
    let mut client = relay.client().await;
    let author = Author::new(1);
    // More than the sockets of both sides can hold.
    let content = "x".repeat(100_000);
    for number in 0..EVENTS {
        client.store(&author.note(events::EPOCH + number as u64, &content)).await;
    }
    client.send(&json!(["REQ", "much", {}])).await;
    assert_eq!(client.next("an event").await[1], "much");
    client.send(&json!(["CLOSE", "much"])).await;
    client.send(&json!(["COUNT", "behind", { "kinds": [1] }])).await;
    let mut received = 1;
    loop {
        let message = client.next("an event, or what was asked for behind CLOSE").await;
        if message[0] != "EVENT" {
            assert_eq!(message, json!(["COUNT", "behind", { "count": EVENTS }]));
            break;
        }
        received += 1;
    }
    assert!(received < EVENTS, "all {received} events came after CLOSE");
    // The id is free, and the first subscription does not continue.
    client.send(&json!(["REQ", "much", { "limit": 1 }])).await;
    assert_eq!(client.next("the newest").await[2]["created_at"], events::EPOCH + EVENTS as u64 - 1);
    client.expect(json!(["EOSE", "much"])).await;
    client.fence().await;
}
