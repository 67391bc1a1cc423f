//! The events that one run of the program has received and not answered.

use super::Answer;
use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Maximum number of unanswered events. The program handles them one by one, so a new event waits
/// for at least this many.
const IN_FLIGHT: usize = 64;

/// Receives the answer about an event; dropped if there will be none.
pub(super) type Reply = oneshot::Sender<Answer>;

/// Shared by the threads that write to the program, read from it and supervise it.
pub(super) struct Pending {
    state: Mutex<PendingState>,
    changed: Condvar,
}

struct PendingState {
    // In the order of the requests; answers may come in another order.
    waiting: VecDeque<([u8; 32], Reply)>,
    // Since when the program could answer the first of them.
    since: Instant,
    has_answered: bool,
    ended: bool,
}

impl Pending {
    pub(super) fn new() -> Self {
        let state = PendingState {
            waiting: VecDeque::new(),
            since: Instant::now(),
            has_answered: false,
            ended: false,
        };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Adds an event as soon as there is room. Returns false if the run is over; the reply is then
    /// dropped.
    pub(super) fn begin(&self, id: [u8; 32], reply: Reply) -> bool {
        let full = |state: &mut PendingState| !state.ended && state.waiting.len() >= IN_FLIGHT;
        let state = self.changed.wait_while(self.lock(), full);
        let mut state = state.unwrap_or_else(PoisonError::into_inner);
        if state.ended {
            return false;
        }
        if state.waiting.is_empty() {
            state.since = Instant::now();
        }
        state.waiting.push_back((id, reply));
        self.changed.notify_all();
        true
    }

    /// Passes an answer on. Returns whether the event was waiting for one.
    pub(super) fn answer(&self, id: &[u8; 32], answer: Answer) -> bool {
        let mut state = self.lock();
        let place = state.waiting.iter().position(|(waiting, _)| waiting == id);
        let Some((_, reply)) = place.and_then(|place| state.waiting.remove(place)) else {
            return false;
        };
        state.has_answered = true;
        // The answer about a later event does not extend the time for the first one.
        if place == Some(0) {
            state.since = Instant::now();
        }
        self.changed.notify_all();
        drop(state);
        // The receiver may be gone.
        let _ = reply.send(answer);
        true
    }

    /// Ends the run: waiting events get no answer.
    pub(super) fn end(&self) {
        let mut state = self.lock();
        state.ended = true;
        state.waiting.clear();
        self.changed.notify_all();
    }

    /// Waits until the run is over, or until the program has not answered for `patience`. Returns
    /// whether it did not answer.
    pub(super) fn watch(&self, patience: Duration) -> bool {
        let mut state = self.lock();
        loop {
            if state.ended {
                return false;
            }
            let silent =
                if state.waiting.is_empty() { Duration::ZERO } else { state.since.elapsed() };
            if silent >= patience {
                return true;
            }
            let waited = self.changed.wait_timeout(state, patience - silent);
            (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until all events are answered or the run is over.
    pub(super) fn settle(&self) {
        let busy = |state: &mut PendingState| !state.ended && !state.waiting.is_empty();
        drop(self.changed.wait_while(self.lock(), busy));
    }

    /// Waits up to `patience` for the end of the run. Returns whether it has ended.
    pub(super) fn wait_for_end(&self, patience: Duration) -> bool {
        let runs = |state: &mut PendingState| !state.ended;
        let waited = self.changed.wait_timeout_while(self.lock(), patience, runs);
        waited.unwrap_or_else(PoisonError::into_inner).0.ended
    }

    pub(super) fn has_ended(&self) -> bool {
        self.lock().ended
    }

    pub(super) fn has_answered(&self) -> bool {
        self.lock().has_answered
    }

    fn lock(&self) -> MutexGuard<'_, PendingState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
