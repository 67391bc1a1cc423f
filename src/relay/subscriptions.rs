//! The subscriptions of one connection (NIP-01): which are live, and what waits for an EOSE.

use super::auth::Auth;
use super::message;
use crate::config::Limits;
use crate::metrics::{Metrics, Share};
use crate::store::{Event, Filter};
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The most live events that wait for a subscription's EOSE; with more it ends there.
const WAITING_EVENTS: usize = 10_000;
/// The most bytes of events that wait for the EOSEs of a connection, or a single event.
const WAITING_BYTES: usize = 8 << 20;

/// The subscriptions of one connection.
pub(super) struct Subscriptions {
    auth: Arc<Auth>,
    open: Mutex<Open>,
    generations: AtomicU64,
}

struct Open {
    by_id: HashMap<String, Subscription>,
    counted: Share,
}

impl Open {
    fn remove(&mut self, id: &str) {
        self.by_id.remove(id);
        self.counted.set(self.by_id.len());
    }
}

struct Subscription {
    filters: Vec<Filter>,
    // The id as it is written into each message.
    id_json: String,
    generation: u64,
    stage: Stage,
}

enum Stage {
    /// EOSE has not been sent: live events wait for it.
    Stored { waiting: Vec<Arc<Event>>, bytes: usize },
    /// More live events came than can wait for EOSE.
    Overrun,
    /// For so many commits more an event may be one of those sent as stored: a commit can be read
    /// before it is announced.
    Live { sent: HashSet<[u8; 32]>, commits: usize },
}

impl Subscription {
    fn waiting_bytes(&self) -> usize {
        if let Stage::Stored { bytes, .. } = self.stage { bytes } else { 0 }
    }
}

impl Subscriptions {
    pub(super) fn new(auth: Arc<Auth>, metrics: &Metrics) -> Self {
        let counted = Share::of(&metrics.subscriptions);
        let open = Mutex::new(Open { by_id: HashMap::new(), counted });
        Self { auth, open, generations: AtomicU64::new(0) }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lock().by_id.is_empty()
    }

    /// Begins a subscription in place of one with the same id. Says why where it cannot.
    pub(super) fn begin(
        &self,
        id: &str,
        filters: Vec<Filter>,
        limits: &Limits,
    ) -> Result<u64, String> {
        let generation = self.generations.fetch_add(1, Ordering::Relaxed);
        let mut open = self.lock();
        let most = limits.subscriptions.size();
        if open.by_id.len() >= most && !open.by_id.contains_key(id) {
            return Err(format!("rate-limited: {most} subscriptions are open; close one first"));
        }
        let values = values_of(&filters);
        let others = open.by_id.iter().filter(|(other, _)| *other != id);
        let held: usize = others.map(|(_, it)| values_of(&it.filters)).sum();
        let most = limits.subscription_values.size();
        if values.saturating_add(held) > most {
            let text = "values in the filters of open subscriptions";
            return Err(format!("rate-limited: {most} {text} are the most; close one first"));
        }
        let id_json = message::json_string(id);
        let stage = Stage::Stored { waiting: Vec::new(), bytes: 0 };
        let begun = Subscription { filters, id_json, generation, stage };
        open.by_id.insert(id.to_owned(), begun);
        let number = open.by_id.len();
        open.counted.set(number);
        Ok(generation)
    }

    pub(super) fn end(&self, id: &str) {
        self.lock().remove(id);
    }

    /// The messages that carry the event to the subscriptions that are live; for the others it
    /// is kept until they are.
    pub(super) fn matching(&self, event: &Arc<Event>) -> Vec<String> {
        let mut messages = Vec::new();
        if !self.auth.sees(event) {
            return messages;
        }
        let mut open = self.lock();
        let waiting = open.by_id.values().map(Subscription::waiting_bytes);
        let mut waiting_bytes: usize = waiting.sum();
        for subscription in open.by_id.values_mut() {
            if !subscription.filters.iter().any(|filter| filter.matches(event)) {
                continue;
            }
            match &mut subscription.stage {
                Stage::Stored { waiting, bytes }
                    if waiting.len() < WAITING_EVENTS && waiting_bytes < WAITING_BYTES =>
                {
                    waiting.push(event.clone());
                    *bytes += event.json().len();
                    waiting_bytes += event.json().len();
                }
                Stage::Stored { .. } => subscription.stage = Stage::Overrun,
                Stage::Overrun => {}
                Stage::Live { sent, .. } if sent.contains(&event.item().id) => {}
                Stage::Live { .. } => {
                    messages.push(message::event(&subscription.id_json, event.json()));
                }
            }
        }
        messages
    }

    /// Called after the events of each commit.
    pub(super) fn end_commit(&self) {
        for subscription in self.lock().by_id.values_mut() {
            if let Stage::Live { sent, commits } = &mut subscription.stage {
                *commits = commits.saturating_sub(1);
                if *commits == 0 {
                    *sent = HashSet::new();
                }
            }
        }
    }

    /// After EOSE: the messages that waited for it, without those among the stored events.
    /// `commits` are announced and have not reached the subscriptions yet; beside them the read
    /// can have seen one that is not even announced, and no more: there is one writer.
    pub(super) fn go_live(
        &self,
        id: &str,
        generation: u64,
        sent: Vec<[u8; 32]>,
        commits: usize,
    ) -> Vec<String> {
        let mut open = self.lock();
        let Some(subscription) = open.by_id.get_mut(id).filter(|it| it.generation == generation)
        else {
            return Vec::new();
        };
        let sent: HashSet<[u8; 32]> = sent.into_iter().collect();
        let messages = match &subscription.stage {
            Stage::Overrun => {
                open.remove(id);
                let text = "error: too many events came before EOSE; ask again";
                return vec![message::closed(id, text)];
            }
            Stage::Stored { waiting, .. } => waiting
                .iter()
                .filter(|event| !sent.contains(&event.item().id))
                .map(|event| message::event(&subscription.id_json, event.json()))
                .collect(),
            Stage::Live { .. } => Vec::new(),
        };
        subscription.stage = Stage::Live { sent, commits: commits.saturating_add(1) };
        messages
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn values_of(filters: &[Filter]) -> usize {
    filters.iter().map(Filter::value_count).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{IndexMetrics, StoreMetrics};

    fn event(number: usize) -> Arc<Event> {
        let (id, zeros) = (format!("{number:064x}"), "0".repeat(128));
        let json = format!(
            r#"{{"id":"{id}","pubkey":"{}","created_at":1,"kind":1,"tags":[],"content":"","sig":"{zeros}"}}"#,
            &zeros[..64]
        );
        Arc::new(Event::parse(&json).unwrap())
    }

    /// A stream with a gap that nobody is told of is worse than one that ends.
    #[test]
    fn a_subscription_that_cannot_keep_what_waits_for_eose_ends_and_says_so() {
        let metrics = Metrics::new(&StoreMetrics::default(), &IndexMetrics::default());
        let subscriptions = Subscriptions::new(Arc::new(Auth::stranger()), &metrics);
        for (count, is_whole) in [(WAITING_EVENTS, true), (WAITING_EVENTS + 1, false)] {
            let generation =
                subscriptions.begin("s", vec![Filter::default()], &Limits::default()).unwrap();
            for number in 0..count {
                assert!(subscriptions.matching(&event(number)).is_empty());
            }
            let messages = subscriptions.go_live("s", generation, Vec::new(), 0);
            if is_whole {
                assert_eq!(messages.len(), count);
                assert_eq!(subscriptions.matching(&event(count)).len(), 1);
            } else {
                assert_eq!(messages.len(), 1);
                assert!(messages[0].starts_with(r#"["CLOSED","s","error: "#), "{}", messages[0]);
                assert!(subscriptions.is_empty());
            }
        }
    }
}
