//! The state of a connection's subscriptions, behind its lock.

use super::Subscription;
use crate::metrics::{Labelled, Metrics, Share};
use crate::server::limits::SubscribedShare;
use crate::store::{Event, Filter};
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::task::Waker;

/// Maximum number of live events that wait for a subscription's EOSE; beyond it the subscription
/// ends.
pub(super) const WAITING_EVENTS: usize = 10_000;
/// Maximum bytes of events that wait for the EOSEs of a connection; a single event may exceed it.
const WAITING_BYTES: usize = 8 << 20;
/// The memory of one value of a live filter, in the filter and in the inverted index.
const VALUE_BYTES: usize = 72;
/// The memory of a live filter without its values.
const FILTER_BYTES: usize = 512;

pub(super) struct SubscriptionsState {
    pub(super) by_id: HashMap<String, OpenSubscription>,
    pub(super) generations: u64,
    pub(super) live: VecDeque<LiveEvent>,
    // The number of events in `live` that are still unmatched.
    pub(super) unmatched: usize,
    pub(super) is_too_slow: bool,
    // Wakes the sending task, if it waits, when a live event arrives while none was waiting.
    pub(super) sender: Option<Waker>,
    pub(super) is_remembering: bool,
    counted: Share,
    // The filters' share of the memory for all connections.
    pub(super) share: SubscribedShare,
    pub(super) refusals: Labelled,
}

pub(super) struct OpenSubscription {
    pub(super) subscription: Arc<Subscription>,
    pub(super) filters: Vec<Arc<Filter>>,
    // The slots of its filters in the registry.
    pub(super) slots: Vec<u32>,
    pub(super) stage: SubscriptionStage,
}

pub(super) enum SubscriptionStage {
    /// EOSE has not been sent: live events wait for it.
    Stored { waiting: Vec<Arc<Event>>, bytes: usize },
    /// More live events came than may wait for EOSE.
    Overrun,
    /// An event of a commit up to `through` may be among the stored events `sent`: a commit can be
    /// read before it is dispatched.
    Live { sent: HashSet<[u8; 32]>, through: u64 },
}

/// The subscriptions of a connection that match an event.
pub(in crate::relay) enum Matched {
    /// The event matches these.
    By(Vec<Arc<Subscription>>),
    /// The connection has to match the event itself: it takes longer than others should wait.
    Unknown,
}

/// An event to be sent.
pub(in crate::relay) struct LiveEvent {
    /// The number of its commit.
    pub(super) commit: u64,
    pub(in crate::relay) event: Arc<Event>,
    /// The subscription that it matches; `None` until that is known.
    pub(in crate::relay) to: Option<Arc<Subscription>>,
}

/// More live events came than may wait for a client.
pub(in crate::relay) struct TooSlow;

impl SubscriptionsState {
    pub(super) fn new(share: SubscribedShare, metrics: &Metrics) -> Self {
        Self {
            by_id: HashMap::new(),
            generations: 0,
            live: VecDeque::new(),
            unmatched: 0,
            is_too_slow: false,
            sender: None,
            is_remembering: false,
            counted: Share::of(&metrics.subscriptions),
            share,
            refusals: metrics.query_refusals.clone(),
        }
    }

    /// Updates the metric of open subscriptions.
    pub(super) fn count(&mut self) {
        self.counted.set(self.by_id.len());
    }

    /// Estimated memory of the filters, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.by_id.values().map(|open| filter_bytes(open.filters.len(), open.value_count())).sum()
    }

    /// The subscription, if it is still open.
    pub(super) fn open(&mut self, subscription: &Subscription) -> Option<&mut OpenSubscription> {
        let open = self.by_id.get_mut(&subscription.id)?;
        (open.subscription.generation == subscription.generation).then_some(open)
    }

    /// Whether to send an event of a commit to a subscription now: not if it was sent as a stored
    /// event. Before EOSE the event is kept.
    pub(super) fn takes(&mut self, commit: u64, event: &Arc<Event>, to: &Subscription) -> bool {
        if commit < to.first_commit {
            return false;
        }
        let Some(open) = self.open(to) else { return false };
        match &mut open.stage {
            SubscriptionStage::Stored { .. } => {
                self.wait_for_eose(event, to);
                false
            }
            SubscriptionStage::Overrun => false,
            SubscriptionStage::Live { sent, through } => {
                if commit > *through && !sent.is_empty() {
                    *sent = HashSet::new();
                }
                !sent.contains(&event.item().id)
            }
        }
    }

    /// Keeps an event until the subscription's EOSE, if there is room for it.
    fn wait_for_eose(&mut self, event: &Arc<Event>, to: &Subscription) {
        let held: usize = self.by_id.values().map(OpenSubscription::waiting_bytes).sum();
        let Some(open) = self.open(to) else { return };
        if let SubscriptionStage::Stored { waiting, bytes } = &mut open.stage
            && waiting.len() < WAITING_EVENTS
            && held < WAITING_BYTES
        {
            waiting.push(Arc::clone(event));
            *bytes += event.json().len();
        } else {
            open.stage = SubscriptionStage::Overrun;
        }
    }

    /// Ends live events: drops those that are waiting, and queues no more.
    pub(super) fn end_live(&mut self) {
        self.live = VecDeque::new();
        self.is_too_slow = true;
    }

    /// The next live event to send; `None` if none is waiting.
    pub(super) fn next_live(&mut self) -> Option<Result<LiveEvent, TooSlow>> {
        if self.is_too_slow {
            return Some(Err(TooSlow));
        }
        let live = self.live.pop_front()?;
        self.unmatched -= usize::from(live.to.is_none());
        if self.live.is_empty() {
            // Frees the memory of a burst.
            self.live = VecDeque::new();
        }
        Some(Ok(live))
    }
}

impl OpenSubscription {
    pub(super) fn value_count(&self) -> usize {
        self.filters.iter().map(|filter| filter.value_count()).sum()
    }

    pub(super) fn waiting_bytes(&self) -> usize {
        if let SubscriptionStage::Stored { bytes, .. } = self.stage { bytes } else { 0 }
    }
}

/// Estimated memory of filters with this number of values, in bytes.
pub(super) fn filter_bytes(filters: usize, values: usize) -> usize {
    filters.saturating_mul(FILTER_BYTES).saturating_add(values.saturating_mul(VALUE_BYTES))
}
