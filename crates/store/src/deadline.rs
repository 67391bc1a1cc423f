//! Until when a query may go on.

use super::StoreError;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often a query that waits for something looks at its deadline.
const LOOK_INTERVAL: Duration = Duration::from_millis(1);

/// The end of a query, which whoever asks for it sets. Clones share it.
#[derive(Clone, Default)]
pub struct Deadline(Option<Arc<End>>);

struct End {
    at: Instant,
    is_cancelled: Box<dyn Fn() -> bool + Send + Sync>,
    give_way: Box<dyn Fn() -> bool + Send + Sync>,
}

impl Deadline {
    /// After `timeout`, or as soon as `is_cancelled` says so.
    pub fn after(
        timeout: Duration,
        is_cancelled: impl Fn() -> bool + Send + Sync + 'static,
    ) -> Self {
        Self::giving_way(timeout, is_cancelled, || false)
    }

    /// As [`Deadline::after`]; `give_way` is called by the thread that works, about once a
    /// millisecond. It lets others work first for as long as it takes, and returns whether the query
    /// has to end because of them.
    pub fn giving_way(
        timeout: Duration,
        is_cancelled: impl Fn() -> bool + Send + Sync + 'static,
        give_way: impl Fn() -> bool + Send + Sync + 'static,
    ) -> Self {
        let at = Instant::now() + timeout;
        let (is_cancelled, give_way) = (Box::new(is_cancelled), Box::new(give_way));
        Self(Some(Arc::new(End { at, is_cancelled, give_way })))
    }

    /// The same end, for short work that holds what others wait for: it lets nobody work first.
    #[must_use]
    pub fn without_giving_way(&self) -> Self {
        let of = self.clone();
        Self(self.0.as_ref().map(|end| {
            let is_cancelled = Box::new(move || of.is_over());
            Arc::new(End { at: end.at, is_cancelled, give_way: Box::new(|| false) })
        }))
    }

    /// Whether there is no end.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.0.is_none()
    }

    /// Whether the time is over, or nobody waits for the answer any more.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.0.as_ref().is_some_and(|end| (end.is_cancelled)() || Instant::now() >= end.at)
    }

    /// Called now and then by whoever works: lets others work first, and returns whether the query
    /// has to end.
    pub(super) fn give_way(&self) -> bool {
        // A thread that has just woken up for somebody else waits no whole slice of a busy core.
        std::thread::yield_now();
        self.is_over() || self.0.as_ref().is_some_and(|end| (end.give_way)()) || self.is_over()
    }

    /// As `give_way`, for work that SQLite does not see.
    ///
    /// # Errors
    /// [`StoreError::Interrupted`] when the query has to end.
    pub fn check(&self) -> Result<(), StoreError> {
        if self.give_way() { Err(StoreError::Interrupted) } else { Ok(()) }
    }

    /// Waits for a condition on what `mutex` guards; the caller looks whether it holds. Nobody is
    /// kept from work meanwhile.
    ///
    /// # Errors
    /// [`StoreError::Interrupted`] when the query has to end.
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
