//! Management over HTTP (NIP-86) with NIP-98: its changes, and its refusals.

use crate::support::events::{EPOCH, unix_now};
use crate::support::http::{Response, http, post};
use crate::support::process::RelayProcess;
use crate::support::{Author, Client, TestRelay, id_of};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use negsync::config::{Config, PublicKeys};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;

/// The methods of NIP-86, except `supportedmethods`, roles, and a moderation queue.
const OF_THE_NIP: [&str; 25] = [
    "allowevent",
    "allowkind",
    "allowpubkey",
    "assignmethod",
    "banevent",
    "banpubkey",
    "blockip",
    "changerelaydescription",
    "changerelayicon",
    "changerelayname",
    "disallowkind",
    "listallowedevents",
    "listallowedkinds",
    "listallowedpubkeys",
    "listbannedevents",
    "listbannedpubkeys",
    "listblockedips",
    "listdisallowedkinds",
    "listmethodassignees",
    "unallowevent",
    "unallowpubkey",
    "unassignmethod",
    "unbanevent",
    "unbanpubkey",
    "unblockip",
];

const RPC: &str = "Content-Type: application/nostr+json+rpc";

fn operated_by(operator: &Author) -> impl FnOnce(&mut Config) {
    let mut key = [0; 32];
    faster_hex::hex_decode(operator.key().as_bytes(), &mut key).unwrap();
    move |config| config.moderation.operators = PublicKeys::from_iter([key])
}

fn body(method: &str, params: &Value) -> String {
    json!({ "method": method, "params": params }).to_string()
}

fn signed(author: &Author, created_at: u64, tags: Value) -> String {
    let event = author.event(27_235, created_at, tags, "");
    format!("Authorization: Nostr {}", STANDARD.encode(event.to_string()))
}

/// The header of a valid request.
fn authorization(author: &Author, url: &str, body: &str, nonce: u64) -> String {
    let payload = faster_hex::hex_string(&Sha256::digest(body));
    let tags =
        json!([["u", url], ["method", "POST"], ["payload", payload], ["nonce", nonce.to_string()]]);
    signed(author, unix_now(), tags)
}

struct Manager<'relay> {
    relay: &'relay TestRelay,
    operator: Author,
    calls: u64,
}

impl Manager<'_> {
    async fn ask(&mut self, method: &str, params: Value) -> Response {
        self.calls += 1;
        let body = body(method, &params);
        let url = self.relay.url().replace("ws://", "http://");
        let header = authorization(&self.operator, &url, &body, self.calls);
        post(self.relay.relay.address(), "/", &[RPC, &header], &body).await
    }

    async fn call(&mut self, method: &str, params: Value) -> Value {
        let response = self.ask(method, params).await;
        assert_eq!(response.status, 200, "{method}: {}", response.body);
        let answer: Value = serde_json::from_str(&response.body).unwrap();
        assert_eq!(answer.get("error"), None, "{method}");
        answer["result"].clone()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_manages_the_relay() {
    let operator = Author::new(9);
    let relay = TestRelay::start_with(operated_by(&operator)).await;
    let mut manager = Manager { relay: &relay, operator, calls: 0 };
    let mut client = relay.client().await;
    let (author, other) = (Author::new(1), Author::new(2));
    let mut second = EPOCH;
    let mut note = |author: &Author| {
        second += 1;
        author.note(second, "n")
    };
    let methods = manager.call("supportedmethods", json!([])).await;
    let methods: BTreeSet<&str> =
        methods.as_array().unwrap().iter().map(|method| method.as_str().unwrap()).collect();
    assert_eq!(methods, BTreeSet::from(OF_THE_NIP));

    assert_eq!(manager.call("banpubkey", json!([author.key(), "spam"])).await, true);
    assert_eq!(
        manager.call("listbannedpubkeys", json!([])).await,
        json!([{ "pubkey": author.key(), "reason": "spam" }])
    );
    let banned = (false, "blocked: this author is banned".to_owned());
    assert_eq!(client.publish(&note(&author)).await, banned);
    manager.call("unbanpubkey", json!([author.key()])).await;
    client.store(&note(&author)).await;
    manager.call("banpubkey", json!([author.key()])).await;
    // An allowed key is no longer banned, and the reverse.
    manager.call("allowpubkey", json!([author.key(), "a friend"])).await;
    client.store(&note(&author)).await;
    assert_eq!(manager.call("listbannedpubkeys", json!([])).await, json!([]));
    let allowed = json!([{ "pubkey": author.key(), "reason": "a friend" }]);
    assert_eq!(manager.call("listallowedpubkeys", json!([])).await, allowed);
    manager.call("unallowpubkey", json!([author.key()])).await;
    for list in ["listallowedpubkeys", "listbannedpubkeys"] {
        assert_eq!(manager.call(list, json!([])).await, json!([]));
    }
    manager.call("allowpubkey", json!([author.key()])).await;
    manager.call("banpubkey", json!([author.key()])).await;
    assert_eq!(manager.call("listallowedpubkeys", json!([])).await, json!([]));

    let event = note(&other);
    client.store(&event).await;
    manager.call("banevent", json!([id_of(&event), "x"])).await;
    assert_eq!(client.count(&[json!({ "ids": [id_of(&event)] })]).await, 0);
    let listed = json!([{ "id": id_of(&event), "reason": "x" }]);
    assert_eq!(manager.call("listbannedevents", json!([])).await, listed);
    assert_eq!(client.publish(&event).await, (false, "blocked: this event is banned".into()));
    // An allowed event is accepted although its author is banned; an unbanned one is not
    // automatically allowed.
    manager.call("banpubkey", json!([other.key()])).await;
    manager.call("allowevent", json!([id_of(&event), "asked for"])).await;
    assert_eq!(manager.call("listbannedevents", json!([])).await, json!([]));
    let listed = json!([{ "id": id_of(&event), "reason": "asked for" }]);
    assert_eq!(manager.call("listallowedevents", json!([])).await, listed);
    client.store(&event).await;
    assert_eq!(client.publish(&note(&other)).await, banned);
    manager.call("banevent", json!([id_of(&event)])).await;
    assert_eq!(manager.call("listallowedevents", json!([])).await, json!([]));
    manager.call("unbanevent", json!([id_of(&event)])).await;
    assert_eq!(client.publish(&event).await, banned);
    manager.call("allowevent", json!([id_of(&event)])).await;
    manager.call("unallowevent", json!([id_of(&event)])).await;
    assert_eq!(client.publish(&event).await, banned);
    manager.call("unbanpubkey", json!([other.key()])).await;
    client.store(&event).await;

    for (method, text) in [
        ("changerelayname", "a name"),
        ("changerelaydescription", "text"),
        ("changerelayicon", "https://a/b"),
    ] {
        manager.call(method, json!([text])).await;
    }
    let document =
        http(relay.relay.address(), "GET", "/", &["Accept: application/nostr+json"]).await;
    let document: Value = serde_json::from_str(&document.body).unwrap();
    let said = [&document["name"], &document["description"], &document["icon"]];
    assert_eq!(said, ["a name", "text", "https://a/b"]);
    assert!(document["supported_nips"].as_array().unwrap().contains(&json!(86)));

    let reaction = |second| other.event(7, EPOCH + second, json!([]), "+");
    manager.call("disallowkind", json!([7])).await;
    assert_eq!(manager.call("listdisallowedkinds", json!([])).await, json!([7]));
    let refused = (false, "blocked: events of this kind are not taken".to_owned());
    assert_eq!(client.publish(&reaction(1)).await, refused);
    manager.call("allowkind", json!([7])).await;
    client.store(&reaction(1)).await;
    client.store(&note(&other)).await;
    manager.call("allowkind", json!([7])).await;
    assert_eq!(manager.call("listallowedkinds", json!([])).await, json!([7]));
    assert_eq!(client.publish(&note(&other)).await, refused);
    client.store(&reaction(2)).await;
    manager.call("disallowkind", json!([7])).await;

    manager.call("blockip", json!(["127.0.0.1", "loud"])).await;
    let blocked = json!([{ "ip": "127.0.0.1/32", "reason": "loud" }]);
    let listed = manager.call("listblockedips", json!([])).await;
    assert!(
        listed == blocked || listed == json!([{ "ip": "127.0.0.1", "reason": "loud" }]),
        "{listed}"
    );
    // The next message ends an open connection.
    client.send(&json!(["REQ", "x", {}])).await;
    client.expect(json!(["NOTICE", "blocked: your address is banned"])).await;
    assert_eq!(client.close_code().await, 1_008);
    manager.call("unblockip", json!(["127.0.0.1"])).await;
    let mut client = Client::connect(&relay.url()).await;
    client.store(&note(&other)).await;

    // Invalid calls are reported and change nothing.
    for (method, params) in [
        ("banpubkey", json!(["ab"])),
        ("banpubkey", json!([])),
        ("banevent", json!([7])),
        ("allowkind", json!([70_000])),
        ("blockip", json!(["here"])),
        ("changerelayname", json!([1])),
        ("createrole", json!(["a", "b", "c", "d", 1])),
        ("", json!([])),
    ] {
        let response = manager.ask(method, params).await;
        let answer: Value = serde_json::from_str(&response.body).unwrap();
        assert!(answer["error"].is_string(), "{method}: {answer}");
        assert_eq!(answer.get("result"), None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_may_call_what_an_operator_has_assigned_to_it() {
    let (operator, moderator, author) = (Author::new(9), Author::new(8), Author::new(1));
    let relay = TestRelay::start_with(operated_by(&operator)).await;
    let mut theirs = Manager { relay: &relay, operator: Author::new(8), calls: 100 };
    let mut manager = Manager { relay: &relay, operator, calls: 0 };
    assert_eq!(theirs.ask("supportedmethods", json!([])).await.status, 401);
    for method in ["banpubkey", "listbannedpubkeys"] {
        let assigned = manager.call("assignmethod", json!([moderator.key(), method])).await;
        assert_eq!(assigned[0], true, "{assigned}");
    }
    let unknown = manager.call("assignmethod", json!([moderator.key(), "nothing"])).await;
    assert_eq!(unknown[0], false, "{unknown}");
    let assigned = json!([
        { "pubkey": moderator.key(), "methods": ["banpubkey", "listbannedpubkeys"] }
    ]);
    assert_eq!(manager.call("listmethodassignees", json!([])).await, assigned);
    let theirs_supported = theirs.call("supportedmethods", json!([])).await;
    assert_eq!(theirs_supported, json!(["banpubkey", "listbannedpubkeys"]));
    assert_eq!(theirs.call("banpubkey", json!([author.key()])).await, true);
    for (method, params) in [
        ("unbanpubkey", json!([author.key()])),
        ("assignmethod", json!([moderator.key(), "blockip"])),
    ] {
        let refused = theirs.ask(method, params).await;
        assert_eq!(
            (refused.status, refused.body.contains("may not call")),
            (401, true),
            "{method}"
        );
    }
    assert_eq!(manager.call("listbannedpubkeys", json!([])).await[0]["pubkey"], author.key());
    manager.call("unassignmethod", json!([moderator.key(), "banpubkey"])).await;
    assert_eq!(theirs.ask("banpubkey", json!([moderator.key()])).await.status, 401);
    manager.call("unassignmethod", json!([moderator.key(), "listbannedpubkeys"])).await;
    assert_eq!(manager.call("listmethodassignees", json!([])).await, json!([]));
    assert_eq!(theirs.ask("supportedmethods", json!([])).await.status, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_operator_has_not_signed_for_this_request_is_refused() {
    let (operator, stranger) = (Author::new(9), Author::new(8));
    let relay = TestRelay::start_with(operated_by(&operator)).await;
    let address = relay.relay.address();
    let url = relay.url().replace("ws://", "http://");
    let (now, key) = (unix_now(), Author::new(1).key());
    let body = body("banpubkey", &json!([key]));
    let hash = faster_hex::hex_string(&Sha256::digest(&body));
    let tags = |url: &str, method: &str, payload: &str| {
        json!([["u", url], ["method", method], ["payload", payload]])
    };
    let right = tags(&url, "POST", &hash);
    let mut forged = operator.event(27_235, now, right.clone(), "");
    forged["sig"] = operator.note(now, "other")["sig"].clone();
    let forged = format!("Authorization: Nostr {}", STANDARD.encode(forged.to_string()));
    let of_kind_1 = operator.event(1, now, right.clone(), "").to_string();
    let twice = json!([["u", &url], ["u", "http://a"], ["method", "POST"], ["payload", &hash]]);
    let without = json!([["u", &url], ["method", "POST"]]);
    let wrong = [
        ("X-No: authorization".to_owned(), "no Authorization header"),
        ("Authorization: Basic YTpi".to_owned(), "Nostr BASE64"),
        ("Authorization: Nostr e30=".to_owned(), "holds no event"),
        (format!("Authorization: Nostr {}", STANDARD.encode(of_kind_1)), "kind is not 27235"),
        (signed(&stranger, now, right.clone()), "not one of moderation.operators"),
        (signed(&operator, now - 70, right.clone()), "created_at"),
        (signed(&operator, now + 70, right.clone()), "created_at"),
        (signed(&operator, now, tags("http://relay.example.com", "POST", &hash)), "u tag"),
        (signed(&operator, now, tags(&format!("{url}/other"), "POST", &hash)), "u tag"),
        (signed(&operator, now, twice), "u tag"),
        (signed(&operator, now, tags(&url, "GET", &hash)), "method tag"),
        (signed(&operator, now, tags(&url, "POST", &"00".repeat(32))), "payload tag"),
        (signed(&operator, now, without), "payload tag"),
        (forged, "id or signature"),
    ];
    let list = relay.relay.admission().moderation();
    for (header, reason) in wrong {
        let response = post(address, "/", &[RPC, &header], &body).await;
        assert_eq!(response.status, 401, "{reason}: {}", response.body);
        assert!(response.body.contains(reason), "no {reason:?} in {}", response.body);
        assert!(list.current().entries().is_empty(), "{reason}");
    }
    let header = signed(&operator, now, right);
    assert_eq!(post(address, "/", &[RPC, &header], &body).await.status, 200);
    let again = post(address, "/", &[RPC, &header], &body).await;
    assert_eq!((again.status, again.body.contains("used before")), (401, true), "{}", again.body);
    // On another path, or with another media type, it is not a management request.
    let header = authorization(&operator, &url, &body, 5);
    assert_eq!(post(address, "/other", &[RPC, &header], &body).await.status, 404);
    assert_eq!(post(address, "/", &[&header], &body).await.status, 405);
    let long = format!("{body}{}", " ".repeat(70 << 10));
    let header = authorization(&operator, &url, &long, 6);
    assert_eq!(post(address, "/", &[RPC, &header], &long).await.status, 413);
    // Browsers send a preflight request.
    let preflight = http(address, "OPTIONS", "/", &["Origin: https://a.example"]).await;
    assert!(preflight.headers["access-control-allow-methods"].contains("POST"));
    assert!(preflight.headers["access-control-allow-headers"].contains("authorization"));

    let closed = TestRelay::start().await;
    let url = closed.url().replace("ws://", "http://");
    let header = authorization(&operator, &url, &body, 7);
    assert_eq!(post(closed.relay.address(), "/", &[RPC, &header], &body).await.status, 401);
}

/// Refused requests are not logged one by one.
#[tokio::test(flavor = "multi_thread")]
async fn requests_that_are_refused_fill_no_log() {
    let directory = tempfile::tempdir().unwrap();
    let relay = RelayProcess::start(&directory.path().join("events.sqlite"));
    let address = relay.url().trim_start_matches("ws://").parse().unwrap();
    for _ in 0..300 {
        assert_eq!(post(address, "/", &[RPC], "{}").await.status, 401);
    }
    relay.signal("TERM");
    let (_, log) = relay.ended();
    let lines = log.matches("management request refused").count();
    assert!((1..30).contains(&lines), "{lines} lines for 300 requests");
}
