//! Random operations on a relay and on a naive one in memory: all answers are equal. There are few
//! authors, seconds and addresses, so that events often have equal times, replace each other, and
//! are deleted before they arrive. A failing run is shortened as far as possible and printed.

use crate::support::events::{Author, EPOCH, id_of};
use crate::support::naive::{NaiveRelay, Said};
use crate::support::negentropy_client::{Difference, Session};
use crate::support::{Client, TestRelay, model};
use negsync::store::ManualClock;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// Number of runs, unless `NEGSYNC_MODEL_RUNS` sets it; the first seed is `NEGSYNC_SEED`.
const RUNS: u64 = 24;
const RUNS_AT_ONCE: usize = 8;
const OPERATIONS: usize = 120;
const POOL_EVENTS: usize = 90;
const AUTHORS: u8 = 3;
const SECONDS: u64 = 5;
/// The start of a run.
const NOW: u64 = EPOCH + 1_000_000;
/// Maximum time for shortening a failed run.
const SHORTENING: Duration = Duration::from_secs(60);

/// One operation on both relays.
#[derive(Clone, Debug)]
enum Operation {
    Publish(Value),
    Query(Vec<Value>),
    Count(Vec<Value>),
    /// Opens a session over the filter (or an array of filters) with these events. Earlier sessions
    /// are completed later, over the events stored when they were opened.
    Open {
        filter: Value,
        local: Vec<Value>,
        frame_limit_bytes: u64,
    },
    /// Ends all sessions.
    Finish,
    /// Waits for a second, for expirations.
    Wait,
    Restart {
        frame_limit_bytes: u64,
        index_memory_mb: usize,
    },
}

/// The operations of a seed.
fn operations(seed: u64) -> Vec<Operation> {
    let rng = &mut StdRng::seed_from_u64(seed);
    let mut pool: Vec<Value> = Vec::new();
    while pool.len() < POOL_EVENTS {
        let event = any_event(rng, &pool, NOW);
        pool.push(event);
    }
    (0..OPERATIONS).map(|_| any_operation(rng, &pool)).collect()
}

pub fn any<'list, T>(rng: &mut StdRng, list: &'list [T]) -> &'list T {
    &list[rng.random_range(0..list.len())]
}

pub fn any_event(rng: &mut StdRng, earlier: &[Value], now: u64) -> Value {
    let author = Author::new(rng.random_range(1..=AUTHORS));
    let at = EPOCH + rng.random_range(0..SECONDS);
    let d = *any(rng, &["", "a"]);
    let mut tags = vec![json!(["t", any(rng, &["x", "y"])])];
    let someone = Author::new(rng.random_range(1..=AUTHORS)).key();
    if rng.random_ratio(1, 8) {
        let second = *any(rng, &[now - 1, now + 1, now + 2, now + 4, 32_503_680_000]);
        tags.push(json!(["expiration", second.to_string()]));
    }
    let kind = match rng.random_range(0..60) {
        0 => 62,
        1..5 => 1_059,
        _ => *any(rng, &[1, 1, 1, 7, 0, 10_002, 30_023, 30_023, 5, 5, 5, 20_001]),
    };
    match kind {
        62 => {
            let relay = *any(rng, &["ALL_RELAYS", "wss://elsewhere.example"]);
            tags.push(json!(["relay", relay]));
        }
        // NIP-59: signed by a single-use key.
        1_059 => {
            tags.push(json!(["p", someone]));
            let content = any::<&str>(rng, &["", "one", "two"]);
            return Author::new(90).event(kind, at, Value::Array(tags), content);
        }
        5 => {
            for _ in 0..rng.random_range(1..3) {
                if !earlier.is_empty() && rng.random_ratio(3, 4) {
                    tags.push(json!(["e", id_of(any(rng, earlier))]));
                } else {
                    let of = if rng.random_ratio(3, 4) { &author } else { &Author::new(1) };
                    let kind = *any(rng, &[0, 10_002, 30_023]);
                    let d = if kind == 30_023 { d } else { "" };
                    tags.push(json!(["a", of.address(kind, d)]));
                }
            }
        }
        30_023 => tags.push(json!(["d", d])),
        _ => {}
    }
    author.event(kind, at, Value::Array(tags), any::<&str>(rng, &["", "one", "two"]))
}

fn any_operation(rng: &mut StdRng, pool: &[Value]) -> Operation {
    let filters = |rng: &mut StdRng| -> Vec<Value> {
        (0..rng.random_range(1..3)).map(|_| any_filter(rng, pool)).collect()
    };
    match rng.random_range(0..100) {
        0..60 => Operation::Publish(any(rng, pool).clone()),
        60..72 => Operation::Query(filters(rng)),
        72..80 => Operation::Count(filters(rng)),
        80..91 => {
            let filters = filters(rng);
            let share = *any(rng, &[0, 30, 90]);
            Operation::Open {
                filter: match filters.as_slice() {
                    [filter] => filter.clone(),
                    _ => Value::Array(filters),
                },
                local: pool.iter().filter(|_| rng.random_ratio(share, 100)).cloned().collect(),
                frame_limit_bytes: *any(rng, &[0, 4_096]),
            }
        }
        91..96 => Operation::Finish,
        96..98 => Operation::Restart {
            frame_limit_bytes: *any(rng, &[0, 4_096]),
            index_memory_mb: *any(rng, &[0, 64]),
        },
        _ => Operation::Wait,
    }
}

fn any_filter(rng: &mut StdRng, pool: &[Value]) -> Value {
    let mut filter = json!({});
    let one_in = |rng: &mut StdRng, times: u32| rng.random_ratio(1, times);
    if one_in(rng, 4) {
        filter["kinds"] = json!([any(rng, &[1, 7, 0, 5]), any(rng, &[30_023, 10_002])]);
    }
    if one_in(rng, 4) {
        filter["authors"] = json!([any(rng, pool)["pubkey"], any(rng, pool)["pubkey"]]);
    }
    if one_in(rng, 12) {
        filter["ids"] = json!([any(rng, pool)["id"], any(rng, pool)["id"]]);
    }
    if one_in(rng, 6) {
        filter["#t"] = json!([any(rng, &["x", "y", "z"])]);
    }
    if one_in(rng, 12) {
        filter["#e"] = json!([any(rng, pool)["id"], any(rng, pool)["id"]]);
    }
    for key in ["since", "until"] {
        if one_in(rng, 4) {
            filter[key] = json!(EPOCH + rng.random_range(0..SECONDS));
        }
    }
    if one_in(rng, 4) {
        filter["limit"] = json!(rng.random_range(0..8));
    }
    filter
}

/// A relay, the naive one, and a subscriber to all events.
struct Run {
    relay: TestRelay,
    clock: ManualClock,
    client: Client,
    listener: Client,
    naive: NaiveRelay,
    sessions: Vec<(Session, Difference)>,
    opened: usize,
}

impl Run {
    async fn start() -> Self {
        // All stored events must be visible.
        let clock = ManualClock::at(NOW);
        let relay = TestRelay::start_by(&clock, |config| config.auth.private_kinds.clear()).await;
        let (client, listener) = (relay.client().await, listen(&relay).await);
        let naive = NaiveRelay::default();
        Self { relay, clock, client, listener, naive, sessions: Vec::new(), opened: 0 }
    }

    async fn take(mut self, operation: Operation) -> Self {
        match operation {
            Operation::Publish(event) => self.publish(&event).await,
            Operation::Query(filters) => {
                let found = self.client.query(&filters).await;
                assert_eq!(found, self.naive.answer(&filters, self.clock.now()), "REQ");
            }
            Operation::Count(filters) => {
                let found = self.client.count(&filters).await;
                let expected = self.naive.answer(&filters, self.clock.now()).len() as u64;
                assert_eq!(found, expected, "COUNT");
            }
            Operation::Open { filter, local, frame_limit_bytes } => {
                self.open(&filter, &local, frame_limit_bytes).await;
            }
            Operation::Finish => self.finish().await,
            Operation::Wait => self.clock.advance(1),
            Operation::Restart { frame_limit_bytes, index_memory_mb } => {
                self.finish().await;
                self.relay = self
                    .relay
                    .restart_with(|config| {
                        config.negentropy.frame_limit_bytes = frame_limit_bytes;
                        config.index.memory_mb = index_memory_mb;
                    })
                    .await;
                self.client = self.relay.client().await;
                self.listener = listen(&self.relay).await;
            }
        }
        self
    }

    async fn publish(&mut self, event: &Value) {
        let (accepted, text) = self.client.publish(event).await;
        let said = Said::read(accepted, &text).unwrap_or_else(|| panic!("{accepted}, {text:?}"));
        let expected = self.naive.publish(event, self.clock.now());
        let shown = if expected == Said::PassedOn { Said::Stored } else { expected };
        assert_eq!(said, shown, "OK");
        if expected.is_live() {
            self.listener.expect(json!(["EVENT", "all", event])).await;
        }
        self.listener.fence().await;
    }

    async fn open(&mut self, filter: &Value, local: &[Value], frame_limit_bytes: u64) {
        let filters = filter.as_array().cloned().unwrap_or_else(|| vec![filter.clone()]);
        let ours: Vec<&Value> = local
            .iter()
            .filter(|event| filters.iter().any(|filter| model::matches(filter, event)))
            .collect();
        let our_ids = model::ids(ours.iter().copied());
        self.opened += 1;
        let id = format!("session-{}", self.opened % 5);
        // A session with the same id ends.
        self.sessions.retain(|(session, _)| session.id() != id);
        let theirs = model::ids(&self.naive.answer(&filters, self.clock.now()));
        let (client, ours) = (&mut self.client, ours.iter().copied());
        let session = Session::open(client, &id, filter, ours, frame_limit_bytes).await.unwrap();
        let expected = Difference {
            have: our_ids.difference(&theirs).cloned().collect(),
            need: theirs.difference(&our_ids).cloned().collect(),
        };
        self.sessions.push((session, expected));
    }

    async fn finish(&mut self) {
        for (session, expected) in std::mem::take(&mut self.sessions) {
            assert_eq!(session.finish(&mut self.client).await.unwrap(), expected, "NEG");
        }
    }
}

async fn listen(relay: &TestRelay) -> Client {
    let mut listener = relay.client().await;
    listener.send(&json!(["REQ", "all", { "limit": 0 }])).await;
    listener.expect(json!(["EOSE", "all"])).await;
    listener
}

/// Runs the operations of a seed whose indexes are in `kept`. Returns the failure and its place.
async fn run(seed: u64, kept: &[usize]) -> Result<(), String> {
    let operations = operations(seed);
    let mut run = Run::start().await;
    for place in kept {
        let operation = operations[*place].clone();
        run = tokio::spawn(run.take(operation)).await.map_err(|panic| {
            let text = panic.into_panic();
            let text = text.downcast::<String>().map_or_else(|_| String::new(), |text| *text);
            format!("operation {place}: {text}")
        })?;
    }
    run = run.take(Operation::Finish).await;
    run.relay.relay.stop().await;
    Ok(())
}

/// The operation as text.
fn shown(operation: &Operation) -> String {
    match operation {
        Operation::Publish(event) => {
            let fields = ["id", "pubkey", "created_at", "kind", "tags"];
            fields
                .iter()
                .fold("Publish".to_owned(), |text, field| text + &format!(" {}", event[field]))
        }
        Operation::Query(filters) => format!("Query {}", json!(filters)),
        Operation::Count(filters) => format!("Count {}", json!(filters)),
        Operation::Open { filter, local, frame_limit_bytes } => {
            let ids: Vec<&str> = local.iter().map(id_of).collect();
            format!("Open {filter} with frames of {frame_limit_bytes} bytes over {ids:?}")
        }
        other => format!("{other:?}"),
    }
}

/// Removes operations that the failure does not need, larger parts first.
async fn shorten(seed: u64) -> Vec<usize> {
    let mut kept: Vec<usize> = (0..OPERATIONS).collect();
    let mut size = OPERATIONS / 2;
    let end = Instant::now() + SHORTENING;
    while size > 0 && Instant::now() < end {
        let mut start = 0;
        while start < kept.len() && Instant::now() < end {
            let next = kept.len().min(start + size);
            let fewer = [&kept[..start], &kept[next..]].concat();
            match run(seed, &fewer).await {
                Err(_) => kept = fewer,
                Ok(()) => start = next,
            }
        }
        size /= 2;
    }
    kept
}

#[tokio::test(flavor = "multi_thread")]
async fn any_operations_are_answered_as_by_a_naive_relay() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let first = number("NEGSYNC_SEED").unwrap_or_else(|| rand::random_range(0..1 << 32));
    let runs = number("NEGSYNC_MODEL_RUNS").unwrap_or(RUNS);
    println!("NEGSYNC_SEED={first}");
    let mut seeds = first..first + runs;
    let mut running: JoinSet<(u64, Result<(), String>)> = JoinSet::new();
    loop {
        // A run spends most of its time waiting for seconds to pass.
        while running.len() < RUNS_AT_ONCE
            && let Some(seed) = seeds.next()
        {
            running.spawn(
                async move { (seed, run(seed, &(0..OPERATIONS).collect::<Vec<_>>()).await) },
            );
        }
        let Some(ended) = running.join_next().await else { break };
        if let (seed, Err(wrong)) = ended.unwrap() {
            running.shutdown().await;
            let kept = shorten(seed).await;
            let operations = operations(seed);
            for place in &kept {
                println!("{place}: {}", shown(&operations[*place]));
            }
            panic!("NEGSYNC_SEED={seed}: {wrong}; in short: {:?}", run(seed, &kept).await);
        }
    }
}
