//! The subscriptions of one connection (NIP-01): open ones, events that wait for EOSE, and live
//! events to be sent.

mod registry;
mod state;
#[cfg(test)]
mod tests;

pub(super) use registry::{Registry, Subscription};
pub(super) use state::{LiveEvent, Matched, TooSlow};

use super::auth::ClientAuth;
use super::message;
use crate::config::Limits;
use crate::metrics::Metrics;
use crate::prefix::Prefix;
use crate::server::limits::{NoRoom, SubscribedShare};
use crate::store::{Event, Filter, Viewer};
use state::{OpenSubscription, SubscriptionStage, SubscriptionsState, filter_bytes};
use std::collections::HashSet;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Poll;

/// The subscriptions of one connection.
pub(super) struct Subscriptions {
    me: Weak<Self>,
    auth: Arc<ClientAuth>,
    registry: Arc<Registry>,
    state: Mutex<SubscriptionsState>,
}

impl Subscriptions {
    pub(super) fn new(
        registry: Arc<Registry>,
        auth: Arc<ClientAuth>,
        share: SubscribedShare,
        metrics: &Metrics,
    ) -> Arc<Self> {
        let state = Mutex::new(SubscriptionsState::new(share, metrics));
        Arc::new_cyclic(|me| Self { me: Weak::clone(me), auth, registry, state })
    }

    /// Opens a subscription, and replaces one with the same id. On failure it returns the reason,
    /// and no subscription with that id is open. Live events are those of commits from
    /// `first_commit` on, which is the next one to be published. The caller must read stored events
    /// after this call.
    pub(super) fn begin(
        &self,
        id: &str,
        filters: Vec<Filter>,
        first_commit: u64,
        limits: &Limits,
    ) -> Result<u64, String> {
        let mut state = self.lock();
        self.remove(&mut state, id);
        let most = limits.subscriptions;
        if state.by_id.len() >= most {
            let text = format!("{most} subscriptions are open; close one first");
            return Err(Prefix::RateLimited.before(text));
        }
        let values: usize = filters.iter().map(Filter::value_count).sum();
        let held: usize = state.by_id.values().map(OpenSubscription::value_count).sum();
        let most = limits.subscription_values;
        if values.saturating_add(held) > most {
            let text = "values in the filters of open subscriptions are the most; close one first";
            return Err(Prefix::RateLimited.before(format_args!("{most} {text}")));
        }
        let bytes = filter_bytes(filters.len(), values).saturating_add(state.bytes());
        state.share.hold(bytes, limits.subscription_memory_mb << 20).map_err(|full| {
            Prefix::RateLimited.before(match full {
                NoRoom::OfAddress => {
                    "the subscriptions of your address take all the memory that one may have; close \
                     some, or ask with fewer values"
                }
                NoRoom::OfAll => {
                    "the memory for subscriptions is taken; try again later, or ask with fewer values"
                }
            })
        })?;
        let generation = state.generations;
        state.generations += 1;
        let subscription = Arc::new(Subscription {
            connection: Weak::clone(&self.me),
            id: id.to_owned(),
            id_json: message::json_string(id),
            generation,
            first_commit,
        });
        let filters: Vec<Arc<Filter>> = filters.into_iter().map(Arc::new).collect();
        // One lock for each filter, so that the dispatcher waits for at most one insertion.
        let insert =
            |it: &Arc<Filter>| self.registry.filters().insert(it.clone(), subscription.clone());
        let slots = filters.iter().map(insert).collect();
        let stage = SubscriptionStage::Stored { waiting: Vec::new(), bytes: 0 };
        let open =
            OpenSubscription { subscription: Arc::clone(&subscription), filters, slots, stage };
        state.by_id.insert(id.to_owned(), open);
        state.count();
        Ok(generation)
    }

    /// Whether the subscription is open and was not replaced by a later one with its id.
    pub(super) fn is_open(&self, id: &str, generation: u64) -> bool {
        let state = self.lock();
        state.by_id.get(id).is_some_and(|open| open.subscription.generation == generation)
    }

    /// Ends the subscription with this id, if there is one.
    pub(super) fn end(&self, id: &str) {
        self.remove(&mut self.lock(), id);
    }

    /// Ends all subscriptions. Returns their ids.
    pub(super) fn end_all(&self) -> Vec<String> {
        let mut state = self.lock();
        let ids: Vec<String> = state.by_id.keys().cloned().collect();
        ids.iter().for_each(|id| self.remove(&mut state, id));
        ids
    }

    /// The events that the client may see now.
    pub(super) fn viewer(&self) -> Viewer {
        self.auth.viewer()
    }

    /// Queues a live event of a commit, to be sent or to wait for an EOSE. Returns whether the
    /// connection was woken.
    pub(super) fn deliver(&self, commit: u64, event: &Arc<Event>, matched: Matched) -> bool {
        if !self.auth.sees(event) {
            return false;
        }
        let mut state = self.lock();
        let was_empty = state.live.is_empty();
        if state.is_too_slow {
            return false;
        }
        match matched {
            // Only while no earlier event is unmatched, to keep the order.
            Matched::By(subscriptions) if state.unmatched == 0 => {
                for to in subscriptions {
                    if state.takes(commit, event, &to) {
                        let (event, to) = (Arc::clone(event), Some(to));
                        state.live.push_back(LiveEvent { commit, event, to });
                    }
                }
            }
            Matched::By(_) | Matched::Unknown => {
                state.unmatched += 1;
                state.live.push_back(LiveEvent { commit, event: Arc::clone(event), to: None });
            }
        }
        let is_woken = was_empty && !state.live.is_empty();
        let sender = if is_woken { state.sender.take() } else { None };
        drop(state);
        if let Some(sender) = sender {
            sender.wake();
        }
        is_woken
    }

    /// The next live event to send. Cancel-safe.
    pub(super) async fn next_live(&self) -> Result<LiveEvent, TooSlow> {
        poll_fn(|context| {
            let mut state = self.lock();
            if let Some(next) = state.next_live() {
                return Poll::Ready(next);
            }
            state.sender = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Whether live events are waiting to be sent.
    pub(super) fn has_live(&self) -> bool {
        !self.lock().live.is_empty()
    }

    /// The message with a live event for its subscription, if that is still open.
    pub(super) fn text(&self, event: &Event, to: &Subscription) -> Option<String> {
        self.lock().open(to).map(|_| message::event(&to.id_json, event.json()))
    }

    /// The messages with a live event for all subscriptions that it matches.
    pub(super) fn texts(&self, live: &LiveEvent) -> Vec<String> {
        let mut state = self.lock();
        let matches = |open: &&OpenSubscription| {
            open.filters.iter().any(|filter| filter.matches(&live.event))
        };
        let matching: Vec<Arc<Subscription>> =
            state.by_id.values().filter(matches).map(|open| open.subscription.clone()).collect();
        let to = matching.iter().filter(|to| state.takes(live.commit, &live.event, to));
        to.map(|to| message::event(&to.id_json, live.event.json())).collect()
    }

    /// Returns the messages for the events that waited for EOSE, without the stored events `sent`.
    /// Every commit below `published` has been published. The read may have seen one more commit,
    /// since there is one writer.
    pub(super) fn go_live(
        &self,
        id: &str,
        generation: u64,
        sent: Vec<[u8; 32]>,
        published: u64,
    ) -> Vec<String> {
        let mut state = self.lock();
        let Some(open) =
            state.by_id.get_mut(id).filter(|it| it.subscription.generation == generation)
        else {
            return Vec::new();
        };
        let sent: HashSet<[u8; 32]> = sent.into_iter().collect();
        let waiting = match &mut open.stage {
            SubscriptionStage::Overrun => {
                self.remove(&mut state, id);
                state.refusals.count(Prefix::Error.as_str());
                let text = Prefix::Error.before("too many events came before EOSE; ask again");
                return vec![message::closed(id, &text)];
            }
            SubscriptionStage::Stored { waiting, .. } => std::mem::take(waiting),
            SubscriptionStage::Live { .. } => Vec::new(),
        };
        let id_json = &open.subscription.id_json;
        let unsent = waiting.iter().filter(|event| !sent.contains(&event.item().id));
        let messages = unsent.map(|event| message::event(id_json, event.json())).collect();
        let remembers = !sent.is_empty();
        open.stage = SubscriptionStage::Live { sent, through: published };
        if remembers && !std::mem::replace(&mut state.is_remembering, true) {
            self.registry.remember(published, &self.me);
        }
        messages
    }

    /// Ends live events if one of a commit up to `commit` is still waiting. Returns whether later
    /// ones are waiting.
    pub(super) fn expire(&self, commit: u64) -> bool {
        let mut state = self.lock();
        match state.live.front() {
            None => false,
            Some(first) if first.commit > commit => true,
            Some(_) => {
                self.end_live(&mut state);
                false
            }
        }
    }

    /// Ends live events because some were missed.
    pub(super) fn miss(&self) {
        self.end_live(&mut self.lock());
    }

    fn end_live(&self, state: &mut SubscriptionsState) {
        state.end_live();
        if let Some(sender) = state.sender.take() {
            sender.wake();
        }
    }

    /// Drops the ids of sent stored events that no commit after `commit` can repeat.
    fn forget_sent(&self, commit: u64) {
        let mut state = self.lock();
        // An event that is still unmatched is compared with them later.
        let next = state.live.front().map_or(u64::MAX, |live| live.commit);
        let mut remembered = None;
        for open in state.by_id.values_mut() {
            if let SubscriptionStage::Live { sent, through } = &mut open.stage
                && !sent.is_empty()
            {
                if *through <= commit && *through < next {
                    *sent = HashSet::new();
                } else {
                    remembered = remembered.max(Some(*through));
                }
            }
        }
        state.is_remembering = remembered.is_some();
        if let Some(through) = remembered {
            self.registry.remember(through.max(commit + 1), &self.me);
        }
    }

    fn remove(&self, state: &mut SubscriptionsState, id: &str) {
        let Some(open) = state.by_id.remove(id) else { return };
        for slot in open.slots {
            self.registry.filters().remove(slot);
        }
        state.count();
        let bytes = state.bytes();
        // Reducing the amount never fails.
        let _ = state.share.hold(bytes, usize::MAX);
    }

    fn lock(&self) -> MutexGuard<'_, SubscriptionsState> {
        lock(&self.state)
    }
}

impl Drop for Subscriptions {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        for slot in state.by_id.drain().flat_map(|(_, open)| open.slots) {
            self.registry.filters().remove(slot);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
