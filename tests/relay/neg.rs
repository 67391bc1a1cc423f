//! NIP-77 of the relay: sessions, their sets and their namespace.

use crate::support::negentropy_client::{
    Difference, EMPTY_SET, Session, neg_ids, neg_msg, reconcile,
};
use crate::support::{Author, TestRelay, corpora, events, id_of, model};
use serde_json::{Value, json};

fn notes(author: u8, count: u64) -> Vec<Value> {
    let author = Author::new(author);
    (0..count).map(|second| author.note(events::EPOCH + second, &second.to_string())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_store_answers_an_empty_set_with_the_readmes_line() {
    let relay = TestRelay::start().await;
    let mut client = relay.client().await;
    let answer = client.ask_text(r#"["NEG-OPEN","n",{},"6100000200"]"#).await;
    assert_eq!(answer, json!(["NEG-MSG", "n", "6100000200"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn hex_is_taken_in_both_cases_and_given_in_lower_case() {
    let relay = TestRelay::start().await;
    let mut client = relay.client().await;
    let stored = notes(1, 20);
    client.publish_all(&stored).await;
    let payload = format!("6100000201{}", "ab".repeat(32));
    let lower = client.ask(&json!(["NEG-OPEN", "n", {}, payload])).await;
    let upper = client.ask(&json!(["NEG-OPEN", "n", {}, payload.to_uppercase()])).await;
    let mixed = client.ask(&json!(["NEG-MSG", "n", payload.replace("ab", "aB")])).await;
    assert_eq!(neg_msg(&lower, "n").len(), 5 + 20 * 32);
    assert_eq!(lower, upper);
    assert_eq!(lower, mixed);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_protocol_version_is_answered_with_ours_and_the_session_goes_on() {
    let relay = TestRelay::start().await;
    let mut client = relay.client().await;
    client.publish_all(&notes(1, 5)).await;
    for version in ["60", "62", "6f", "62ffffffff"] {
        let answer = client.ask(&json!(["NEG-OPEN", "n", {}, version])).await;
        assert_eq!(answer, json!(["NEG-MSG", "n", "61"]));
        let answer = client.ask(&json!(["NEG-MSG", "n", EMPTY_SET])).await;
        assert_eq!(neg_msg(&answer, "n").len(), 5 + 5 * 32);
        assert_eq!(
            client.ask(&json!(["NEG-MSG", "n", version])).await,
            json!(["NEG-MSG", "n", "61"])
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_of_sessions_are_apart_from_those_of_subscriptions() {
    let relay = TestRelay::start().await;
    let mut client = relay.client().await;
    let stored = notes(1, 3);
    client.store(&stored[0]).await;
    client.send(&json!(["REQ", "x", {}])).await;
    client.expect(json!(["EVENT", "x", stored[0]])).await;
    client.expect(json!(["EOSE", "x"])).await;
    neg_msg(&client.ask(&json!(["NEG-OPEN", "x", {}, EMPTY_SET])).await, "x");
    // CLOSE ends the subscription and not the session.
    client.send(&json!(["CLOSE", "x"])).await;
    client.store(&stored[1]).await;
    let answer = client.ask(&json!(["NEG-MSG", "x", EMPTY_SET])).await;
    assert_eq!(neg_msg(&answer, "x").len(), 5 + 32);
    // NEG-CLOSE ends the session and not the subscription.
    client.query(&[json!({})]).await;
    client.send(&json!(["REQ", "x", { "limit": 0 }])).await;
    client.expect(json!(["EOSE", "x"])).await;
    client.send(&json!(["NEG-CLOSE", "x"])).await;
    relay.client().await.store(&stored[2]).await;
    client.expect(json!(["EVENT", "x", stored[2]])).await;
    let answer = client.ask(&json!(["NEG-MSG", "x", EMPTY_SET])).await;
    assert_eq!((&answer[0], &answer[1]), (&json!("NEG-ERR"), &json!("x")));
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_ids_are_refused_in_neg_msg_and_silent_in_neg_close() {
    let relay = TestRelay::start().await;
    let mut client = relay.client().await;
    client.send(&json!(["NEG-CLOSE", "never opened"])).await;
    client.fence().await;
    let answer = client.ask(&json!(["NEG-MSG", "never opened", EMPTY_SET])).await;
    assert_eq!((&answer[0], &answer[1]), (&json!("NEG-ERR"), &json!("never opened")));
    assert!(answer[2].as_str().unwrap().starts_with("closed: "), "{answer}");
    assert_eq!(answer.as_array().unwrap().len(), 3);
    client.fence().await;
    // A session belongs to its connection.
    neg_msg(&client.ask(&json!(["NEG-OPEN", "n", {}, EMPTY_SET])).await, "n");
    let mut other = relay.client().await;
    assert_eq!(other.ask(&json!(["NEG-MSG", "n", EMPTY_SET])).await[0], "NEG-ERR");
}

#[tokio::test(flavor = "multi_thread")]
async fn neg_open_of_a_live_id_takes_its_place() {
    let relay = TestRelay::start().await;
    let mut client = relay.client().await;
    client.publish_all(&notes(1, 4)).await;
    let answer = client.ask(&json!(["NEG-OPEN", "n", {}, EMPTY_SET])).await;
    assert_eq!(neg_msg(&answer, "n").len(), 5 + 4 * 32);
    let answer = client.ask(&json!(["NEG-OPEN", "n", { "limit": 1 }, EMPTY_SET])).await;
    assert_eq!(neg_msg(&answer, "n").len(), 5 + 32);
    let answer = client.ask(&json!(["NEG-MSG", "n", EMPTY_SET])).await;
    assert_eq!(neg_msg(&answer, "n").len(), 5 + 32);
    client.send(&json!(["NEG-CLOSE", "n"])).await;
    assert_eq!(client.ask(&json!(["NEG-MSG", "n", EMPTY_SET])).await[0], "NEG-ERR");
}

#[tokio::test(flavor = "multi_thread")]
async fn since_until_and_limit_cut_where_they_say() {
    let relay = TestRelay::start().await;
    let mut client = relay.client().await;
    let mut stored = notes(1, 30);
    // Ten of one second: a limit selects the lowest ids.
    let second = events::EPOCH + 15;
    stored.extend((0..9).map(|number| Author::new(2).note(second, &number.to_string())));
    client.publish_all(&stored).await;
    let mut filters = vec![
        json!({ "since": second }),
        json!({ "until": second }),
        json!({ "since": second, "until": second }),
        json!({ "since": second + 1, "until": second }),
        json!({ "since": 0, "until": u64::MAX }),
        json!({ "limit": 0 }),
        json!({ "ids": [] }),
        json!({ "kinds": [1], "authors": [Author::new(2).key()], "limit": 4 }),
        json!([{ "limit": 2 }, { "until": second, "limit": 3 }, { "kinds": [] }]),
    ];
    filters.extend((12..30).map(|limit| json!({ "limit": limit })));
    filters.extend((1..12).map(|limit| json!({ "until": second, "limit": limit })));
    for filter in filters {
        let list = filter.as_array().cloned().unwrap_or_else(|| vec![filter.clone()]);
        // SQLite's integers are signed; no stored event is that new.
        let expected = model::ids(model::answer(&list, &stored));
        assert_eq!(neg_ids(&mut client, &filter).await, expected, "{filter}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_set_of_exactly_the_limit_is_served_and_one_more_is_refused() {
    let relay = TestRelay::start_with(|config| {
        config.negentropy.max_sync_events = 50;
    })
    .await;
    let mut client = relay.client().await;
    let mut stored = notes(1, 50);
    client.publish_all(&stored).await;
    let author = json!({ "authors": [Author::new(1).key()] });
    let halves = json!([{ "until": events::EPOCH + 30 }, { "since": events::EPOCH + 20 }]);
    for filter in [&json!({}), &author, &halves] {
        assert_eq!(neg_ids(&mut client, filter).await, model::ids(&stored), "{filter}");
    }
    stored.push(Author::new(1).note(events::EPOCH + 50, "one more"));
    client.store(&stored[50]).await;
    for filter in [&json!({}), &author, &halves] {
        let refused = client.ask(&json!(["NEG-OPEN", "n", filter, EMPTY_SET])).await;
        assert_eq!((&refused[0], &refused[1]), (&json!("NEG-ERR"), &json!("n")), "{refused}");
        let text = refused[2].as_str().unwrap();
        assert!(text.starts_with("blocked: ") && text.contains("too many query results"), "{text}");
        assert_eq!((refused.as_array().unwrap().len(), &refused[3]), (4, &json!(50)));
        client.fence().await;
        assert_eq!(client.ask(&json!(["NEG-MSG", "n", EMPTY_SET])).await[0], "NEG-ERR");
    }
    // A set that its filter cuts to the limit is accepted again.
    let newest = model::ids(&stored[1..]);
    assert_eq!(neg_ids(&mut client, &json!({ "limit": 50 })).await, newest);
    assert_eq!(neg_ids(&mut client, &json!({ "since": events::EPOCH + 1 })).await, newest);
}

/// 1,000 events published during a session are not in it, and all are in one opened after the last
/// OK.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_does_not_see_what_is_published_after_it_was_opened() {
    for corpus in corpora(40, 600) {
        // Small frames make the session last for many messages.
        let relay =
            TestRelay::start_with(|config| config.negentropy.frame_limit_bytes = 4_096).await;
        let mut client = relay.client().await;
        client.publish_all(&corpus.events).await;
        let before = model::public(&model::kept(&corpus.events, events::unix_now()));
        // A cached set, and one that is built for the session.
        let times = json!({ "since": 1 });
        let mut early = Vec::new();
        for (id, filter) in [("all", json!({})), ("times", times), ("union", json!([{}, {}]))] {
            let session = Session::open(&mut client, id, &filter, [], 0).await.unwrap();
            assert!(!session.is_done(), "{}: over before it began", corpus.name);
            early.push(session);
        }
        let new = notes(9, 1_000);
        // Some events of the session are removed meanwhile.
        let gone: Vec<Value> = (1..=5)
            .map(|number| {
                let author = Author::new(number);
                author.event(0, events::EPOCH + events::SPAN_S, json!([]), "replaces")
            })
            .collect();
        let mut publisher = relay.client().await;
        publisher.publish_all(&new).await;
        publisher.publish_all(&gone).await;
        for session in early {
            let found = session.finish(&mut client).await.unwrap();
            let expected = Difference { need: model::ids(&before), ..Difference::default() };
            assert_eq!(found, expected, "{}", corpus.name);
        }
        let all: Vec<Value> = [&corpus.events[..], &new, &gone].concat();
        let after = model::ids(&model::public(&model::kept(&all, events::unix_now())));
        for filter in [json!({}), json!({ "since": 1 }), json!([{}, {}])] {
            assert_eq!(neg_ids(&mut client, &filter).await, after, "{}: {filter}", corpus.name);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_ok_is_in_the_sets_that_are_opened_after_it() {
    let relay = TestRelay::start().await;
    let mut client = relay.client().await;
    let author = json!({ "authors": [Author::new(1).key()] });
    let mut stored = Vec::new();
    for note in notes(1, 60) {
        client.store(&note).await;
        stored.push(note);
        assert_eq!(neg_ids(&mut client, &json!({})).await, model::ids(&stored));
        assert_eq!(neg_ids(&mut client, &author).await, model::ids(&stored));
    }
}

/// Two clients request the same large set at the same time, for the first time and while it
/// changes: both get all of it.
#[tokio::test(flavor = "multi_thread")]
async fn two_requests_for_a_large_set_at_once_get_the_same() {
    const EVENTS: u64 = 6_000;
    let relay = TestRelay::start().await;
    let stored = notes(1, EVENTS);
    // Above the number of items up to which a set is built for each session.
    let mut publisher = relay.client().await;
    publisher.publish_all(&stored).await;
    let relay = relay.restart_with(|_| {}).await;
    let filter = json!({ "kinds": [1], "authors": [Author::new(1).key()] });
    let ask = || {
        let (filter, relay) = (filter.clone(), &relay);
        async move { neg_ids(&mut relay.client().await, &filter).await }
    };
    let later = Author::new(1).note(events::EPOCH + EVENTS, "later");
    let publish = async { relay.client().await.store(&later).await };
    let (a, b, c, ()) = tokio::join!(ask(), ask(), ask(), publish);
    let before = model::ids(&stored);
    let mut after = before.clone();
    after.extend(model::ids([&later]));
    for set in [a, b, c] {
        assert!(set == before || set == after, "{} of {EVENTS} events", set.len());
    }
    assert_eq!(ask().await, after);
}

/// A set is one snapshot. It was read author by author, and contained a later event of the second
/// author without an earlier one of the first.
#[tokio::test(flavor = "multi_thread")]
async fn a_set_is_of_one_moment() {
    let relay = TestRelay::start().await;
    let mut authors = [Author::new(1), Author::new(2)];
    authors.sort_by_key(Author::key);
    let [first, second] = authors;
    let filter = json!({ "authors": [first.key(), second.key()] });
    // Enough to make the read take a while.
    let old: Vec<Value> = (0..3_000).map(|s| first.note(events::EPOCH + s, "old")).collect();
    let mut client = relay.client().await;
    client.publish_all(&old).await;
    let mut publisher = relay.client().await;
    let pairs: Vec<[Value; 2]> = (0..150)
        .map(|number| [&first, &second].map(|author| author.note(number, &number.to_string())))
        .collect();
    let published = pairs.clone();
    let publishing = tokio::spawn(async move {
        for event in published.iter().flatten() {
            publisher.store(event).await;
        }
    });
    while !publishing.is_finished() {
        let set = neg_ids(&mut client, &filter).await;
        for [earlier, later] in &pairs {
            let [earlier, later] = [earlier, later].map(|event| set.contains(id_of(event)));
            assert!(earlier || !later, "an event is there and the one stored before it is not");
        }
    }
    publishing.await.unwrap();
    assert_eq!(neg_ids(&mut client, &filter).await.len(), 3_300);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_answer_is_longer_than_the_frame_limit() {
    let relay = TestRelay::start_with(|config| config.negentropy.frame_limit_bytes = 4_096).await;
    let mut client = relay.client().await;
    let stored = notes(1, 400);
    client.publish_all(&stored).await;
    let answer = client.ask(&json!(["NEG-OPEN", "n", {}, EMPTY_SET])).await;
    let bytes = neg_msg(&answer, "n").len();
    assert!((1_000..=4_096).contains(&bytes), "{bytes}");
    let found = reconcile(&mut client, &json!({}), &stored[..100], 4_096).await.unwrap();
    assert_eq!(found.need, model::ids(&stored[100..]));
    assert!(found.have.is_empty());
}
