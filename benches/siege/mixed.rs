//! An hour of mixed load over a store that hardly grows: replaceable events, ephemeral ones, and
//! notes that expire; only deletion requests stay.

use crate::client::{Client, GOOD, metric, neg_open, stranger};
use crate::relay::Relay;
use crate::support::report_most;
use crate::{Extent, middle_and_p99, milliseconds};
use nostr::{EventBuilder, JsonUtil, Keys, Kind, SecretKey, Tag, Timestamp};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};
use tokio::task::JoinSet;

const PUBLISHERS: usize = 4;
const READERS: usize = 20;
const RECONCILERS: usize = 8;
/// Number of authors of a publisher.
const AUTHORS: usize = 200;
/// Lifetime of a note.
const NOTE_LIFE: Duration = Duration::from_secs(120);
/// Fraction of the time after which the relay's resources must not grow.
const WARM_UP: f64 = 0.2;
/// Maximum of the write-ahead log in MB, including the head of each page: see
/// `store/checkpoint.rs`.
const WAL_MB: f64 = 2.0 * 65_536.0 * 4_120.0 / 1e6;

pub async fn run(extent: Extent) {
    let minutes = extent.pick(extent.minutes, extent.minutes.min(1));
    let samples = extent.pick(minutes, 12);
    let period = Duration::from_secs(60 * minutes) / samples.max(1) as u32;
    println!("\n{minutes} minutes of mixed load");
    // The cache is full before the warm-up ends, so that later growth is a leak.
    let relay = Relay::start(extent.pick(200_000, 20_000), "[store]\ncache_mb = 32\n");
    let mut load = JoinSet::new();
    for number in 0..PUBLISHERS {
        load.spawn(publish(relay.address, number));
    }
    for number in 0..READERS {
        load.spawn(read(relay.address, number));
    }
    for number in 0..RECONCILERS {
        load.spawn(reconcile(relay.address, number));
    }
    let mut good = Client::connect(GOOD, relay.address).await.unwrap();
    println!("  minute  memory MB  descriptors  WAL MB  connections  NEG-OPEN p99 ms");
    let (mut memory, mut descriptors, mut wal) = (Vec::new(), Vec::new(), 0.0_f64);
    let start = Instant::now();
    for sample in 1..=samples {
        let mut times = Vec::new();
        while start.elapsed() < period * sample as u32 {
            times.push(good.ask(neg_open("n", "{}"), r#"["NEG-MSG""#).await);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let (_, p99) = middle_and_p99(times);
        let connections = metric(relay.address, "negsync_connections").await;
        memory.push(relay.memory_mb());
        descriptors.push(relay.descriptors() as f64);
        wal = wal.max(relay.wal_mb());
        println!(
            "  {:>6.1}  {:>9.1}  {:>11}  {:>6.1}  {connections:>11}  {:>15.2}",
            start.elapsed().as_secs_f64() / 60.0,
            relay.memory_mb(),
            relay.descriptors(),
            relay.wal_mb(),
            milliseconds(p99),
        );
        while let Some(ended) = load.try_join_next() {
            ended.expect("a client of the load failed");
        }
    }
    report_most("memory after warm-up, last quarter beside first", growth(&memory), "times", 1.05);
    let growth = growth(&descriptors);
    report_most("descriptors after warm-up, last quarter beside first", growth, "times", 1.2);
    report_most("write-ahead log, the longest", wal, "MB", WAL_MB);
}

/// The mean of the last quarter after the warm-up, relative to that of the first.
fn growth(samples: &[f64]) -> f64 {
    let warm = &samples[((samples.len() as f64 * WARM_UP) as usize).min(samples.len() - 1)..];
    let quarter = warm.len().div_ceil(4);
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
    mean(&warm[warm.len() - quarter..]) / mean(&warm[..quarter])
}

/// Publishes about fifty events per second.
async fn publish(to: SocketAddr, number: usize) {
    let mut rng = StdRng::seed_from_u64(number as u64);
    let key = |rng: &mut StdRng| loop {
        if let Ok(key) = SecretKey::from_slice(&rng.random::<[u8; 32]>()) {
            return Keys::new(key);
        }
    };
    let authors: Vec<Keys> = (0..AUTHORS).map(|_| key(&mut rng)).collect();
    let mut client = Client::connect(stranger(number), to).await.unwrap();
    let mut notes: VecDeque<(Instant, usize, String)> = VecDeque::new();
    loop {
        while notes.front().is_some_and(|(at, ..)| at.elapsed() > NOTE_LIFE / 2) {
            notes.pop_front();
        }
        let author = rng.random_range(0..AUTHORS);
        let text = "something worth saying ".repeat(rng.random_range(1..20));
        let kind = [0, 20_000, 1, 1][rng.random_range(0..4)];
        if kind == 1 && rng.random_ratio(1, 50) && !notes.is_empty() {
            let at = rng.random_range(0..notes.len());
            let Some((_, of, id)) = notes.remove(at) else { continue };
            let tags = vec![Tag::parse(["e", &id]).unwrap()];
            sign_and_send(&mut client, &authors[of], 5, tags, "").await;
        } else if kind == 1 {
            let expires_at = unix_now() + NOTE_LIFE.as_secs();
            let tags = vec![Tag::expiration(Timestamp::from_secs(expires_at))];
            let id = sign_and_send(&mut client, &authors[author], kind, tags, &text).await;
            notes.push_back((Instant::now(), author, id));
        } else {
            sign_and_send(&mut client, &authors[author], kind, vec![], &text).await;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

async fn sign_and_send(
    client: &mut Client,
    author: &Keys,
    kind: u16,
    tags: Vec<Tag>,
    text: &str,
) -> String {
    let event = EventBuilder::new(Kind::from_u16(kind), text)
        .tags(tags)
        .custom_created_at(Timestamp::from_secs(unix_now()))
        .sign_with_keys(author)
        .unwrap();
    client.ask(format!(r#"["EVENT",{}]"#, event.as_json()), r#"["OK""#).await;
    event.id.to_hex()
}

/// Queries and live subscriptions, on connections that come and go.
async fn read(to: SocketAddr, number: usize) {
    let mut rng = StdRng::seed_from_u64(1_000 + number as u64);
    loop {
        let mut client = Client::connect(stranger(10 + number), to).await.unwrap();
        client.ask(r#"["REQ","live",{"limit":1}]"#.to_owned(), r#"["EOSE""#).await;
        for _ in 0..rng.random_range(1..100) {
            let kind = [0, 1, 7][rng.random_range(0..3)];
            let limit = rng.random_range(1..500);
            let query = format!(r#"["REQ","q",{{"kinds":[{kind}],"limit":{limit}}}]"#);
            client.ask(query, r#"["EOSE","q""#).await;
            tokio::time::sleep(Duration::from_millis(rng.random_range(10..200))).await;
        }
    }
}

/// Sessions over all kinds of sets; some are left open when the connection ends.
async fn reconcile(to: SocketAddr, number: usize) {
    let mut rng = StdRng::seed_from_u64(2_000 + number as u64);
    loop {
        let mut client = Client::connect(stranger(40 + number), to).await.unwrap();
        for round in 0..rng.random_range(1..60) {
            let filter = match rng.random_range(0..4) {
                0 => "{}".to_owned(),
                1 => r#"{"kinds":[1]}"#.to_owned(),
                2 => format!(r#"{{"kinds":[{}]}}"#, rng.random_range(20..50)),
                _ => r#"[{"kinds":[0]},{"kinds":[7],"limit":500}]"#.to_owned(),
            };
            let id = format!("n{}", round % 40);
            client.ask(neg_open(&id, &filter), r#"["NEG-MSG""#).await;
            let question = format!(r#"["NEG-MSG","{id}","6100000200"]"#);
            client.ask(question, r#"["NEG-MSG""#).await;
            if rng.random_range(0..3) > 0 {
                client.send(format!(r#"["NEG-CLOSE","{id}"]"#)).await.unwrap();
            }
            tokio::time::sleep(Duration::from_millis(rng.random_range(10..300))).await;
        }
    }
}
