//! AUTH (NIP-42), protected events (NIP-70), and lists of keys that may publish and reconcile.

use crate::support::client::PATIENCE;
use crate::support::negentropy_client::{EMPTY_SET, neg_ids, reconcile};
use crate::support::{Author, Client, TestRelay, events, id_of, model};
use negsync::config::PublicKeys;
use serde_json::{Value, json};
use std::collections::BTreeSet;

const AT: u64 = events::EPOCH;

fn listed(authors: &[&Author]) -> PublicKeys {
    let bytes = |author: &&Author| {
        let mut bytes = [0; 32];
        faster_hex::hex_decode(author.key().as_bytes(), &mut bytes).unwrap();
        bytes
    };
    authors.iter().map(bytes).collect()
}

async fn expect_refused(client: &mut Client, event: &Value, prefix: &str) {
    let (accepted, text) = client.publish(event).await;
    assert!(!accepted && text.starts_with(prefix), "{text:?} instead of {prefix}: {event}");
}

async fn shown(client: &mut Client, author: &Author, relay: &TestRelay) {
    assert_eq!(client.authenticate(author, &relay.url()).await, (true, String::new()));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_connection_has_a_challenge_of_its_own() {
    let relay = TestRelay::start().await;
    let mut challenges = BTreeSet::new();
    for _ in 0..20 {
        let challenge = relay.client().await.challenge;
        assert_eq!(challenge.len(), 32, "{challenge}");
        assert!(challenges.insert(challenge));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_auth_event_that_is_not_right_is_refused_with_its_reason() {
    let relay = TestRelay::start().await;
    let (mut client, other) = (relay.client().await, relay.client().await);
    let (author, url, now) = (Author::new(1), relay.url(), events::unix_now());
    let challenge = client.challenge.clone();
    let good = author.authentication(now, &url, &challenge);
    let mut forged = good.clone();
    forged["sig"] = Author::new(2).note(AT, "another")["sig"].clone();
    let mut changed = good.clone();
    changed["content"] = json!("changed");
    let tags = |tags: Value| author.event(22_242, now, tags, "");
    let host = url.trim_start_matches("ws://");
    let relay_fault = format!("invalid: relay: is not the URL of this relay, {host}");
    let challenge_fault =
        format!("invalid: challenge: is not the one that this connection was given, {challenge}");
    for (event, reason) in [
        (author.authentication(now, &url, &other.challenge), challenge_fault.as_str()),
        (author.authentication(now, &url, ""), &challenge_fault),
        (author.authentication(now, "ws://relay.example", &challenge), &relay_fault),
        (author.authentication(now, "", &challenge), "invalid: relay"),
        (tags(json!([["challenge", challenge]])), "invalid: relay"),
        (tags(json!([["relay", url]])), "invalid: challenge"),
        (author.authentication(now - 700, &url, &challenge), "invalid: created_at"),
        (author.authentication(now + 700, &url, &challenge), "invalid: created_at"),
        (author.event(1, now, good["tags"].clone(), ""), "invalid: kind"),
        (forged, "invalid: sig"),
        (changed, "invalid: id"),
    ] {
        let answer = client.ask(&json!(["AUTH", event])).await;
        assert_eq!(answer[0], "OK", "{answer}");
        assert_eq!((&answer[1], &answer[2]), (&event["id"], &json!(false)), "{answer}");
        assert!(answer[3].as_str().unwrap().starts_with(reason), "{answer} for {event}");
    }
    for text in [r#"["AUTH"]"#, r#"["AUTH","x"]"#, r#"["AUTH",{}]"#] {
        assert_eq!(client.ask_text(text).await[0], "NOTICE", "{text}");
    }
    // None of them grants access; the right one does, and may be repeated.
    let private = json!([{ "kinds": [4] }]);
    let refused = client.ask(&json!(["REQ", "r", private[0]])).await;
    assert_eq!((&refused[0], &refused[1]), (&json!("CLOSED"), &json!("r")));
    assert!(refused[2].as_str().unwrap().starts_with("auth-required: "), "{refused}");
    for _ in 0..2 {
        assert_eq!(client.ask(&json!(["AUTH", good])).await, json!(["OK", good["id"], true, ""]));
    }
    assert_eq!(client.query(private.as_array().unwrap()).await, Vec::<Value>::new());
}

/// NIP-42: such events are never passed on, from any source.
#[tokio::test(flavor = "multi_thread")]
async fn an_auth_event_is_neither_stored_nor_passed_on() {
    let relay = TestRelay::start().await;
    let (mut client, mut listener) = (relay.client().await, relay.client().await);
    listener.send(&json!(["REQ", "all", {}])).await;
    listener.expect(json!(["EOSE", "all"])).await;
    let author = Author::new(1);
    shown(&mut client, &author, &relay).await;
    let event = author.authentication(events::unix_now(), &relay.url(), "another challenge");
    expect_refused(&mut client, &event, "invalid: kind").await;
    // A sync and an import give events to the store directly.
    let parsed = negsync::store::Event::parse(&event.to_string()).unwrap().trust();
    relay.relay.index().store().publish(vec![parsed]).unwrap();
    let note = author.note(AT, "what comes next");
    client.store(&note).await;
    listener.expect(json!(["EVENT", "all", note])).await;
    assert_eq!(client.query(&[json!({})]).await, [note]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_relay_url_is_the_configured_one_or_the_host_of_the_connection() {
    let author = Author::new(1);
    let relay = TestRelay::start().await;
    let address = relay.relay.address();
    for url in [format!("wss://{address}/"), format!("ws://{address}/path?x")] {
        let outcome = relay.client().await.authenticate(&author, &url).await;
        assert_eq!(outcome, (true, String::new()), "{url}");
    }
    let (url, port) = ("wss://relay.example.com/nostr", address.port());
    let relay = relay.restart_with(|config| config.auth.relay_url = url.into()).await;
    for (url, is) in [
        (url.to_owned(), true),
        ("ws://Relay.Example.Com:80/nostr/".to_owned(), true),
        ("wss://relay.example.com".to_owned(), false),
        (format!("ws://127.0.0.1:{port}"), false),
        (relay.url(), false),
    ] {
        let mut client = Client::connect(&format!("{}/nostr", relay.url())).await;
        let (accepted, text) = client.authenticate(&author, &url).await;
        assert_eq!(accepted, is, "{url}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_shows_several_keys_and_not_any_number() {
    let relay = TestRelay::start().await;
    let mut client = relay.client().await;
    let sender = Author::new(100);
    let letter = |to: &Author| sender.event(4, AT, json!([["p", to.key()]]), "hidden");
    let authors: Vec<Author> = (1..=17).map(Author::new).collect();
    let letters: Vec<Value> = authors.iter().map(letter).collect();
    client.publish_all(&letters).await;
    for (count, author) in authors.iter().enumerate() {
        let (accepted, text) = client.authenticate(author, &relay.url()).await;
        assert_eq!(accepted, count < 16, "{text}");
        assert!(accepted || text.starts_with("restricted: "), "{text}");
        let expected = model::ids(&letters[..(count + 1).min(16)]);
        assert_eq!(neg_ids(&mut client, &json!({})).await, expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_protected_event_comes_from_its_author_alone() {
    let relay = TestRelay::start().await;
    let mut client = relay.client().await;
    let (author, stranger) = (Author::new(1), Author::new(2));
    let protected = author.event(1, AT, json!([["-"]]), "for members");
    expect_refused(&mut client, &protected, "auth-required: ").await;
    shown(&mut client, &stranger, &relay).await;
    expect_refused(&mut client, &protected, "restricted: ").await;
    // NIP-70, reposts: none that embeds it, by any author.
    for kind in [6, 16] {
        let tags = json!([["e", id_of(&protected)], ["p", author.key()]]);
        let repost = stranger.event(kind, AT, tags.clone(), &protected.to_string());
        expect_refused(&mut client, &repost, "blocked: ").await;
        let note = author.note(AT, "for everybody");
        for content in [String::new(), note.to_string(), "[\"-\"]".to_owned()] {
            client.store(&stranger.event(kind, AT, tags.clone(), &content)).await;
        }
    }
    shown(&mut client, &author, &relay).await;
    client.store(&protected).await;
    // Anyone with read access may read it.
    let filter = json!({ "authors": [author.key()] });
    assert_eq!(relay.client().await.query(&[filter]).await, [protected]);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_listed_keys_publish() {
    let [member, guest, stranger] = [1, 2, 3].map(Author::new);
    let relay = TestRelay::start_with(|config| config.auth.publish_keys = listed(&[&member])).await;
    let mut client = relay.client().await;
    // A member's event is accepted from anyone.
    client.store(&member.note(AT, "1")).await;
    let of_stranger = stranger.note(AT, "2");
    expect_refused(&mut client, &of_stranger, "auth-required: ").await;
    shown(&mut client, &guest, &relay).await;
    expect_refused(&mut client, &of_stranger, "restricted: ").await;
    // And from a member all events are accepted: a gift wrap has a key of its own.
    shown(&mut client, &member, &relay).await;
    client.store(&of_stranger).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_listed_keys_reconcile() {
    let [member, guest] = [1, 2].map(Author::new);
    let relay = TestRelay::start_with(|config| config.auth.sync_keys = listed(&[&member])).await;
    let mut client = relay.client().await;
    let note = guest.note(AT, "n");
    client.store(&note).await;
    for prefix in ["auth-required: ", "restricted: "] {
        let refused = reconcile(&mut client, &json!({}), [], 0).await.unwrap_err();
        assert_eq!(refused.as_array().map(Vec::len), Some(3), "{refused}");
        assert!(refused[2].as_str().unwrap().starts_with(prefix), "{refused}");
        // Reading is not restricted.
        assert_eq!(client.query(&[json!({})]).await.len(), 1);
        shown(&mut client, &guest, &relay).await;
    }
    shown(&mut client, &member, &relay).await;
    assert_eq!(neg_ids(&mut client, &json!({})).await, model::ids([&note]));
}

#[tokio::test(flavor = "multi_thread")]
async fn where_a_key_is_required_nothing_goes_without_one() {
    let relay = TestRelay::start_with(|config| config.auth.required = true).await;
    let mut client = relay.client().await;
    let author = Author::new(1);
    let note = author.note(AT, "n");
    expect_refused(&mut client, &note, "auth-required: ").await;
    for message in [
        json!(["REQ", "x", {}]),
        json!(["COUNT", "x", {}]),
        json!(["NEG-OPEN", "x", {}, EMPTY_SET]),
    ] {
        let answer = client.ask(&message).await;
        let verb = if message[0] == "NEG-OPEN" { "NEG-ERR" } else { "CLOSED" };
        assert_eq!((&answer[0], &answer[1]), (&json!(verb), &json!("x")), "{answer}");
        assert!(answer[2].as_str().unwrap().starts_with("auth-required: "), "{answer}");
    }
    shown(&mut client, &author, &relay).await;
    client.store(&note).await;
    assert_eq!(neg_ids(&mut client, &json!({})).await, model::ids([&note]));
}

/// Messages directly after AUTH, sent before its OK, are answered as authenticated.
#[tokio::test(flavor = "multi_thread")]
async fn messages_behind_auth_are_answered_with_it() {
    let relay = TestRelay::start().await;
    let mut client = relay.client().await;
    let author = Author::new(1);
    let url = relay.url();
    let auth = author.authentication(events::unix_now(), &url, &client.challenge);
    let protected = author.event(4, AT, json!([["-"]]), "mine");
    client.send(&json!(["AUTH", auth])).await;
    client.send(&json!(["EVENT", protected])).await;
    client.expect(json!(["OK", auth["id"], true, ""])).await;
    client.expect(json!(["OK", protected["id"], true, ""])).await;
    let query = tokio::time::timeout(PATIENCE, client.query(&[json!({ "kinds": [4] })])).await;
    assert_eq!(query.unwrap(), [protected]);
}

/// A mirror key may read all stored events and publish events of any author.
#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_sees_all_and_brings_anything() {
    let [member, stranger, mirror] = [1, 2, 3].map(Author::new);
    let relay = TestRelay::start_with(|config| {
        config.auth.publish_keys = listed(&[&member]);
        config.auth.sync_keys = listed(&[&member]);
        config.auth.mirror_keys = listed(&[&mirror]);
    })
    .await;
    let letter = member.event(4, AT, json!([["p", stranger.key()]]), "hidden");
    let protected = stranger.event(1, AT + 1, json!([["-"]]), "for members");
    let repost = stranger.event(6, AT + 2, json!([]), &protected.to_string());
    let wrap = stranger.event(1_059, AT + 3, json!([["p", stranger.key()]]), "hidden");
    let brought = [protected, repost, wrap];
    let mut client = relay.client().await;
    client.store(&letter).await;
    for (event, prefix) in brought.iter().zip(["auth-required: ", "blocked: ", "auth-required: "]) {
        expect_refused(&mut client, event, prefix).await;
    }
    shown(&mut client, &mirror, &relay).await;
    for event in &brought {
        client.store(event).await;
    }
    let all = [&[letter][..], &brought].concat();
    assert_eq!(neg_ids(&mut client, &json!({})).await, model::ids(&all));
    assert_eq!(
        client.query(&[json!({})]).await,
        model::answer(&[json!({})], &all).into_iter().cloned().collect::<Vec<_>>()
    );
    assert_eq!(client.count(&[json!({ "kinds": [4, 1_059] })]).await, 2);
    // An AUTH event may not be published by anyone.
    let auth = stranger.authentication(events::unix_now(), &relay.url(), "another challenge");
    expect_refused(&mut client, &auth, "invalid: ").await;
    // Authentication is valid for one connection.
    assert_eq!(relay.client().await.query(&[json!({})]).await.len(), 2);
}

/// An AUTH event needs to contain only a challenge and a URL. A long one is refused without parsing
/// (NIP-42: with OK).
#[tokio::test(flavor = "multi_thread")]
async fn an_auth_event_that_is_long_is_refused_by_its_id() {
    let relay = TestRelay::start().await;
    let mut client = relay.client().await;
    let tags = json!([["relay", relay.url()], ["challenge", client.challenge]]);
    let event = Author::new(1).event(22_242, events::unix_now(), tags, &"x".repeat(20_000));
    let answer = client.ask(&json!(["AUTH", event])).await;
    assert_eq!(
        answer,
        json!(["OK", event["id"], false, "invalid: AUTH takes an event of at most 16384 bytes"])
    );
    assert!(client.authenticate(&Author::new(1), &relay.url()).await.0);
}

/// Asserts that the answer refuses for lack of authentication or of a listed key.
fn assert_withdrawn(answer: &Value, beginning: &[&str]) {
    let (begins, reason) = (&answer.as_array().unwrap()[..2], answer[2].as_str().unwrap());
    assert_eq!(begins, beginning, "{answer}");
    assert!(
        reason.starts_with("auth-required: ") || reason.starts_with("restricted: "),
        "{answer}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_withdraws_access_from_open_subscriptions_and_neg_sessions() {
    let [member, former] = [1, 2].map(Author::new);
    let relay = TestRelay::start().await;
    let [mut stranger, mut author] = [relay.client().await, relay.client().await];
    shown(&mut author, &member, &relay).await;
    let neg_open = json!(["NEG-OPEN", "n", {}, "6100000200"]);
    let neg_msg = json!(["NEG-MSG", "n", "6100000200"]);
    for id in ["a", "b"] {
        assert_eq!(stranger.ask(&json!(["REQ", id, {}])).await[0], "EOSE");
    }
    for client in [&mut stranger, &mut author] {
        assert_eq!(client.ask(&neg_open).await[0], "NEG-MSG");
    }
    assert_eq!(author.ask(&json!(["REQ", "mine", {}])).await[0], "EOSE");
    let mut config = relay.config.clone();
    config.auth.required = true;
    relay.relay.reload(config.clone()).unwrap();
    assert_withdrawn(&stranger.ask(&neg_msg).await, &["NEG-ERR", "n"]);
    let note = member.note(AT, "for those who show a key");
    author.send(&json!(["EVENT", note])).await;
    let mut got = [author.next("EVENT or OK").await, author.next("EVENT or OK").await];
    got.sort_by_key(|message| message[0] == "OK");
    assert_eq!(got[0], json!(["EVENT", "mine", note]));
    assert_eq!(got[1][2], true, "{}", got[1]);
    let mut ended = BTreeSet::new();
    for _ in 0..2 {
        let answer = stranger.next("CLOSED").await;
        let id = answer[1].as_str().unwrap().to_owned();
        assert_withdrawn(&answer, &["CLOSED", &id]);
        ended.insert(id);
    }
    assert_eq!(ended, BTreeSet::from(["a".to_owned(), "b".to_owned()]));
    author.send(&json!(["CLOSE", "mine"])).await;
    author.store(&member.note(AT + 1, "the next")).await;
    assert_eq!(author.ask(&neg_msg).await[0], "NEG-MSG");
    // A key that is not listed any more continues no session.
    config.auth.required = false;
    config.auth.sync_keys = listed(&[&former]);
    relay.relay.reload(config).unwrap();
    assert_withdrawn(&author.ask(&neg_msg).await, &["NEG-ERR", "n"]);
    author.store(&member.note(AT + 2, "a third")).await;
    // The subscriptions stay closed, although nothing is required any more.
    stranger.fence().await;
}
