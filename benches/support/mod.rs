//! Shared by the benches: events, and the output of two figures with their ratio.
#![allow(dead_code, reason = "each bench uses a part")]

use negsync::config::Config;
use negsync::store::{Event, EventStore, Store, Synchronous};
use nostr::hashes::Hash;
use nostr::{EventBuilder, JsonUtil, Keys, Kind, SecretKey, Tag, Timestamp};
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use std::path::Path;
use std::time::{Duration, Instant};

/// Number of authors of generated events.
const AUTHORS: usize = 2_000;
/// The first second of generated events.
pub const START: u64 = 1_700_000_000;

/// Signed events as JSON, about 550 bytes each; event `n` has the time `START + n`.
pub fn signed_events(count: usize, seed: u64) -> Vec<String> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let share = count.div_ceil(threads);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|thread| {
                scope.spawn(move || {
                    let from = (thread * share).min(count);
                    let to = (from + share).min(count);
                    let mut rng = StdRng::seed_from_u64(seed + thread as u64);
                    let authors = authors();
                    (from..to).map(|n| signed_event(&mut rng, &authors, n)).collect::<Vec<_>>()
                })
            })
            .collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    })
}

fn authors() -> Vec<Keys> {
    let mut rng = StdRng::seed_from_u64(7);
    let key = |rng: &mut StdRng| SecretKey::from_slice(&random_32(rng)).unwrap();
    (0..AUTHORS).map(|_| Keys::new(key(&mut rng))).collect()
}

fn signed_event(rng: &mut StdRng, authors: &[Keys], n: usize) -> String {
    let author = &authors[rng.random_range(0..authors.len())];
    let tags = [
        Tag::parse(["e", &hex(rng)]).unwrap(),
        Tag::parse(["p", &authors[rng.random_range(0..authors.len())].public_key().to_hex()])
            .unwrap(),
    ];
    EventBuilder::new(Kind::from_u16(kind(rng)), content(rng))
        .tags(tags)
        .custom_created_at(Timestamp::from_secs(START + n as u64))
        .sign_with_keys(author)
        .unwrap()
        .as_json()
}

/// Well-formed events with random ids and signatures, to fill a store without signing.
pub fn unsigned_event(rng: &mut StdRng, n: usize) -> String {
    let author = rng.random_range(0..AUTHORS as u64);
    format!(
        r#"{{"id":"{}","pubkey":"{author:064x}","created_at":{},"kind":{},"tags":[["e","{}"],["p","{:064x}"]],"content":"{}","sig":"{}{}"}}"#,
        hex(rng),
        START + n as u64,
        kind(rng),
        hex(rng),
        rng.random_range(0..AUTHORS as u64),
        content(rng),
        hex(rng),
        hex(rng),
    )
}

/// Writes a store of `stored` unsigned events. If `NEGSYNC_BENCH_STORES` names a directory, the
/// store is created there once and copied: a million events take a minute.
pub fn fill(path: &Path, stored: usize) {
    let Some(kept) = std::env::var_os("NEGSYNC_BENCH_STORES") else { return make(path, stored) };
    let kept = Path::new(&kept).join(format!("{stored}.sqlite"));
    if !kept.exists() {
        let unfinished = kept.with_extension("unfinished");
        make(&unfinished, stored);
        std::fs::rename(&unfinished, &kept).unwrap();
    }
    std::fs::copy(&kept, path).unwrap();
}

fn make(path: &Path, stored: usize) {
    // Like a store made by `import`: the relay has nothing to do at its first start.
    let options = Config::default().store_options().synchronous(Synchronous::Normal).readers(1);
    let store = Store::open(path, options, Box::new(|_| {})).unwrap();
    let mut rng = StdRng::seed_from_u64(3);
    for from in (0..stored).step_by(50_000) {
        let numbers = from..(from + 50_000).min(stored);
        let events = numbers.map(|n| Event::parse(&unsigned_event(&mut rng, n)).unwrap().trust());
        store.publish(events.collect()).unwrap();
    }
    store.close();
}

/// Six in ten are notes, as in most stores; none is replaceable.
fn kind(rng: &mut StdRng) -> u16 {
    match rng.random_range(0..10) {
        0..6 => 1,
        6..9 => 7,
        _ => 9735,
    }
}

fn content(rng: &mut StdRng) -> String {
    "something worth saying to the world ".repeat(rng.random_range(1..6))
}

fn random_32(rng: &mut StdRng) -> [u8; 32] {
    let mut bytes = [0; 32];
    rng.fill_bytes(&mut bytes);
    bytes
}

fn hex(rng: &mut StdRng) -> String {
    nostr::hashes::sha256::Hash::from_byte_array(random_32(rng)).to_string()
}

/// Verifies the events on all cores and does nothing else; returns the time.
pub fn bare_verification(events: &[nostr::Event]) -> Duration {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let start = Instant::now();
    std::thread::scope(|scope| {
        for share in events.chunks(events.len().div_ceil(threads)) {
            scope.spawn(move || assert!(share.iter().all(|event| event.verify().is_ok())));
        }
    });
    start.elapsed()
}

/// Parses JSON lines into events of the nostr crate.
pub fn parse(lines: &[String]) -> Vec<nostr::Event> {
    lines.iter().map(|line| nostr::Event::from_json(line).unwrap()).collect()
}

/// Events per second.
pub fn rate(count: usize, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64()
}

/// Prints a figure with its baseline, their ratio and the required ratio.
pub fn report(what: &str, ours: f64, baseline: f64, unit: &str, required: f64) {
    let ratio = ours / baseline;
    let verdict = if ratio >= required { "ok" } else { "BELOW" };
    println!(
        "{what}: {ours:.0} {unit}, baseline {baseline:.0} {unit}, ratio {ratio:.2} \
         (at least {required:.2}: {verdict})"
    );
}

/// Prints a figure with its maximum.
pub fn report_most(what: &str, ours: f64, unit: &str, most: f64) {
    let verdict = if ours <= most { "ok" } else { "ABOVE" };
    println!("{what}: {ours:.2} {unit} (at most {most} {unit}: {verdict})");
}
