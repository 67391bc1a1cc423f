//! Fair scheduling of work. Work that occupies a core needs a turn; the number of concurrent turns
//! is bounded, and the address that has used the least time is next. An address with many requests
//! delays only itself; one with few requests hardly waits.
//!
//! A query of the store may take seconds. It gives its turn away when others wait for one, and
//! resumes when its address is next again. Meanwhile it keeps its connection to the store, so the
//! number of begun queries is bounded too.
//!
//! A query is light while its address has used little time. A light query does not wait for a turn:
//! it begins at once, and while it runs, heavy queries give way until they have a quarter of the
//! turns.

mod permit;
mod schedule;
#[cfg(test)]
mod tests;

use crate::store::Deadline;
use permit::QueuePermit;
use schedule::{NextTurn, QueueLimits, TurnSchedule, Weight};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::JoinError;

/// The turns of one kind of work.
pub(crate) struct FairQueue {
    // Maximum number of running turns.
    most: usize,
    // Maximum number of turns that run or were given away.
    most_begun: usize,
    schedule: Mutex<TurnSchedule>,
}

impl FairQueue {
    /// At most `most` turns run at a time. One address has at most half of them, but at least one.
    pub(crate) fn new(most: usize) -> Self {
        let most = most.max(1);
        Self { most, most_begun: most, schedule: Mutex::default() }
    }

    /// Like [`FairQueue::new`], for queries that give way. At most `most_begun` of them have begun.
    /// One address has at most a quarter of these, but at least one.
    pub(crate) fn for_queries(most: usize, most_begun: usize) -> Self {
        Self { most_begun: most_begun.max(1), ..Self::new(most) }
    }

    /// Maximum number of threads in use. A query that has given its turn away keeps its thread.
    pub(super) fn threads(&self) -> usize {
        self.most.max(self.most_begun)
    }

    /// Waits for a turn.
    pub(crate) async fn take(self: &Arc<Self>, address: IpAddr) -> QueuePermit {
        let waiting = {
            let mut schedule = self.lock();
            schedule.queue_of(address);
            if let Some(weight) = schedule.may_begin(address, self.limits()) {
                schedule.begin(weight, address);
                return QueuePermit::new(self, weight, address);
            }
            let queue = schedule.queue_of(address);
            // Closed connections no longer wait.
            queue.waiting.retain(|give| !give.is_closed());
            let (give, waiting) = oneshot::channel();
            queue.waiting.push_back(give);
            schedule.requeue(address);
            waiting
        };
        match waiting.await {
            Ok(turn) => turn,
            // Unreachable: the queue uses every sender before it drops it.
            Err(_) => {
                self.lock().begin(Weight::Heavy, address);
                QueuePermit::new(self, Weight::Heavy, address)
            }
        }
    }

    /// Runs `work` in a turn of the address, on a thread that may block.
    pub(crate) async fn work<T: Send + 'static>(
        self: &Arc<Self>,
        address: IpAddr,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, JoinError> {
        let turn = self.take(address).await;
        let work = move || {
            let _turn = turn;
            work()
        };
        tokio::task::spawn_blocking(work).await
    }

    /// Runs a query of the store in a turn of the address, on a thread that may block. It ends
    /// after `timeout`, or as soon as `is_cancelled` returns true.
    pub(crate) async fn query<T: Send + 'static>(
        self: &Arc<Self>,
        address: IpAddr,
        timeout: Duration,
        is_cancelled: impl Fn() -> bool + Send + Sync + 'static,
        query: impl FnOnce(Deadline) -> T + Send + 'static,
    ) -> Result<T, JoinError> {
        let turn = Arc::new(self.take(address).await);
        let query = move || {
            let own = Arc::clone(&turn);
            query(Deadline::giving_way(timeout, is_cancelled, move || own.give_way()))
        };
        tokio::task::spawn_blocking(query).await
    }

    fn limits(&self) -> QueueLimits {
        let gives_way = self.most_begun > self.most;
        QueueLimits {
            running: self.most,
            begun: self.most_begun,
            running_of_address: (self.most / 2).max(1),
            begun_of_address: (self.most_begun / if gives_way { 4 } else { 2 }).max(1),
            long: (self.most / 4).max(1),
            gives_way,
        }
    }

    /// Ends a turn and gives it to the next waiting one.
    fn end(self: &Arc<Self>, weight: Weight, address: IpAddr, took: Duration) {
        let mut schedule = self.lock();
        schedule.leave(weight, address, took);
        schedule.end(address);
        drop(schedule);
        self.give_free_turns();
    }

    /// Gives free turns to waiting ones.
    fn give_free_turns(self: &Arc<Self>) {
        loop {
            let mut schedule = self.lock();
            let Some(next) = schedule.next(self.limits()) else { return };
            drop(schedule);
            let (weight, address, is_given) = match next {
                // The unused permit is forgotten, because dropping it would call this function
                // again.
                NextTurn::Begins(weight, address, give) => {
                    let sent = give.send(QueuePermit::new(self, weight, address));
                    (weight, address, sent.map_err(std::mem::forget).is_ok())
                }
                NextTurn::Resumes(address, next) => {
                    let is_given = next.give.send(()).is_ok();
                    if !is_given && next.is_long {
                        self.lock().long -= 1;
                    }
                    (Weight::Heavy, address, is_given)
                }
            };
            if !is_given {
                let mut schedule = self.lock();
                schedule.leave(weight, address, Duration::ZERO);
                schedule.end(address);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, TurnSchedule> {
        self.schedule.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
