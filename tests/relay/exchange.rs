//! Two stores that exchange all their events become equal, whatever their histories: versions that
//! the other never had, deletions that came before or after their targets, events that have expired
//! meanwhile, keys that have vanished. A naive relay beside each store does the same.

use super::model_based::{any, any_event};
use crate::support::events::EPOCH;
use crate::support::model;
use crate::support::naive::NaiveRelay;
use negsync::store::{
    Clock, Event, EventStore, Filter, ManualClock, Store, StoreOptions, Synchronous,
};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use serde_json::Value;
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use tempfile::TempDir;

/// Number of pairs, unless `NEGSYNC_PAIRS` sets it; the first seed is `NEGSYNC_SEED`.
const PAIRS: u64 = 200;
const POOL_EVENTS: usize = 40;
/// The time of the histories.
const NOW: u64 = EPOCH + 1_000_000;
/// Time after which the short-lived events of `any_event` have expired.
const EXPIRES_IN_S: u64 = 5;

/// A store and the naive relay with the same input.
struct Side {
    store: Store,
    naive: NaiveRelay,
    clock: ManualClock,
    _directory: TempDir,
}

impl Side {
    fn new(clock: &ManualClock) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let options = StoreOptions::default()
            .synchronous(Synchronous::Normal)
            .readers(1)
            .cache_mb(1)
            .clock(Clock::from(clock));
        let path = directory.path().join("events.sqlite");
        let store = Store::open(&path, options, Box::new(|_| {})).unwrap();
        let (naive, clock) = (NaiveRelay::default(), clock.clone());
        Self { store, naive, clock, _directory: directory }
    }

    /// Stores events in order, a few in each commit.
    fn take(&mut self, events: &[Value]) {
        for some in events.chunks(7) {
            let verified = some.iter().map(|event| Event::parse(&event.to_string()).unwrap());
            self.store.publish(verified.map(Event::trust).collect()).unwrap();
            for event in some {
                self.naive.publish(event, self.clock.now());
            }
        }
    }

    /// All stored events.
    fn export(&mut self) -> Vec<Value> {
        self.store.expire().unwrap();
        let hits = self.store.reader().newest(&[Filter::default()], usize::MAX).unwrap();
        let mut events = Vec::new();
        let add = |_: &_, json: &str| {
            events.push(serde_json::from_str(json).unwrap());
            ControlFlow::Continue(())
        };
        self.store.reader().fetch(&hits, add).unwrap();
        let naive = model::ids(self.naive.stored(self.clock.now()));
        assert_eq!(model::ids(&events), naive, "the naive relay has these");
        events
    }
}

/// Two stores with different histories.
struct Pair {
    seed: u64,
    rng: StdRng,
    clock: ManualClock,
    sides: [Side; 2],
}

impl Pair {
    fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut pool: Vec<Value> = Vec::new();
        while pool.len() < POOL_EVENTS {
            let event = any_event(&mut rng, &pool, NOW);
            pool.push(event);
        }
        let clock = ManualClock::at(NOW);
        let sides = [(); 2].map(|()| {
            let mut side = Side::new(&clock);
            let share = *any(&mut rng, &[20, 50, 80, 100]);
            let mut history: Vec<Value> =
                pool.iter().filter(|_| rng.random_ratio(share, 100)).cloned().collect();
            history.shuffle(&mut rng);
            side.take(&history);
            side
        });
        Self { seed, rng, clock, sides }
    }

    /// Exchanges all events, after some have expired, until nothing is moved.
    fn exchange(mut self) {
        self.clock.advance(EXPIRES_IN_S);
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
    for seed in first..first + pairs {
        Pair::new(seed).exchange();
    }
}
