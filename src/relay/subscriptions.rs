//! The subscriptions of one connection (NIP-01): which are live, what waits for an EOSE, and the
//! live events that wait to be sent.

use super::auth::ClientAuth;
use super::filter_index::FilterIndex;
use super::message;
use crate::config::Limits;
use crate::metrics::{Labelled, Metrics, Share};
use crate::server::limits::{NoRoom, SubscribedShare};
use crate::store::{Event, Filter};
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use tokio::sync::Notify;

/// The most live events that wait for a subscription's EOSE; with more it ends there.
const WAITING_EVENTS: usize = 10_000;
/// The most bytes of events that wait for the EOSEs of a connection, or a single event.
const WAITING_BYTES: usize = 8 << 20;
/// What a value of a live filter takes, there and in the inverted index, and what a filter takes beside its
/// values.
const VALUE_BYTES: usize = 72;
const FILTER_BYTES: usize = 512;

/// The filters of all connections' subscriptions. Locks are taken in this order: a connection's,
/// then the registry's.
#[derive(Default)]
pub(super) struct Registry {
    pub(super) filters: Mutex<FilterIndex<Arc<Subscription>>>,
    // Connections that remember stored events, and the commit after which they need not.
    remembering: Mutex<VecDeque<(u64, Weak<Subscriptions>)>>,
}

/// What a REQ asked for.
pub(super) struct Subscription {
    pub(super) connection: Weak<Subscriptions>,
    id: String,
    // The id as it is written into each message.
    id_json: String,
    // Tells it from an earlier one of the same id.
    generation: u64,
    // Events of earlier commits are stored ones, of which none comes live.
    first_commit: u64,
}

/// The subscriptions of one connection.
pub(super) struct Subscriptions {
    me: Weak<Self>,
    auth: Arc<ClientAuth>,
    registry: Arc<Registry>,
    state: Mutex<SubscriptionsState>,
    // Signalled when a live event has come and none was waiting.
    arrived: Notify,
}

struct SubscriptionsState {
    by_id: HashMap<String, Open>,
    generations: u64,
    live: VecDeque<LiveEvent>,
    // How many of `live` have yet to be matched.
    unmatched: usize,
    is_too_slow: bool,
    is_remembering: bool,
    counted: Share,
    // What the filters take of the memory that there is for those of all connections.
    share: SubscribedShare,
    refusals: Labelled,
}

struct Open {
    subscription: Arc<Subscription>,
    filters: Vec<Arc<Filter>>,
    // The filters' slots in the registry.
    slots: Vec<u32>,
    stage: SubscriptionStage,
}

enum SubscriptionStage {
    /// EOSE has not been sent: live events wait for it.
    Stored { waiting: Vec<Arc<Event>>, bytes: usize },
    /// More live events came than can wait for EOSE.
    Overrun,
    /// An event of a commit up to this one may be one of those sent as stored: a commit can be
    /// read before it is dispatched.
    Live { sent: HashSet<[u8; 32]>, through: u64 },
}

/// Which subscriptions of a connection an event matches.
pub(super) enum Matched {
    /// These.
    By(Vec<Arc<Subscription>>),
    /// The connection has to find out itself: its filters cost more than others should wait for.
    Unknown,
}

/// An event that waits to be sent live.
pub(super) struct LiveEvent {
    /// The number of its commit.
    commit: u64,
    pub(super) event: Arc<Event>,
    /// The subscription that it matches; `None` where that is not known yet.
    pub(super) to: Option<Arc<Subscription>>,
}

/// More live events came than a client may leave unread.
pub(super) struct TooSlow;

impl Registry {
    pub(super) fn filters(&self) -> MutexGuard<'_, FilterIndex<Arc<Subscription>>> {
        lock(&self.filters)
    }

    /// Called after each commit with its number: connections forget which stored events they have
    /// sent, once no commit can bring these again.
    pub(super) fn end_commit(&self, commit: u64) {
        loop {
            let due = lock(&self.remembering).pop_front_if(|(through, _)| *through <= commit);
            let Some((_, connection)) = due else { return };
            if let Some(connection) = connection.upgrade() {
                connection.forget_sent(commit);
            }
        }
    }

    fn remember(&self, through: u64, connection: &Weak<Subscriptions>) {
        lock(&self.remembering).push_back((through, Weak::clone(connection)));
    }
}

impl Subscriptions {
    pub(super) fn new(
        registry: Arc<Registry>,
        auth: Arc<ClientAuth>,
        share: SubscribedShare,
        metrics: &Metrics,
    ) -> Arc<Self> {
        let state = Mutex::new(SubscriptionsState {
            by_id: HashMap::new(),
            generations: 0,
            live: VecDeque::new(),
            unmatched: 0,
            is_too_slow: false,
            is_remembering: false,
            counted: Share::of(&metrics.subscriptions),
            share,
            refusals: metrics.query_refusals.clone(),
        });
        Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            auth,
            registry,
            state,
            arrived: Notify::new(),
        })
    }

    /// Begins a subscription in place of one with the same id. Says why where it cannot; then
    /// there is none of that id. Live events are those of commits from `first_commit` on, the
    /// next one to be published; stored events are to be read after this.
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
            return Err(format!("rate-limited: {most} subscriptions are open; close one first"));
        }
        let values: usize = filters.iter().map(Filter::value_count).sum();
        let held: usize = state.by_id.values().map(Open::value_count).sum();
        let most = limits.subscription_values;
        if values.saturating_add(held) > most {
            let text = "values in the filters of open subscriptions";
            return Err(format!("rate-limited: {most} {text} are the most; close one first"));
        }
        let bytes = bytes(filters.len(), values).saturating_add(state.bytes());
        state.share.hold(bytes, limits.subscription_memory_mb << 20).map_err(|full| match full {
            NoRoom::OfAddress => {
                "rate-limited: the subscriptions of your address take all the memory that one may \
                 have; close some, or ask with fewer values"
            }
            NoRoom::OfAll => {
                "rate-limited: the memory for subscriptions is taken; try again later, or ask with \
                 fewer values"
            }
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
        // One lock a filter: whoever dispatches waits for a list at the most.
        let insert =
            |it: &Arc<Filter>| self.registry.filters().insert(it.clone(), subscription.clone());
        let slots = filters.iter().map(insert).collect();
        let stage = SubscriptionStage::Stored { waiting: Vec::new(), bytes: 0 };
        let open = Open { subscription: Arc::clone(&subscription), filters, slots, stage };
        state.by_id.insert(id.to_owned(), open);
        state.count();
        Ok(generation)
    }

    /// Whether the subscription is still there, and no later one of its id.
    pub(super) fn is_open(&self, id: &str, generation: u64) -> bool {
        let state = self.lock();
        state.by_id.get(id).is_some_and(|open| open.subscription.generation == generation)
    }

    /// Ends a subscription, if there is one of the id.
    pub(super) fn end(&self, id: &str) {
        self.remove(&mut self.lock(), id);
    }

    /// Takes a live event of a commit: it waits to be sent, or for an EOSE. Returns whether the
    /// connection is woken for it.
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
            // In order: what is matched here comes after what is matched later.
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
        if is_woken {
            self.arrived.notify_one();
        }
        is_woken
    }

    /// The next live event to send. Nothing is lost when this is dropped before it is done.
    pub(super) async fn next_live(&self) -> Result<LiveEvent, TooSlow> {
        loop {
            let next = self.lock().next_live();
            match next {
                Some(next) => return next,
                None => self.arrived.notified().await,
            }
        }
    }

    /// Whether live events wait to be sent.
    pub(super) fn has_live(&self) -> bool {
        !self.lock().live.is_empty()
    }

    /// The message that carries a live event to its subscription, if that is still open.
    pub(super) fn text(&self, event: &Event, to: &Subscription) -> Option<String> {
        self.lock().open(to).map(|_| message::event(&to.id_json, event.json()))
    }

    /// The messages that carry a live event to all subscriptions that it matches.
    pub(super) fn texts(&self, live: &LiveEvent) -> Vec<String> {
        let mut state = self.lock();
        let matches = |open: &&Open| open.filters.iter().any(|filter| filter.matches(&live.event));
        let matching: Vec<Arc<Subscription>> =
            state.by_id.values().filter(matches).map(|open| open.subscription.clone()).collect();
        let to = matching.iter().filter(|to| state.takes(live.commit, &live.event, to));
        to.map(|to| message::event(&to.id_json, live.event.json())).collect()
    }

    /// After EOSE: the messages that waited for it, without those among the stored events `sent`.
    /// Every commit with a number below `published` has been published; beside these the read can
    /// have seen the next one, and no more: there is one writer.
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
                state.refusals.count("error");
                let text = "error: too many events came before EOSE; ask again";
                return vec![message::closed(id, text)];
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

    /// Ends live events where one of a commit up to `commit` still waits. Returns whether others
    /// do.
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

    /// Ends live events, of which some were missed.
    pub(super) fn miss(&self) {
        self.end_live(&mut self.lock());
    }

    fn end_live(&self, state: &mut SubscriptionsState) {
        state.live = VecDeque::new();
        state.is_too_slow = true;
        self.arrived.notify_one();
    }

    fn forget_sent(&self, commit: u64) {
        let mut state = self.lock();
        // What has yet to be matched is held against it.
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
        // To hold less is always possible.
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

impl SubscriptionsState {
    fn count(&mut self) {
        self.counted.set(self.by_id.len());
    }

    /// The memory that the filters take, in bytes, about.
    fn bytes(&self) -> usize {
        self.by_id.values().map(|open| bytes(open.filters.len(), open.value_count())).sum()
    }

    fn open(&mut self, subscription: &Subscription) -> Option<&mut Open> {
        let open = self.by_id.get_mut(&subscription.id)?;
        (open.subscription.generation == subscription.generation).then_some(open)
    }

    /// Whether a subscription takes an event of a commit now: if it has not sent it as stored.
    /// Before EOSE it keeps it.
    fn takes(&mut self, commit: u64, event: &Arc<Event>, to: &Subscription) -> bool {
        if commit < to.first_commit {
            return false;
        }
        let waits = self
            .open(to)
            .is_some_and(|open| matches!(open.stage, SubscriptionStage::Stored { .. }));
        let held: usize =
            if waits { self.by_id.values().map(Open::waiting_bytes).sum() } else { 0 };
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

    fn next_live(&mut self) -> Option<Result<LiveEvent, TooSlow>> {
        if self.is_too_slow {
            return Some(Err(TooSlow));
        }
        let live = self.live.pop_front()?;
        self.unmatched -= usize::from(live.to.is_none());
        if self.live.is_empty() {
            // A burst leaves no buffer behind.
            self.live = VecDeque::new();
        }
        Some(Ok(live))
    }
}

impl Open {
    fn value_count(&self) -> usize {
        self.filters.iter().map(|filter| filter.value_count()).sum()
    }

    fn waiting_bytes(&self) -> usize {
        if let SubscriptionStage::Stored { bytes, .. } = self.stage { bytes } else { 0 }
    }
}

/// The memory that so many filters with so many values take, about.
fn bytes(filters: usize, values: usize) -> usize {
    filters.saturating_mul(FILTER_BYTES).saturating_add(values.saturating_mul(VALUE_BYTES))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::IndexMetrics;
    use crate::store::StoreMetrics;

    fn event(number: usize) -> Arc<Event> {
        let (id, zeros) = (format!("{number:064x}"), "0".repeat(128));
        let json = format!(
            r#"{{"id":"{id}","pubkey":"{}","created_at":1,"kind":1,"tags":[],"content":"","sig":"{zeros}"}}"#,
            &zeros[..64]
        );
        Arc::new(Event::parse(&json).unwrap())
    }

    fn connection(registry: &Arc<Registry>) -> Arc<Subscriptions> {
        let metrics = Metrics::new(&StoreMetrics::default(), &IndexMetrics::default());
        Subscriptions::new(
            Arc::clone(registry),
            Arc::new(ClientAuth::stranger()),
            SubscribedShare::default(),
            &metrics,
        )
    }

    /// Delivers an event to the subscription of the id, or to be matched by the connection.
    fn deliver(connection: &Subscriptions, commit: u64, number: usize, id: Option<&str>) -> bool {
        let matched = match id {
            Some(id) => Matched::By(vec![Arc::clone(&connection.lock().by_id[id].subscription)]),
            None => Matched::Unknown,
        };
        connection.deliver(commit, &event(number), matched)
    }

    /// What would be sent now, by the numbers of the events.
    fn sent(connection: &Subscriptions) -> Vec<String> {
        let mut texts = Vec::new();
        loop {
            let Some(next) = connection.lock().next_live() else { return texts };
            let Ok(live) = next else { return vec!["too slow".to_owned()] };
            match &live.to {
                Some(to) => texts.extend(connection.text(&live.event, to)),
                None => texts.extend(connection.texts(&live)),
            }
        }
    }

    fn text(number: usize) -> String {
        message::event(r#""s""#, event(number).json())
    }

    /// A stream with a gap that nobody is told of is worse than one that ends.
    #[test]
    fn a_subscription_that_cannot_keep_what_waits_for_eose_ends_and_says_so() {
        let connection = connection(&Arc::default());
        for (count, is_whole) in [(WAITING_EVENTS, true), (WAITING_EVENTS + 1, false)] {
            let generation =
                connection.begin("s", vec![Filter::default()], 0, &Limits::default()).unwrap();
            for number in 0..count {
                assert!(!deliver(&connection, 0, number, Some("s")));
            }
            let messages = connection.go_live("s", generation, Vec::new(), 1);
            if is_whole {
                assert_eq!(messages.len(), count);
                assert!(deliver(&connection, 1, count, Some("s")));
                assert_eq!(sent(&connection), [text(count)]);
            } else {
                assert_eq!(messages.len(), 1);
                assert!(messages[0].starts_with(r#"["CLOSED","s","error: "#), "{}", messages[0]);
                assert!(connection.lock().by_id.is_empty());
            }
        }
    }

    /// Also where the connection matches the event itself, later than others.
    #[test]
    fn a_stored_event_comes_no_second_time_until_no_commit_can_bring_it() {
        for id in [Some("s"), None] {
            let registry = Arc::default();
            let connection = connection(&registry);
            let generation =
                connection.begin("s", vec![Filter::default()], 0, &Limits::default()).unwrap();
            deliver(&connection, 6, 5, Some("s"));
            deliver(&connection, 6, 6, Some("s"));
            let stored = [5, 7, 8].map(|number| event(number).item().id).to_vec();
            assert_eq!(connection.go_live("s", generation, stored, 8), [text(6)]);
            deliver(&connection, 7, 7, id);
            deliver(&connection, 7, 70, id);
            registry.end_commit(7);
            deliver(&connection, 8, 8, id);
            registry.end_commit(8);
            assert_eq!(sent(&connection), [text(70)], "{id:?}");
            registry.end_commit(9);
            let state = connection.lock();
            let SubscriptionStage::Live { sent, .. } = &state.by_id["s"].stage else {
                panic!("not live")
            };
            assert!(sent.is_empty() && !state.is_remembering);
            assert!(lock(&registry.remembering).is_empty());
        }
    }

    #[test]
    fn what_was_ended_or_replaced_gets_nothing_more() {
        let registry = Arc::<Registry>::default();
        let connection = connection(&registry);
        let begin = || {
            let generation =
                connection.begin("s", vec![Filter::default()], 0, &Limits::default()).unwrap();
            connection.go_live("s", generation, Vec::new(), 0);
        };
        begin();
        assert!(deliver(&connection, 1, 1, Some("s")));
        begin();
        assert!(sent(&connection).is_empty());
        assert!(deliver(&connection, 2, 2, Some("s")));
        assert_eq!(sent(&connection), [text(2)]);
        let limits = Limits { subscriptions: 1, ..Limits::default() };
        // A refused REQ of a live id ends it, and its place is free.
        let many = vec![Filter { kinds: Some(vec![1; 200_000]), ..Filter::default() }];
        assert!(connection.begin("s", many, 0, &limits).is_err());
        assert!(connection.begin("t", vec![Filter::default()], 0, &limits).is_ok());
        assert!(connection.begin("u", vec![Filter::default()], 0, &limits).is_err());
        connection.end("t");
        assert_eq!(registry.filters().owners().count(), 0);
    }

    /// A commit that was acknowledged before the REQ can be dispatched after it.
    #[test]
    fn events_of_commits_before_a_subscription_do_not_come_live() {
        for id in [Some("s"), None] {
            let connection = connection(&Arc::default());
            let all = vec![Filter::default()];
            let generation = connection.begin("s", all, 3, &Limits::default()).unwrap();
            deliver(&connection, 2, 2, Some("s"));
            assert!(connection.go_live("s", generation, Vec::new(), 3).is_empty());
            deliver(&connection, 2, 20, id);
            deliver(&connection, 3, 3, id);
            assert_eq!(sent(&connection), [text(3)], "{id:?}");
        }
    }
}
