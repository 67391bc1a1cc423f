//! Until when a query may go on.

use super::StoreError;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The end of a query, which whoever asks for it sets. Clones share it.
#[derive(Clone, Default)]
pub struct Deadline(Option<Arc<End>>);

struct End {
    at: Instant,
    is_cancelled: Box<dyn Fn() -> bool + Send + Sync>,
}

impl Deadline {
    /// After `timeout`, or as soon as `is_cancelled` says so. That is asked about once a millisecond
    /// by the thread that works, and may wait: so a query lets others go first.
    pub fn after(
        timeout: Duration,
        is_cancelled: impl Fn() -> bool + Send + Sync + 'static,
    ) -> Self {
        let at = Instant::now() + timeout;
        Self(Some(Arc::new(End { at, is_cancelled: Box::new(is_cancelled) })))
    }

    /// Whether there is no end.
    pub fn is_none(&self) -> bool {
        self.0.is_none()
    }

    /// Whether the query has to end now.
    pub fn is_over(&self) -> bool {
        self.0.as_ref().is_some_and(|end| (end.is_cancelled)() || Instant::now() >= end.at)
    }

    /// How much time is left; `None` without an end.
    pub fn left(&self) -> Option<Duration> {
        self.0.as_ref().map(|end| end.at.saturating_duration_since(Instant::now()))
    }

    /// For work between two rows of SQLite that takes long itself.
    ///
    /// # Errors
    /// [`StoreError::Interrupted`] when the query has to end now.
    pub fn check(&self) -> Result<(), StoreError> {
        if self.is_over() { Err(StoreError::Interrupted) } else { Ok(()) }
    }
}

impl fmt::Debug for Deadline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Deadline").field(&self.left()).finish()
    }
}
