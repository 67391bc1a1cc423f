//! Two figures of the client side. A catch-up over a slow link: the newest 1,000 of a million
//! events, compared with nostr-sdk's `sync` of the same set from the same relay. A download of
//! 100,000 events from one negsync to another, compared with verification alone of the same events.
//!
//! `cargo bench --bench sync -- catch-up 100000` measures one of them, with another size.

#[path = "../tests/support/proxy.rs"]
mod proxy;
mod support;

use ::rand::SeedableRng;
use ::rand::rngs::StdRng;
use negsync::config::Config;
use negsync::index::Index;
use negsync::relay::Relay;
use negsync::store::{Event, Filter, StoreOptions, Synchronous};
use negsync::sync::{Local, Options, Report, sync};
use nostr::{EventBuilder, EventId, JsonUtil, Keys, Kind, Timestamp};
use nostr_sdk::prelude::{
    Backend, BoxedFuture, Client, DatabaseError, DatabaseEventStatus, Events, NostrDatabase,
    SaveEventStatus, SyncDirection, SyncOptions,
};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use support::{bare_verification, parse, rate, report, signed_events, unsigned_event};

const MILLION: usize = 1_000_000;
const NEWEST: usize = 1_000;
const DOWNLOAD: usize = 100_000;
const ROUNDS: usize = 3;
/// A round trip over the proxy.
const ROUND_TRIP: Duration = Duration::from_millis(100);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let size = arguments.iter().find_map(|text| text.parse().ok()).unwrap_or(MILLION);
    let named = |name: &str| arguments.iter().any(|text| text == name);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        if !named("catch-up") {
            download().await;
        }
        if !named("download") {
            catch_up(size).await;
        }
    });
}

fn options() -> StoreOptions {
    StoreOptions::default().synchronous(Synchronous::Full)
}

fn open(path: &Path) -> Index {
    Index::open(path, options(), 64 << 20).unwrap()
}

async fn relay(path: &Path) -> Relay {
    let mut config = Config::default();
    config.store.path = path.to_owned();
    config.relay.listen = SocketAddr::from(([127, 0, 0, 1], 0)).into();
    Relay::start(config).await.unwrap()
}

fn fill(index: &Index, lines: impl Iterator<Item = String>) {
    let mut lines = lines.peekable();
    while lines.peek().is_some() {
        let events = lines.by_ref().take(10_000);
        let events = events.map(|line| Event::parse(&line).unwrap().trust()).collect();
        index.store().publish(events).unwrap();
    }
}

fn size_of(index: &Index) -> usize {
    use negsync::reconcile::RangeSet;
    index.snapshot(&[Filter::default()], usize::MAX).unwrap().len()
}

async fn synced(local: &Local, url: &str) -> Report {
    let report = sync(local, url, &Options::default(), |_| {}).await.unwrap();
    assert!(report.equal, "{report:?}");
    report
}

async fn download() {
    let lines = signed_events(DOWNLOAD, 1);
    let events = parse(&lines);
    let folder = tempfile::tempdir().unwrap();
    let relay = relay(&folder.path().join("relay.sqlite")).await;
    fill(relay.index(), lines.into_iter());
    let url = format!("ws://{}", relay.address());
    let (mut bare, mut ours) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        bare.push(bare_verification(&events));
        let index = open(&folder.path().join(format!("{round}.sqlite")));
        let local = Local::new(index).unwrap();
        let began = Instant::now();
        let report = synced(&local, &url).await;
        ours.push(began.elapsed());
        assert_eq!(report.stored, DOWNLOAD as u64);
        local.store.close();
    }
    let (bare, ours) = (median(bare), median(ours));
    report("download", rate(DOWNLOAD, ours), rate(DOWNLOAD, bare), "events/s", 0.4);
    relay.stop().await;
}

async fn catch_up(size: usize) {
    let folder = tempfile::tempdir().unwrap();
    let (ours, theirs) = (folder.path().join("ours.sqlite"), folder.path().join("theirs.sqlite"));
    let mut rng = StdRng::seed_from_u64(3);
    let old: Vec<String> = (0..size - NEWEST).map(|n| unsigned_event(&mut rng, n)).collect();
    let index = open(&ours);
    fill(&index, old.iter().cloned());
    index.store().close();
    drop(index);
    std::fs::copy(&ours, &theirs).unwrap();
    let relay = relay(&theirs).await;
    let through = proxy::delaying_proxy(relay.address(), ROUND_TRIP / 2).await;
    let url = format!("ws://{through}");
    let local = Local::new(open(&ours)).unwrap();
    synced(&local, &url).await;
    // The million have times from START to START + size; these are newer.
    fill(relay.index(), newest(size).into_iter());
    assert_eq!(size_of(relay.index()), size);

    let began = Instant::now();
    let report_ours = synced(&local, &url).await;
    let ours = began.elapsed();
    assert_eq!(report_ours.stored, NEWEST as u64, "{report_ours:?}");

    let items = old.iter().map(|line| item(line)).collect();
    let database = Baseline { items, saved: Mutex::default() };
    let theirs = with_nostr_sdk(Arc::new(database), &url).await;
    println!(
        "catch-up of {NEWEST} newest of {size}: {:.0} ms, {:.2} round trips of {} ms in all \
         (at most 4), {} questions, {} B up, {} B down",
        ours.as_secs_f64() * 1e3,
        ours.as_secs_f64() / ROUND_TRIP.as_secs_f64(),
        ROUND_TRIP.as_millis(),
        report_ours.round_trips,
        report_ours.bytes_up,
        report_ours.bytes_down,
    );
    let per_second = |time: Duration| 1.0 / time.as_secs_f64();
    report("catch-up beside nostr-sdk's", per_second(ours), per_second(theirs), "a second", 3.0);
    relay.stop().await;
}

/// The newest events, signed, all after the `size` older ones.
fn newest(size: usize) -> Vec<String> {
    let keys = Keys::generate();
    (0..NEWEST)
        .map(|n| {
            EventBuilder::new(Kind::TextNote, format!("newer than the others {n}"))
                .custom_created_at(Timestamp::from_secs(support::START + (size + n) as u64))
                .sign_with_keys(&keys)
                .unwrap()
                .as_json()
        })
        .collect()
}

fn item(line: &str) -> (EventId, Timestamp) {
    let event = nostr::Event::from_json(line).unwrap();
    (event.id, event.created_at)
}

/// The time of nostr-sdk from connecting until it has all events.
async fn with_nostr_sdk(database: Arc<Baseline>, url: &str) -> Duration {
    let client = Client::builder().database(Arc::clone(&database)).build();
    client.add_relay(url).await.unwrap();
    let began = Instant::now();
    client.connect().await;
    client.wait_for_connection(Duration::from_secs(10)).await;
    let options = SyncOptions::new().direction(SyncDirection::Both);
    client.sync(nostr_sdk::Filter::new(), &options).await.unwrap();
    let took = began.elapsed();
    assert_eq!(database.saved.lock().unwrap().len(), NEWEST);
    client.disconnect().await;
    took
}

/// The fastest possible database for nostr-sdk: every answer is ready in memory.
#[derive(Debug)]
struct Baseline {
    items: Vec<(EventId, Timestamp)>,
    saved: Mutex<HashMap<EventId, nostr::Event>>,
}

impl NostrDatabase for Baseline {
    fn backend(&self) -> Backend {
        Backend::Memory
    }

    fn save_event<'a>(
        &'a self,
        event: &'a nostr::Event,
    ) -> BoxedFuture<'a, Result<SaveEventStatus, DatabaseError>> {
        Box::pin(async move {
            self.saved.lock().unwrap().insert(event.id, event.clone());
            Ok(SaveEventStatus::Success)
        })
    }

    fn check_id<'a>(
        &'a self,
        event_id: &'a EventId,
    ) -> BoxedFuture<'a, Result<DatabaseEventStatus, DatabaseError>> {
        Box::pin(async move {
            let saved = self.saved.lock().unwrap().contains_key(event_id);
            Ok(if saved { DatabaseEventStatus::Saved } else { DatabaseEventStatus::NotExistent })
        })
    }

    fn event_by_id<'a>(
        &'a self,
        event_id: &'a EventId,
    ) -> BoxedFuture<'a, Result<Option<nostr::Event>, DatabaseError>> {
        Box::pin(async move { Ok(self.saved.lock().unwrap().get(event_id).cloned()) })
    }

    fn count(&self, _: nostr_sdk::Filter) -> BoxedFuture<'_, Result<usize, DatabaseError>> {
        Box::pin(async move { Ok(self.items.len()) })
    }

    fn query(&self, filter: nostr_sdk::Filter) -> BoxedFuture<'_, Result<Events, DatabaseError>> {
        Box::pin(async move { Ok(Events::new(&filter)) })
    }

    fn negentropy_items(
        &self,
        _: nostr_sdk::Filter,
    ) -> BoxedFuture<'_, Result<Vec<(EventId, Timestamp)>, DatabaseError>> {
        Box::pin(async move { Ok(self.items.clone()) })
    }

    fn delete(&self, _: nostr_sdk::Filter) -> BoxedFuture<'_, Result<(), DatabaseError>> {
        Box::pin(async move { Ok(()) })
    }

    fn wipe(&self) -> BoxedFuture<'_, Result<(), DatabaseError>> {
        Box::pin(async move { Ok(()) })
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}
