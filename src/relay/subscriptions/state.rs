//! What a connection knows of its subscriptions, behind its lock.

use super::Subscription;
use crate::metrics::{Labelled, Metrics, Share};
use crate::server::limits::SubscribedShare;
use crate::store::{Event, Filter};
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

/// The most live events that wait for a subscription's EOSE; with more the subscription ends.
pub(super) const WAITING_EVENTS: usize = 10_000;
/// The most bytes of events that wait for the EOSEs of a connection, or one event.
const WAITING_BYTES: usize = 8 << 20;
/// The memory of one value of a live filter, in the filter and in the inverted index.
const VALUE_BYTES: usize = 72;
/// The memory of a live filter without its values.
const FILTER_BYTES: usize = 512;

pub(super) struct SubscriptionsState {
    pub(super) by_id: HashMap<String, OpenSubscription>,
    pub(super) generations: u64,
    pub(super) live: VecDeque<LiveEvent>,
    // How many of `live` have yet to be matched.
    pub(super) unmatched: usize,
    pub(super) is_too_slow: bool,
    pub(super) is_remembering: bool,
    counted: Share,
    // What the filters take of the memory for those of all connections.
    pub(super) share: SubscribedShare,
    pub(super) refusals: Labelled,
}

pub(super) struct OpenSubscription {
    pub(super) subscription: Arc<Subscription>,
    pub(super) filters: Vec<Arc<Filter>>,
    // The filters' slots in the registry.
    pub(super) slots: Vec<u32>,
    pub(super) stage: SubscriptionStage,
}

pub(super) enum SubscriptionStage {
    /// EOSE has not been sent: live events wait for it.
    Stored { waiting: Vec<Arc<Event>>, bytes: usize },
    /// More live events came than can wait for EOSE.
    Overrun,
    /// An event of a commit up to `through` may be among those sent as stored: a commit can be read
    /// before it is dispatched.
    Live { sent: HashSet<[u8; 32]>, through: u64 },
}

/// Which subscriptions of a connection an event matches.
pub(in crate::relay) enum Matched {
    /// The event matches these.
    By(Vec<Arc<Subscription>>),
    /// The connection has to find out itself: matching takes longer than others should wait.
    Unknown,
}

/// An event that waits to be sent.
pub(in crate::relay) struct LiveEvent {
    /// The number of its commit.
    pub(super) commit: u64,
    pub(in crate::relay) event: Arc<Event>,
    /// The subscription that it matches; `None` while that is not known.
    pub(in crate::relay) to: Option<Arc<Subscription>>,
}

/// More live events came than a client may leave unread.
pub(in crate::relay) struct TooSlow;

impl SubscriptionsState {
    pub(super) fn new(share: SubscribedShare, metrics: &Metrics) -> Self {
        Self {
            by_id: HashMap::new(),
            generations: 0,
            live: VecDeque::new(),
            unmatched: 0,
            is_too_slow: false,
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

    /// About how much memory the filters take, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.by_id.values().map(|open| filter_bytes(open.filters.len(), open.value_count())).sum()
    }

    /// The subscription, if it is still open.
    pub(super) fn open(&mut self, subscription: &Subscription) -> Option<&mut OpenSubscription> {
        let open = self.by_id.get_mut(&subscription.id)?;
        (open.subscription.generation == subscription.generation).then_some(open)
    }

    /// Whether an event of a commit is to be sent to a subscription now. It is not if it was sent as a
    /// stored one; before EOSE it is kept.
    pub(super) fn takes(&mut self, commit: u64, event: &Arc<Event>, to: &Subscription) -> bool {
        if commit < to.first_commit {
            return false;
        }
        let waits = self
            .open(to)
            .is_some_and(|open| matches!(open.stage, SubscriptionStage::Stored { .. }));
        let held: usize =
            if waits { self.by_id.values().map(OpenSubscription::waiting_bytes).sum() } else { 0 };
        let Some(open) = self.open(to) else { return false };
        match &mut open.stage {
            SubscriptionStage::Stored { waiting, bytes }
                if waiting.len() < WAITING_EVENTS && held < WAITING_BYTES =>
            {
                waiting.push(Arc::clone(event));
                *bytes += event.json().len();
                false
            }
            SubscriptionStage::Stored { .. } => {
                open.stage = SubscriptionStage::Overrun;
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

    /// Ends live events: whatever waits is dropped, and no more are queued.
    pub(super) fn end_live(&mut self) {
        self.live = VecDeque::new();
        self.is_too_slow = true;
    }

    /// The next live event to send, `None` if none waits.
    pub(super) fn next_live(&mut self) -> Option<Result<LiveEvent, TooSlow>> {
        if self.is_too_slow {
            return Some(Err(TooSlow));
        }
        let live = self.live.pop_front()?;
        self.unmatched -= usize::from(live.to.is_none());
        if self.live.is_empty() {
            // Frees the memory that a burst has taken.
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

/// About how much memory so many filters with so many values take, in bytes.
pub(super) fn filter_bytes(filters: usize, values: usize) -> usize {
    filters.saturating_mul(FILTER_BYTES).saturating_add(values.saturating_mul(VALUE_BYTES))
}
