//! Deadlines and cancellation of queries.

use super::StoreError;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Interval at which a waiting query checks its deadline.
const LOOK_INTERVAL: Duration = Duration::from_millis(1);

/// The end of a query, set by its caller. Clones share it.
#[derive(Clone, Default)]
pub struct Deadline(Option<Arc<End>>);

struct End {
    at: Instant,
    is_cancelled: Box<dyn Fn() -> bool + Send + Sync>,
    give_way: Box<dyn Fn() -> bool + Send + Sync>,
}

impl Deadline {
    /// A deadline `timeout` from now, or earlier as soon as `is_cancelled` returns true.
    pub fn after(
        timeout: Duration,
        is_cancelled: impl Fn() -> bool + Send + Sync + 'static,
    ) -> Self {
        Self::giving_way(timeout, is_cancelled, || false)
    }

    /// Like [`Deadline::after`]. The working thread calls `give_way` about once a millisecond.
    /// `give_way` blocks while other work goes first, and returns whether the query must end
    /// because of it.
    pub fn giving_way(
        timeout: Duration,
        is_cancelled: impl Fn() -> bool + Send + Sync + 'static,
        give_way: impl Fn() -> bool + Send + Sync + 'static,
    ) -> Self {
        let at = Instant::now() + timeout;
        let (is_cancelled, give_way) = (Box::new(is_cancelled), Box::new(give_way));
        Self(Some(Arc::new(End { at, is_cancelled, give_way })))
    }

    /// The same deadline without giving way, for short work while holding something that others
    /// wait for.
    #[must_use]
    pub fn without_giving_way(&self) -> Self {
        let of = self.clone();
        Self(self.0.as_ref().map(|end| {
            let is_cancelled = Box::new(move || of.is_over());
            Arc::new(End { at: end.at, is_cancelled, give_way: Box::new(|| false) })
        }))
    }

    /// Whether there is no deadline.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.0.is_none()
    }

    /// Whether the deadline has passed, or the query was cancelled.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.0.as_ref().is_some_and(|end| (end.is_cancelled)() || Instant::now() >= end.at)
    }

    /// Called regularly by the working thread. Lets other work go first, and returns whether the
    /// query must end.
    pub(super) fn give_way(&self) -> bool {
        // Lets a thread that was just woken run before this thread's time slice on a busy core
        // ends.
        std::thread::yield_now();
        self.is_over() || self.0.as_ref().is_some_and(|end| (end.give_way)()) || self.is_over()
    }

    /// Like `give_way`, for work outside SQLite.
    ///
    /// # Errors
    /// [`StoreError::Interrupted`] when the query must end.
    pub fn check(&self) -> Result<(), StoreError> {
        if self.give_way() { Err(StoreError::Interrupted) } else { Ok(()) }
    }

    /// Waits on a condition variable for a change of the state in `mutex`; the caller checks the
    /// condition. Does not block other work meanwhile.
    ///
    /// # Errors
    /// [`StoreError::Interrupted`] when the query must end.
    pub fn wait<'mutex, T>(
        &self,
        mutex: &'mutex Mutex<T>,
        condition: &Condvar,
        guard: MutexGuard<'mutex, T>,
    ) -> Result<MutexGuard<'mutex, T>, StoreError> {
        if self.is_none() {
            return Ok(condition.wait(guard).unwrap_or_else(PoisonError::into_inner));
        }
        drop(condition.wait_timeout(guard, LOOK_INTERVAL));
        self.check()?;
        Ok(mutex.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl fmt::Debug for Deadline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Deadline").field(&self.0.as_ref().map(|end| end.at)).finish()
    }
}
