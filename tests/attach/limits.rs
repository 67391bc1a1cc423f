//! Limits of the sidecar's clients: connections, NEG sessions and outbound memory.

use super::passing::{PATIENCE, Raw, Stand, echo};
use crate::support::client::Client;
use crate::support::frames::frame;
use crate::support::http::{HANDSHAKE, answer_to, read_to_close, send_raw};
use crate::support::negentropy_client::EMPTY_SET;
use crate::support::{Author, TestRelay, events::EPOCH};
use negsync::config::Config;
use serde_json::json;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

#[tokio::test(flavor = "multi_thread")]
async fn one_connection_too_many_is_refused_with_a_sentence_before_the_relay_hears_of_it() {
    type Change = fn(&mut Config);
    let cases: [(Change, &str, &str); 2] = [
        (|config| config.connections.in_all = 2, "503", "All 2 connections"),
        (|config| config.connections.per_address = 2, "429", "has 2 connections"),
    ];
    for (change, status, sentence) in cases {
        // The relay itself would refuse one more, with another text.
        let relay = TestRelay::start_with(|config| config.connections.in_all = 3).await;
        let stand = Stand::with(relay.relay.address(), change).await;
        let mut first = Client::connect(&stand.url()).await;
        let second = Client::connect(&stand.url()).await;
        let request = format!("{HANDSHAKE}Connection: close\r\n\r\n");
        let answer = answer_to(stand.attach.address(), &request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        assert!(answer.contains(sentence), "{answer}");
        // Plain HTTP needs no slot, connected clients stay, and the slot of a closed connection is
        // free again.
        let plain =
            answer_to(stand.attach.address(), "GET / HTTP/1.1\r\nConnection: close\r\n\r\n");
        assert!(plain.await.starts_with("HTTP/1.1 200 "));
        first.fence().await;
        drop(second);
        let again = async {
            while Client::connect_for(&stand.url(), "-").await.is_err() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, again).await.expect("no place becomes free");
    }
}

/// A proxy before the sidecar distinguishes clients, for the sidecar and for the relay.
#[tokio::test(flavor = "multi_thread")]
async fn behind_a_trusted_proxy_each_client_is_counted_and_named_to_the_relay() {
    let relay = TestRelay::start().await;
    let stand = Stand::with(relay.relay.address(), |config| {
        config.connections.per_address = 1;
        config.connections.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
    })
    .await;
    let url = stand.url();
    let _a = Client::connect_for(&url, "192.0.2.1").await.unwrap_or_else(|code| panic!("{code}"));
    assert_eq!(Client::connect_for(&url, "198.51.100.7, 192.0.2.1").await.err(), Some(429));
    assert!(Client::connect_for(&url, "192.0.2.2").await.is_ok());
    let stand = Stand::with(echo().await, |config| {
        config.connections.trusted_proxies = vec!["127.0.0.1".parse().unwrap()];
    })
    .await;
    let asked = "GET / HTTP/1.1\r\nX-Forwarded-For: 203.0.113.9, 192.0.2.1\r\n\
        Connection: close\r\n\r\n";
    let answer = answer_to(stand.attach.address(), asked).await.to_ascii_lowercase();
    assert!(answer.contains("x-forwarded-for: 192.0.2.1\r\n"), "{answer}");
    assert!(!answer.contains("203.0.113.9"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_that_does_not_come_to_an_end_is_closed_whoever_keeps_it_waiting() {
    let change = |config: &mut Config| config.connections.handshake_timeout_s = 1;
    let relay = TestRelay::start().await;
    let stand = Stand::with(relay.relay.address(), change).await;
    for text in ["", "GET / HTT", HANDSHAKE] {
        let answer = answer_to(stand.attach.address(), text).await;
        assert!(!answer.contains("101"), "{text}: {answer}");
    }
    Client::connect(&stand.url()).await.fence().await;
    // A relay that accepts connections and sends nothing.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stand = Stand::with(silent.local_addr().unwrap(), change).await;
    assert_eq!(answer_to(stand.attach.address(), &format!("{HANDSHAKE}\r\n")).await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_connection_takes_the_place_of_the_oldest_that_says_nothing() {
    let relay = TestRelay::start().await;
    let stand = Stand::with(relay.relay.address(), |config| {
        config.connections.half_open = 3;
        config.connections.handshake_timeout_s = 3_600;
    })
    .await;
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(send_raw(stand.attach.address(), HANDSHAKE).await);
        Client::connect(&stand.url()).await.fence().await;
    }
    for stream in silent.drain(..15) {
        assert!(read_to_close(stream).await.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_neg_session_too_many_is_refused_and_the_others_go_on() {
    let relay = TestRelay::start().await;
    let stand = Stand::with(relay.relay.address(), |config| {
        config.negentropy.sessions = 2;
        config.negentropy.sessions_in_all = 3;
    })
    .await;
    let (mut one, mut other) =
        (Client::connect(&stand.url()).await, Client::connect(&stand.url()).await);
    let ask = |id: &str| json!(["NEG-OPEN", id, {}, EMPTY_SET]);
    let refused = |answer: &serde_json::Value, why: &str| {
        assert_eq!(answer[0], "NEG-ERR", "{answer}");
        let text = answer[2].as_str().unwrap();
        assert!(text.starts_with("rate-limited: ") && text.contains(why), "{answer}");
    };
    for id in ["a", "b"] {
        assert_eq!(one.ask(&ask(id)).await[0], "NEG-MSG");
    }
    refused(&one.ask(&ask("c")).await, "2 NEG sessions are open");
    assert_eq!(other.ask(&ask("a")).await[0], "NEG-MSG");
    refused(&other.ask(&ask("b")).await, "too many NEG sessions");
    assert_eq!(one.ask(&json!(["NEG-MSG", "a", EMPTY_SET])).await[0], "NEG-MSG");
    one.send(&json!(["NEG-CLOSE", "a"])).await;
    one.fence().await;
    assert_eq!(other.ask(&ask("b")).await[0], "NEG-MSG");
    // Every end of a connection frees its slots.
    drop(other);
    let again = async { while one.ask(&ask("a")).await[0] != "NEG-MSG" {} };
    tokio::time::timeout(PATIENCE, again).await.expect("no place becomes free");
}

#[tokio::test(flavor = "multi_thread")]
async fn sets_that_only_sessions_hold_have_a_memory_that_is_given_back() {
    let relay = TestRelay::start().await;
    let stand = Stand::with(relay.relay.address(), |config| {
        config.negentropy.memory_mb = 1;
    })
    .await;
    let author = Author::new(1);
    for number in 0..4_000_usize {
        // With an id of its own and unsigned: the signature is not checked.
        let mut note = author.event(1, EPOCH, json!([]), "");
        note["id"] = json!(format!("{number:064x}"));
        stand.database.publish(&note);
    }
    let open = |number: usize| {
        let filter = json!({ "kinds": [1, 100 + number] });
        json!(["NEG-OPEN", format!("n{number}"), filter, EMPTY_SET])
    };
    let mut client = Client::connect(&stand.url()).await;
    // Each has a filter of its own, and is too cheap to be cached.
    let mut opened = 0;
    let refusal = loop {
        let answer = client.ask(&open(opened)).await;
        if answer[0] == "NEG-ERR" {
            break answer;
        }
        opened += 1;
    };
    assert!((3..30).contains(&opened), "{opened}");
    assert!(refusal[2].as_str().unwrap().starts_with("rate-limited: "), "{refusal}");
    // A set that is in memory anyway takes no additional memory, and neither do messages that pass
    // through.
    assert_eq!(client.ask(&json!(["NEG-OPEN", "all", {}, EMPTY_SET])).await[0], "NEG-MSG");
    client.fence().await;
    for number in 0..opened {
        client.send(&json!(["NEG-CLOSE", format!("n{number}")])).await;
    }
    for number in 0..opened {
        assert_eq!(client.ask(&open(number)).await[0], "NEG-MSG", "{number} of {opened}");
    }
    // The end of a connection frees it too.
    drop(client);
    let mut other = Client::connect(&stand.url()).await;
    for number in 0..opened {
        let again = async { while other.ask(&open(number)).await[0] != "NEG-MSG" {} };
        tokio::time::timeout(PATIENCE, again).await.expect("a lost connection holds sets");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_neg_session_that_is_asked_nothing_is_closed_and_the_connection_goes_on() {
    let relay = TestRelay::start().await;
    let stand = Stand::with(relay.relay.address(), |config| {
        config.negentropy.idle_timeout_s = 1;
    })
    .await;
    let mut client = Client::connect(&stand.url()).await;
    assert_eq!(client.ask(&json!(["NEG-OPEN", "n", {}, EMPTY_SET])).await[0], "NEG-MSG");
    let closed = client.next("a NEG-ERR").await;
    assert_eq!((&closed[0], &closed[1]), (&json!("NEG-ERR"), &json!("n")));
    assert!(closed[2].as_str().unwrap().starts_with("closed: "), "{closed}");
    let gone = client.ask(&json!(["NEG-MSG", "n", EMPTY_SET])).await;
    assert!(gone[2].as_str().unwrap().starts_with("closed: "), "{gone}");
    client.fence().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn neg_messages_have_a_rate_by_address_and_what_passes_has_none() {
    let relay = TestRelay::start().await;
    let stand = Stand::with(relay.relay.address(), |config| {
        let rates = &mut config.rates;
        (rates.neg_per_s, rates.neg_burst) = (1, 2);
        (rates.events_per_s, rates.events_burst) = (1, 1);
        (rates.queries_per_s, rates.queries_burst) = (1, 1);
    })
    .await;
    let mut client = Client::connect(&stand.url()).await;
    // More than the allowance of a second, however slow the machine is.
    let limited = async {
        loop {
            let answer = client.ask(&json!(["NEG-OPEN", "n", {}, EMPTY_SET])).await;
            if answer[0] == "NEG-ERR" {
                return answer;
            }
        }
    };
    let answer = tokio::time::timeout(PATIENCE, limited).await.expect("there is no limit");
    assert!(answer[2].as_str().unwrap().starts_with("rate-limited: 1 NEG messages"), "{answer}");
    for number in 0..10 {
        client.store(&Author::new(3).note(EPOCH + number, "passes")).await;
        client.fence().await;
    }
}

/// The relay's side of the next connection, from the handshake on.
async fn upgraded(listener: &TcpListener) -> TcpStream {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
        Upgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
    stream.write_all(answer.as_bytes()).await.unwrap();
    stream
}

/// A relay for one connection, with all of its bytes for the test.
async fn relay_of_bytes() -> (SocketAddr, oneshot::Receiver<TcpStream>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (give, stream) = oneshot::channel();
    tokio::spawn(async move { give.send(upgraded(&listener).await).unwrap() });
    (address, stream)
}

/// More than the sockets on both sides of the sidecar can hold.
const FLOOD_BYTES: usize = 128 << 20;
const CHUNK_BYTES: usize = 64 << 10;

/// Writes the same bytes repeatedly until all are accepted or none for a while; returns the number
/// accepted.
async fn flood(stream: &mut TcpStream, chunk: &[u8], while_: Duration) -> usize {
    let mut taken = 0;
    while taken < FLOOD_BYTES {
        let from = taken % chunk.len();
        match tokio::time::timeout(while_, stream.write(&chunk[from..])).await {
            Ok(Ok(bytes)) if bytes > 0 => taken += bytes,
            _ => break,
        }
    }
    taken
}

/// Data that a client does not read stays with the relay, and not in the sidecar's memory. The
/// client is closed at the end, and so is the relay's connection.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_takes_nothing_holds_the_relay_back_and_is_closed() {
    let (address, relay) = relay_of_bytes().await;
    let stand = Stand::with(address, |config| {
        config.limits.send_timeout_s = 1;
    })
    .await;
    let (raw, _) = Raw::connect(stand.attach.address(), false).await;
    let mut relay = relay.await.unwrap();
    let mut chunk = vec![0x82, 127];
    chunk.extend((CHUNK_BYTES as u64).to_be_bytes());
    chunk.extend(vec![7; CHUNK_BYTES]);
    // It ends because the sidecar has closed, not because of a timeout.
    let taken = flood(&mut relay, &chunk, PATIENCE).await;
    assert!(taken < FLOOD_BYTES / 2, "{taken} bytes for a client that read none");
    let ended = tokio::time::timeout(PATIENCE, relay.read_to_end(&mut Vec::new())).await;
    assert!(ended.is_ok(), "the relay is not told that the client is gone");
    drop(raw);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_takes_nothing_does_not_keep_the_plugin_from_stopping() {
    let (address, relay) = relay_of_bytes().await;
    let stand = Stand::before(address).await;
    let (mut raw, _) = Raw::connect(stand.attach.address(), false).await;
    let mut relay = relay.await.unwrap();
    let question = json!(["NEG-OPEN", "n", {}, EMPTY_SET]).to_string();
    let question = frame(0x81, question.as_bytes(), [1, 2, 3, 4]);
    // On a slow machine these may stop early; then there is less to wait for.
    let patience = Duration::from_millis(500);
    flood(&mut relay, &[&[0x82, 126, 0x40, 0][..], &[7; 0x4000]].concat(), patience).await;
    flood(&mut raw.stream, &question, patience).await;
    // After 10 s it would give up waiting.
    let stopped = tokio::time::timeout(PATIENCE.mul_f32(0.8), stand.attach.stop());
    assert!(stopped.await.is_ok(), "the plugin waits for a client that does not read");
}

/// Requests fill the sockets, and no answer is read.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_takes_no_answers_is_not_asked_on_and_is_closed() {
    let relay = TestRelay::start().await;
    let stand = Stand::with(relay.relay.address(), |config| {
        config.limits.send_timeout_s = 1;
        config.rates.neg_per_s = 0;
    })
    .await;
    let (mut raw, _) = Raw::connect(stand.attach.address(), false).await;
    let question = json!(["NEG-OPEN", "n", {}, EMPTY_SET]).to_string();
    let chunk = frame(0x81, question.as_bytes(), [1, 2, 3, 4]);
    let taken = flood(&mut raw.stream, &chunk, PATIENCE).await;
    assert!(taken < FLOOD_BYTES / 2, "{taken} bytes of questions without an answer");
    Client::connect(&stand.url()).await.fence().await;
}

/// Data that the relay does not read stays with the client; once it reads, every byte arrives.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_takes_nothing_holds_the_client_back_and_loses_nothing() {
    let (address, relay) = relay_of_bytes().await;
    let stand = Stand::before(address).await;
    let (mut raw, _) = Raw::connect(stand.attach.address(), false).await;
    let mut relay = relay.await.unwrap();
    let chunk = frame(0x82, &vec![7; CHUNK_BYTES], [1, 2, 3, 4]);
    // On a slow machine it may stop early; it must not reach the end.
    let taken = flood(&mut raw.stream, &chunk, Duration::from_millis(500)).await;
    assert!(taken < FLOOD_BYTES / 2, "{taken} bytes for a relay that read none");
    raw.stream.shutdown().await.unwrap();
    let mut passed = Vec::new();
    let reading = relay.read_to_end(&mut passed);
    tokio::time::timeout(PATIENCE, reading).await.expect("the end does not come").unwrap();
    assert_eq!(passed.len(), taken);
    assert!(passed.chunks(chunk.len()).all(|part| part == &chunk[..part.len()]));
}

/// A relay that accepts connections and does not read: its clients are told so, and their slots
/// become free.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_a_relay_that_takes_nothing_is_told_so_and_its_place_is_free() {
    let (address, relay) = relay_of_bytes().await;
    let stand = Stand::with(address, |config| {
        config.limits.send_timeout_s = 1;
        config.connections.in_all = 1;
    })
    .await;
    let (raw, _) = Raw::connect(stand.attach.address(), false).await;
    let relay = relay.await.unwrap();
    let (mut from, mut to) = raw.stream.into_split();
    let chunk = frame(0x82, &vec![7; CHUNK_BYTES], [1, 2, 3, 4]);
    // Written as long as it is accepted, like a client with many messages.
    let writing = tokio::spawn(async move { while to.write_all(&chunk).await.is_ok() {} });
    let mut received = Vec::new();
    let read = tokio::time::timeout(PATIENCE, from.read_to_end(&mut received)).await;
    let _ = read.expect("the client waits for ever");
    let reason = b"send timeout: the relay does not read";
    let close = [&[0x88, 2 + reason.len() as u8][..], &1012_u16.to_be_bytes(), reason].concat();
    assert_eq!(received, close, "{}", String::from_utf8_lossy(&received));
    let again = async {
        let request = format!("{HANDSHAKE}Connection: close\r\n\r\n");
        while answer_to(stand.attach.address(), &request).await.contains(" 503 ") {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, again).await.expect("its place is not free");
    writing.abort();
    drop(relay);
}

/// The relay has begun a message, within which no answer of ours may be sent.
#[tokio::test(flavor = "multi_thread")]
async fn answers_do_not_wait_for_ever_for_the_end_of_a_relays_message() {
    let (address, relay) = relay_of_bytes().await;
    let stand = Stand::with(address, |config| {
        config.limits.send_timeout_s = 1;
    })
    .await;
    let (mut raw, _) = Raw::connect(stand.attach.address(), false).await;
    let mut relay = relay.await.unwrap();
    relay.write_all(b"\x01\x05[\"NOT").await.unwrap();
    let mut begun = [0; 7];
    let begun = raw.stream.read_exact(&mut begun);
    tokio::time::timeout(PATIENCE, begun).await.unwrap().unwrap();
    let question = json!(["NEG-OPEN", "n", {}, EMPTY_SET]).to_string();
    raw.stream.write_all(&frame(0x81, question.as_bytes(), [1; 4])).await.unwrap();
    assert_eq!(read_to_close(raw.stream).await, b"");
    let told = tokio::time::timeout(PATIENCE, relay.read_to_end(&mut Vec::new())).await;
    told.expect("the relay is not let go").unwrap();
}

/// RFC 6455, section 5.5.1.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_said_after_the_relay_has_closed() {
    let (address, relay) = relay_of_bytes().await;
    let stand = Stand::before(address).await;
    let (mut raw, _) = Raw::connect(stand.attach.address(), false).await;
    let mut relay = relay.await.unwrap();
    let close = [&[0x88, 2][..], &1000_u16.to_be_bytes()].concat();
    relay.write_all(&close).await.unwrap();
    let mut received = [0; 4];
    let closed = raw.stream.read_exact(&mut received);
    tokio::time::timeout(PATIENCE, closed).await.unwrap().unwrap();
    assert_eq!(received.as_slice(), close);
    let question = json!(["NEG-OPEN", "n", {}, EMPTY_SET]).to_string();
    raw.stream.write_all(&frame(0x81, question.as_bytes(), [1; 4])).await.unwrap();
    let answer = frame(0x88, &close[2..], [1; 4]);
    raw.stream.write_all(&answer).await.unwrap();
    // It reaches the relay after the question.
    let mut passed = vec![0; answer.len()];
    let read = tokio::time::timeout(PATIENCE, relay.read_exact(&mut passed)).await;
    read.unwrap().unwrap();
    assert_eq!(passed, answer);
    drop(relay);
    assert_eq!(read_to_close(raw.stream).await, b"");
}

/// A client that has sent a close frame keeps its slot as long as the relay continues the
/// connection.
#[tokio::test(flavor = "multi_thread")]
async fn who_is_on_the_way_out_still_counts() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut all = Vec::new();
        loop {
            all.push(upgraded(&listener).await);
        }
    });
    let most = 5;
    let stand = Stand::with(address, |config| {
        config.connections.in_all = most;
    })
    .await;
    let mut leaving = Vec::new();
    // On a slow machine each may end before the next one arrives, but not all of them.
    while leaving.len() < 500 {
        let (mut raw, head) = Raw::connect(stand.attach.address(), false).await;
        if head.contains(" 503 ") {
            break;
        }
        raw.stream.shutdown().await.unwrap();
        leaving.push(raw);
    }
    assert!((5..500).contains(&leaving.len()), "{} of {most}", leaving.len());
}

/// A connection to a relay that does not answer a request ends with the client's.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_answers_no_request_is_let_go() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stand = Stand::with(silent.local_addr().unwrap(), |config| {
        config.connections.handshake_timeout_s = 1;
    })
    .await;
    let _client = send_raw(stand.attach.address(), "GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
    let (mut stream, _) = silent.accept().await.unwrap();
    let let_go = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut Vec::new())).await;
    let_go.expect("it is waited for for ever").unwrap();
}

/// A NEG message is kept here until it is complete; all others pass, and their timeout is the
/// relay's.
#[tokio::test(flavor = "multi_thread")]
async fn a_neg_message_that_is_begun_has_to_end_in_time() {
    let (address, relay) = relay_of_bytes().await;
    let stand = Stand::with(address, |config| {
        config.connections.message_timeout_s = 1;
        config.connections.incoming_bytes_per_address = 65_536;
    })
    .await;
    let (mut raw, _) = Raw::connect(stand.attach.address(), false).await;
    let mut relay = relay.await.unwrap();
    let long = "00".repeat(100_000);
    let whole = frame(0x81, json!(["NEG-MSG", "n", long]).to_string().as_bytes(), [1; 4]);
    // Above the total room, so that it takes all of it.
    raw.stream.write_all(&whole).await.unwrap();
    let mut first = vec![0; 6];
    let answered = raw.stream.read_exact(&mut first);
    tokio::time::timeout(PATIENCE, answered).await.unwrap().unwrap();
    raw.stream.write_all(&whole[..50_000]).await.unwrap();
    let received = read_to_close(raw.stream).await;
    let received = String::from_utf8_lossy(&received);
    assert!(received.contains("no session of this id"), "{received}");
    assert!(received.contains("closed: message timeout"), "{received}");
    let mut passed = Vec::new();
    let told = tokio::time::timeout(PATIENCE, relay.read_to_end(&mut passed)).await;
    told.expect("the relay is not let go").unwrap();
    assert!(passed.is_empty(), "the relay got {} bytes", passed.len());
}

/// A client that is banned while connected is told at its next message; neither its connection nor
/// the next one reaches the relay.
#[tokio::test(flavor = "multi_thread")]
async fn a_banned_address_is_refused_until_it_is_banned_no_longer() {
    let relay = TestRelay::start().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bans");
    let stand = Stand::with(relay.relay.address(), |config| {
        config.moderation.file.clone_from(&file);
        config.connections.trusted_proxies = vec!["127.0.0.1".parse().unwrap()];
    })
    .await;
    let (banned, other) = ("203.0.113.7", "203.0.113.8");
    let mut client = Client::connect_for(&stand.url(), banned).await.unwrap();
    let mut bystander = Client::connect_for(&stand.url(), other).await.unwrap();
    client.fence().await;

    std::fs::write(&file, format!("ip {banned} loud\n")).unwrap();
    client.send(&json!(["REQ", "x", {}])).await;
    client.expect(json!(["NOTICE", "blocked: your address is banned"])).await;
    assert_eq!(client.close_code().await, 1_008);
    assert_eq!(Client::connect_for(&stand.url(), banned).await.err(), Some(403));
    bystander.fence().await;

    std::fs::write(&file, "").unwrap();
    Client::connect_for(&stand.url(), banned).await.unwrap().fence().await;
}
