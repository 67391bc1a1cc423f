//! Writes the same events into both engines, in one run: batches, then one event after the other. Prints a
//! row of Markdown for each.

#[path = "../tests/support/mod.rs"]
mod support;

use negsync_store::{EventStore, Store, StoreOptions, VerifiedEvent};
use rand::SeedableRng;
use rand::rngs::StdRng;
use std::time::Instant;
use support::server::TestServer;
use support::{Heard, note, open};

const BATCHES: usize = 50;
const BATCH_EVENTS: usize = 1_000;
const SINGLE_EVENTS: usize = 500;

/// Events a second in batches, and the median of one event's answer in milliseconds.
fn measure(store: &dyn EventStore) -> (f64, f64) {
    let mut rng = StdRng::seed_from_u64(1);
    let mut batch =
        |events: usize| -> Vec<VerifiedEvent> { (0..events).map(|_| note(&mut rng)).collect() };
    let batches: Vec<_> = (0..BATCHES).map(|_| batch(BATCH_EVENTS)).collect();
    let began = Instant::now();
    for events in batches {
        store.publish(events).unwrap();
    }
    let rate = (BATCHES * BATCH_EVENTS) as f64 / began.elapsed().as_secs_f64();
    let mut times: Vec<f64> = batch(SINGLE_EVENTS)
        .into_iter()
        .map(|event| {
            let began = Instant::now();
            store.publish(vec![event]).unwrap();
            began.elapsed().as_secs_f64() * 1_000.0
        })
        .collect();
    times.sort_by(f64::total_cmp);
    (rate, times[times.len() / 2])
}

fn main() {
    let Some(server) = TestServer::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.sqlite");
    let sqlite = Store::open(&path, StoreOptions::default(), Box::new(|_| {})).unwrap();
    let postgres = open(server.url(), Heard::default());
    println!("| engine | events/s in batches of {BATCH_EVENTS} | EVENT p50 |\n|---|---|---|");
    for (name, store) in [("SQLite", &sqlite as &dyn EventStore), ("PostgreSQL", &postgres)] {
        let (rate, p50) = measure(store);
        println!("| {name} | {rate:.0} | {p50:.2} ms |");
    }
}
