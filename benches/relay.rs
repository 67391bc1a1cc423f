//! The relay as clients see it: a process with a store of a million events, measured over a socket,
//! each figure beside its baseline.
//!
//! `cargo bench --bench relay -- set|negotiate|query|publish`; `negotiate 10000000` measures the
//! start with that number of events.

mod support;

use futures_util::{SinkExt, StreamExt};
use negsync::index::Tree;
use negsync::item::Item;
use negsync::store::{Filter, Reader};
use rusqlite::{Connection, OpenFlags};
use std::io::{BufRead, BufReader};
use std::ops::ControlFlow;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use support::{START, bare_verification, fill, parse, rate, report, report_most, signed_events};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

const STORED: usize = 1_000_000;
const PUBLISHED: usize = 40_000;
const IN_FLIGHT: usize = 500;
const PAGED: usize = 200_000;
const PAGE: usize = 500;
const SESSIONS: usize = 1_000;
const IDLE: usize = 5_000;

fn main() {
    let dir = tempfile::tempdir().unwrap();
    let million = dir.path().join("million.sqlite");
    let start = Instant::now();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let stored = arguments.iter().find_map(|text| text.parse().ok()).unwrap_or(STORED);
    fill(&million, stored);
    println!("store of {stored} events made in {:.0} s", start.elapsed().as_secs_f64());
    let parts = ["set", "negotiate", "large-sets", "idle", "query", "publish"];
    let all = !arguments.iter().any(|text| parts.contains(&text.as_str()));
    let is_asked = |part: &str| all || arguments.iter().any(|text| text == part);
    if is_asked("set") {
        build_set(&million);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        if is_asked("negotiate") {
            negotiate(&million, stored).await;
        }
        if is_asked("large-sets") {
            large_sets(&million).await;
        }
        if is_asked("idle") {
            idle(&million).await;
        }
        if is_asked("query") {
            query(&million).await;
        }
        if is_asked("publish") {
            publish(dir.path(), &million).await;
        }
    });
}

/// Rows a second from the file to a set that can be reconciled, beside a bare covering scan.
fn build_set(path: &Path) {
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    connection.execute_batch("PRAGMA mmap_size = 68719476736").unwrap();
    let reader = Reader::open(path, 1).unwrap();
    let (mut bare, mut ours) = (Duration::MAX, Duration::MAX);
    for _ in 0..3 {
        let start = Instant::now();
        let mut statement = connection
            .prepare(&format!(
                "SELECT created_at, id FROM event INDEXED BY event_time {} ORDER BY created_at",
                public(&connection)
            ))
            .unwrap();
        let mut rows = statement.query([]).unwrap();
        let mut items = Vec::new();
        while let Some(row) = rows.next().unwrap() {
            items.push(Item::new(row.get::<_, i64>(0).unwrap() as u64, row.get(1).unwrap()));
        }
        bare = bare.min(start.elapsed());
        assert_eq!(items.len(), STORED);
        let start = Instant::now();
        let mut items = Vec::new();
        reader
            .items(&Filter::default(), |item| {
                items.push(item);
                ControlFlow::Continue(())
            })
            .unwrap();
        let tree = Tree::from_unsorted(items);
        ours = ours.min(start.elapsed());
        assert!(tree.memory_bytes() > 0);
    }
    report("set of 1M built", rate(STORED, ours), 5e6, "rows/s", 1.0);
    report("the same beside a bare scan", rate(STORED, ours), rate(STORED, bare), "rows/s", 0.5);
}

/// The condition of the index over times, which excludes private kinds.
fn public(connection: &Connection) -> String {
    let definition = "SELECT sql FROM sqlite_schema WHERE name = 'event_time'";
    let definition: String = connection.query_row(definition, [], |row| row.get(0)).unwrap();
    format!("WHERE {}", definition.split_once(" WHERE ").unwrap().1)
}

/// A relay process; ended when dropped.
struct Relay {
    process: Child,
    url: String,
}

impl Relay {
    fn start(store: &Path) -> Self {
        Self::start_with(store, &[])
    }

    /// With keys of the configuration, by their variables.
    fn start_with(store: &Path, variables: &[(&str, &str)]) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_negsync"))
            .args(["relay", "--listen", "127.0.0.1:0", "--store"])
            .arg(store)
            .envs(variables.iter().copied())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let url = line.split_whitespace().last().unwrap().to_owned();
        Self { process, url }
    }

    async fn connect(&self) -> Client {
        let stream = TcpStream::connect(self.url.trim_start_matches("ws://")).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let stream = MaybeTlsStream::Plain(stream);
        let (socket, _) = tokio_tungstenite::client_async(&self.url, stream).await.unwrap();
        let mut client = Client { socket };
        // The challenge of NIP-42.
        client.next().await;
        client
    }

    /// Stops it as an operator does.
    fn stop(mut self) {
        let pid = self.process.id().to_string();
        assert!(Command::new("kill").arg(&pid).status().unwrap().success());
        assert!(self.process.wait().unwrap().success());
    }

    /// Resident memory in bytes.
    fn memory(&self) -> f64 {
        self.status("VmRSS:")
    }

    /// Resident memory without pages of files, in bytes.
    fn anonymous_memory(&self) -> f64 {
        self.status("RssAnon:")
    }

    fn status(&self, field: &str) -> f64 {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with(field)).unwrap();
        let kib: f64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        kib * 1024.0
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // Fails if it was stopped before.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

struct Client {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
}

impl Client {
    async fn send(&mut self, text: String) {
        self.socket.send(Message::text(text)).await.unwrap();
    }

    /// The next message other than a ping.
    async fn next(&mut self) -> Message {
        loop {
            let message = self.socket.next().await.unwrap().unwrap();
            if !message.is_ping() {
                return message;
            }
        }
    }

    /// The time from a request to the answer that begins with `expected`.
    async fn ask(&mut self, request: &str, expected: &str) -> Duration {
        let start = Instant::now();
        self.send(request.to_owned()).await;
        let answer = self.next().await;
        let took = start.elapsed();
        assert!(answer.to_text().unwrap().starts_with(expected), "{answer}");
        took
    }

    async fn ping(&mut self) -> Duration {
        let start = Instant::now();
        self.socket.send(Message::Ping(Default::default())).await.unwrap();
        while !self.next().await.is_pong() {}
        start.elapsed()
    }
}

/// A message that asks for the fingerprints of everything.
fn neg_open(id: usize, filter: &str) -> String {
    format!(r#"["NEG-OPEN","{id}",{filter},"61000001{}"]"#, "00".repeat(16))
}

async fn negotiate(store: &Path, stored: usize) {
    let start = Instant::now();
    let relay = Relay::start(store);
    let mut client = relay.connect().await;
    client.ask(&neg_open(0, "{}"), r#"["NEG-MSG""#).await;
    // Half a second for a million, four for ten.
    let most_ms = if stored > STORED { 400.0 * stored as f64 / 1e6 } else { 500.0 };
    let what = format!("start to first answer, {stored} events, no index files");
    report_most(&what, start.elapsed().as_secs_f64() * 1e3, "ms", most_ms);
    drop(client);
    relay.stop();
    // From the index files: after a clean stop, and after kill -9.
    let most_ms = if stored > STORED { 100.0 * stored as f64 / 1e6 } else { 150.0 };
    for (stop, more_ms) in [("a clean stop", 0.0), ("a kill", 1_000.0)] {
        let start = Instant::now();
        let relay = Relay::start(store);
        let mut client = relay.connect().await;
        client.ask(&neg_open(0, "{}"), r#"["NEG-MSG""#).await;
        let what = format!("the same after {stop}");
        report_most(&what, start.elapsed().as_secs_f64() * 1e3, "ms", most_ms + more_ms);
    }
    let relay = Relay::start(store);
    let mut client = relay.connect().await;
    client.ask(&neg_open(0, "{}"), r#"["NEG-MSG""#).await;
    report_most("anonymous memory, idle", relay.anonymous_memory() / 1e6, "MB", 10.0);
    let first = client.ask(&neg_open(1, r#"{"kinds":[1]}"#), r#"["NEG-MSG""#).await;
    report_most("first NEG-OPEN on kind 1, 600k items", first.as_secs_f64() * 1e3, "ms", 150.0);
    for filter in ["{}", r#"{"kinds":[1]}"#] {
        let (mut asked, mut pinged) = (Vec::new(), Vec::new());
        for _ in 0..101 {
            pinged.push(client.ping().await);
            asked.push(client.ask(&neg_open(2, filter), r#"["NEG-MSG""#).await);
        }
        let over = median(asked).saturating_sub(median(pinged));
        report_most(
            &format!("NEG-OPEN on {filter} over a ping, median"),
            over.as_secs_f64() * 1e3,
            "ms",
            2.0,
        );
    }
    let idle = relay.memory();
    let mut clients = Vec::new();
    for opened in 0..SESSIONS {
        if opened % 50 == 0 {
            clients.push(relay.connect().await);
        }
        let client = clients.last_mut().unwrap();
        client.ask(&neg_open(opened, "{}"), r#"["NEG-MSG""#).await;
    }
    let grown = (relay.memory() - idle) / 1e6;
    report_most("1,000 sessions on the 1M set, memory", grown, "MB", 20.0);
}

/// A set that is too large for the set cache's memory, in a file and built for each session.
async fn large_sets(store: &Path) {
    let (mut seconds, mut grown) = (Vec::new(), Vec::new());
    for set_files_mb in ["0", "1024"] {
        let variables =
            [("NEGSYNC__INDEX__MEMORY_MB", "8"), ("NEGSYNC__INDEX__SET_FILES_MB", set_files_mb)];
        let relay = Relay::start_with(store, &variables);
        let mut client = relay.connect().await;
        client.ask(&neg_open(0, "{}"), r#"["NEG-MSG""#).await;
        let idle = relay.anonymous_memory();
        let mut asked = Vec::new();
        for number in 1..=11 {
            asked.push(client.ask(&neg_open(number, r#"{"kinds":[1]}"#), r#"["NEG-MSG""#).await);
        }
        seconds.push(median(asked).as_secs_f64());
        grown.push((relay.anonymous_memory() - idle) / 1e6);
        relay.stop();
    }
    let what = "NEG-OPEN on kind 1 above the set cache's memory, beside without files";
    report(what, 1.0 / seconds[1], 1.0 / seconds[0], "/s", 50.0);
    report_most("11 such sessions, memory", grown[1], "MB", 20.0);
    println!("the same without files: {:.0} MB", grown[0]);
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// The cost of idle connections.
async fn idle(store: &Path) {
    let relay = Relay::start(store);
    let mut client = relay.connect().await;
    client.ask(&neg_open(0, "{}"), r#"["NEG-MSG""#).await;
    let before = relay.anonymous_memory();
    let mut clients = Vec::with_capacity(IDLE);
    for _ in 0..IDLE {
        clients.push(relay.connect().await);
    }
    let grown = relay.anonymous_memory() - before;
    report_most("5,000 idle connections, memory", grown / 1e6, "MB", 25.0);
    report_most("an idle connection", grown / IDLE as f64 / 1_024.0, "KiB", 4.0);
}

/// REQ, compared with reading the same rows by a prepared statement.
async fn query(store: &Path) {
    let relay = Relay::start(store);
    let mut client = relay.connect().await;
    client.ask(&neg_open(0, "{}"), r#"["NEG-MSG""#).await;
    let mut client = Counter::new(client);
    let connection = Connection::open_with_flags(store, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    connection.execute_batch("PRAGMA mmap_size = 68719476736").unwrap();
    let newest = START + STORED as u64 - 1;

    let (mut bare, mut ours) = (Duration::MAX, Duration::MAX);
    for _ in 0..2 {
        let start = Instant::now();
        let mut statement = connection
            .prepare(&format!(
                "SELECT json FROM event INDEXED BY event_time {} AND created_at <= ?1
                 ORDER BY created_at DESC LIMIT ?2",
                public(&connection)
            ))
            .unwrap();
        let mut bytes = 0;
        for page in 0..PAGED / PAGE {
            let until = newest as i64 - (page * PAGE) as i64;
            let mut rows = statement.query((until, PAGE as i64)).unwrap();
            while let Some(row) = rows.next().unwrap() {
                bytes += row.get::<_, String>(0).unwrap().len();
            }
        }
        bare = bare.min(start.elapsed());
        assert!(bytes > PAGED * 400);
        let start = Instant::now();
        for page in 0..PAGED / PAGE {
            let until = newest - (page * PAGE) as u64;
            client.send(&format!(r#"["REQ","p",{{"until":{until},"limit":{PAGE}}}]"#)).await;
            assert_eq!(client.events_until_eose().await, PAGE);
        }
        ours = ours.min(start.elapsed());
    }
    report("REQ paged by 500", rate(PAGED, ours), rate(PAGED, bare), "events/s", 0.5);

    let ids: Vec<[u8; 32]> = connection
        .prepare("SELECT id FROM event WHERE row % 101 = 7 LIMIT 5000")
        .unwrap()
        .query_map([], |row| row.get(0))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    let (mut bare, mut ours) = (Duration::MAX, Duration::MAX);
    for _ in 0..3 {
        let start = Instant::now();
        let mut statement = connection.prepare("SELECT json FROM event WHERE id = ?1").unwrap();
        for id in &ids {
            assert!(statement.query_row([id], |row| row.get::<_, String>(0)).unwrap().len() > 400);
        }
        bare = bare.min(start.elapsed());
        let start = Instant::now();
        for ids in ids.chunks(PAGE) {
            let list: Vec<String> =
                ids.iter().map(|id| format!("\"{}\"", faster_hex::hex_string(id))).collect();
            client.send(&format!(r#"["REQ","i",{{"ids":[{}]}}]"#, list.join(","))).await;
            assert_eq!(client.events_until_eose().await, ids.len());
        }
        ours = ours.min(start.elapsed());
    }
    report("REQ by 500 ids", rate(ids.len(), ours), rate(ids.len(), bare), "events/s", 0.5);
}

/// A client that counts messages without parsing them. It shares two cores with the relay, and a
/// WebSocket library takes about as long to read an event as the relay takes to send it.
struct Counter {
    stream: TcpStream,
    buffer: Vec<u8>,
    // The part of the buffer that is not counted yet.
    waiting: std::ops::Range<usize>,
}

impl Counter {
    /// Takes over from a client that has no unread messages.
    fn new(client: Client) -> Self {
        let MaybeTlsStream::Plain(stream) = client.socket.into_inner() else { unreachable!() };
        Self { stream, buffer: vec![0; 256 << 10], waiting: 0..0 }
    }

    /// Sends a message of at most 65,535 bytes in one frame, masked with zeros. RFC 6455, section 5.2.
    async fn send(&mut self, text: &str) {
        let length = u16::try_from(text.len()).unwrap().to_be_bytes();
        let head = [0x81, 0x80 | 126, length[0], length[1], 0, 0, 0, 0];
        self.stream.write_all(&[&head, text.as_bytes()].concat()).await.unwrap();
    }

    /// The number of messages before the next EOSE.
    async fn events_until_eose(&mut self) -> usize {
        let mut events = 0;
        loop {
            let waiting = &self.buffer[self.waiting.clone()];
            let Some((head, length)) = frame_length(waiting) else {
                self.more().await;
                continue;
            };
            let Some(text) = waiting.get(head..head + length) else {
                self.more().await;
                continue;
            };
            let is_end = text.starts_with(br#"["EOSE""#);
            self.waiting.start += head + length;
            if is_end {
                return events;
            }
            events += 1;
        }
    }

    async fn more(&mut self) {
        self.buffer.copy_within(self.waiting.clone(), 0);
        self.waiting = 0..self.waiting.len();
        let read = self.stream.read(&mut self.buffer[self.waiting.end..]).await.unwrap();
        assert!(read > 0, "the relay is gone");
        self.waiting.end += read;
    }
}

/// The lengths of a frame's head and payload, once the head has come. RFC 6455, section 5.2.
fn frame_length(bytes: &[u8]) -> Option<(usize, usize)> {
    match *bytes.get(1)? {
        126 => Some((4, u16::from_be_bytes(bytes.get(2..4)?.try_into().unwrap()).into())),
        127 => Some((10, u64::from_be_bytes(bytes.get(2..10)?.try_into().unwrap()) as usize)),
        length => Some((2, length.into())),
    }
}

/// EVENT with 500 in flight on one connection; every commit is flushed before its OK.
async fn publish(dir: &Path, million: &Path) {
    let lines = signed_events(3 * PUBLISHED, 11);
    let events = parse(&lines[..PUBLISHED]);
    let bare = rate(PUBLISHED, bare_verification(&events).min(bare_verification(&events)));
    let mut best = [0.0_f64; 2];
    for round in 0..3 {
        let lines = &lines[round * PUBLISHED..(round + 1) * PUBLISHED];
        let empty = dir.join(format!("empty-{round}.sqlite"));
        for (place, store) in [&empty, million].into_iter().enumerate() {
            let relay = Relay::start(store);
            let mut client = relay.connect().await;
            client.ask(&neg_open(0, "{}"), r#"["NEG-MSG""#).await;
            best[place] = best[place].max(publish_all(&mut client, lines).await);
        }
    }
    let [into_empty, into_million] = best;
    report("EVENT, 500 in flight", into_empty, bare, "events/s", 0.35);
    report("the same into a store of 1M", into_million, into_empty, "events/s", 0.8);
}

async fn publish_all(client: &mut Client, lines: &[String]) -> f64 {
    let start = Instant::now();
    let (mut sent, mut answered) = (0, 0);
    while answered < lines.len() {
        while sent < lines.len() && sent - answered < IN_FLIGHT {
            let text = format!(r#"["EVENT",{}]"#, lines[sent]);
            client.socket.feed(Message::text(text)).await.unwrap();
            sent += 1;
        }
        client.socket.flush().await.unwrap();
        let answer = client.next().await;
        assert!(answer.to_text().unwrap().contains("true"), "{answer}");
        answered += 1;
    }
    rate(lines.len(), start.elapsed())
}
