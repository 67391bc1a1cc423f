//! Traffic that passes through the sidecar: everything except NEG, byte for byte, in both
//! directions.

use super::database::Database;
use crate::support::events::{Author, EPOCH, generate};
use crate::support::frames::frame;
use crate::support::http::answer_to;
use crate::support::negentropy_client::neg_ids;
use crate::support::{Client, TestRelay, model};
use negsync::config::Config;
use negsync::sidecar::{Attach, open_sets};
use negsync::store::RelayKind;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

pub const PATIENCE: Duration = Duration::from_secs(10);

/// The sidecar before a relay at `address`, over a database with events that the relay lacks: the
/// answers show who answered.
pub struct Stand {
    pub attach: Attach,
    pub config: Config,
    pub database: Database,
    pub folder: TempDir,
}

impl Stand {
    pub async fn before(address: SocketAddr) -> Self {
        Self::with(address, |_| {}).await
    }

    /// With a configuration changed by `change`.
    pub async fn with(address: SocketAddr, change: impl FnOnce(&mut Config)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("relay.db");
        let database = Database::new(RelayKind::NostrRsRelay, &path);
        generate(5, 100).iter().for_each(|event| database.publish(event));
        let mut config = config(RelayKind::NostrRsRelay, &path, address);
        change(&mut config);
        let sets = open_sets(&config).unwrap();
        let attach = Attach::start(config.clone(), sets).await.unwrap();
        Self { attach, config, database, folder }
    }

    pub fn url(&self) -> String {
        format!("ws://{}", self.attach.address())
    }

    pub fn ids(&self) -> BTreeSet<String> {
        model::ids(&self.database.visible(crate::support::events::unix_now()))
    }
}

pub fn config(kind: RelayKind, path: &Path, address: SocketAddr) -> Config {
    let mut config = Config::default();
    config.relay.listen = "127.0.0.1:0".parse().unwrap();
    config.attach.kind = Some(kind);
    config.attach.path = path.to_owned();
    config.attach.url = format!("ws://{address}");
    config
}

const TEXT: u8 = 0x81;
const PING: u8 = 0x89;
const CLOSE: u8 = 0x88;

/// A connection on which every byte is compared.
pub struct Raw {
    pub stream: TcpStream,
    received: Vec<u8>,
}

impl Raw {
    pub async fn connect(address: SocketAddr, compresses: bool) -> (Self, String) {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let extensions =
            if compresses { "Sec-WebSocket-Extensions: permessage-deflate\r\n" } else { "" };
        let request = format!(
            "GET / HTTP/1.1\r\nHost: relay.example\r\nConnection: Upgrade\r\n\
             Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{extensions}\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        (Self { stream, received: Vec::new() }, String::from_utf8(head).unwrap())
    }

    /// Reads until the received bytes after `from` contain `end`.
    async fn read_to(&mut self, end: &[u8], from: usize) {
        let found =
            |bytes: &[u8]| end.is_empty() || bytes.windows(end.len()).any(|window| window == end);
        let mut looked = from;
        while !found(&self.received[looked..]) {
            looked = self.received.len().saturating_sub(end.len()).max(from);
            let mut buffer = [0; 16_384];
            let read = tokio::time::timeout(PATIENCE, self.stream.read(&mut buffer)).await;
            let received = || String::from_utf8_lossy(&self.received).into_owned();
            let read = read.unwrap_or_else(|_| panic!("{}", received())).unwrap();
            assert!(read > 0, "closed: {}", received());
            self.received.extend_from_slice(&buffer[..read]);
        }
    }

    async fn read_to_end(&mut self) {
        let reading = self.stream.read_to_end(&mut self.received);
        tokio::time::timeout(PATIENCE, reading).await.unwrap().unwrap();
    }
}

/// The messages of a conversation and the expected answers. Made once, because signatures are
/// random.
fn conversation() -> Vec<(Value, &'static str)> {
    let author = Author::new(1);
    let mut event = author.note(EPOCH + 1, &"long ".repeat(14_000));
    let long = json!(["EVENT", event]).to_string();
    event["sig"] = json!("00");
    vec![
        (json!(["REQ", "all", {}]), r#"["EOSE","all",["finish"]]"#),
        // Live events and their OKs come in any order.
        (json!(["CLOSE", "all"]), ""),
        (json!(["EVENT", author.note(EPOCH, "short")]), r#",true,""#),
        (serde_json::from_str(&long).unwrap(), r#",true,""#),
        (json!(["EVENT", event]), r#",false,"invalid:"#),
        (json!(["REQ", "again", { "kinds": [1] }]), r#"["EOSE","again",["finish"]]"#),
        (json!(["COUNT", "count", {}]), r#"["COUNT","count""#),
        (json!(["NEGATE", "x"]), "unknown verb"),
        (json!({ "NEG-OPEN": 1 }), "NOTICE"),
        (json!(["REQ", "NEG-OPEN", { "limit": 1 }]), r#"["EOSE","NEG-OPEN",["more"]]"#),
    ]
}

/// Sends a conversation in randomly cut frames, after the relay's `greeting`, and returns every
/// byte received.
pub async fn converse(
    address: SocketAddr,
    greeting: &str,
    steps: &[(Value, &str)],
    has_binary: bool,
    seed: u64,
) -> Vec<u8> {
    let mut rng = StdRng::seed_from_u64(seed);
    let (mut raw, _) = Raw::connect(address, false).await;
    // Unsolicited messages and answers of a relay come in any order.
    raw.read_to(greeting.as_bytes(), 0).await;
    for (number, (message, end)) in steps.iter().enumerate() {
        let from = raw.received.len();
        let text = message.to_string();
        let mask = rng.random();
        let mut bytes = if number % 3 == 0 {
            // In several frames, with a ping between them.
            let (first, second) = text.split_at(rng.random_range(1..text.len()));
            let ping = format!("between {number}");
            [
                frame(0x01, first.as_bytes(), mask),
                frame(PING, ping.as_bytes(), rng.random()),
                frame(0x80, second.as_bytes(), mask),
            ]
            .concat()
        } else {
            frame(TEXT, text.as_bytes(), mask)
        };
        let fence = format!("fence {number}");
        while !bytes.is_empty() {
            let cut: Vec<u8> = bytes.drain(..rng.random_range(1..=bytes.len())).collect();
            raw.stream.write_all(&cut).await.unwrap();
            tokio::task::yield_now().await;
        }
        raw.read_to(end.as_bytes(), from).await;
        raw.stream.write_all(&frame(PING, fence.as_bytes(), rng.random())).await.unwrap();
        raw.read_to(fence.as_bytes(), from).await;
    }
    if has_binary {
        raw.stream.write_all(&frame(0x82, b"binary", rng.random())).await.unwrap();
        raw.read_to(b"binary messages are", 0).await;
    }
    raw.stream.write_all(&frame(CLOSE, &[0x0f, 0xa1, b'b', b'y', b'e'], [7; 4])).await.unwrap();
    raw.read_to_end().await;
    without_challenge(raw.received)
}

/// NIP-42: replaces the random part of an answer by zeros.
fn without_challenge(mut received: Vec<u8>) -> Vec<u8> {
    const BEGIN: &[u8] = br#"["AUTH",""#;
    if let Some(at) = received.windows(BEGIN.len()).position(|bytes| bytes == BEGIN) {
        received[at + BEGIN.len()..].iter_mut().take_while(|b| **b != b'"').for_each(|b| *b = b'0');
    }
    received
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_without_neg_is_the_same_to_the_byte() {
    for seed in 0..2 {
        let mut received = Vec::new();
        let (stored, steps) = (generate(8, 60), conversation());
        for is_direct in [true, false] {
            let relay = TestRelay::start().await;
            let mut client = relay.client().await;
            client.publish_all(&stored).await;
            let stand = Stand::before(relay.relay.address()).await;
            let address = if is_direct { relay.relay.address() } else { stand.attach.address() };
            received.push(converse(address, r#"["AUTH","#, &steps, true, seed).await);
        }
        assert_same(&received[0], &received[1], &format!("seed {seed}"));
    }
}

/// On a difference, fails with the bytes around it.
pub fn assert_same(direct: &[u8], through: &[u8], context: &str) {
    let at = direct.iter().zip(through).position(|(one, other)| one != other);
    let shown = |bytes: &[u8]| {
        let from = at.unwrap_or(direct.len().min(through.len())).saturating_sub(80);
        let bytes = &bytes[from.min(bytes.len())..(from + 300).min(bytes.len())];
        String::from_utf8_lossy(bytes).into_owned()
    };
    assert!(direct == through, "{context}: {} and {}", shown(direct), shown(through));
}

#[tokio::test(flavor = "multi_thread")]
async fn neg_is_answered_from_the_database_and_all_else_by_the_relay() {
    let relay = TestRelay::start().await;
    let stand = Stand::before(relay.relay.address()).await;
    let note = Author::new(9).note(EPOCH, "on the relay alone");
    let mut client = Client::connect(&stand.url()).await;
    client.store(&note).await;
    assert_eq!(neg_ids(&mut client, &json!({})).await, stand.ids());
    assert_eq!(model::ids(&client.query(&[json!({})]).await), model::ids([&note]));
    // The relay would answer differently.
    let unknown = client.ask(&json!(["NEG-MSG", "nothing", "61"])).await;
    assert!(unknown[2].as_str().unwrap().starts_with("closed:"), "{unknown}");
    let bad = client.ask(&json!(["NEG-OPEN", "n", { "kinds": "x" }, "61"])).await;
    assert!(bad[2].as_str().unwrap().starts_with("invalid:"), "{bad}");
    client.send(&json!(["NEG-CLOSE", "n"])).await;
    client.fence().await;
}

/// The verb is found in every spelling and every division of the message into frames.
#[tokio::test(flavor = "multi_thread")]
async fn a_neg_verb_is_known_in_any_writing() {
    let relay = TestRelay::start().await;
    let stand = Stand::before(relay.relay.address()).await;
    for text in [
        r#"["NEG-OPEN","n",{},"6100000200"]"#.to_owned(),
        " \n[\t\"NEG-OPEN\" , \"n\",{},\"6100000200\"]".to_owned(),
        r#"["\u004eEG-OPEN","n",{},"6100000200"]"#.to_owned(),
    ] {
        for parts in [1, 2, text.len()] {
            let (mut raw, head) = Raw::connect(stand.attach.address(), true).await;
            assert!(!head.to_ascii_lowercase().contains("extensions"), "{head}");
            let chunks: Vec<&[u8]> = text.as_bytes().chunks(text.len().div_ceil(parts)).collect();
            for (place, chunk) in chunks.iter().enumerate() {
                let last = if place + 1 == chunks.len() { 0x80 } else { 0 };
                let opcode = u8::from(place == 0);
                raw.stream.write_all(&frame(last | opcode, chunk, [3, 1, 4, 1])).await.unwrap();
            }
            raw.read_to(br#"["NEG-MSG","n","61"#, 0).await;
        }
    }
}

/// Both ends of a connection that passes through.
async fn both_ends() -> (Stand, Raw, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stand = Stand::before(listener.local_addr().unwrap()).await;
    let relay = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        tokio_tungstenite::accept_async(stream).await.unwrap().into_inner()
    });
    let (raw, _) = Raw::connect(stand.attach.address(), false).await;
    (stand, raw, relay.await.unwrap())
}

/// A client that begins a message and sends only empty frames: the held bytes are passed on before
/// they take much memory.
#[tokio::test(flavor = "multi_thread")]
async fn frames_without_a_text_are_not_kept() {
    let (_stand, mut raw, mut relay) = both_ends().await;
    let begun = frame(0x01, b"", [1; 4]);
    let more = frame(0x00, b"", [2; 4]).repeat(10_000);
    raw.stream.write_all(&[begun.as_slice(), &more].concat()).await.unwrap();
    let mut passed = vec![0; begun.len() + more.len()];
    tokio::time::timeout(PATIENCE, relay.read_exact(&mut passed)).await.unwrap().unwrap();
    assert_same(&[begun, more].concat(), &passed, "what passed");
}

/// Bytes held for the verb's sake are passed on when the client breaks the message off.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_broken_off_passes() {
    let (_stand, mut raw, mut relay) = both_ends().await;
    let sent = [frame(0x01, b"[\"NE", [1; 4]), frame(TEXT, b"[\"REQ\",\"x\",{}]", [2; 4])].concat();
    raw.stream.write_all(&sent).await.unwrap();
    raw.stream.shutdown().await.unwrap();
    let mut passed = Vec::new();
    tokio::time::timeout(PATIENCE, relay.read_to_end(&mut passed)).await.unwrap().unwrap();
    assert_same(&sent, &passed, "what passed");
}

/// Answers are sent between the relay's messages, never within one.
#[tokio::test(flavor = "multi_thread")]
async fn answers_and_the_relays_messages_come_whole() {
    let relay = TestRelay::start().await;
    let author = Author::new(2);
    let notes: Vec<Value> =
        (0..40).map(|at| author.note(EPOCH + at, &"x".repeat(20_000))).collect();
    relay.client().await.publish_all(&notes).await;
    let stand = Stand::before(relay.relay.address()).await;
    let mut client = Client::connect(&stand.url()).await;
    for round in 0..20 {
        client.send(&json!(["REQ", "all", {}])).await;
        for number in 0..10 {
            let id = format!("n{number}");
            client.send(&json!(["NEG-OPEN", id, {}, "6100000200"])).await;
        }
        let (mut events, mut answers, mut ended) = (0, 0, false);
        while !ended || answers < 10 {
            let message = client.next("an EVENT, EOSE or NEG-MSG").await;
            match message[0].as_str() {
                Some("EVENT") => events += 1,
                Some("EOSE") => ended = true,
                Some("NEG-MSG") => answers += 1,
                _ => panic!("{message}"),
            }
        }
        assert_eq!(events, 40, "round {round}");
        client.send(&json!(["CLOSE", "all"])).await;
    }
}

/// A relay that returns what it gets, with the client's address.
pub async fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            let head = String::from_utf8(head).unwrap();
            let is_chunked = head.contains("/chunked");
            let is_without_body = head.starts_with("HEAD ");
            let body = if head.contains("nostr+json") {
                r#"{"name":"theirs","supported_nips":[1,11],"limitation":{"max_limit":7}}"#
                    .to_owned()
            } else {
                head
            };
            let length = match is_chunked {
                true => "Transfer-Encoding: chunked".to_owned(),
                false => format!("Content-Length: {}", body.len()),
            };
            let body = match is_chunked {
                _ if is_without_body => String::new(),
                true => format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len()),
                false => body,
            };
            let answer = format!(
                "HTTP/1.1 200 OK\r\nX-Own: yes\r\n{length}\r\nConnection: close\r\n\r\n{body}"
            );
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn the_document_is_the_relays_with_77_and_other_http_is_the_relays() {
    let stand = Stand::before(echo().await).await;
    for path in ["/", "/chunked"] {
        let asked = format!(
            "GET {path} HTTP/1.1\r\nHost: x\r\nAccept: application/nostr+json\r\n\
             Connection: close\r\n\r\n"
        );
        let answer = answer_to(stand.attach.address(), &asked).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let head = head.to_ascii_lowercase();
        assert!(head.contains("x-own: yes") && !head.contains("chunked"), "{head}");
        assert!(head.contains(&format!("content-length: {}", body.len())), "{head}");
        let document: Value = serde_json::from_str(body).unwrap();
        let limitation = json!({ "max_limit": 7 });
        let nips = [1, 11, 77];
        let expected =
            json!({ "name": "theirs", "supported_nips": nips, "limitation": limitation });
        assert_eq!(document, expected, "{path}");
    }
    // There is no body to read.
    let asked = "HEAD / HTTP/1.1\r\nHost: x\r\nAccept: application/nostr+json\r\n\
        Connection: close\r\n\r\n";
    let answer = answer_to(stand.attach.address(), asked).await.to_ascii_lowercase();
    assert!(answer.starts_with("http/1.1 200 ") && answer.contains("x-own: yes"), "{answer}");
    assert!(!answer.contains("content-length: 0"), "{answer}");
    let asked = "POST /some/where?a=b HTTP/1.1\r\nHost: relay.example\r\nX-Other: 1\r\n\
        x-forwarded-for: 203.0.113.9\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    let answer = answer_to(stand.attach.address(), asked).await.to_ascii_lowercase();
    assert!(answer.contains("post /some/where?a=b http/1.1"), "{answer}");
    assert!(answer.contains("host: relay.example\r\n"), "{answer}");
    assert!(answer.contains("x-other: 1\r\n"), "{answer}");
    assert!(answer.contains("x-forwarded-for: 127.0.0.1\r\n"), "{answer}");
    assert!(!answer.contains("203.0.113.9"), "{answer}");
}

/// No header by which some relay may identify a client is passed on.
#[tokio::test(flavor = "multi_thread")]
async fn no_header_by_which_a_client_is_another_one_is_passed_on() {
    let stand = Stand::before(echo().await).await;
    for name in [
        "Forwarded",
        "X-Forwarded-For",
        "X-Forwarded-Host",
        "X-Forwarded-Proto",
        "X_Forwarded_For",
        "X-Original-Forwarded-For",
        "X-Real-IP",
        "X-Client-IP",
        "X-Cluster-Client-IP",
        "CF-Connecting-IP",
        "CF-Connecting-IPv6",
        "True-Client-IP",
        "Fly-Client-IP",
        "Fastly-Client-IP",
        "Client-IP",
    ] {
        let asked = format!(
            "GET / HTTP/1.1\r\nHost: x\r\n{name}: for=203.0.113.9\r\n{name}: 203.0.113.9\r\n\
             X-Other: 1\r\nConnection: close\r\n\r\n"
        );
        let answer = answer_to(stand.attach.address(), &asked).await.to_ascii_lowercase();
        assert!(!answer.contains("203.0.113.9"), "{name}: {answer}");
        assert!(answer.contains("x-forwarded-for: 127.0.0.1\r\n"), "{name}: {answer}");
        assert!(answer.contains("x-other: 1\r\n"), "{name}: {answer}");
    }
}

/// RFC 6455, sections 5.1 and 5.2.
#[tokio::test(flavor = "multi_thread")]
async fn frames_that_a_client_must_not_send_end_the_connection_with_1002() {
    let relay = TestRelay::start().await;
    let stand = Stand::before(relay.relay.address()).await;
    let unmasked = |payload: &[u8]| [&[TEXT, payload.len() as u8], payload].concat();
    let open = br#"["NEG-OPEN","n",{},"6100000200"]"#;
    // Often through the sidecar: the end of its connection to the relay must not win.
    let addresses = [relay.relay.address()].into_iter().chain([stand.attach.address(); 20]);
    for address in addresses {
        let frames = [
            unmasked(open),
            unmasked(br#"["REQ","r",{}]"#),
            frame(TEXT | 0x40, open, [1, 2, 3, 4]),
            frame(TEXT | 0x20, open, [1, 2, 3, 4]),
            frame(PING | 0x10, b"", [1, 2, 3, 4]),
        ];
        for bytes in frames {
            let (mut raw, _) = Raw::connect(address, false).await;
            raw.stream.write_all(&bytes).await.unwrap();
            raw.read_to_end().await;
            let received = String::from_utf8_lossy(&raw.received).into_owned();
            assert!(!received.contains("NEG-MSG") && !received.contains("EOSE"), "{received}");
            // A close frame with code 1002.
            assert!(
                raw.received.windows(3).any(|it| it[0] >= 2 && it[1..] == [0x03, 0xea]),
                "{received}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_is_away_or_goes_is_said_to_be() {
    let relay = TestRelay::start().await;
    let stand = Stand::before(relay.relay.address()).await;
    let mut client = Client::connect(&stand.url()).await;
    client.fence().await;
    relay.relay.stop().await;
    assert_eq!(client.close_code().await, 1001, "the relay's own");
    let asked = "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let answer = answer_to(stand.attach.address(), asked).await;
    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
}

/// A killed relay sends nothing: the sidecar tells the client.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_vanishes_is_told_with_1012() {
    let relay = TestRelay::start().await;
    let target = relay.relay.address();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (cut, is_cut) = tokio::sync::oneshot::channel::<()>();
    tokio::spawn(async move {
        let (mut client, _) = listener.accept().await.unwrap();
        let mut relay = TcpStream::connect(target).await.unwrap();
        tokio::select! {
            _ = tokio::io::copy_bidirectional(&mut client, &mut relay) => {}
            _ = is_cut => {}
        }
    });
    let stand = Stand::before(address).await;
    let mut client = Client::connect(&stand.url()).await;
    client.fence().await;
    cut.send(()).unwrap();
    assert_eq!(client.close_code().await, 1012);
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_closes_with_1001_and_leaves_nothing_behind() {
    let relay = TestRelay::start().await;
    let stand = Stand::before(relay.relay.address()).await;
    let mut client = Client::connect(&stand.url()).await;
    client.fence().await;
    let stopping = tokio::spawn(stand.attach.stop());
    assert_eq!(client.close_code().await, 1001);
    drop(client);
    stopping.await.unwrap();
}

/// While the database is missing, NEG-OPEN is refused and everything else continues; when it is
/// back, so are the sets.
#[tokio::test(flavor = "multi_thread")]
async fn without_the_database_neg_is_refused_and_all_else_goes_on() {
    let relay = TestRelay::start().await;
    let stand = Stand::before(relay.relay.address()).await;
    let mut client = Client::connect(&stand.url()).await;
    let expected = stand.ids();
    assert_eq!(neg_ids(&mut client, &json!({})).await, expected);
    let (path, away) = (stand.database.path.clone(), stand.folder.path().join("away.db"));
    stand.database.connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    std::fs::rename(&path, &away).unwrap();
    let refused = client.ask(&json!(["NEG-OPEN", "n", {}, "6100000200"])).await;
    assert!(refused[2].as_str().unwrap().starts_with("error:"), "{refused}");
    client.fence().await;
    std::fs::rename(&away, &path).unwrap();
    assert_eq!(neg_ids(&mut client, &json!({})).await, expected);
}
