//! Connections that have not become a WebSocket yet. Their number is bounded; a new one takes the
//! slot of the oldest, because real clients send their request at once.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;

/// All of them.
#[derive(Default)]
pub(crate) struct HalfOpen {
    state: Mutex<HalfOpenState>,
}

#[derive(Default)]
struct HalfOpenState {
    next: u64,
    // By order of arrival. Dropping a sender closes its connection.
    waiting: BTreeMap<u64, oneshot::Sender<()>>,
}

/// One of them. Its place is free once this is dropped.
pub(crate) struct Handshake {
    half_open: Arc<HalfOpen>,
    number: u64,
    pushed_out: oneshot::Receiver<()>,
}

impl HalfOpen {
    /// Takes a slot; takes the oldest connection's slot if `most` are in use.
    pub(crate) fn enter(self: &Arc<Self>, most: usize) -> Handshake {
        let mut state = self.lock();
        while state.waiting.len() >= most.max(1) {
            state.waiting.pop_first();
        }
        let number = state.next;
        state.next = state.next.wrapping_add(1);
        let (stay, pushed_out) = oneshot::channel();
        state.waiting.insert(number, stay);
        drop(state);
        Handshake { half_open: Arc::clone(self), number, pushed_out }
    }

    fn lock(&self) -> MutexGuard<'_, HalfOpenState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Handshake {
    /// Returns when a newer connection has taken the slot.
    pub(crate) async fn pushed_out(&mut self) {
        // Returns when the sender is dropped; nothing is ever sent.
        let _ = (&mut self.pushed_out).await;
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        self.half_open.lock().waiting.remove(&self.number);
    }
}
