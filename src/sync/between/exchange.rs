//! The events that the relays of a sync lack, and the events in transit.
//!
//! Each relay lists its ids. When all reachable relays have done so, the moves are planned: each
//! missing event is requested from one relay that has it, and sent to all that lack it.

use super::super::driver::OurEvents;
use super::super::machine::{Id, Loaded};
use super::id_list::{IdList, compare};
use super::spool::{Spool, SpoolPlace};
use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, broadcast};

/// Maximum number of events in a plan; the rest is left for another pass.
const MOST_PARCELS: usize = 200_000;
/// Maximum number of live events that a relay may be behind; beyond it, the relay is listed again.
const LIVE_EVENTS: usize = 256;
/// Lost connections of a relay, before all relays are listed, after which the others do not wait
/// for it.
const MOST_FAILURES: u32 = 3;
/// Ids of live events that are remembered, because relays send back what they receive.
const MOST_RECENT: usize = 65_536;

/// A set of relays; the lowest bit is the first relay.
type Relays = u32;

fn bit(relay: usize) -> Relays {
    1 << relay
}

/// Shared by the sides of all relays.
pub(super) struct Exchange {
    state: Mutex<ExchangeState>,
    changed: Condvar,
    is_live: bool,
    passed: broadcast::Sender<Arc<PassedEvent>>,
    /// Makes a relay list its ids again.
    list_again: Vec<Notify>,
}

/// A live event.
struct PassedEvent {
    from: usize,
    event: Loaded,
}

/// Live events for one relay.
pub(super) struct PassedEvents(tokio::sync::Mutex<broadcast::Receiver<Arc<PassedEvent>>>);

#[derive(Default)]
struct ExchangeState {
    relays: Vec<ListedRelay>,
    is_planned: bool,
    is_stopped: bool,
    parcels: HashMap<Id, Parcel>,
    spool: Spool,
    recent: RecentIds,
    /// Relays that did not send an event that they list.
    failed: HashMap<Id, Relays>,
    /// There was more to move than fits in a plan.
    is_cut: bool,
}

#[derive(Default)]
struct ListedRelay {
    stage: ListingStage,
    list: Option<IdList>,
    /// The number of lost connections.
    losses: u64,
    /// The number of lost connections since it was last listed.
    failures: u32,
    /// Whether its connection was lost since it was last listed: it has missed live events.
    was_lost: bool,
    /// Whether it was asked to list again and has not done so yet.
    was_told: bool,
}

#[derive(Default, PartialEq, Eq, Clone, Copy)]
enum ListingStage {
    /// The others wait for its list.
    #[default]
    Listing,
    Listed,
    /// Out of reach; the others do not wait for it.
    Away,
}

/// An event that some relays lack.
struct Parcel {
    holders: Relays,
    lackers: Relays,
    /// The relay that it is requested from.
    source: Option<usize>,
    content: ParcelContent,
}

enum ParcelContent {
    Awaited,
    Here(SpoolPlace),
    /// Only the author may publish it (NIP-70).
    Protected,
}

/// The most recent ids.
#[derive(Default)]
struct RecentIds {
    ids: HashSet<Id>,
    order: VecDeque<Id>,
}

impl RecentIds {
    /// Returns whether the id is new.
    fn insert(&mut self, id: Id) -> bool {
        if !self.ids.insert(id) {
            return false;
        }
        self.order.push_back(id);
        if self.order.len() > MOST_RECENT
            && let Some(oldest) = self.order.pop_front()
        {
            self.ids.remove(&oldest);
        }
        true
    }
}

/// The events to send to a relay, and those to request from it.
#[derive(Default)]
pub(super) struct MoveOrders {
    pub(super) have: Vec<Id>,
    pub(super) need: Vec<Id>,
}

/// Events to send, and events that must not be sent.
#[derive(Default)]
pub(super) struct Delivery {
    pub(super) events: Vec<(Id, String)>,
    pub(super) protected: Vec<Id>,
}

/// The state after all syncs have ended.
pub(super) struct Remains {
    pub(super) lists: Vec<Option<IdList>>,
    pub(super) failed: HashMap<Id, Relays>,
    pub(super) is_cut: bool,
}

impl Exchange {
    /// An exchange between `relays` relays. `failed` has relays that did not send an event that
    /// they list.
    pub(super) fn new(relays: usize, is_live: bool, failed: HashMap<Id, Relays>) -> Self {
        let state = ExchangeState {
            relays: (0..relays).map(|_| ListedRelay::default()).collect(),
            failed,
            ..ExchangeState::default()
        };
        Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
            is_live,
            passed: broadcast::channel(LIVE_EVENTS).0,
            list_again: (0..relays).map(|_| Notify::new()).collect(),
        }
    }

    fn state(&self) -> MutexGuard<'_, ExchangeState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'state>(
        &self,
        state: MutexGuard<'state, ExchangeState>,
    ) -> MutexGuard<'state, ExchangeState> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// Records the complete list of a relay. Waits for the other relays, and returns the relay's
    /// moves. `is_first` marks a list before any move. `losses` is the number of lost connections
    /// at the start of the list: a list from a lost connection is ignored.
    pub(super) fn listed(
        &self,
        relay: usize,
        list: IdList,
        is_first: bool,
        is_whole: bool,
        losses: u64,
    ) -> io::Result<MoveOrders> {
        let mut state = self.state();
        let own = state.relays.get_mut(relay).filter(|own| own.losses == losses);
        let Some(own) = own else { return Ok(MoveOrders::default()) };
        let list = match own.list.take().filter(|_| !is_whole) {
            Some(before) => before.joined(&list)?,
            None => list,
        };
        own.list = Some(list.clone());
        own.stage = ListingStage::Listed;
        own.failures = 0;
        let is_new = std::mem::take(&mut own.was_lost) || is_first;
        let is_unasked = is_new && !std::mem::take(&mut own.was_told);
        if self.is_live && is_unasked && state.is_planned {
            self.begin_anew(&mut state, relay);
        }
        self.changed.notify_all();
        if state.is_planned {
            state.see_again(relay, &list)?;
            return Ok(state.orders(relay));
        }
        let is_lost = |state: &ExchangeState| state.losses(relay) != losses;
        while !state.is_planned && !state.is_stopped && !is_lost(&state) {
            if state.relays.iter().all(|relay| relay.stage != ListingStage::Listing) {
                state.plan()?;
                state.is_planned = true;
                self.changed.notify_all();
                break;
            }
            state = self.wait(state);
        }
        if state.is_stopped || is_lost(&state) {
            return Ok(MoveOrders::default());
        }
        Ok(state.orders(relay))
    }

    /// Records the complete list of a relay when nothing is to be moved.
    pub(super) fn noted(&self, relay: usize, list: IdList) {
        if let Some(own) = self.state().relays.get_mut(relay) {
            own.list = Some(list);
        }
    }

    /// Makes all other reachable relays list their ids again.
    fn begin_anew(&self, state: &mut ExchangeState, relay: usize) {
        state.is_planned = false;
        state.parcels.clear();
        state.spool = Spool::default();
        for (place, other) in state.relays.iter_mut().enumerate() {
            if place != relay && other.stage == ListingStage::Listed {
                other.stage = ListingStage::Listing;
                other.was_told = true;
                self.list_again.iter().skip(place).take(1).for_each(Notify::notify_one);
            }
        }
    }

    /// The number of lost connections of a relay.
    pub(super) fn losses(&self, relay: usize) -> u64 {
        self.state().losses(relay)
    }

    /// The events with these ids. Waits until those still in transit have arrived, or until the
    /// connection is lost again.
    pub(super) fn load(&self, relay: usize, ids: &[Id], losses: u64) -> io::Result<Delivery> {
        let mut state = self.state();
        while !state.is_stopped && state.losses(relay) == losses && state.awaits_any(ids) {
            state = self.wait(state);
        }
        let mut delivery = Delivery::default();
        for id in ids {
            match state.parcels.get(id).map(|parcel| &parcel.content) {
                Some(ParcelContent::Here(place)) => {
                    delivery.events.push((*id, state.spool.get(*place)?))
                }
                Some(ParcelContent::Protected) => delivery.protected.push(*id),
                Some(ParcelContent::Awaited) | None => {}
            }
        }
        Ok(delivery)
    }

    /// Stores an event that was requested from a relay. Returns whether there was room for it.
    pub(super) fn arrived(&self, id: &Id, json: &str) -> io::Result<bool> {
        let mut state = self.state();
        let state = &mut *state;
        let Some(parcel) = state.parcels.get_mut(id) else { return Ok(true) };
        let place = state.spool.put(json)?;
        match place {
            Some(place) => parcel.content = ParcelContent::Here(place),
            None => state.is_cut = true,
        }
        parcel.source = None;
        self.changed.notify_all();
        Ok(place.is_some())
    }

    /// Records an event that only its author may publish.
    pub(super) fn arrived_protected(&self, id: &Id) {
        if let Some(parcel) = self.state().parcels.get_mut(id) {
            parcel.content = ParcelContent::Protected;
            parcel.source = None;
        }
        self.changed.notify_all();
    }

    /// Passes a live event on to the other relays, unless it was passed on before. Returns whether
    /// it was new.
    pub(super) fn pass_on(&self, from: usize, event: Loaded) -> io::Result<bool> {
        let mut state = self.state();
        if state.parcels.contains_key(&event.id) || !state.recent.insert(event.id) {
            return Ok(false);
        }
        // Stored, because it may have to be sent to a relay again.
        if let Some(place) = state.spool.put(&event.json)? {
            let content = ParcelContent::Here(place);
            let parcel = Parcel { holders: bit(from), lackers: 0, source: None, content };
            state.parcels.insert(event.id, parcel);
        }
        drop(state);
        // Fails only without receivers.
        let _ = self.passed.send(Arc::new(PassedEvent { from, event }));
        Ok(true)
    }

    /// The live events for a relay; `None` unless the sync is live.
    pub(super) fn listen(&self) -> Option<PassedEvents> {
        self.is_live.then(|| PassedEvents(self.passed.subscribe().into()))
    }

    /// The next live events to pass on to a relay.
    pub(super) async fn next(&self, relay: usize, events: &PassedEvents) -> OurEvents {
        let Some(list_again) = self.list_again.get(relay) else {
            return std::future::pending().await;
        };
        let mut events = events.0.lock().await;
        tokio::select! {
            passed = events.recv() => match passed {
                Ok(passed) if passed.from != relay => OurEvents::New(vec![passed.event.clone()]),
                Ok(_) => OurEvents::New(Vec::new()),
                Err(broadcast::error::RecvError::Lagged(_)) => OurEvents::Missed,
                Err(broadcast::error::RecvError::Closed) => OurEvents::Closed,
            },
            () = list_again.notified() => OurEvents::Missed,
        }
    }

    /// Records a lost connection. The others do not wait for a relay that is out of reach or whose
    /// connection breaks repeatedly.
    pub(super) fn lost(&self, relay: usize, is_out_of_reach: bool) {
        let mut state = self.state();
        let is_planned = state.is_planned;
        if let Some(own) = state.relays.get_mut(relay) {
            own.losses += 1;
            own.failures += 1;
            own.was_lost = true;
            own.was_told = false;
            let is_away = is_planned || is_out_of_reach || own.failures > MOST_FAILURES;
            own.stage = if is_away { ListingStage::Away } else { ListingStage::Listing };
        }
        state.end_source(relay, false);
        self.changed.notify_all();
    }

    /// Records that events requested from the relay and not sent yet will not come.
    pub(super) fn ended(&self, relay: usize) {
        self.state().end_source(relay, true);
        self.changed.notify_all();
    }

    /// Releases all waiting tasks, permanently.
    pub(super) fn stop(&self) {
        self.state().is_stopped = true;
        self.changed.notify_all();
    }

    /// The remaining differences, once all syncs have ended.
    pub(super) fn remains(&self) -> Remains {
        let mut state = self.state();
        Remains {
            lists: state.relays.iter_mut().map(|relay| relay.list.take()).collect(),
            failed: std::mem::take(&mut state.failed),
            is_cut: state.is_cut,
        }
    }
}

impl ExchangeState {
    fn losses(&self, relay: usize) -> u64 {
        self.relays.get(relay).map_or(0, |relay| relay.losses)
    }

    /// Whether any of the events is still in transit.
    fn awaits_any(&self, ids: &[Id]) -> bool {
        let awaits = |parcel: &Parcel| {
            parcel.source.is_some() && matches!(parcel.content, ParcelContent::Awaited)
        };
        ids.iter().any(|id| self.parcels.get(id).is_some_and(awaits))
    }

    /// Compares the lists and plans the moves.
    fn plan(&mut self) -> io::Result<()> {
        let is_here = |relay: &ListedRelay| relay.stage == ListingStage::Listed;
        let lists: Vec<Option<IdList>> =
            self.relays.iter().map(|it| it.list.clone().filter(|_| is_here(it))).collect();
        let here = lists.iter().enumerate().filter(|(_, list)| list.is_some());
        let here = here.fold(0, |here, (relay, _)| here | bit(relay));
        let (parcels, failed, mut is_cut) = (&mut self.parcels, &self.failed, false);
        compare(&lists, |id, holders| {
            let lackers = here & !holders;
            let sources = holders & !failed.get(&id).copied().unwrap_or(0);
            if lackers != 0 && sources != 0 {
                is_cut = parcels.len() >= MOST_PARCELS;
                if !is_cut {
                    let came_live = parcels.remove(&id).map(|parcel| parcel.content);
                    let (source, content) = match came_live {
                        // Its relay has sent it already; it is not requested again.
                        Some(content @ ParcelContent::Here(_)) => (None, content),
                        _ => (Some(choose(sources, &id)), ParcelContent::Awaited),
                    };
                    parcels.insert(id, Parcel { holders, lackers, source, content });
                }
            }
            !is_cut
        })?;
        self.is_cut |= is_cut;
        Ok(())
    }

    /// Handles a new list of a relay after some events were moved.
    fn see_again(&mut self, relay: usize, list: &IdList) -> io::Result<()> {
        let mut reader = list.read()?;
        while let Some(id) = reader.next()? {
            if let Some(parcel) = self.parcels.get_mut(&id) {
                parcel.holders |= bit(relay);
                parcel.lackers &= !bit(relay);
            }
        }
        Ok(())
    }

    fn orders(&mut self, relay: usize) -> MoveOrders {
        let mut orders = MoveOrders::default();
        let own = bit(relay);
        for (id, parcel) in &mut self.parcels {
            let is_awaited = matches!(parcel.content, ParcelContent::Awaited);
            if is_awaited && parcel.holders & own != 0 && parcel.lackers != 0 {
                let failed = self.failed.get(id).copied().unwrap_or(0);
                if failed & own == 0 && *parcel.source.get_or_insert(relay) == relay {
                    orders.need.push(*id);
                }
            }
            if parcel.lackers & own != 0 && (!is_awaited || parcel.source.is_some()) {
                orders.have.push(*id);
            }
        }
        orders.have.sort_unstable();
        orders.need.sort_unstable();
        orders
    }

    /// Marks the events requested from a relay as not coming.
    fn end_source(&mut self, relay: usize, has_failed: bool) {
        for (id, parcel) in &mut self.parcels {
            if parcel.source == Some(relay) && matches!(parcel.content, ParcelContent::Awaited) {
                parcel.source = None;
                if has_failed {
                    *self.failed.entry(*id).or_default() |= bit(relay);
                }
            }
        }
    }
}

/// Chooses one of the relays, evenly by id.
fn choose(relays: Relays, id: &Id) -> usize {
    let [first, ..] = id;
    let nth = usize::from(*first) % (relays.count_ones().max(1) as usize);
    let mut set = (0..Relays::BITS as usize).filter(|relay| relays & bit(*relay) != 0);
    set.nth(nth).unwrap_or(0)
}
