//! Whether a client is still connected, for work on other threads.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Held by a client's connection; dropping it marks the client as gone.
#[derive(Default)]
pub(crate) struct Attending(Departure);

/// Observes the connection. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct Departure(Arc<AtomicBool>);

impl Attending {
    /// An observer for work on behalf of the client.
    pub(crate) fn departure(&self) -> Departure {
        self.0.clone()
    }

    /// Marks the client as gone, although its connection still works.
    pub(crate) fn end(&self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}

impl Departure {
    /// Whether the client is gone.
    pub(crate) fn has_ended(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for Attending {
    fn drop(&mut self) {
        self.end();
    }
}
