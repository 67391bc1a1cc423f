//! Whether a client is still there, for those who work for it on other threads.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Held by a client's connection; once this is dropped the client has gone.
#[derive(Default)]
pub(crate) struct Attending(Departure);

/// What others know of it. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct Departure(Arc<AtomicBool>);

impl Attending {
    /// For whoever works for the client.
    pub(crate) fn departure(&self) -> Departure {
        self.0.clone()
    }

    /// The client has gone, though its connection still works.
    pub(crate) fn end(&self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}

impl Departure {
    /// Whether nobody waits for an answer any more.
    pub(crate) fn has_ended(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for Attending {
    fn drop(&mut self) {
        self.end();
    }
}
