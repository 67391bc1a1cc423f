//! Two stores that give each other all they have end equal, whatever each has seen before: versions
//! that the other never had, deletions that came before or after, what has expired meanwhile, keys
//! that have vanished. Beside each store a naive relay does the same.

use super::model_based::{any, any_event};
use crate::support::events::unix_now;
use crate::support::model;
use crate::support::naive::NaiveRelay;
use negsync::store::{Event, EventStore, Filter, Store, StoreOptions, Synchronous};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use serde_json::Value;
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::time::Duration;
use tempfile::TempDir;

/// Pairs, unless `NEGSYNC_PAIRS` says how many, from the seed in `NEGSYNC_SEED` on.
const PAIRS: u64 = 200;
/// So many pairs wait together for what expires.
const PAIRS_AT_ONCE: usize = 100;
const POOL_EVENTS: usize = 40;
/// When events expire that do so between a pair's histories and its exchange.
const EXPIRES_IN_S: u64 = 3;

/// A store and the naive relay that is told the same.
struct Side {
    store: Store,
    naive: NaiveRelay,
    _directory: TempDir,
}

impl Side {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let options = StoreOptions {
            synchronous: Synchronous::Normal,
            readers: 1,
            cache_mb: 1,
            ..StoreOptions::default()
        };
        let path = directory.path().join("events.sqlite");
        let store = Store::open(&path, options, Box::new(|_| {})).unwrap();
        Self { store, naive: NaiveRelay::default(), _directory: directory }
    }

    /// Takes events as they come, in commits of a few.
    fn take(&mut self, events: &[Value]) {
        for some in events.chunks(7) {
            let verified = some.iter().map(|event| Event::parse(&event.to_string()).unwrap());
            self.store.publish(verified.map(Event::trust).collect()).unwrap();
            for event in some {
                self.naive.publish(event, unix_now());
            }
        }
    }

    /// Everything that is stored.
    fn export(&mut self) -> Vec<Value> {
        self.store.expire().unwrap();
        let hits = self.store.reader().newest(&[Filter::default()], usize::MAX).unwrap();
        let mut events = Vec::new();
        let add = |_: &_, json: &str| {
            events.push(serde_json::from_str(json).unwrap());
            ControlFlow::Continue(())
        };
        self.store.reader().fetch(&hits, add).unwrap();
        let naive = model::ids(self.naive.stored(unix_now()));
        assert_eq!(model::ids(&events), naive, "the naive relay has these");
        events
    }
}

/// Two stores with histories of their own.
struct Pair {
    seed: u64,
    rng: StdRng,
    sides: [Side; 2],
}

impl Pair {
    fn new(seed: u64, now: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut pool: Vec<Value> = Vec::new();
        // Seconds of `any_event` that lie in the middle of the histories would make them ambiguous.
        let soon = now + EXPIRES_IN_S;
        while pool.len() < POOL_EVENTS {
            let event = any_event(&mut rng, &pool, soon);
            if model::expires_at(&event).is_none_or(|second| second >= soon) {
                pool.push(event);
            }
        }
        let sides = [(); 2].map(|()| {
            let mut side = Side::new();
            let share = *any(&mut rng, &[20, 50, 80, 100]);
            let mut history: Vec<Value> =
                pool.iter().filter(|_| rng.random_ratio(share, 100)).cloned().collect();
            history.shuffle(&mut rng);
            side.take(&history);
            side
        });
        Self { seed, rng, sides }
    }

    /// Gives each side what the other has, until nothing moves.
    fn exchange(mut self) {
        let [one, two] = &mut self.sides;
        for round in 0.. {
            let (mut ones, mut twos) = (one.export(), two.export());
            if model::ids(&ones) == model::ids(&twos) {
                return;
            }
            ones.shuffle(&mut self.rng);
            twos.shuffle(&mut self.rng);
            let before = (lines(&ones), lines(&twos));
            one.take(&twos);
            two.take(&ones);
            let after = (lines(&one.export()), lines(&two.export()));
            assert!(before != after, "{}", unequal(self.seed, round, &after.0, &after.1));
        }
    }
}

fn lines(events: &[Value]) -> BTreeSet<String> {
    events
        .iter()
        .map(|event| {
            let fields = ["id", "pubkey", "created_at", "kind", "tags"];
            fields.iter().map(|field| event[field].to_string()).collect::<Vec<_>>().join(" ")
        })
        .collect()
}

fn unequal(seed: u64, round: u32, ones: &BTreeSet<String>, twos: &BTreeSet<String>) -> String {
    let only = |a: &BTreeSet<String>, b: &BTreeSet<String>| {
        a.difference(b).cloned().collect::<Vec<_>>().join("\n")
    };
    format!(
        "NEGSYNC_SEED={seed}: nothing moves any more after round {round}\nonly the first has\n{}\n\
         only the second has\n{}",
        only(ones, twos),
        only(twos, ones)
    )
}

#[test]
fn stores_that_exchange_all_they_have_end_equal() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let first = number("NEGSYNC_SEED").unwrap_or_else(|| rand::random_range(0..1 << 32));
    let pairs = number("NEGSYNC_PAIRS").unwrap_or(PAIRS);
    println!("NEGSYNC_SEED={first}");
    let mut seeds = first..first + pairs;
    while !seeds.is_empty() {
        let pairs: Vec<Pair> =
            seeds.by_ref().take(PAIRS_AT_ONCE).map(|seed| Pair::new(seed, unix_now())).collect();
        // What is to expire between history and exchange does so.
        let due = unix_now() + EXPIRES_IN_S + 4;
        while unix_now() < due {
            std::thread::sleep(Duration::from_millis(20));
        }
        pairs.into_iter().for_each(Pair::exchange);
    }
}
