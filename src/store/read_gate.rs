//! The gate that read transactions pass. SQLite begins its write-ahead log anew only while nobody
//! reads from it; where one reader always overlaps the next, it would grow for ever. The
//! checkpointer closes the gate for that moment: reads that have a deadline break off and begin
//! anew, others are waited for.

use super::{Deadline, StoreError};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The gate of a store. Clones share it.
#[derive(Clone, Default)]
pub(super) struct ReadGate(Arc<Shared>);

#[derive(Default)]
struct Shared {
    // Beside the mutex: asked for by every read, about once a millisecond.
    is_closed: AtomicBool,
    reading: Mutex<usize>,
    // Signalled when the gate opens, and when nobody reads any more.
    moved: Condvar,
}

/// A read that has passed the gate, until this is dropped.
pub(super) struct Reading(ReadGate);

/// The closed gate; it opens where this is dropped.
pub(super) struct Closed(ReadGate);

impl ReadGate {
    /// Passes the gate; waits while it is closed.
    pub(super) fn enter(&self, deadline: &Deadline) -> Result<Reading, StoreError> {
        let mut reading = self.lock();
        while self.is_closed() {
            reading = wait(&self.0.moved, reading, deadline)?;
        }
        *reading += 1;
        Ok(Reading(self.clone()))
    }

    /// Whether those who read are to break off.
    pub(super) fn is_closed(&self) -> bool {
        self.0.is_closed.load(Ordering::Acquire)
    }

    /// Closes the gate, and waits for `timeout` at most until nobody reads.
    pub(super) fn close(&self, timeout: Duration) -> Closed {
        let reading = self.lock();
        self.0.is_closed.store(true, Ordering::Release);
        drop(self.0.moved.wait_timeout_while(reading, timeout, |reading| *reading > 0));
        Closed(self.clone())
    }

    fn lock(&self) -> MutexGuard<'_, usize> {
        self.0.reading.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        let mut reading = self.0.lock();
        *reading -= 1;
        if *reading == 0 {
            self.0.0.moved.notify_all();
        }
    }
}

impl Drop for Closed {
    fn drop(&mut self) {
        let _reading = self.0.lock();
        self.0.0.is_closed.store(false, Ordering::Release);
        self.0.0.moved.notify_all();
    }
}

/// Waits on a condition for as long as the deadline allows. A cancelled query is noticed now and
/// then.
pub(super) fn wait<'state, T>(
    condition: &Condvar,
    state: MutexGuard<'state, T>,
    deadline: &Deadline,
) -> Result<MutexGuard<'state, T>, StoreError> {
    const LOOK_INTERVAL: Duration = Duration::from_millis(100);
    let Some(left) = deadline.left() else {
        return Ok(condition.wait(state).unwrap_or_else(PoisonError::into_inner));
    };
    deadline.check()?;
    let waited = condition.wait_timeout(state, left.min(LOOK_INTERVAL));
    Ok(waited.unwrap_or_else(PoisonError::into_inner).0)
}
