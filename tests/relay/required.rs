//! The checks that relay-tester, a public program for testing relays, calls required: each in a
//! line or two, on a relay with the default configuration.

use crate::support::client::PATIENCE;
use crate::support::events::unix_now;
use crate::support::{Author, Client, TestRelay, id_of, model};
use serde_json::{Value, json};
use tokio::time::timeout;

const WEEK_S: u64 = 7 * 86_400;

async fn refused(client: &mut Client, event: &Value) -> String {
    let (accepted, text) = client.publish(event).await;
    assert!(!accepted, "{event} was taken: {text}");
    // NIP-01, OK: a one-word prefix, then text for people.
    let (prefix, words) = text.split_once(": ").unwrap_or_else(|| panic!("{text:?}"));
    assert!(!prefix.contains(' ') && !words.is_empty(), "{text:?}");
    prefix.to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_verified_and_taken_as_they_are_written() {
    let relay = TestRelay::start().await;
    let mut client = relay.client().await;
    let (author, now) = (Author::new(1), unix_now());
    let good = author.note(now, "good");
    let with = |field: &str, value: &Value| {
        let mut event = good.clone();
        event[field] = value.clone();
        event
    };
    let other = author.note(now, "other");
    assert_eq!(refused(&mut client, &with("sig", &other["sig"])).await, "invalid");
    assert_eq!(refused(&mut client, &with("id", &other["id"])).await, "invalid");
    assert_eq!(refused(&mut client, &with("content", &json!("x"))).await, "invalid");
    client.store(&good).await;
    client.store(&author.note(now - WEEK_S, "a week old")).await;
    for content in [
        "linebreak\ndoublequote\"backslash\\return\rtab\tbackspace\u{8}formfeed\u{c}end",
        "\u{fdd1}\u{10fff2}",
    ] {
        let event = author.note(now, content);
        client.store(&event).await;
        assert_eq!(client.query(&[json!({ "ids": [id_of(&event)] })]).await, [event]);
    }
    // A follow list as long as the longest ones in use.
    let keys: Vec<Value> =
        (0..3_700).map(|n| json!(["p", format!("{n:064x}"), "wss://r"])).collect();
    client.store(&author.event(3, now, Value::Array(keys), "")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_matches_is_found_newest_first() {
    let relay = TestRelay::start().await;
    let mut client = relay.client().await;
    let (author, stranger, at) = (Author::new(1), Author::new(2), unix_now() - 100);
    let events = [
        author.event(1, at, json!([["t", "a"]]), "oldest"),
        author.event(1, at + 1, json!([["p", author.key()], ["t", "b"]]), "own"),
        author.event(7, at + 2, json!([["t", "a"], ["n", "approved"]]), "+"),
        author.event(9_999, at + 3, json!([["n", "approved"], ["k", "3036"]]), "odd"),
        stranger.event(1, at + 4, json!([["k", "3036"]]), "of a stranger"),
        author.event(3, at + 5, json!([["p", stranger.key()]]), ""),
    ];
    client.publish_all(&events).await;
    let own = json!([author.key()]);
    for filter in [
        json!({ "ids": events.iter().map(id_of).collect::<Vec<_>>() }),
        json!({ "authors": [author.key(), stranger.key()], "kinds": [1, 3] }),
        json!({ "authors": own, "#p": [author.key()] }),
        json!({ "kinds": [1, 9_999, 3], "#n": ["approved"] }),
        json!({ "#k": ["3036"] }),
        json!({ "kinds": [9_999], "authors": own, "#k": ["3036"], "#n": ["approved"], "limit": 20 }),
        json!({ "authors": own, "kinds": [1, 7], "#t": ["a", "b"], "limit": 2 }),
        json!({ "authors": own }),
        json!({}),
        // Both are inclusive.
        json!({ "since": at + 2, "until": at + 2 }),
    ] {
        let filters = std::slice::from_ref(&filter);
        let expected: Vec<Value> = model::answer(filters, &events).into_iter().cloned().collect();
        assert!(!expected.is_empty());
        assert_eq!(client.query(filters).await, expected, "{filter}");
    }
    assert_eq!(client.query(&[json!({ "authors": own, "limit": 0 })]).await, Vec::<Value>::new());
}

/// A subscription stays open after its EOSE, although no stored event can match it, and gets new
/// events.
#[tokio::test(flavor = "multi_thread")]
async fn subscriptions_stay_open_and_bring_what_is_new() {
    let relay = TestRelay::start().await;
    let (mut client, mut other) = (relay.client().await, relay.client().await);
    let author = Author::new(1);
    let past = json!({ "authors": [author.key()], "limit": 10, "until": 1_700_000_000 });
    client.send(&json!(["REQ", "past", past])).await;
    client.expect(json!(["EOSE", "past"])).await;
    client.send(&json!(["REQ", "live", { "authors": [author.key()], "kinds": [25_000, 1] }])).await;
    client.expect(json!(["EOSE", "live"])).await;
    for event in [author.event(25_000, unix_now(), json!([]), ""), author.note(unix_now(), "n")] {
        other.store(&event).await;
        client.expect(json!(["EVENT", "live", event])).await;
    }
    client.fence().await;
    assert_eq!(other.query(&[json!({ "kinds": [25_000] })]).await, Vec::<Value>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn older_versions_are_replaced_refused_and_gone() {
    let relay = TestRelay::start().await;
    let mut client = relay.client().await;
    let (author, at) = (Author::new(1), unix_now() - 100);
    for kind in [0, 3, 10_003, 30_000] {
        let tags = json!([["d", "1"]]);
        let [older, newer] = [at, at + 1].map(|at| author.event(kind, at, tags.clone(), "version"));
        client.store(&older).await;
        client.store(&newer).await;
        let filter = json!({ "kinds": [kind], "authors": [author.key()] });
        assert_eq!(client.query(&[filter]).await, std::slice::from_ref(&newer));
        assert_eq!(refused(&mut client, &older).await, "replaced");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_deleted_is_gone_and_stays_so_and_nothing_else_is() {
    let relay = TestRelay::start().await;
    let mut client = relay.client().await;
    let (author, other, now) = (Author::new(1), Author::new(2), unix_now());
    let article = |author: &Author, kind, at, d| author.event(kind, at, json!([["d", d]]), "");
    let (note, theirs) = (author.note(now, "mine"), other.note(now, "theirs"));
    let (old, new) = (article(&author, 30_023, now - 300, "x"), article(&author, 30_023, now, "x"));
    let near = [
        article(&other, 30_023, now - 300, "x"),
        article(&author, 30_023, now - 300, "x_y"),
        article(&author, 30_024, now - 300, "x"),
    ];
    client.publish_all(&[&[note.clone(), theirs.clone(), old.clone()], &near[..]].concat()).await;
    let deletion = author.deletion(
        now - 120,
        json!([
            ["e", id_of(&note)],
            ["e", id_of(&theirs)],
            ["a", author.address(30_023, "x")],
            ["a", other.address(30_023, "x")]
        ]),
    );
    client.store(&deletion).await;
    let left = |events: &[Value]| model::ids(events);
    let expected = left(&[&[theirs, deletion], &near[..]].concat());
    assert_eq!(left(&client.query(&[json!({})]).await), expected);
    refused(&mut client, &note).await;
    refused(&mut client, &old).await;
    client.store(&new).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_auth_is_checked_and_gift_wraps_want_one() {
    let relay = TestRelay::start().await;
    let mut client = relay.client().await;
    let author = Author::new(1);
    let wrap = Author::new(90).event(1_059, unix_now(), json!([["p", author.key()]]), "");
    client.store(&wrap).await;
    let (now, url, challenge) = (unix_now(), relay.url(), client.challenge.clone());
    let tags = json!([["relay", url], ["challenge", challenge]]);
    for wrong in [
        author.event(1, now, tags, ""),
        author.authentication(now, "wss://elsewhere.example", &challenge),
        author.authentication(now, &url, "another"),
        author.authentication(now - 3_600, &url, &challenge),
    ] {
        let answer = client.ask(&json!(["AUTH", wrong])).await;
        assert_eq!((&answer[0], &answer[2]), (&json!("OK"), &json!(false)), "{answer}");
    }
    let filter = json!({ "#p": [author.key()] });
    assert_eq!(client.query(std::slice::from_ref(&filter)).await, Vec::<Value>::new());
    assert!(client.authenticate(&author, &url).await.0);
    let found = timeout(PATIENCE, client.query(&[filter])).await.unwrap();
    assert_eq!(found, [wrap]);
}
