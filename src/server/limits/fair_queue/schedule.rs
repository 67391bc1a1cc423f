//! The order of turns: counts and virtual times, without a clock.
//!
//! This is start-time fair queueing. The virtual time is the start of the turn that began last. A
//! new address starts shortly before that time, and each turn advances its address by the turn's
//! duration.

use super::permit::QueuePermit;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;
use tokio::sync::oneshot;

/// Maximum number of remembered addresses that neither have nor want a turn.
pub(super) const MOST_IDLE_ADDRESSES: usize = 4_096;
/// Time that an idle address may use before it waits for busy ones.
pub(super) const CREDIT: Duration = Duration::from_millis(100);
/// Remaining credit from which an address counts as light.
const LIGHT_CREDIT: Duration = Duration::from_millis(50);

/// The addresses of one queue, and the number of turns of each kind.
pub(super) struct TurnSchedule {
    pub(super) running: usize,
    // The number of light queries among them.
    pub(super) light: usize,
    // The number of turns that run or were given away.
    pub(super) begun: usize,
    // The number of long queries among the running turns.
    pub(super) long: usize,
    // The virtual time.
    now: Duration,
    pub(super) queues: HashMap<IpAddr, AddressQueue>,
    // The waiting addresses.
    pub(super) waiting: BTreeMap<Position, IpAddr>,
    arrivals: u64,
}

impl Default for TurnSchedule {
    fn default() -> Self {
        Self {
            running: 0,
            light: 0,
            begun: 0,
            long: 0,
            // Makes the first addresses light as well.
            now: CREDIT,
            queues: HashMap::new(),
            waiting: BTreeMap::new(),
            arrivals: 0,
        }
    }
}

/// The turns of one address.
#[derive(Default)]
pub(super) struct AddressQueue {
    pub(super) running: usize,
    pub(super) begun: usize,
    // The start of its next turn.
    pub(super) virtual_time: Duration,
    // Its key among the waiting addresses.
    position: Option<Position>,
    // Connections that wait for a turn.
    pub(super) waiting: VecDeque<oneshot::Sender<QueuePermit>>,
    // Queries that gave their turn away.
    pub(super) resuming: VecDeque<Resuming>,
}

/// A query that gave its turn away.
pub(super) struct Resuming {
    pub(super) is_long: bool,
    pub(super) give: oneshot::Sender<()>,
}

impl AddressQueue {
    pub(super) fn wants_nothing(&self) -> bool {
        self.waiting.is_empty() && self.resuming.is_empty()
    }
}

/// How many turns may run, and may have begun: in all and of one address.
#[derive(Clone, Copy)]
pub(super) struct QueueLimits {
    pub(super) running: usize,
    pub(super) begun: usize,
    pub(super) running_of_address: usize,
    pub(super) begun_of_address: usize,
    pub(super) long: usize,
    // Whether heavy queries give way to light ones.
    pub(super) gives_way: bool,
}

/// Who gets the next turn.
pub(super) enum NextTurn {
    Begins(Weight, IpAddr, oneshot::Sender<QueuePermit>),
    Resumes(IpAddr, Resuming),
}

/// An address's virtual time, and the number of its arrival among equals.
pub(super) type Position = (Duration, u64);

/// Whether the address of a query has asked for little.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Weight {
    Light,
    Heavy,
}

impl TurnSchedule {
    /// The address's queue; a new one where there is none.
    pub(super) fn queue_of(&mut self, address: IpAddr) -> &mut AddressQueue {
        if self.queues.len() > MOST_IDLE_ADDRESSES && !self.queues.contains_key(&address) {
            self.queues.retain(|_, queue| queue.begun > 0 || queue.position.is_some());
        }
        let queue = self.queues.entry(address).or_default();
        queue.virtual_time = queue.virtual_time.max(self.now.saturating_sub(CREDIT));
        queue
    }

    /// The weight with which a query of the address may begin now; `None` if it has to wait.
    pub(super) fn may_begin(&self, address: IpAddr, limits: QueueLimits) -> Option<Weight> {
        let of_address = |queue: &AddressQueue| {
            queue.running < limits.running_of_address && queue.begun < limits.begun_of_address
        };
        let queue = self.queues.get(&address);
        if self.begun >= limits.begun || !queue.is_none_or(of_address) {
            return None;
        }
        let is_light = queue.is_none_or(|queue| queue.virtual_time + LIGHT_CREDIT <= self.now);
        if limits.gives_way && is_light && self.light < limits.running {
            return Some(Weight::Light);
        }
        self.may_run_heavy(limits).then_some(Weight::Heavy)
    }

    /// Whether one more heavy query may run.
    pub(super) fn may_run_heavy(&self, limits: QueueLimits) -> bool {
        let heavy = self.running - self.light;
        self.running < limits.running && (self.light == 0 || heavy < limits.long)
    }

    /// Whether a heavy query has to give way because light ones run.
    pub(super) fn has_to_make_room(&self, limits: QueueLimits) -> bool {
        self.light > 0 && self.running - self.light > limits.long
    }

    /// Counts a new turn.
    pub(super) fn begin(&mut self, weight: Weight, address: IpAddr) {
        self.queue_of(address).begun += 1;
        self.begun += 1;
        self.light += usize::from(weight == Weight::Light);
        self.resume(address);
    }

    /// Counts a turn as running.
    pub(super) fn resume(&mut self, address: IpAddr) {
        let queue = self.queue_of(address);
        queue.running += 1;
        let virtual_time = queue.virtual_time;
        self.now = self.now.max(virtual_time);
        self.running += 1;
    }

    /// Counts a turn that has ended, after [`TurnSchedule::leave`].
    pub(super) fn end(&mut self, address: IpAddr) {
        self.begun = self.begun.saturating_sub(1);
        let Some(queue) = self.queues.get_mut(&address) else { return };
        queue.begun = queue.begun.saturating_sub(1);
        // Until it is this far behind, forgetting it would give it credit that it has used.
        let owes_nothing = queue.virtual_time <= self.now.saturating_sub(CREDIT);
        if queue.begun == 0 && queue.position.is_none() && owes_nothing {
            self.queues.remove(&address);
        }
    }

    /// Whether a query that gave its turn away may go on.
    pub(super) fn may_resume(&self, next: &Resuming, limits: QueueLimits) -> bool {
        !next.is_long || self.long < limits.long
    }

    /// Whether a connection waits only because too many queries have begun.
    pub(super) fn is_crowded(&self, limits: QueueLimits) -> bool {
        self.begun >= limits.begun && self.queues.values().any(|queue| !queue.waiting.is_empty())
    }

    /// Moves an address to its place among those that wait; one that wants nothing leaves them.
    pub(super) fn requeue(&mut self, address: IpAddr) {
        let Some(queue) = self.queues.get_mut(&address) else { return };
        let arrival = match queue.position.take() {
            Some(position) => {
                self.waiting.remove(&position);
                position.1
            }
            None => {
                self.arrivals += 1;
                self.arrivals
            }
        };
        if !queue.wants_nothing() {
            queue.position = Some((queue.virtual_time, arrival));
            self.waiting.insert((queue.virtual_time, arrival), address);
        }
    }

    /// Counts a turn as running no more: it has ended, or was given away after `took`.
    pub(super) fn leave(&mut self, weight: Weight, address: IpAddr, took: Duration) {
        self.running = self.running.saturating_sub(1);
        self.light = self.light.saturating_sub(usize::from(weight == Weight::Light));
        let Some(queue) = self.queues.get_mut(&address) else { return };
        queue.running = queue.running.saturating_sub(1);
        queue.virtual_time += took;
        if queue.position.is_some() {
            self.requeue(address);
        }
    }

    /// Counts the next turn as running, and returns who gets it.
    pub(super) fn next(&mut self, limits: QueueLimits) -> Option<NextTurn> {
        let begins = |address: &IpAddr| {
            let has_waiting =
                self.queues.get(address).is_some_and(|queue| !queue.waiting.is_empty());
            self.may_begin(*address, limits).filter(|_| has_waiting)
        };
        let may_run_heavy = self.may_run_heavy(limits);
        let resumes = |address: &IpAddr| {
            may_run_heavy
                && self.queues.get(address).is_some_and(|queue| {
                    queue.running < limits.running_of_address
                        && queue.resuming.iter().any(|next| self.may_resume(next, limits))
                })
        };
        let may = |address: &IpAddr| begins(address).is_some() || resumes(address);
        let address = self.waiting.values().copied().find(may)?;
        // A new query goes first: it is nearly always short.
        let new = begins(&address);
        let resuming = &self.queues.get(&address)?.resuming;
        let resumed = resuming.iter().position(|next| self.may_resume(next, limits));
        let queue = self.queues.get_mut(&address)?;
        let next = if let Some(weight) = new {
            let give = queue.waiting.pop_front()?;
            self.begin(weight, address);
            NextTurn::Begins(weight, address, give)
        } else {
            let next = queue.resuming.remove(resumed?)?;
            self.long += usize::from(next.is_long);
            self.resume(address);
            NextTurn::Resumes(address, next)
        };
        // It goes behind the others of the same virtual time.
        if let Some(position) =
            self.queues.get_mut(&address).and_then(|queue| queue.position.take())
        {
            self.waiting.remove(&position);
        }
        self.requeue(address);
        Some(next)
    }
}
