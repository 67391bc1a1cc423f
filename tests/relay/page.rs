//! The page without a browser: its access rules and its headers.

use crate::support::TestRelay;
use crate::support::client::PATIENCE;
use crate::support::events::{Author, unix_now};
use crate::support::http::{Response, http};
use negsync::config::Config;
use negsync::sync::{DayDiffers, DriftLook};
use serde_json::json;
use std::sync::Arc;
use std::time::Instant;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const HTML: &str = "Accept: text/html,application/xhtml+xml;q=0.9,*/*;q=0.8";

async fn with_page() -> TestRelay {
    TestRelay::start_with(|config| {
        config.page.enabled = true;
        config.page.operator = vec!["127.0.0.1".parse().unwrap()];
        config.relay.name = "a <name>".into();
    })
    .await
}

async fn get(relay: &TestRelay, path: &str, headers: &[&str]) -> Response {
    http(relay.relay.address(), "GET", path, headers).await
}

/// Opens a stream of updates, and returns it with the first update.
async fn updates(relay: &TestRelay) -> (TcpStream, String) {
    updates_of(relay, 0).await
}

/// Like [`updates`], for a client with another address, behind a proxy.
async fn updates_of(relay: &TestRelay, client: u8) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(relay.relay.address()).await.unwrap();
    let request =
        format!("GET /events HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 192.0.2.{client}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    let mut buffer = [0; 16_384];
    while !text.contains("\r\n\r\n") {
        let bytes = tokio::time::timeout(PATIENCE, stream.read(&mut buffer)).await.unwrap();
        let bytes = bytes.unwrap();
        assert!(bytes > 0, "{text}");
        text.push_str(&String::from_utf8_lossy(&buffer[..bytes]));
    }
    (stream, text)
}

#[tokio::test(flavor = "multi_thread")]
async fn without_leave_there_is_no_page() {
    let relay = TestRelay::start().await;
    let response = get(&relay, "/", &[]).await;
    assert_eq!(response.headers["content-type"], "text/plain; charset=utf-8");
    // The response for browsers says how the operator turns it on.
    let response = get(&relay, "/", &[HTML]).await;
    assert_eq!(response.headers["content-type"], "text/html; charset=utf-8");
    assert!(response.body.contains("<code>enabled = true</code>"), "{}", response.body);
    assert!(!response.body.contains("Events stored"), "{}", response.body);
    assert_eq!(response.body.lines().count(), 1);
    assert_eq!(get(&relay, "/events", &[]).await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn browsers_get_the_page_and_nobody_else_can_read_frame_or_extend_it() {
    let relay = with_page().await;
    let response = get(&relay, "/", &[HTML, "Origin: https://other.example"]).await;
    assert_eq!(response.status, 200);
    assert_eq!(response.headers["content-type"], "text/html; charset=utf-8");
    assert!(response.body.contains("<h1>a &lt;name&gt;</h1>"), "{}", response.body);
    assert!(!response.headers.keys().any(|name| name.starts_with("access-control")));
    let policy = &response.headers["content-security-policy"];
    assert!(policy.starts_with("default-src 'none'; ") && !policy.contains("unsafe"), "{policy}");
    assert!(policy.contains("frame-ancestors 'none'"), "{policy}");
    assert_eq!(response.headers["x-content-type-options"], "nosniff");
    assert_eq!(response.headers["cross-origin-resource-policy"], "same-origin");
    for from_elsewhere in ["http://", "https://", "//"] {
        for attribute in ["src=\"", "<link rel=\"stylesheet\" href=\"", "url("] {
            let asset = format!("{attribute}{from_elsewhere}");
            assert!(!response.body.contains(&asset), "{asset}");
        }
    }
    // Other clients are answered as before.
    let document = get(&relay, "/", &["Accept: application/nostr+json"]).await;
    assert_eq!(document.headers["content-type"], "application/nostr+json");
    assert_eq!(document.headers["access-control-allow-origin"], "*");
    assert!(!get(&relay, "/", &["Accept: */*"]).await.body.contains("<html"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_is_no_operator() {
    let relay = with_page().await;
    let peers = relay.relay.peers();
    peers.add("wss://secret.example.com", Default::default(), false);
    let shown = get(&relay, "/", &[HTML]).await;
    assert!(shown.body.contains("secret.example.com"), "{}", shown.body);
    for header in ["X-Forwarded-For: 127.0.0.1", "Forwarded: for=127.0.0.1", "X-Real-IP: ::1"] {
        let shown = get(&relay, "/", &[HTML, header]).await;
        assert!(!shown.body.contains("secret"), "{header}: {}", shown.body);
        assert!(shown.body.contains("Peer 1"), "{header}: {}", shown.body);
    }
}

/// A page of another site can make a browser send requests to this address under its own host name
/// (DNS rebinding).
#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_host_is_no_operator_and_reads_no_metrics() {
    let relay = TestRelay::start_with(|config| {
        config.page.enabled = true;
        config.page.operator = vec!["127.0.0.1".parse().unwrap()];
        config.relay.hosts = vec!["relay.lan.example".into()];
        config.auth.relay_url = "wss://relay.example.com".into();
    })
    .await;
    relay.relay.peers().add("wss://secret.example.com", Default::default(), false);
    for (host, is_own) in [
        ("127.0.0.1:7777", true),
        ("localhost", true),
        ("Relay.Lan.example:7777", true),
        ("relay.example.com", true),
        ("evil.example", false),
        ("evil.example:7777", false),
    ] {
        let header = format!("Host: {host}");
        let shown = get(&relay, "/", &[HTML, &header]).await;
        assert_eq!(shown.body.contains("secret.example.com"), is_own, "{host}");
        assert!(shown.body.contains("<html"), "{host}");
        let metrics = get(&relay, "/metrics", &[&header]).await;
        assert_eq!(metrics.status, if is_own { 200 } else { 403 }, "{host}");
    }
}

/// Kinds, days, and the arrival of events: none of it is shown to the public.
#[tokio::test(flavor = "multi_thread")]
async fn strangers_see_nothing_of_private_events() {
    let relay = with_page().await;
    let mut client = relay.client().await;
    let author = Author::new(1);
    client.store(&author.note(1_700_000_000, "public")).await;
    let shown = async |headers: &[&str]| {
        let page = get(&relay, "/", &[&[HTML], headers].concat()).await.body;
        // The time is shown too.
        let (before, after) = page.split_once("id=\"as-of\">").unwrap();
        format!("{before}{}", after.split_once("</span>").unwrap().1)
    };
    let stranger = &["X-Forwarded-For: 192.0.2.1"][..];
    let before = shown(stranger).await;
    assert!(before.contains("<dt>Events stored</dt><dd>1</dd>"), "{before}");
    // With a day, a kind and a number of their own.
    for n in 0..3 {
        let tags = json!([["p", author.key()]]);
        client.store(&Author::new(9).event(1_059, 1_600_000_000 + n, tags.clone(), "")).await;
        client.store(&author.event(4, 1_650_000_000 + n, tags, "")).await;
    }
    let began = Instant::now();
    loop {
        // The operator's view has all of it by then.
        let operator = shown(&[]).await;
        if operator.contains("<dt>Events stored</dt><dd>7</dd>") && operator.contains("<td>1059<") {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "{operator}");
    }
    let after = shown(stranger).await;
    for words in ["1059", "gift wrap", "<dd>7</dd>"] {
        assert!(!after.contains(words), "{words} in {after}");
    }
    let plot = |page: &str| page.split("id=\"days\">").nth(1).unwrap().to_owned();
    assert_eq!(plot(&before), plot(&after));
    // A peer differs on a day with private events, on one without, and on one on which it has
    // private events only.
    let days = [(19_097, 3, 1), (19_675, 1, 4), (19_700, 0, 5)]
        .map(|(day, have, need)| DayDiffers { day: day * 86_400, have, need });
    let peer = relay.relay.peers().add("wss://a.example.com", Default::default(), false);
    peer.update(|status| {
        status.look = Some(Arc::new(DriftLook::new(1_700_000_000, days.to_vec())))
    });
    let began = Instant::now();
    let after = loop {
        let after = shown(stranger).await;
        if after.contains("2023-11-14: 1 only here<") {
            break after;
        }
        assert!(began.elapsed() < PATIENCE, "{after}");
    };
    for words in ["2022-04-15", "2023-12-09", "only there", "It lacks", "Bytes a sync"] {
        assert!(!after.contains(words), "{words} in {after}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_that_are_kept_current_are_bounded_and_end_with_the_relay() {
    let relay = TestRelay::start_with(|config| {
        config.page.enabled = true;
        config.connections.trusted_proxies = vec!["127.0.0.1".parse().unwrap()];
        // It applies to handshakes.
        config.connections.handshake_timeout_s = 1;
    })
    .await;
    let mut open = Vec::new();
    for number in 0..64 {
        let (stream, text) = updates_of(&relay, number / 8).await;
        assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
        assert!(text.contains("content-type: text/event-stream"), "{text}");
        open.push(stream);
        if number % 8 == 7 && number < 63 {
            let (_, text) = updates_of(&relay, number / 8).await;
            assert!(text.starts_with("HTTP/1.1 503 ") && text.contains("your address"), "{text}");
        }
    }
    assert_eq!(get(&relay, "/events", &[]).await.status, 503);
    // The streams outlast the handshake timeout: the first one gets its third update.
    let mut text = String::new();
    let mut buffer = [0; 16_384];
    let mut client = relay.client().await;
    for second in 0.. {
        client.store(&Author::new(1).note(1_700_000_000 + second, "news")).await;
        let read = tokio::time::timeout(PATIENCE, open[0].read(&mut buffer)).await;
        let bytes = read.expect("no update").unwrap();
        assert!(bytes > 0, "it was cut after {text}");
        text.push_str(&String::from_utf8_lossy(&buffer[..bytes]));
        if text.matches("event: parts").count() >= 4 {
            break;
        }
    }
    // The end of one frees a slot.
    open.pop();
    let began = Instant::now();
    loop {
        let (stream, text) = updates_of(&relay, 9).await;
        if text.starts_with("HTTP/1.1 200 ") {
            open.push(stream);
            break;
        }
        assert!(began.elapsed() < PATIENCE, "{text}");
    }
    relay.relay.stop().await;
    for mut stream in open {
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "it does not end");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_is_open_ends_when_it_is_no_longer_allowed() {
    let relay = with_page().await;
    let (mut stream, _) = updates(&relay).await;
    relay.relay.reload(Config::default()).unwrap();
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
    assert!(ended.is_ok(), "it does not end");
    assert_eq!(get(&relay, "/events", &[]).await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn kinds_are_counted_as_they_are_stored() {
    let relay = with_page().await;
    let mut client = relay.client().await;
    let author = Author::new(1);
    for (kind, count) in [(1, 3), (7, 2), (30_023, 1)] {
        for n in 0..count {
            client.store(&author.event(kind, 1_700_000_000 + n, json!([["d", "a"]]), "")).await;
        }
    }
    let shown = get(&relay, "/", &[HTML]).await.body;
    for row in ["<td>1<span class=\"name\">note</span></td><td>3</td>", "</span></td><td>2</td>"] {
        assert!(shown.contains(row), "{row} not in {shown}");
    }
    assert!(shown.contains("<dt>Events stored</dt><dd>6</dd>"), "{shown}");
    assert!(shown.contains("<dt>Kinds stored</dt><dd>3</dd>"), "{shown}");
}

/// An event of each age: today, half a year ago, years ago, and in the future.
#[tokio::test(flavor = "multi_thread")]
async fn the_plot_shows_all_events_or_those_of_the_time_that_is_asked_for() {
    let relay = with_page().await;
    let day = 86_400;
    let notes = [0, 180, 1_000].map(|age| Author::new(1).note(unix_now() - age * day, "past"));
    let mut client = relay.client().await;
    for note in notes.iter().chain([&Author::new(1).note(unix_now() + 600, "ahead")]) {
        client.store(note).await;
    }
    for (query, shown, bins) in [
        ("", "all 4 events", "a bar for every 28 days"),
        ("?days=all", "all 4 events", "a bar for every 28 days"),
        ("?days=90", " of 4 events", "a bar for each day"),
        ("?days=365", " of 4 events", "a bar for every 7 days"),
        ("?days=nonsense", "all 4 events", "a bar for every 28 days"),
    ] {
        let page = get(&relay, &format!("/{query}"), &[HTML]).await.body;
        assert!(page.contains(shown) && page.contains(bins), "{query}: {page}");
        let span = query.strip_prefix("?days=").filter(|span| *span != "nonsense");
        let current = format!("href=\"?days={}\" aria-current=\"true\"", span.unwrap_or("all"));
        assert!(page.contains(&current), "{query}: {page}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_address_to_connect_to_is_shown() {
    let relay = with_page().await;
    let address = relay.relay.address();
    let shown = get(&relay, "/", &[HTML, "Host: relay.example.com"]).await.body;
    assert!(shown.contains("<code id=\"address\">ws://relay.example.com</code>"), "{shown}");
    let headers = [HTML, "Host: relay.example.com", "X-Forwarded-Proto: https"];
    let shown = get(&relay, "/", &headers).await.body;
    assert!(shown.contains("<code id=\"address\">wss://relay.example.com</code>"), "{shown}");
    let relay = TestRelay::start_with(|config| {
        config.page.enabled = true;
        config.auth.relay_url = "wss://configured.example.com".into();
    })
    .await;
    let host = format!("Host: {address}");
    let shown = get(&relay, "/", &[HTML, &host]).await.body;
    assert!(shown.contains("<code id=\"address\">wss://configured.example.com</code>"), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn contact_and_nips_are_links_and_nothing_else_is() {
    for (contact, link) in [
        ("mailto:operator@example.com", true),
        ("https://example.com/\"contact", true),
        ("javascript:alert(1)", false),
        ("operator", false),
    ] {
        let relay = TestRelay::start_with(|config| {
            config.page.enabled = true;
            config.relay.contact = contact.into();
        })
        .await;
        let shown = get(&relay, "/", &[HTML]).await.body;
        let contact = contact.replace('"', "&quot;");
        assert_eq!(shown.contains(&format!("href=\"{contact}\"")), link, "{shown}");
        assert!(shown.contains("/nips/blob/master/77.md\""), "{shown}");
    }
}
