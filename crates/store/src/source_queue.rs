//! A queue with one line for each origin, served fairly: an origin with many items delays only
//! itself.
//!
//! It uses start-time fair queueing: the virtual time is that of the item taken last. A new origin
//! starts at that time, and each of its items advances it by the item's weight. The queue has no
//! bound of its own and pushing never waits: the caller must bound its pending items.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Maximum number of origins that are remembered while they have nothing waiting.
const IDLE_ORIGINS: usize = 4_096;

/// The origin of work. Origins are served in turn.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Origin {
    /// A client's address, as the limits by address count it.
    Client(IpAddr),
    /// A peer, by its URL.
    Peer(Arc<str>),
    /// This program: an import, a check, or a program that embeds the store.
    Local,
}

/// A queue with a line for each origin.
#[derive(Debug)]
pub struct SourceQueue<T> {
    state: Mutex<SourceQueueState<T>>,
    // Signalled when an item has been pushed, and when the queue is closed.
    moved: Condvar,
}

#[derive(Debug)]
struct SourceQueueState<T> {
    lines: HashMap<Origin, OriginQueue<T>>,
    // The origins with waiting items, by their virtual time and order of arrival.
    order: BTreeMap<(u64, u64), Origin>,
    now: u64,
    arrivals: u64,
    is_closed: bool,
}

#[derive(Debug)]
struct OriginQueue<T> {
    waiting: VecDeque<(usize, T)>,
    stands_at: u64,
}

/// The result of waiting for an item.
#[derive(Debug, PartialEq, Eq)]
pub enum NextJob<T> {
    /// The next item.
    Item(T),
    /// No item arrived in time.
    TimedOut,
    /// The queue is closed and empty.
    Closed,
}

impl<T> Default for SourceQueue<T> {
    fn default() -> Self {
        let state = SourceQueueState {
            lines: HashMap::new(),
            order: BTreeMap::new(),
            now: 0,
            arrivals: 0,
            is_closed: false,
        };
        Self { state: Mutex::new(state), moved: Condvar::new() }
    }
}

impl<T> SourceQueue<T> {
    /// Appends items, each with its weight, to an origin's line.
    ///
    /// # Errors
    /// Returns the items when the queue is closed.
    pub fn push<I>(&self, origin: &Origin, items: I) -> Result<(), I>
    where
        I: IntoIterator<Item = (usize, T)>,
    {
        let mut state = self.lock();
        if state.is_closed {
            return Err(items);
        }
        state.push(origin, items);
        drop(state);
        self.moved.notify_one();
        Ok(())
    }

    /// Takes the next item, and waits for one.
    pub fn pop(&self) -> Option<T> {
        let mut state = self.lock();
        loop {
            if let Some((_, item)) = state.pop_first(|_, _| true) {
                // One signal may stand for many items.
                self.moved.notify_one();
                return Some(item);
            }
            if state.is_closed {
                return None;
            }
            state = self.moved.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Like [`SourceQueue::pop`], but waits at most `patience`.
    pub fn pop_within(&self, patience: Duration) -> NextJob<(usize, T)> {
        self.pop_light_within(patience, usize::MAX)
    }

    /// Like [`SourceQueue::pop_within`], but passes over items that weigh more than `most`.
    pub fn pop_light_within(&self, patience: Duration, most: usize) -> NextJob<(usize, T)> {
        let deadline = Instant::now() + patience;
        let mut state = self.lock();
        loop {
            if let Some(item) = state.pop_first(|weight, _| weight <= most) {
                return NextJob::Item(item);
            }
            if state.is_closed && state.order.is_empty() {
                return NextJob::Closed;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return NextJob::TimedOut;
            }
            let waited = self.moved.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Takes the first item, in turn, whose weight and value `is_wanted` accepts. Of each origin only the
    /// first item is considered.
    pub fn pop_first(&self, is_wanted: impl Fn(usize, &T) -> bool) -> Option<(usize, T)> {
        self.lock().pop_first(is_wanted)
    }

    /// Closes the queue: pushing fails, waiting items can still be taken.
    pub fn close(&self) {
        self.lock().is_closed = true;
        self.moved.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, SourceQueueState<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> SourceQueueState<T> {
    fn push(&mut self, origin: &Origin, items: impl IntoIterator<Item = (usize, T)>) {
        if self.lines.len() > IDLE_ORIGINS && !self.lines.contains_key(origin) {
            self.lines.retain(|_, line| !line.waiting.is_empty());
        }
        let now = self.now;
        let line = self
            .lines
            .entry(origin.clone())
            .or_insert_with(|| OriginQueue { waiting: VecDeque::new(), stands_at: now });
        let was_empty = line.waiting.is_empty();
        line.waiting.extend(items);
        if was_empty && !line.waiting.is_empty() {
            line.stands_at = line.stands_at.max(now);
            self.arrivals += 1;
            self.order.insert((line.stands_at, self.arrivals), origin.clone());
        }
    }

    fn pop_first(&mut self, is_wanted: impl Fn(usize, &T) -> bool) -> Option<(usize, T)> {
        let is_wanted = |origin: &Origin| {
            let first = self.lines.get(origin).and_then(|line| line.waiting.front());
            first.is_some_and(|(weight, item)| is_wanted(*weight, item))
        };
        let (&(earliest, _), _) = self.order.first_key_value()?;
        let (&place, origin) = self.order.iter().find(|(_, origin)| is_wanted(origin))?;
        let line = self.lines.get_mut(origin)?;
        let taken = line.waiting.pop_front()?;
        self.now = earliest;
        line.stands_at = line.stands_at.saturating_add(taken.0.max(1) as u64);
        let next = (!line.waiting.is_empty()).then_some(line.stands_at);
        let origin = self.order.remove(&place)?;
        match next {
            // After the origins that are at the same virtual time.
            Some(stands_at) => {
                self.arrivals += 1;
                self.order.insert((stands_at, self.arrivals), origin);
            }
            // With no origin waiting, fairness needs no memory.
            None if self.order.is_empty() => self.lines.clear(),
            None => {}
        }
        Some(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    fn client(number: u32) -> Origin {
        Origin::Client(IpAddr::V4(number.into()))
    }

    fn push(queue: &SourceQueue<u32>, from: u32, weights: &[usize]) {
        queue.push(&client(from), weights.iter().map(|weight| (*weight, from))).ok().unwrap();
    }

    #[test]
    fn who_comes_late_with_little_is_next_after_what_has_begun() {
        let queue = SourceQueue::default();
        push(&queue, 1, &[5_000; 100]);
        assert_eq!(queue.pop(), Some(1));
        push(&queue, 2, &[10, 10]);
        push(&queue, 3, &[10]);
        let order: Vec<u32> = (0..4).filter_map(|_| queue.pop()).collect();
        assert_eq!(order, [2, 3, 2, 1]);
    }

    /// Origins that always have waiting items get the same total weight, whatever each item weighs.
    #[test]
    fn weight_is_shared_and_not_items() {
        for seed in 0..20 {
            let mut rng = StdRng::seed_from_u64(seed);
            let queue = SourceQueue::default();
            let most = [10, 100, 1_000];
            for (from, most) in (0..).zip(most) {
                let weights: Vec<usize> = (0..20_000).map(|_| rng.random_range(1..=most)).collect();
                push(&queue, from, &weights);
            }
            let mut had = [0; 3];
            for round in 0..5_000 {
                let (weight, from) = queue.pop_first(|_, _| true).unwrap();
                had[from as usize] += weight;
                let (least, most) = (had.iter().min().unwrap(), had.iter().max().unwrap());
                assert!(most - least <= 1_100, "seed {seed}, round {round}: {had:?}");
            }
        }
    }

    #[test]
    fn what_is_not_wanted_stays_and_a_closed_queue_is_emptied() {
        let queue = SourceQueue::default();
        push(&queue, 1, &[7, 8]);
        assert_eq!(queue.pop_first(|weight, _| weight < 7), None);
        assert_eq!(queue.pop_first(|weight, _| weight == 7), Some((7, 1)));
        queue.close();
        assert!(queue.push(&client(2), [(1, 2)]).is_err());
        assert_eq!(queue.pop_within(Duration::ZERO), NextJob::Item((8, 1)));
        assert_eq!(queue.pop_within(Duration::ZERO), NextJob::Closed);
        assert_eq!(queue.pop(), None);
    }

    #[test]
    fn what_is_too_heavy_is_passed_over_and_stays_first() {
        let queue = SourceQueue::default();
        push(&queue, 1, &[5_000, 5_000]);
        push(&queue, 2, &[10, 10]);
        for _ in 0..2 {
            let light = queue.pop_light_within(Duration::ZERO, 100);
            assert_eq!(light, NextJob::Item((10, 2)));
        }
        queue.push(&client(3), [(10, 3)]).unwrap();
        queue.close();
        assert_eq!(queue.pop(), Some(1));
        assert_eq!(queue.pop_light_within(Duration::ZERO, 100), NextJob::Item((10, 3)));
        assert_eq!(queue.pop_light_within(Duration::ZERO, 100), NextJob::TimedOut);
        assert_eq!(queue.pop(), Some(1));
        assert_eq!(queue.pop_light_within(Duration::ZERO, 100), NextJob::Closed);
    }

    #[test]
    fn origins_with_nothing_waiting_are_forgotten() {
        let queue = SourceQueue::default();
        // An origin that is always waiting: the queue is never empty.
        push(&queue, 0, &[1_000_000, 1]);
        assert_eq!(queue.pop(), Some(0));
        for from in 1..3 * IDLE_ORIGINS as u32 {
            push(&queue, from, &[1]);
            assert_eq!(queue.pop(), Some(from));
            assert!(queue.lock().lines.len() <= IDLE_ORIGINS + 1);
        }
        assert_eq!(queue.pop(), Some(0));
        assert!(queue.lock().lines.is_empty());
    }
}
