//! Decides who works next. Work that occupies a core takes a turn. Only so many turns run at a time, and
//! the address that has worked least is next. An address that asks for much waits for itself; one that
//! asks for little now and then hardly waits at all.
//!
//! A query of the store can take seconds. It gives its turn away as soon as others wait for one, and
//! resumes when it is its address's turn again. Meanwhile it keeps its connection to the store, so the
//! number of queries that have begun is bounded as well.
//!
//! A query is light while its address has asked for little. A light query waits for no turn: it begins
//! at once, and while it runs the heavy ones give way until a quarter of the turns is left to them.

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
    // Turns that run at a time.
    most: usize,
    // Turns that run or were given away.
    most_begun: usize,
    schedule: Mutex<TurnSchedule>,
}

impl FairQueue {
    /// At most `most` turns run at a time; one address has at most half of them, and at least one.
    pub(crate) fn new(most: usize) -> Self {
        let most = most.max(1);
        Self { most, most_begun: most, schedule: Mutex::default() }
    }

    /// Like [`FairQueue::new`], for queries that give way. At most `most_begun` of them have begun; one
    /// address has at most a quarter of these, and at least one.
    pub(crate) fn for_queries(most: usize, most_begun: usize) -> Self {
        Self { most_begun: most_begun.max(1), ..Self::new(most) }
    }

    /// The most threads that are in use at a time. A query that has given its turn away keeps its
    /// thread.
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
            // Connections that were closed wait no more.
            queue.waiting.retain(|give| !give.is_closed());
            let (give, waiting) = oneshot::channel();
            queue.waiting.push_back(give);
            schedule.requeue(address);
            waiting
        };
        match waiting.await {
            Ok(turn) => turn,
            // Not reached: a queue drops no sender without using it.
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
    /// `timeout` after it began, or as soon as `is_cancelled`.
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

    /// Ends a turn and gives it to the next that still wants it.
    fn end(self: &Arc<Self>, weight: Weight, address: IpAddr, took: Duration) {
        let mut schedule = self.lock();
        schedule.leave(weight, address, took);
        schedule.end(address);
        drop(schedule);
        self.give_free_turns();
    }

    /// Gives the free turns to those that still want them.
    fn give_free_turns(self: &Arc<Self>) {
        loop {
            let mut schedule = self.lock();
            let Some(next) = schedule.next(self.limits()) else { return };
            drop(schedule);
            let (weight, address, is_given) = match next {
                // A permit that nobody takes is forgotten: dropping it would call this again.
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
