//! Events that were submitted together, and their one reply.

use super::rules::Outcome;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// Called with the outcome of each event of a submission, in order, once all are durable.
pub type Reply = Box<dyn FnOnce(Vec<Outcome>) + Send>;

/// Events that are answered together, even if they are in different commits.
pub struct Submission(Mutex<OpenSubmission>);

struct OpenSubmission {
    outcomes: Vec<Outcome>,
    // Number of outcomes still missing.
    left: usize,
    reply: Option<Reply>,
}

/// One event's slot in its submission. A slot that is dropped without an outcome counts as failed.
#[derive(Debug)]
pub struct EventSlot {
    submission: Arc<Submission>,
    index: usize,
    is_settled: bool,
}

impl fmt::Debug for Submission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Submission").finish_non_exhaustive()
    }
}

impl Submission {
    /// A slot for each event, in order. Without events the reply is given at once.
    #[must_use]
    pub fn begin(events: usize, reply: Reply) -> Option<impl Iterator<Item = EventSlot>> {
        if events == 0 {
            reply(Vec::new());
            return None;
        }
        let outcomes = vec![Outcome::Failed("the store gave no answer".into()); events];
        let open = OpenSubmission { outcomes, left: events, reply: Some(reply) };
        let submission = Arc::new(Self(Mutex::new(open)));
        let slot = move |index| EventSlot {
            submission: Arc::clone(&submission),
            index,
            is_settled: false,
        };
        Some((0..events).map(slot))
    }

    fn settle(&self, index: usize, outcome: Option<Outcome>) {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some(slot), Some(outcome)) = (open.outcomes.get_mut(index), outcome) {
            *slot = outcome;
        }
        open.left = open.left.saturating_sub(1);
        if open.left > 0 {
            return;
        }
        let (outcomes, reply) = (std::mem::take(&mut open.outcomes), open.reply.take());
        drop(open);
        if let Some(reply) = reply {
            reply(outcomes);
        }
    }
}

impl EventSlot {
    /// Records the outcome of the event. The last one of a submission triggers the reply.
    pub fn settle(mut self, outcome: Outcome) {
        self.is_settled = true;
        self.submission.settle(self.index, Some(outcome));
    }
}

impl Drop for EventSlot {
    fn drop(&mut self) {
        if !self.is_settled {
            self.submission.settle(self.index, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::sync_channel;

    #[test]
    fn the_reply_comes_with_the_last_outcome_and_in_the_order_of_the_events() {
        let (send, replies) = sync_channel(1);
        let reply: Reply = Box::new(move |outcomes| send.send(outcomes).unwrap());
        let mut slots: Vec<EventSlot> = Submission::begin(3, reply).unwrap().collect();
        slots.pop().unwrap().settle(Outcome::Stored);
        drop(slots.pop());
        assert!(replies.try_recv().is_err());
        slots.pop().unwrap().settle(Outcome::Duplicate);
        let outcomes = replies.try_recv().unwrap();
        assert_eq!((&outcomes[0], &outcomes[2]), (&Outcome::Duplicate, &Outcome::Stored));
        assert!(matches!(outcomes[1], Outcome::Failed(_)));
    }
}
