//! Stores and relays filled with signed events, and syncs between them.

pub use crate::support::{Author, TestRelay};
use negsync::config::Config;
use negsync::index::Index;
use negsync::reconcile::RangeSet;
use negsync::store::{Event, Filter, Outcome, StoreOptions, Synchronous};
use negsync::sync::{Local, Options, PeerFilter, Progress, Report, sync};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;
use std::collections::BTreeSet;
use std::time::Duration;
use tempfile::TempDir;

pub const START: u64 = 1_700_000_000;
/// Longer than any test may take.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A signed note, as JSON.
pub fn note(author: &Author, created_at: u64, content: &str) -> String {
    author.note(created_at, content).to_string()
}

/// Any signed event, as JSON. `tags` is an array of arrays.
pub fn event(author: &Author, kind: u16, created_at: u64, tags: Value, content: &str) -> String {
    author.event(kind, created_at, tags, content).to_string()
}

/// Signed notes of a seed: the same seed gives the same notes.
pub fn notes(seed: u64, count: usize) -> Vec<String> {
    let mut rng = StdRng::seed_from_u64(seed);
    let author = Author::new(seed as u8 + 1);
    let span = count as u64 * 2;
    (0..count)
        .map(|n| {
            let at = START + rng.random_range(0..span);
            note(&author, at, &format!("{seed} {n} {}", rng.random::<u64>()))
        })
        .collect()
}

/// A store in a folder of its own.
pub struct TestStore {
    pub index: Index,
    pub local: Local,
    _folder: TempDir,
}

impl TestStore {
    pub fn new(events: &[String]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let options = StoreOptions::default().synchronous(Synchronous::Normal);
        let path = folder.path().join("store.sqlite");
        let index = Index::open(&path, options, 64 << 20).unwrap();
        fill(&index, events);
        let local = Local::new(index.clone()).unwrap();
        Self { index, local, _folder: folder }
    }

    pub fn ids(&self) -> BTreeSet<[u8; 32]> {
        ids(&self.index)
    }
}

/// Stores events; all must be new.
pub fn fill(index: &Index, events: &[String]) {
    let events = events.iter().map(|json| Event::parse(json).unwrap().verify().unwrap()).collect();
    let outcomes = index.store().publish(events).unwrap();
    assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Stored), "{outcomes:?}");
}

/// The ids of all events.
pub fn ids(index: &Index) -> BTreeSet<[u8; 32]> {
    let set = index.snapshot(&[Filter::default()], usize::MAX).unwrap();
    let mut ids = BTreeSet::new();
    set.for_each(0..set.len(), &mut |item| {
        ids.insert(item.id);
    });
    ids
}

/// Fails with the number of differing ids instead of all of them.
pub fn assert_same(ours: &BTreeSet<[u8; 32]>, theirs: &BTreeSet<[u8; 32]>, about: &str) {
    let (have, need) = (ours.difference(theirs).count(), theirs.difference(ours).count());
    assert!(have + need == 0, "{have} only here, {need} only there; {about}");
}

/// The id of an event as JSON.
pub fn id(event: &str) -> [u8; 32] {
    Event::parse(event).unwrap().item().id
}

impl TestRelay {
    /// A relay with these events and the limits of the default configuration.
    pub async fn holding(events: &[String]) -> Self {
        Self::holding_with(events, |_| {}).await
    }

    /// As [`TestRelay::holding`], with a configuration changed by `change`.
    pub async fn holding_with(events: &[String], change: impl FnOnce(&mut Config)) -> Self {
        let relay = Self::start_with(|config| {
            config.rates = Config::default().rates;
            config.store.synchronous = Synchronous::Normal;
            change(config);
        });
        let relay = relay.await;
        fill(relay.relay.index(), events);
        relay
    }

    pub fn ids(&self) -> BTreeSet<[u8; 32]> {
        ids(self.relay.index())
    }
}

/// A sync of all events in both directions, within [`PATIENCE`].
pub async fn sync_all(store: &TestStore, url: &str) -> Report {
    sync_with(store, url, &Options::default()).await.0
}

/// A sync, and its notes.
pub async fn sync_with(store: &TestStore, url: &str, options: &Options) -> (Report, Vec<String>) {
    let mut notes = Vec::new();
    let report = {
        let syncing = sync(&store.local, url, options, |progress| match progress {
            Progress::Note(text) => notes.push(text),
            Progress::Waiting { reason, .. } => notes.push(reason),
            _ => {}
        });
        tokio::time::timeout(PATIENCE, syncing).await.expect("the sync does not end").unwrap()
    };
    (report, notes)
}

pub fn filter(json: &str) -> PeerFilter {
    PeerFilter::parse(json).unwrap()
}
