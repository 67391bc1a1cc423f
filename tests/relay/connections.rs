//! The maximum number of connections, and idle connections.

use crate::support::client::{Client, PATIENCE};
use crate::support::frames::{NO_MASK, frame};
use crate::support::http::{HANDSHAKE, answer_to, http, read_to_close, send_raw};
use crate::support::{Author, TestRelay, events};
use futures_util::SinkExt;
use negsync::config::Config;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::tungstenite::Message;

/// Connects as soon as a slot is free.
async fn once_there_is_room(relay: &TestRelay) -> Client {
    let connecting = async {
        loop {
            if let Ok(client) = Client::connect_for(&relay.url(), "-").await {
                return client;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, connecting).await.expect("no place becomes free")
}

#[tokio::test(flavor = "multi_thread")]
async fn one_connection_too_many_is_refused_with_a_sentence_before_the_upgrade() {
    type Change = fn(&mut Config);
    let cases: [(Change, &str, &str); 2] = [
        (|config| config.connections.in_all = 2, "503", "All 2 connections"),
        (|config| config.connections.per_address = 2, "429", "has 2 connections"),
    ];
    for (change, status, sentence) in cases {
        let relay = TestRelay::start_with(change).await;
        let mut first = relay.client().await;
        let second = relay.client().await;
        let request = format!("{HANDSHAKE}Connection: close\r\n\r\n");
        let answer = answer_to(relay.relay.address(), &request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        assert!(answer.contains(sentence), "{answer}");
        // Connected clients stay, and the slot of a closed connection is free again.
        first.fence().await;
        drop(second);
        once_there_is_room(&relay).await.fence().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_a_proxy_clients_are_told_apart_only_where_it_is_trusted() {
    let per_address = |config: &mut Config| config.connections.per_address = 1;
    let relay = TestRelay::start_with(|config| {
        per_address(config);
        config.connections.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
    })
    .await;
    let url = relay.url();
    let _a = Client::connect_for(&url, "192.0.2.1").await.unwrap_or_else(|code| panic!("{code}"));
    assert_eq!(Client::connect_for(&url, "192.0.2.1").await.err(), Some(429));
    assert_eq!(Client::connect_for(&url, "198.51.100.7, 192.0.2.1").await.err(), Some(429));
    let _b = Client::connect_for(&url, "2001:db8::1").await.unwrap_or_else(|code| panic!("{code}"));
    assert_eq!(Client::connect_for(&url, "2001:db8::2").await.err(), Some(429));
    assert!(Client::connect_for(&url, "2001:db8:0:1::2").await.is_ok());

    let relay = TestRelay::start_with(per_address).await;
    let url = relay.url();
    let _a = Client::connect_for(&url, "192.0.2.1").await.unwrap_or_else(|code| panic!("{code}"));
    assert_eq!(Client::connect_for(&url, "192.0.2.2").await.err(), Some(429));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_that_does_not_come_to_an_end_is_closed() {
    let relay = TestRelay::start_with(|config| {
        config.connections.handshake_timeout_s = 1;
    })
    .await;
    let asked_once = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
    for text in ["", "GET / HTT", HANDSHAKE, asked_once] {
        let answer = answer_to(relay.relay.address(), text).await;
        assert_eq!(answer.contains("200 OK"), text == asked_once, "{text}: {answer}");
    }
    relay.client().await.fence().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_with_a_long_head_is_not_read_to_its_end() {
    let relay = TestRelay::start().await;
    for (bytes, is_read) in [(60_000, true), (300_000, false)] {
        let text = format!(
            "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX: {}\r\n\r\n",
            "a".repeat(bytes)
        );
        let mut stream = TcpStream::connect(relay.relay.address()).await.unwrap();
        // Fails if the relay closes before it has everything.
        let _ = stream.write_all(text.as_bytes()).await;
        let answer = String::from_utf8(read_to_close(stream).await).unwrap();
        assert_eq!(answer.contains("200 OK"), is_read, "{bytes}: {answer}");
    }
    relay.client().await.fence().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_connection_takes_the_place_of_the_oldest_that_says_nothing() {
    let relay = TestRelay::start_with(|config| {
        config.connections.half_open = 3;
        config.connections.handshake_timeout_s = 3_600;
    })
    .await;
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(send_raw(relay.relay.address(), HANDSHAKE).await);
        // Real clients are served all the time.
        relay.client().await.fence().await;
    }
    for stream in silent.drain(..15) {
        assert!(read_to_close(stream).await.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_answers_pings_stays_and_who_does_not_is_closed() {
    let relay = TestRelay::start_with(|config| {
        config.connections.ping_interval_s = 1;
        config.connections.pong_timeout_s = 1;
    })
    .await;
    // Without a WebSocket library, which would answer pings by itself.
    let silent = send_raw(relay.relay.address(), &format!("{HANDSHAKE}\r\n")).await;
    let silent = tokio::spawn(read_to_close(silent));
    let mut client = relay.client().await;
    for _ in 0..4 {
        let frame = client.next_frame("a ping").await;
        assert!(matches!(frame, Some(Message::Ping(_))), "{frame:?}");
    }
    client.send(&json!(["REQ", "a", { "limit": 0 }])).await;
    while client.next_frame("an EOSE").await != Some(Message::text(r#"["EOSE","a"]"#)) {}
    let frames = silent.await.unwrap();
    let at = |bytes: &[u8]| frames.windows(bytes.len()).position(|window| window == bytes);
    let (ping, reason) = (at(&[0x89, 0]), at(b"no answer to pings"));
    assert!(ping.is_some() && ping < reason, "{:?}", String::from_utf8_lossy(&frames));
}

/// A hundred notes of 50,000 characters: more than the sockets can hold.
async fn fill(relay: &TestRelay) {
    let (author, long) = (Author::new(1), "x".repeat(50_000));
    let notes: Vec<_> = (0..100).map(|second| author.note(events::EPOCH + second, &long)).collect();
    relay.client().await.publish_all(&notes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_takes_nothing_is_closed_and_its_place_is_free() {
    let relay = TestRelay::start_with(|config| {
        config.limits.send_timeout_s = 1;
        config.connections.in_all = 1;
        config.connections.outbound_bytes = 65_536;
    })
    .await;
    fill(&relay).await;
    let mut slow = once_there_is_room(&relay).await;
    for id in 0..20 {
        slow.send(&json!(["REQ", id.to_string(), {}])).await;
    }
    once_there_is_room(&relay).await.fence().await;
}

/// Events for a client that does not read stay in the store, and not in the memory of the system
/// and the relay.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn little_is_read_for_a_client_that_takes_nothing() {
    let relay = TestRelay::start_with(|config| {
        config.limits.send_timeout_s = 1;
        config.connections.in_all = 1;
    })
    .await;
    fill(&relay).await;
    // Once the slot of the filling client is free.
    drop(once_there_is_room(&relay).await);
    let mut silent = loop {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4_096).unwrap();
        let stream = socket.connect(relay.relay.address()).await.unwrap();
        if let Ok((socket, _)) = tokio_tungstenite::client_async(relay.url(), stream).await {
            break socket;
        }
    };
    silent.send(Message::text(r#"["REQ","all",{}]"#)).await.unwrap();
    drop(once_there_is_room(&relay).await);
    let metrics = http(relay.relay.address(), "GET", "/metrics", &[]).await;
    let sent = metrics
        .body
        .lines()
        .find_map(|line| line.strip_prefix(r#"negsync_events_sent_total{kind="stored"} "#));
    // Each takes 50,000 bytes: 500,000 in total.
    assert!((1..=10).contains(&sent.unwrap().parse().unwrap()), "{sent:?} events");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_takes_nothing_does_not_keep_the_relay_from_stopping() {
    let relay = TestRelay::start().await;
    fill(&relay).await;
    let mut slow = relay.client().await;
    for id in 0..20 {
        slow.send(&json!(["REQ", id.to_string(), {}])).await;
    }
    slow.next("the first event").await;
    // After 10 s the relay would give up waiting.
    let stopped = tokio::time::timeout(PATIENCE.mul_f32(0.8), relay.relay.stop());
    assert!(stopped.await.is_ok(), "the relay waits for a client that does not read");
}

/// RFC 6455, section 7.1.1: the relay closes a connection as soon as both sides have sent a close
/// frame. If it waited for the client, which is waiting for the relay, this number of connections
/// would exceed the test's timeout.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_has_answered_a_close_is_not_waited_for() {
    const TIMES: usize = 10;
    let relay = TestRelay::start().await;
    let too_long = [&[0x81, 0xff][..], &(1_u64 << 40).to_be_bytes(), &[0; 4], b"[\""].concat();
    let cases = [
        (1009, too_long),
        (1007, frame(0x81, &[0xff, 0xfe], NO_MASK)),
        (1002, frame(0x83, b"no such frame", NO_MASK)),
        (1000, frame(0x88, &1000_u16.to_be_bytes(), NO_MASK)),
    ];
    let closing = async {
        for (code, cause) in cases.iter().cycle().take(TIMES * cases.len()) {
            let mut stream = send_raw(relay.relay.address(), &format!("{HANDSHAKE}\r\n")).await;
            stream.write_all(cause).await.unwrap();
            let code: u16 = *code;
            let close = [&[0x88, 2][..], &code.to_be_bytes()].concat();
            let mut received = Vec::new();
            while !received.ends_with(&close) {
                let byte = stream.read_u8().await;
                let context = || format!("{code}: {}", String::from_utf8_lossy(&received));
                received.push(byte.unwrap_or_else(|error| panic!("{error}, {}", context())));
            }
            if code != 1000 {
                stream.write_all(&frame(0x88, &close[2..], NO_MASK)).await.unwrap();
            }
            let mut more = Vec::new();
            // A connection that is closed with unread data is reset.
            let _ = stream.read_to_end(&mut more).await;
            assert!(more.is_empty(), "{code}: {more:?}");
        }
    };
    tokio::time::timeout(PATIENCE, closing).await.expect("the relay waits for more");
}

/// A client that does not answer a close frame keeps its slot as long as its socket is open.
#[tokio::test(flavor = "multi_thread")]
async fn who_is_waited_for_still_counts() {
    let relay = TestRelay::start_with(|config| config.connections.in_all = 5).await;
    let mut leaving = Vec::new();
    // On a slow machine each may end before the next one arrives, but not all of them.
    while leaving.len() < 300 {
        let mut stream = send_raw(relay.relay.address(), &format!("{HANDSHAKE}\r\n")).await;
        stream.write_all(&frame(0x83, b"no such frame", NO_MASK)).await.unwrap();
        let close = [&[0x88, 2][..], &1002_u16.to_be_bytes()].concat();
        let mut received = Vec::new();
        while !received.ends_with(&close) {
            match stream.read_u8().await {
                Ok(byte) => received.push(byte),
                Err(_) => break,
            }
        }
        if received.starts_with(b"HTTP/1.1 503 ") {
            break;
        }
        leaving.push(stream);
    }
    assert!((5..300).contains(&leaving.len()), "{}", leaving.len());
}
