//! Observes all messages of a sync.

use std::fmt;
use std::sync::Arc;

/// The sender of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaker {
    /// This side.
    Us,
    /// The peer.
    Peer,
}

/// Receives every text message of every connection, in order, when it is sent or received. Messages
/// of the peer are unchecked. The sync waits for the callback. Clones share it.
#[derive(Clone)]
pub struct Trace(Arc<Listener>);

type Listener = dyn Fn(Speaker, &str) + Send + Sync;

impl Trace {
    /// Calls `listener` with each message.
    pub fn new(listener: impl Fn(Speaker, &str) + Send + Sync + 'static) -> Self {
        Self(Arc::new(listener))
    }

    pub(super) fn hear(&self, speaker: Speaker, message: &str) {
        (self.0)(speaker, message);
    }
}

impl fmt::Debug for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Trace")
    }
}
