//! A permit for a turn, and how a query gives its turn away in between.

use super::FairQueue;
use super::schedule::{Resuming, Weight};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Time that a query works before it gives way.
const SLICE: Duration = Duration::from_millis(1);
/// Working time after which a query ends if others wait because too many have begun.
const CROWDED_WORK: Duration =
    if cfg!(test) { Duration::from_millis(20) } else { Duration::from_secs(1) };
/// Working time after which a query counts as long. Long queries have a quarter of the turns, so
/// that a short one finds a free core.
const LONG_WORK: Duration = Duration::from_millis(20);

/// The right to work; returned when this is dropped.
pub(crate) struct QueuePermit {
    queue: Arc<FairQueue>,
    address: IpAddr,
    time: Mutex<TurnTime>,
}

/// The duration of a turn.
struct TurnTime {
    // When the turn was last given.
    began: Instant,
    // The duration before that.
    worked: Duration,
    // Whether it counts among the running long queries.
    is_long: bool,
    // Its weight in the count of running turns.
    weight: Weight,
}

impl QueuePermit {
    /// The permit of a turn that the queue has already counted as running.
    pub(super) fn new(queue: &Arc<FairQueue>, weight: Weight, address: IpAddr) -> Self {
        let (began, worked) = (Instant::now(), Duration::ZERO);
        let time = Mutex::new(TurnTime { began, worked, is_long: false, weight });
        Self { queue: Arc::clone(queue), address, time }
    }

    /// Gives the turn away to light queries, and to waiting ones of addresses that have used less
    /// time. Returns when it has the turn again: `true` if the query has to end because others
    /// cannot begin.
    pub(super) fn give_way(&self) -> bool {
        let mut time = self.time.lock().unwrap_or_else(PoisonError::into_inner);
        let took = time.began.elapsed();
        let mut schedule = self.queue.lock();
        let makes_room =
            time.weight == Weight::Heavy && schedule.has_to_make_room(self.queue.limits());
        if took < SLICE && !makes_room {
            return false;
        }
        if schedule.is_crowded(self.queue.limits()) && time.worked + took >= CROWDED_WORK {
            return true;
        }
        let is_long = time.worked + took >= LONG_WORK;
        if is_long && time.weight == Weight::Light {
            time.weight = Weight::Heavy;
            schedule.light = schedule.light.saturating_sub(1);
        }
        if is_long && !time.is_long && schedule.long < self.queue.limits().long {
            schedule.long += 1;
            time.is_long = true;
        }
        if schedule.waiting.is_empty() && is_long == time.is_long && !makes_room {
            return false;
        }
        let (give, given) = oneshot::channel();
        schedule.leave(time.weight, self.address, took);
        schedule.long -= usize::from(time.is_long);
        if let Some(queue) = schedule.queues.get_mut(&self.address) {
            queue.resuming.push_back(Resuming { is_long, give });
        }
        schedule.requeue(self.address);
        drop(schedule);
        self.queue.give_free_turns();
        // Unreachable: the queue uses every sender before it drops it.
        if given.blocking_recv().is_err() {
            let mut schedule = self.queue.lock();
            schedule.resume(self.address);
            schedule.long += usize::from(is_long);
        }
        let worked = time.worked + took;
        *time = TurnTime { began: Instant::now(), worked, is_long, weight: Weight::Heavy };
        false
    }
}

impl Drop for QueuePermit {
    fn drop(&mut self) {
        let time = self.time.get_mut().unwrap_or_else(PoisonError::into_inner);
        let (took, is_long) = (time.began.elapsed(), time.is_long);
        self.queue.lock().long -= usize::from(is_long);
        self.queue.end(time.weight, self.address, took);
    }
}
