//! The NIP-11 document on the relay's own address.

use super::model_based::any;
use crate::support::client::PATIENCE;
use crate::support::events::{Author, EPOCH};
use crate::support::http::Response;
use crate::support::{self, TestRelay};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Error;

async fn http(relay: &TestRelay, method: &str, path: &str, accept: &str) -> Response {
    let headers = [&*format!("Accept: {accept}"), "Origin: https://client.example"];
    support::http::http(relay.relay.address(), method, path, &headers).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_document_says_what_is_true_and_any_origin_may_read_it() {
    let relay = TestRelay::start_with(|config| {
        config.relay.name = "a \"name\"".into();
        config.relay.contact = "mailto:operator@example".into();
        config.relay.icon = "https://example.com/icon.png".into();
        config.relay.posting_policy = "https://example.com/policy".into();
        config.relay.terms_of_service = "https://example.com/terms".into();
        config.limits.message_bytes = 30_000;
        config.limits.subscriptions = 5;
        config.limits.filters = 2;
        config.limits.events_per_filter = 3;
        config.limits.subscription_id_chars = 11;
        config.limits.event_tags = 4;
        config.limits.created_at_ahead_s = 60;
        config.limits.created_at_behind_s = 7_000;
        config.limits.content_chars = 500;
    })
    .await;
    let response = http(&relay, "GET", "/", "application/nostr+json").await;
    assert_eq!(response.status, 200);
    assert_eq!(response.headers["content-type"], "application/nostr+json");
    for header in ["origin", "headers", "methods"] {
        assert!(response.headers.contains_key(&format!("access-control-allow-{header}")));
    }
    assert_eq!(response.headers["access-control-allow-origin"], "*");
    let document: Value = serde_json::from_str(&response.body).unwrap();
    assert_eq!(document["name"], "a \"name\"");
    assert_eq!(document["contact"], "mailto:operator@example");
    assert_eq!(document.get("pubkey"), None);
    assert_eq!(document["icon"], "https://example.com/icon.png");
    assert_eq!(document.get("banner"), None);
    assert_eq!(document["posting_policy"], "https://example.com/policy");
    assert_eq!(document["terms_of_service"], "https://example.com/terms");
    assert_eq!(document["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(document["negentropy"], 1);
    // NIP-11, Software: a URL.
    assert!(document["software"].as_str().unwrap().starts_with("https://"), "{document}");
    // Each of them has its tests.
    assert_eq!(document["supported_nips"], json!([1, 9, 11, 40, 42, 45, 59, 62, 67, 70, 77]));
    let limitation = &document["limitation"];
    for (key, value) in [
        ("max_message_length", 30_000),
        ("max_subscriptions", 5),
        ("max_filters", 2),
        ("max_limit", 3),
        ("default_limit", 3),
        ("max_subid_length", 11),
        ("max_event_tags", 4),
        ("created_at_upper_limit", 60),
        ("created_at_lower_limit", 7_000),
        ("max_content_length", 500),
    ] {
        assert_eq!(limitation[key], value, "{key}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn other_requests_are_answered_too() {
    let relay = TestRelay::start().await;
    let preflight = http(&relay, "OPTIONS", "/", "*/*").await;
    assert_eq!(preflight.status, 204);
    assert_eq!(preflight.headers["access-control-allow-origin"], "*");
    let browser = http(&relay, "GET", "/", "text/html").await;
    assert_eq!(browser.status, 200);
    assert!(browser.body.contains("Nostr relay"));
    assert_eq!(http(&relay, "HEAD", "/", "application/nostr+json").await.status, 200);
    assert_eq!(http(&relay, "GET", "/nothing", "text/html").await.status, 404);
    let post = http(&relay, "POST", "/", "text/html").await;
    assert_eq!((post.status, &*post.headers["allow"]), (405, "GET, HEAD, OPTIONS, POST"));
    assert_eq!(http(&relay, "POST", "/nothing", "text/html").await.status, 404);
    relay.client().await.fence().await;
}

/// RFC 9110: media types in any case, with parameters, and a quality of 0 for unwanted ones.
#[tokio::test(flavor = "multi_thread")]
async fn the_document_is_for_those_who_accept_it() {
    let relay = TestRelay::start().await;
    for (accept, wants) in [
        ("application/nostr+json", true),
        ("Application/Nostr+JSON", true),
        ("text/html;q=0.9, application/nostr+json;q=0.8", true),
        ("application/nostr+json; charset=utf-8 ; q=0.5", true),
        ("application/nostr+json;q=0", false),
        ("text/html, application/nostr+json; Q=0.000", false),
        ("application/nostr+jsonx", false),
        ("*/*", false),
    ] {
        let answer = http(&relay, "GET", "/", accept).await;
        let is_document = answer.headers["content-type"] == "application/nostr+json";
        assert_eq!((answer.status, is_document), (200, wants), "{accept}");
    }
}

/// NIP-01: a single endpoint, since other paths would not be another relay.
#[tokio::test(flavor = "multi_thread")]
async fn one_path_is_the_relay_and_others_are_not_there() {
    const PATHS: [&str; 6] = ["/", "//", "/foo", "/npub1relay", "/nostr", "/nostr/"];
    for (relay_url, served) in
        [("", &["/"][..]), ("wss://relay.example.com/nostr", &["/nostr", "/nostr/"])]
    {
        let relay = TestRelay::start_with(|config| {
            config.auth.relay_url = relay_url.into();
            config.page.enabled = true;
        })
        .await;
        for path in PATHS {
            let is_served = served.contains(&path);
            let status = if is_served { 200 } else { 404 };
            for accept in ["application/nostr+json", "text/html", "*/*"] {
                let answer = http(&relay, "GET", path, accept).await;
                assert_eq!(answer.status, status, "{relay_url:?} {path} {accept}");
            }
            let url = format!("{}{path}", relay.url());
            let answered = match tokio_tungstenite::connect_async(&url).await {
                Ok(_) => 101,
                Err(Error::Http(response)) => response.status().as_u16(),
                Err(error) => panic!("{url}: {error}"),
            };
            assert_eq!(answered, if is_served { 101 } else { 404 }, "{relay_url:?} {path}");
        }
        assert_eq!(http(&relay, "GET", "/health", "*/*").await.status, 200);
    }
}

/// The `limitation` of the document.
async fn limitation(relay: &TestRelay) -> Value {
    let document = http(relay, "GET", "/", "application/nostr+json").await;
    serde_json::from_str::<Value>(&document.body).unwrap()["limitation"].clone()
}

/// An event at each limit in NIP-11 is accepted under every configuration, and at all of them
/// together as far as a message has room; one above a limit is refused.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_at_each_limit_of_the_document_is_taken() {
    let seed = rand::random_range(0..1 << 32);
    println!("seed {seed}");
    let rng = &mut StdRng::seed_from_u64(seed);
    for number in 0..12 {
        let relay = TestRelay::start_with(|config| {
            let limits = &mut config.limits;
            // The first one with the default configuration.
            if number > 0 {
                limits.message_bytes = rng.random_range(3_000..60_000);
                let event_bytes = rng.random_range(2_000..=limits.message_bytes);
                limits.event_bytes = *any(rng, &[0, event_bytes]);
                limits.event_tags = rng.random_range(1..50);
                limits.content_chars = rng.random_range(1..3_000);
            }
        })
        .await;
        let limitation = limitation(&relay).await;
        let limit = |key: &str| limitation[key].as_u64().unwrap() as usize;
        let (tags, chars) = (limit("max_event_tags"), limit("max_content_length"));
        let longest = limit("max_message_length");
        let mut client = relay.client().await;
        let event = |tags: usize, value: &str, content: &str| {
            Author::new(1).event(1, EPOCH, json!(vec![["t", value]; tags]), content)
        };
        let message_bytes = |event: &Value| json!(["EVENT", event]).to_string().len();
        for character in ["a", "購", "\u{1f98a}", "\"", "\u{1}", "\u{7f}"] {
            let both = event(tags, &"f".repeat(64), &character.repeat(chars));
            let only_tags = event(tags, "", "");
            let only_content = event(0, "", &character.repeat(chars));
            for event in [both, only_tags, only_content] {
                let bytes = message_bytes(&event);
                let (accepted, text) = if bytes <= longest {
                    client.publish(&event).await
                } else if number == 0 {
                    panic!("a message of {bytes} bytes: by default all limits hold together");
                } else {
                    continue;
                };
                let context = format!("{limitation}: {character:?}, {bytes} bytes: {text}");
                assert!(accepted, "{context}");
            }
        }
        // The maximum length of a message.
        let empty = message_bytes(&event(1, "", ""));
        let longest_event = event(1, &"x".repeat(longest - empty), "");
        assert_eq!(message_bytes(&longest_event), longest);
        client.store(&longest_event).await;
        // NIP-11's numbers are the highest accepted values.
        for (event, field) in
            [(event(tags + 1, "", ""), "tags"), (event(0, "", &"b".repeat(chars + 1)), "content")]
        {
            if message_bytes(&event) <= longest {
                let (accepted, text) = client.publish(&event).await;
                assert!(!accepted && text.starts_with(&format!("invalid: {field}: ")), "{text}");
            }
        }
    }
}

/// Sends text and returns everything until the relay closes.
async fn exchange(relay: &TestRelay, request: &str) -> String {
    let mut stream = TcpStream::connect(relay.relay.address()).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer))
        .await
        .unwrap_or_else(|_| panic!("no end of the answer to {request}"))
        .unwrap();
    answer
}

/// RFC 6455, section 4.2: an invalid handshake gets an error.
#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_that_cannot_be_completed_is_refused() {
    const KEY: &str = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    const ASKS: &str = "Upgrade: websocket\r\nConnection: Upgrade, close\r\n";
    const VERSION: &str = "Sec-WebSocket-Version: 13\r\n";
    let relay = TestRelay::start().await;
    let ask = async |line: &str, headers: &str| {
        let request = format!("{line}\r\nHost: x\r\n{headers}\r\n");
        exchange(&relay, &request).await
    };
    for (line, headers, status) in [
        ("GET / HTTP/1.1", format!("{ASKS}{VERSION}"), 400),
        ("GET / HTTP/1.1", format!("{ASKS}{KEY}"), 426),
        ("GET / HTTP/1.1", format!("{ASKS}{KEY}Sec-WebSocket-Version: 8\r\n"), 426),
        (
            "GET / HTTP/1.1",
            format!("Upgrade: websocket\r\nConnection: close\r\n{KEY}{VERSION}"),
            400,
        ),
        ("POST / HTTP/1.1", format!("{ASKS}{KEY}{VERSION}"), 400),
        ("GET / HTTP/1.0", format!("{ASKS}{KEY}{VERSION}"), 400),
    ] {
        let answer = ask(line, &headers).await;
        assert!(answer.starts_with(&format!("HTTP/1.{}", &line[line.len() - 1..])), "{answer}");
        assert!(answer.contains(&format!(" {status} ")), "{line}, {headers}: {answer}");
        let has_version = answer.to_ascii_lowercase().contains("sec-websocket-version: 13\r\n");
        assert_eq!(has_version, status == 426, "{answer}");
    }
    relay.client().await.fence().await;
}

/// One connection may send several requests, a HEAD has no body, and text other than HTTP is
/// refused.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_is_kept_after_the_document() {
    let relay = TestRelay::start().await;
    let ask = |method: &str, last: &str| {
        format!("{method} / HTTP/1.1\r\nHost: x\r\nAccept: application/nostr+json\r\n{last}\r\n")
    };
    let several =
        format!("{}{}{}", ask("GET", ""), ask("HEAD", ""), ask("GET", "Connection: close\r\n"));
    let answer = exchange(&relay, &several).await;
    assert_eq!(answer.matches("HTTP/1.1 200 OK\r\n").count(), 3, "{answer}");
    assert_eq!(answer.matches("\"supported_nips\"").count(), 2, "{answer}");
    let lengths: std::collections::BTreeSet<&str> =
        answer.lines().filter_map(|line| line.strip_prefix("content-length: ")).collect();
    assert_eq!(lengths.len(), 1, "{answer}");
    // With a body that is not read.
    let post =
        format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3000000\r\n\r\n{}", "x".repeat(10));
    let answer = exchange(&relay, &post).await;
    assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
    for nonsense in ["\u{16}\u{3}\u{1}\u{2}\r\n\r\n", "[\"REQ\",\"x\",{}]\r\n\r\n"] {
        let answer = exchange(&relay, nonsense).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400 "), "{answer}");
    }
    relay.client().await.fence().await;
}
