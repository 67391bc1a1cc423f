//! Shared by the tests: events, and a network with faults.

pub mod proxy;

use negsync_nostr::{Event, VerifiedEvent};
use negsync_postgres::{Address, PostgresStore};
use negsync_reconcile::Item;
use negsync_store::{
    Clock, EventSource, EventStore, Filter, ManualClock, SourceSnapshot, StoreError, StoreOptions,
};
use negsync_testserver::HeardSet;
use rand::RngExt;
use rand::rngs::StdRng;
use std::collections::BTreeSet;
use std::ops::ControlFlow;

pub const EPOCH: u64 = 1_700_000_000;

pub fn open(url: &str, heard: HeardSet) -> PostgresStore {
    try_open(url, heard).unwrap()
}

/// A node with a clock that the test sets.
pub fn open_by(clock: &ManualClock, url: &str, heard: HeardSet) -> PostgresStore {
    let options = StoreOptions::default().clock(Clock::from(clock));
    PostgresStore::open(&Address::parse(url).unwrap(), options, Box::new(heard)).unwrap()
}

/// A node with a URL for requests to vanish.
pub fn open_as(relay_url: &str, url: &str) -> PostgresStore {
    let relay_url = Some(relay_url.parse().unwrap());
    let options = StoreOptions::default().relay_url(relay_url);
    PostgresStore::open(&Address::parse(url).unwrap(), options, Box::new(HeardSet::default()))
        .unwrap()
}

/// A node, or the reason why it cannot be opened.
pub fn try_open(url: &str, heard: HeardSet) -> Result<PostgresStore, String> {
    let address = Address::parse(url).map_err(|error| error.to_string())?;
    PostgresStore::open(&address, StoreOptions::default(), Box::new(heard))
        .map_err(|error| error.to_string())
}

/// The set from which a session would be answered, as the listener has it at that time.
pub fn set(store: &PostgresStore, heard: &HeardSet) -> Result<BTreeSet<Item>, StoreError> {
    let (mut known, mut read) = (None, BTreeSet::new());
    let mut beside = || known = Some(heard.items());
    let mut work = |snapshot: &dyn SourceSnapshot| {
        snapshot.items(&Filter::default(), &mut |item| {
            read.insert(item);
            ControlFlow::Continue(())
        })
    };
    store.read_at_commit(&mut beside, &mut work)?;
    assert_eq!(known, Some(read.clone()), "the index is the table");
    Ok(read)
}

pub fn hex(bytes: [u8; 32]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An event that counts as verified; `tags` is JSON.
pub fn event(id: [u8; 32], author: u8, kind: u16, created_at: u64, tags: &str) -> VerifiedEvent {
    let json = format!(
        r#"{{"id":"{}","pubkey":"{}","created_at":{created_at},"kind":{kind},"tags":{tags},"content":"\u0000 \\u0000 🦊","sig":"{}"}}"#,
        hex(id),
        hex([author; 32]),
        "0".repeat(128)
    );
    Event::parse(&json).unwrap().trust()
}

/// The same event again.
pub fn again(event: &VerifiedEvent) -> VerifiedEvent {
    Event::parse(event.json()).unwrap().trust()
}

pub fn note(rng: &mut StdRng) -> VerifiedEvent {
    let at = EPOCH + rng.random_range(0..1_000);
    event(rng.random(), rng.random_range(1..5), 1, at, r#"[["t","x"],["e","y"]]"#)
}

/// All events, oldest first, as in an export.
pub fn all(store: &dyn EventStore) -> Vec<String> {
    let mut events = Vec::new();
    let mut visit = |_: &Item, json: &str| {
        events.push(json.to_owned());
        ControlFlow::Continue(())
    };
    store.oldest_first(&Filter::default(), &mut visit).unwrap();
    events
}
