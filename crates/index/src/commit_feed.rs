//! The feed of commits for subscribers: a queue that each reads at its own pace, bounded in commits
//! and in bytes. A subscriber that falls too far behind gets [`SubscriberError::Lagged`].

use negsync_store::{Change, Step};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// Maximum number of commits that a subscriber may be behind before it misses some.
const MOST_COMMITS: usize = 1_024;
/// Maximum number of bytes of events that wait for the slowest subscriber; a single commit may
/// exceed it.
const MOST_BYTES: usize = 64 << 20;

/// The sending side of the feed.
#[derive(Clone)]
pub(super) struct CommitFeed {
    queue: Arc<Mutex<CommitQueue>>,
    // The number of the next commit.
    next: watch::Sender<u64>,
}

/// A subscriber to commits, from the first one after it subscribed.
pub struct Subscriber {
    queue: Arc<Mutex<CommitQueue>>,
    told: watch::Receiver<u64>,
    // The number of the next commit to receive.
    next: u64,
}

impl std::fmt::Debug for Subscriber {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subscriber").finish_non_exhaustive()
    }
}

/// Why no commit was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SubscriberError {
    /// Commits were missed; the next one is the oldest that is still in the queue.
    #[error("commits were missed")]
    Lagged,
    /// No commits will follow.
    #[error("the store is closed")]
    Closed,
}

#[derive(Default)]
struct CommitQueue {
    // The number of the first one.
    first: u64,
    waiting: VecDeque<WaitingSubscriber>,
    bytes: usize,
    subscribers: usize,
}

struct WaitingSubscriber {
    change: Arc<Change>,
    bytes: usize,
    // The number of subscribers that have not received it.
    listeners: usize,
}

impl CommitFeed {
    pub(super) fn new() -> Self {
        Self { queue: Arc::default(), next: watch::Sender::new(0) }
    }

    /// Sends a commit to all subscribers.
    pub(super) fn send(&self, change: Arc<Change>) {
        lock(&self.queue).push(change);
        self.next.send_modify(|next| *next = next.wrapping_add(1));
    }

    /// Marks commits as missed for all subscribers: their contents are unknown.
    pub(super) fn skip(&self) {
        lock(&self.queue).skip();
        self.next.send_modify(|next| *next = next.wrapping_add(1));
    }

    /// The number of published commits, which is the number of the next one.
    pub(super) fn published(&self) -> u64 {
        *self.next.borrow()
    }

    /// Subscribes to every commit from now on.
    pub(super) fn subscribe(&self) -> Subscriber {
        let mut queue = lock(&self.queue);
        queue.subscribers += 1;
        let next = queue.end();
        Subscriber { queue: Arc::clone(&self.queue), told: self.next.subscribe(), next }
    }
}

impl Subscriber {
    /// Waits for the next commit. Cancel-safe: no commit is lost if the future is dropped.
    ///
    /// # Errors
    /// When commits were missed, or no more can follow.
    pub async fn recv(&mut self) -> Result<Arc<Change>, SubscriberError> {
        loop {
            // Only later commits wake this subscriber.
            self.told.mark_unchanged();
            if let Some(change) = self.try_recv()? {
                return Ok(change);
            }
            self.told.changed().await.map_err(|_| SubscriberError::Closed)?;
        }
    }

    /// The next commit, if one is waiting.
    ///
    /// # Errors
    /// When commits were missed.
    pub fn try_recv(&mut self) -> Result<Option<Arc<Change>>, SubscriberError> {
        let mut queue = lock(&self.queue);
        if self.next < queue.first {
            self.next = queue.first;
            return Err(SubscriberError::Lagged);
        }
        let change = queue.hear(self.next);
        self.next += u64::from(change.is_some());
        Ok(change)
    }

    /// The number of the next commit, counted from the start of the process.
    #[must_use]
    pub fn next_number(&self) -> u64 {
        self.next
    }

    /// The number of waiting commits.
    #[must_use]
    pub fn len(&self) -> usize {
        let queue = lock(&self.queue);
        queue.end().saturating_sub(self.next.max(queue.first)) as usize
    }

    /// Whether no commit is waiting.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        let mut queue = lock(&self.queue);
        queue.subscribers -= 1;
        for number in self.next.max(queue.first)..queue.end() {
            queue.hear(number);
        }
    }
}

impl CommitQueue {
    /// The number of the next commit.
    fn end(&self) -> u64 {
        self.first + self.waiting.len() as u64
    }

    fn push(&mut self, change: Arc<Change>) {
        let bytes = bytes_of(&change);
        self.waiting.push_back(WaitingSubscriber { change, bytes, listeners: self.subscribers });
        self.bytes += bytes;
        let is_full = |queue: &Self| {
            queue.waiting.len() > MOST_COMMITS
                || queue.bytes > MOST_BYTES && queue.waiting.len() > 1
        };
        while is_full(self) {
            self.pop();
        }
        self.tidy();
    }

    fn skip(&mut self) {
        self.first = self.end() + 1;
        self.waiting.clear();
        self.bytes = 0;
    }

    /// The commit; counts one subscriber fewer that has to receive it.
    fn hear(&mut self, number: u64) -> Option<Arc<Change>> {
        let place = usize::try_from(number.checked_sub(self.first)?).ok()?;
        let waiting = self.waiting.get_mut(place)?;
        waiting.listeners = waiting.listeners.saturating_sub(1);
        let change = Arc::clone(&waiting.change);
        self.tidy();
        Some(change)
    }

    /// Drops commits that all subscribers have received.
    fn tidy(&mut self) {
        while self.waiting.front().is_some_and(|waiting| waiting.listeners == 0) {
            self.pop();
        }
    }

    fn pop(&mut self) {
        if let Some(waiting) = self.waiting.pop_front() {
            self.bytes -= waiting.bytes;
            self.first += 1;
        }
    }
}

/// Estimated memory of a commit's events.
fn bytes_of(change: &Change) -> usize {
    let of_step = |step: &Step| match step {
        Step::Added(event) | Step::Passed(event) => size_of_val(&**event) + event.json().len(),
        Step::Removed(_) => 0,
    };
    change.steps.iter().map(|step| size_of_val(step) + of_step(step)).sum()
}

fn lock(queue: &Mutex<CommitQueue>) -> MutexGuard<'_, CommitQueue> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use negsync_store::Event;
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    fn change(number: usize, content_bytes: usize) -> Arc<Change> {
        let (id, zeros) = (format!("{number:064x}"), "0".repeat(128));
        let json = format!(
            r#"{{"id":"{id}","pubkey":"{}","created_at":{number},"kind":1,"tags":[],"content":"{}","sig":"{zeros}"}}"#,
            &zeros[..64],
            "x".repeat(content_bytes),
        );
        let mut change = Change::default();
        change.steps.push(Step::Added(Arc::new(Event::parse(&json).unwrap())));
        Arc::new(change)
    }

    /// The second of the commit that is waiting, if there is one.
    fn heard(subscriber: &mut Subscriber) -> Option<Result<u64, SubscriberError>> {
        let heard = pin!(subscriber.recv()).poll(&mut Context::from_waker(Waker::noop()));
        let Poll::Ready(heard) = heard else { return None };
        Some(heard.map(|change| match change.steps.as_slice() {
            [Step::Added(event)] => event.item().created_at,
            _ => panic!("a commit of another form"),
        }))
    }

    #[test]
    fn subscribers_hear_that_commits_were_skipped_and_go_on_after_them() {
        let feed = CommitFeed::new();
        let mut subscriber = feed.subscribe();
        feed.send(change(1, 0));
        feed.skip();
        assert_eq!(heard(&mut subscriber), Some(Err(SubscriberError::Lagged)));
        assert_eq!(heard(&mut subscriber), None);
        feed.send(change(2, 0));
        assert_eq!(heard(&mut subscriber), Some(Ok(2)));
        assert_eq!(feed.published(), subscriber.next_number());
    }

    #[test]
    fn each_hears_of_every_commit_in_order_or_that_it_missed_some() {
        for seed in 0..20 {
            let mut rng = StdRng::seed_from_u64(seed);
            let changes = CommitFeed::new();
            let mut subscribers: Vec<(Subscriber, u64)> = Vec::new();
            let mut sent = 0;
            for _ in 0..3_000 {
                match rng.random_range(0..10) {
                    0 if subscribers.len() < 5 => subscribers.push((changes.subscribe(), sent)),
                    1 if rng.random_range(0..20) == 0 && !subscribers.is_empty() => {
                        drop(subscribers.swap_remove(0));
                    }
                    2..7 => {
                        changes.send(change(sent as usize, 10));
                        sent += 1;
                    }
                    _ => {
                        let Some((subscriber, next)) = subscribers.last_mut() else { continue };
                        assert_eq!(subscriber.len() as u64, (sent - *next).min(1_024), "{seed}");
                        match heard(subscriber) {
                            None => assert_eq!(*next, sent, "seed {seed}"),
                            Some(Ok(second)) => {
                                assert_eq!(second, *next, "seed {seed}");
                                *next += 1;
                            }
                            Some(Err(error)) => {
                                assert_eq!(error, SubscriberError::Lagged, "seed {seed}");
                                assert!(sent - *next > 1_024, "seed {seed}");
                                *next = sent - 1_024;
                            }
                        }
                    }
                }
            }
            drop(subscribers);
            let queue = lock(&changes.queue);
            assert!(queue.waiting.is_empty() && queue.bytes == 0, "seed {seed}");
        }
    }

    #[test]
    fn long_events_wait_for_a_slow_subscriber_up_to_a_bound() {
        let changes = CommitFeed::new();
        let mut slow = changes.subscribe();
        let long = change(7, 1 << 20);
        for _ in 0..100 {
            changes.send(Arc::clone(&long));
            assert!(lock(&changes.queue).bytes <= MOST_BYTES);
        }
        assert_eq!(heard(&mut slow), Some(Err(SubscriberError::Lagged)));
        assert_eq!(heard(&mut slow), Some(Ok(7)));
        assert!((50..63).contains(&slow.len()), "{}", slow.len());
        // A commit above the limit waits alone.
        let mut longest = Change::default();
        longest.steps.resize(100, long.steps[0].clone());
        changes.send(Arc::new(longest));
        assert_eq!(slow.len(), 1);
        assert_eq!(heard(&mut slow), Some(Err(SubscriberError::Lagged)));
        assert_eq!(slow.try_recv().unwrap().unwrap().steps.len(), 100);
        drop(changes);
        assert_eq!(heard(&mut slow), Some(Err(SubscriberError::Closed)));
    }
}
