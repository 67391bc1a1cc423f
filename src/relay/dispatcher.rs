//! Dispatches live events to subscriptions (NIP-01): one task receives every commit, finds the
//! subscriptions that match, and wakes only their connections.

use super::subscriptions::{Matched, Registry, Subscription, Subscriptions};
use crate::index::{Index, Subscriber, SubscriberError};
use crate::metrics::IntCounter;
use crate::store::{Change, Event, Filter, Step};
use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Weak};

/// Maximum number of commits that a connection may leave unsent before it misses some.
const WINDOW_COMMITS: usize = 1_024;
/// Maximum bytes of live events that wait for the slowest connection; a single commit may exceed
/// it.
const WINDOW_BYTES: usize = 64 << 20;
/// Postings and keys of the index that are examined before the task yields.
const STEP: usize = 512;
/// Filters of a connection that an event meets without a match, after which the connection's own
/// task continues, in a turn of its address.
const MISSES: usize = 32;

/// Receives commits for all connections.
pub(super) struct Dispatcher {
    commits: Subscriber,
    registry: Arc<Registry>,
    wakeups: IntCounter,
    window: RecentCommits,
}

/// The last commits with live events, and the connections that may not have sent all of them.
#[derive(Default)]
struct RecentCommits {
    // The number of each commit and the bytes of its events.
    commits: VecDeque<(u64, usize)>,
    bytes: usize,
    waiting: HashMap<usize, Weak<Subscriptions>>,
}

/// The result of an event for one connection so far.
struct Met {
    connection: Arc<Subscriptions>,
    matching: Vec<Arc<Subscription>>,
    misses: usize,
}

/// The connections that an event has met, by memory address.
#[derive(Default)]
struct Meetings(HashMap<usize, Met>);

impl Dispatcher {
    /// Dispatches every commit of the index from now on.
    pub(super) fn new(index: &Index, registry: Arc<Registry>, wakeups: IntCounter) -> Self {
        Self { commits: index.subscribe(), registry, wakeups, window: RecentCommits::default() }
    }

    /// Runs until the store is closed.
    pub(super) async fn run(mut self) {
        loop {
            match self.commits.recv().await {
                Ok(change) => {
                    let commit = self.commits.next_number().saturating_sub(1);
                    self.dispatch(commit, &change).await;
                }
                Err(SubscriberError::Lagged) => {
                    tracing::warn!("live events were missed: the dispatcher is overloaded");
                    self.miss();
                }
                Err(SubscriberError::Closed) => return,
            }
            tokio::task::yield_now().await;
        }
    }

    async fn dispatch(&mut self, commit: u64, change: &Change) {
        let mut bytes = 0;
        for step in &change.steps {
            if let Step::Added(event) | Step::Passed(event) = step
                && self.deliver(commit, event).await
            {
                bytes += size_of_val(&**event) + event.json().len();
            }
        }
        self.registry.end_commit(commit);
        if bytes > 0 {
            self.window.add(commit, bytes);
        }
    }

    /// Delivers an event to the connections with a matching subscription. Returns whether there is
    /// one.
    async fn deliver(&mut self, commit: u64, event: &Arc<Event>) -> bool {
        let mut lookup = self.registry.filters().lookup(event);
        let mut meetings = Meetings::default();
        loop {
            let is_complete = self.registry.filters().visit(&mut lookup, STEP, |filter, owner| {
                meetings.meet(event, filter, owner);
            });
            if is_complete {
                break;
            }
            tokio::task::yield_now().await;
        }
        let mut is_live = false;
        for (place, met) in meetings.0 {
            let matched = match met.misses {
                0..MISSES if met.matching.is_empty() => continue,
                0..MISSES => Matched::By(met.matching),
                _ => Matched::Unknown,
            };
            is_live = true;
            if met.connection.deliver(commit, event, matched) {
                self.wakeups.inc();
                self.window.waiting.insert(place, Arc::downgrade(&met.connection));
            }
        }
        is_live
    }

    /// Ends all subscriptions, because each has missed events.
    fn miss(&self) {
        let connections: HashMap<usize, Weak<Subscriptions>> = {
            let filters = self.registry.filters();
            let weak = filters.owners().map(|owner| &owner.connection);
            weak.map(|it| (it.as_ptr().addr(), Weak::clone(it))).collect()
        };
        for connection in connections.into_values().filter_map(|it| it.upgrade()) {
            connection.miss();
        }
    }
}

impl Meetings {
    fn meet(&mut self, event: &Event, filter: &Filter, subscription: &Arc<Subscription>) {
        let place = subscription.connection.as_ptr().addr();
        let met = match self.0.entry(place) {
            Entry::Occupied(met) => met.into_mut(),
            Entry::Vacant(vacant) => {
                // `None` while the connection is ending.
                let Some(connection) = subscription.connection.upgrade() else { return };
                vacant.insert(Met { connection, matching: Vec::new(), misses: 0 })
            }
        };
        let is_known = |met: &Met| met.matching.iter().any(|it| Arc::ptr_eq(it, subscription));
        if met.misses >= MISSES || is_known(met) {
            return;
        }
        if filter.matches(event) {
            met.matching.push(Arc::clone(subscription));
        } else {
            met.misses += 1;
        }
    }
}

impl RecentCommits {
    /// Adds a commit. Connections that have not sent a commit that leaves the window are too slow.
    fn add(&mut self, commit: u64, bytes: usize) {
        self.commits.push_back((commit, bytes));
        self.bytes += bytes;
        let mut oldest = None;
        while self.commits.len() > WINDOW_COMMITS
            || self.bytes > WINDOW_BYTES && self.commits.len() > 1
        {
            let Some((commit, bytes)) = self.commits.pop_front() else { break };
            self.bytes -= bytes;
            oldest = Some(commit);
        }
        if let Some(oldest) = oldest {
            let waits = |it: &Weak<Subscriptions>| it.upgrade().is_some_and(|it| it.expire(oldest));
            self.waiting.retain(|_, connection| waits(connection));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::auth::ClientAuth;
    use super::*;
    use crate::config::Limits;
    use crate::hex;
    use crate::index::IndexMetrics;
    use crate::metrics::Metrics;
    use crate::server::limits::SubscribedShare;
    use crate::store::{StoreMetrics, StoreOptions, TagKey};
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};
    use std::collections::BTreeSet;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    fn dispatcher(directory: &std::path::Path) -> (Index, Dispatcher, Arc<Registry>, Metrics) {
        let index =
            Index::open(&directory.join("store.sqlite"), StoreOptions::default(), 0).unwrap();
        let metrics = Metrics::new(&StoreMetrics::default(), &IndexMetrics::default());
        let registry = Arc::<Registry>::default();
        let wakeups = metrics.live_wakeups.clone();
        let dispatcher = Dispatcher::new(&index, Arc::clone(&registry), wakeups);
        (index, dispatcher, registry, metrics)
    }

    /// One of few values, so that filters and events match.
    fn bytes(rng: &mut StdRng) -> [u8; 32] {
        [rng.random_range(1..6); 32]
    }

    fn event(rng: &mut StdRng, number: usize, content_bytes: usize) -> Arc<Event> {
        let hex = |bytes: [u8; 32]| hex::encode(&bytes);
        let tags: Vec<[String; 2]> = (0..rng.random_range(0..8))
            .map(|_| {
                let name = ["e", "p", "t"][rng.random_range(0..3)].to_owned();
                [name, hex(bytes(rng))]
            })
            .collect();
        // The first byte is one of few values, the rest makes the id unique.
        let mut id = bytes(rng);
        id[1..9].copy_from_slice(&(number as u64).to_be_bytes());
        let json = serde_json::json!({
            "id": hex(id), "pubkey": hex(bytes(rng)), "kind": rng.random_range(0..4),
            "created_at": rng.random_range(0..10), "tags": tags,
            "content": "x".repeat(content_bytes), "sig": "00".repeat(64),
        });
        Arc::new(Event::parse(&json.to_string()).unwrap())
    }

    fn filter(rng: &mut StdRng, events: &[Arc<Event>]) -> Filter {
        let mut list = |odds: u32| -> Option<Vec<[u8; 32]>> {
            rng.random_ratio(1, odds).then(|| {
                let values: BTreeSet<_> = (0..rng.random_range(0..4)).map(|_| bytes(rng)).collect();
                values.into_iter().collect()
            })
        };
        let mut filter = Filter { authors: list(3), ..Filter::default() };
        for letter in [b'e', b'p'] {
            if let Some(values) = list(3) {
                let key = |it: &[u8; 32]| TagKey::new(letter, &hex::encode(it));
                filter.tags.push(values.iter().map(key).collect());
            }
        }
        if rng.random_ratio(1, 3) {
            let kinds: BTreeSet<u16> = (0..3).map(|_| rng.random_range(0..6)).collect();
            filter.kinds = Some(kinds.into_iter().collect());
        }
        if rng.random_ratio(1, 10) {
            let ids: BTreeSet<[u8; 32]> =
                (0..3).map(|_| events[rng.random_range(0..events.len())].item().id).collect();
            filter.ids = Some(ids.into_iter().collect());
        }
        filter.since = rng.random_ratio(1, 5).then(|| rng.random_range(0..10));
        filter.until = rng.random_ratio(1, 5).then(|| rng.random_range(0..10));
        filter
    }

    /// The messages that a connection got.
    fn received(connection: &Subscriptions) -> BTreeSet<String> {
        let mut texts = BTreeSet::new();
        loop {
            let next = pin!(connection.next_live()).poll(&mut Context::from_waker(Waker::noop()));
            let Poll::Ready(Ok(live)) = next else { return texts };
            match &live.to {
                Some(to) => texts.extend(connection.text(&live.event, to)),
                None => texts.extend(connection.texts(&live)),
            }
        }
    }

    /// The filters of a connection's subscriptions, by their ids.
    type Known = HashMap<String, Vec<Filter>>;

    /// While subscriptions come and go, each event reaches exactly those that it matches, and wakes
    /// only their connections.
    #[tokio::test]
    async fn each_subscription_gets_what_its_filters_match() {
        for seed in 0..15 {
            let directory = tempfile::tempdir().unwrap();
            let (_index, mut dispatcher, registry, metrics) = dispatcher(directory.path());
            let mut rng = StdRng::seed_from_u64(seed);
            let events: Vec<Arc<Event>> = (0..60).map(|n| event(&mut rng, n, 0)).collect();
            // Some have more filters than other connections wait for.
            let most = [3, 3, 3, 150][rng.random_range(0..4)];
            let mut connections: Vec<(Arc<Subscriptions>, Known)> = Vec::new();
            for (commit, event) in events.iter().enumerate() {
                for _ in 0..rng.random_range(0..4) {
                    let auth = Arc::new(ClientAuth::stranger());
                    let new = Subscriptions::new(
                        Arc::clone(&registry),
                        auth,
                        SubscribedShare::default(),
                        &metrics,
                    );
                    connections.push((new, Known::new()));
                    let at = rng.random_range(0..connections.len());
                    let (connection, known) = &mut connections[at];
                    let id = rng.random_range(0..3).to_string();
                    let filters: Vec<Filter> = (0..rng.random_range(1..=most))
                        .map(|_| filter(&mut rng, &events))
                        .collect();
                    let generation =
                        connection.begin(&id, filters.clone(), 0, &Limits::default()).unwrap();
                    connection.go_live(&id, generation, Vec::new(), 0);
                    known.insert(id, filters);
                    if rng.random_ratio(1, 4) {
                        let at = rng.random_range(0..connections.len());
                        connections.swap_remove(at);
                    }
                }
                let before = metrics.live_wakeups.get();
                let mut change = Change::default();
                change.steps.push(Step::Added(Arc::clone(event)));
                dispatcher.dispatch(commit as u64 + 1, &change).await;
                let (mut matching, mut metered) = (0, 0);
                for (connection, known) in &connections {
                    let expected: BTreeSet<String> = known
                        .iter()
                        .filter(|(_, filters)| filters.iter().any(|filter| filter.matches(event)))
                        .map(|(id, _)| {
                            super::super::message::event(&format!("{id:?}"), event.json())
                        })
                        .collect();
                    matching += u64::from(!expected.is_empty());
                    let filters: usize = known.values().map(Vec::len).sum();
                    metered += u64::from(expected.is_empty() && filters > MISSES);
                    assert_eq!(received(connection), expected, "seed {seed}, commit {commit}");
                }
                let woken = metrics.live_wakeups.get() - before;
                let range = matching..=matching + metered;
                assert!(range.contains(&woken), "seed {seed}: {woken} woken, {range:?}");
            }
            drop(connections);
            assert_eq!(registry.filters().owners().count(), 0);
        }
    }

    /// An event with thousands of tags meets filters in several steps, each filter once.
    #[test]
    fn a_lookup_in_steps_finds_what_one_does() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut index = super::super::filter_index::FilterIndex::default();
        let events: Vec<Arc<Event>> = (0..20).map(|n| event(&mut rng, n, 0)).collect();
        let slots: Vec<u32> = (0..500)
            .map(|number| index.insert(Arc::new(filter(&mut rng, &events)), number))
            .collect();
        for event in &events {
            let mut found: Vec<Vec<usize>> = Vec::new();
            for step in [1, 2, 7, usize::MAX] {
                let (mut lookup, mut candidates) = (index.lookup(event), Vec::new());
                while !index.visit(&mut lookup, step, |_, number| candidates.push(*number)) {}
                found.push(candidates);
            }
            assert!(found.iter().all(|candidates| candidates == &found[0]));
            assert!(found[0].len() < 500);
        }
        slots.into_iter().for_each(|slot| index.remove(slot));
        assert_eq!(index.owners().count(), 0);
    }

    /// A connection that falls behind the window drops its events at once; one that keeps reading
    /// gets all.
    #[tokio::test]
    async fn a_slow_connection_ends_with_the_window_and_holds_nothing_more() {
        for (commits, content_bytes) in [(WINDOW_COMMITS + 1, 0), (70, 1 << 20)] {
            let directory = tempfile::tempdir().unwrap();
            let (_index, mut dispatcher, registry, metrics) = dispatcher(directory.path());
            let mut rng = StdRng::seed_from_u64(2);
            let [slow, fast] = [(); 2].map(|()| {
                let auth = Arc::new(ClientAuth::stranger());
                let connection = Subscriptions::new(
                    Arc::clone(&registry),
                    auth,
                    SubscribedShare::default(),
                    &metrics,
                );
                let all = vec![Filter::default()];
                let generation = connection.begin("s", all, 0, &Limits::default()).unwrap();
                connection.go_live("s", generation, Vec::new(), 0);
                connection
            });
            let mut count = 0;
            let first = event(&mut rng, 0, content_bytes);
            for commit in 0..commits {
                let mut change = Change::default();
                let next = if commit == 0 {
                    Arc::clone(&first)
                } else {
                    event(&mut rng, commit, content_bytes)
                };
                change.steps.push(Step::Added(next));
                dispatcher.dispatch(commit as u64, &change).await;
                count += received(&fast).len();
            }
            assert_eq!(count, commits);
            assert_eq!(Arc::strong_count(&first), 1, "the slow one still holds it");
            let ended = pin!(slow.next_live()).poll(&mut Context::from_waker(Waker::noop()));
            assert!(matches!(ended, Poll::Ready(Err(_))));
        }
    }
}
