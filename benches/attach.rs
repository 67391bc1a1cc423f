//! `negsync attach` over a million rows of nostr-rs-relay: the time to the first answer, the memory
//! of an item, and the added latency of a REQ. `NEGSYNC_ROWS` sets another number of rows. The
//! relay behind it is the program in `NEGSYNC_NOSTR_RS_RELAY`, or else one of ours.

#[path = "../tests/attach/database.rs"]
#[allow(dead_code, reason = "a bench uses a part")]
mod database;
#[path = "support/mod.rs"]
mod events;
#[path = "../tests/support/mod.rs"]
#[allow(dead_code, unused_imports, reason = "a bench uses a part")]
mod support;

use database::Database;
use events::{START, report_most, unsigned_event};
use negsync::store::RelayKind;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rusqlite::params;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use support::{Client, TestRelay};

const ROWS: usize = 1_000_000;
/// Repetitions of short measurements.
const TIMES: usize = 400;
/// Asks for the fingerprints of everything.
const QUESTION: &str = "6100000100000000000000000000000000000000";

/// Fills the table, with one event in ten also among the tags; indexes come after the rows.
fn fill(database: &Database, rows: usize) -> Vec<String> {
    let connection = &database.connection;
    let mut indexes = connection
        .prepare("SELECT name, sql FROM sqlite_schema WHERE type = 'index' AND sql <> ''")
        .unwrap();
    let indexes: Vec<(String, String)> = indexes
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    for (name, _) in &indexes {
        connection.execute_batch(&format!("DROP INDEX {name}")).unwrap();
    }
    let mut rng = StdRng::seed_from_u64(1);
    let mut some = Vec::new();
    connection.execute_batch("BEGIN").unwrap();
    for number in 0..rows {
        let json = unsigned_event(&mut rng, number);
        let event: Value = serde_json::from_str(&json).unwrap();
        let blob = |field: &str| {
            faster_hex::hex_decode_vec(event[field].as_str().unwrap().as_bytes()).unwrap()
        };
        connection
            .prepare_cached(
                "INSERT INTO event (event_hash, first_seen, created_at, author, kind, hidden,
                 content) VALUES (?, 0, ?, ?, ?, FALSE, ?)",
            )
            .unwrap()
            .execute(params![
                blob("id"),
                (START + number as u64) as i64,
                blob("pubkey"),
                event["kind"].as_i64(),
                json
            ])
            .unwrap();
        if number % 10 == 0 {
            let value = event["tags"][0][1].as_str();
            connection
                .prepare_cached(
                    "INSERT INTO tag (event_id, name, value, created_at, kind)
                     VALUES (last_insert_rowid(), 'e', ?, ?, 1)",
                )
                .unwrap()
                .execute(params![value, (START + number as u64) as i64])
                .unwrap();
        }
        if number % (rows / 100).max(1) == 0 {
            some.push(event["id"].as_str().unwrap().to_owned());
        }
    }
    connection.execute_batch("COMMIT").unwrap();
    for (_, sql) in &indexes {
        connection.execute_batch(sql).unwrap();
    }
    connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    some
}

/// The sidecar in a process of its own; killed when dropped.
struct Plugin {
    child: Child,
    url: String,
}

impl Plugin {
    fn start(database: &Path, relay: &str) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_negsync"))
            .args(["attach", "--listen", "127.0.0.1:0", "--url", relay, "--attach"])
            .arg(format!("nostr-rs-relay:{}", database.display()))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let url = line.split_whitespace().find(|word| word.starts_with("ws://")).unwrap();
        Self { child, url: url.to_owned() }
    }

    /// Its own memory in bytes, without mapped files, such as the index of the write-ahead log:
    /// those belong to the system and are shared with the relay.
    fn memory(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
        1024.0 * line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap()
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1e3
}

async fn neg_open(client: &mut Client) -> Duration {
    let began = Instant::now();
    let answer = client.ask(&json!(["NEG-OPEN", "n", {}, QUESTION])).await;
    assert_eq!(answer[0], "NEG-MSG", "{answer}");
    began.elapsed()
}

/// A nostr-rs-relay; killed when dropped.
struct RealRelay {
    child: Child,
    url: String,
}

impl Drop for RealRelay {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A client of the relay, directly or through the sidecar. Our relay begins with a challenge
/// (NIP-42).
async fn connect(url: &str, is_real: bool) -> Client {
    if is_real { Client::connect_elsewhere(url).await } else { Client::connect(url).await }
}

/// Starts nostr-rs-relay on the folder of its database; `None` if it is not installed.
fn real_relay(folder: &Path) -> Option<RealRelay> {
    let program = std::env::var_os("NEGSYNC_NOSTR_RS_RELAY")?;
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let config = folder.join("config.toml");
    let text = format!("[network]\naddress = \"127.0.0.1\"\nport = {port}\n");
    std::fs::write(&config, text).unwrap();
    let child = Command::new(program)
        .arg("--config")
        .arg(&config)
        .arg("--db")
        .arg(folder)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        std::thread::sleep(Duration::from_millis(20));
    }
    Some(RealRelay { child, url: format!("ws://127.0.0.1:{port}") })
}

#[tokio::main]
async fn main() {
    let rows = std::env::var("NEGSYNC_ROWS").map_or(ROWS, |text| text.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nostr.db");
    let database = Database::new(RelayKind::NostrRsRelay, &path);
    let empty = folder.path().join("empty.db");
    let _empty = Database::new(RelayKind::NostrRsRelay, &empty);
    let ids = fill(&database, rows);
    let ours = TestRelay::start().await;
    let real = real_relay(folder.path());
    let relay = real.as_ref().map_or_else(|| ours.url(), |real| real.url.clone());
    println!("{rows} rows, before {}", if real.is_some() { "nostr-rs-relay" } else { "our relay" });

    let base = Plugin::start(&empty, &relay).memory();
    let began = Instant::now();
    let plugin = Plugin::start(&path, &relay);
    let mut client = connect(&plugin.url, real.is_some()).await;
    neg_open(&mut client).await;
    report_most("start to the first complete answer", began.elapsed().as_secs_f64(), "s", 1.0);
    let an_item = (plugin.memory() - base) / rows as f64;
    report_most("memory above the base", an_item, "bytes an item", 60.0);
    let mut times = Vec::new();
    for _ in 0..TIMES {
        times.push(neg_open(&mut client).await);
    }
    report_most("NEG-OPEN on {}, p50", median(times), "ms", 3.0);

    let mut direct = connect(&relay, real.is_some()).await;
    let (mut straight, mut through) = (Vec::new(), Vec::new());
    for number in 0..TIMES {
        let filter = json!({ "ids": [ids[number % ids.len()]] });
        for (client, times) in [(&mut direct, &mut straight), (&mut client, &mut through)] {
            let began = Instant::now();
            client.query(std::slice::from_ref(&filter)).await;
            times.push(began.elapsed());
        }
    }
    let (straight, through) = (median(straight), median(through));
    println!(
        "REQ of one id, p50: {straight:.3} ms at the relay, {through:.3} ms through the plugin"
    );
    report_most("the same, ratio", through / straight, "times", 1.15);
}
