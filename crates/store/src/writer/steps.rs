//! Long work, one step at a time between two batches: removal, expiration (NIP-40), deletion
//! (NIP-09), retention, vanishing (NIP-62).

use super::batch::{WaitsFor, answer_put_off};
use super::{Answer, OnDone, Removal, RemovedBy, STEP_ROWS, WriterThread, answer};
use crate::change::{Change, Step};
use crate::commits::Unpublished;
use crate::flush::Committed;
use crate::retention::{self, Retention};
use crate::{StoreError, apply, deletion, operator, vanish};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Delay before another attempt to remove expired events after a failure.
const EXPIRE_AGAIN: Duration = Duration::from_secs(5);

impl WriterThread {
    /// Removes a part of the requested events. Returns whether more is left.
    pub(super) fn remove_step(&mut self) -> bool {
        let Some(Removal { mut ids, by, reply }) = self.removals.pop_front() else { return false };
        let removed = self.transact(|connection, now, _, written| match by {
            RemovedBy::Program => apply::remove(connection, &mut ids, STEP_ROWS, written),
            RemovedBy::Operator => operator::delete(connection, &mut ids, STEP_ROWS, now, written),
        });
        let is_done = removed.done.is_ok();
        if is_done && !ids.is_empty() {
            self.hand_over(removed, |_| {});
            self.removals.push_front(Removal { ids, by, reply });
        } else {
            self.hand_over(removed, move |removed| answer(&reply, removed));
        }
        !self.removals.is_empty()
    }

    /// NIP-40: removes a part of the expired events. Returns whether more may be left.
    pub(super) fn expire_step(&mut self) -> bool {
        let is_due = self.next_expiry <= self.beside.clock.now()
            || self.expire_again.is_some_and(|at| at <= Instant::now());
        if !is_due && self.wait_for_expiry.is_empty() {
            return false;
        }
        if is_due {
            self.expire_again = None;
        }
        let expired = self.transact(|connection, now, _, written| {
            if is_due { apply::expire(connection, now, STEP_ROWS, written) } else { Ok(false) }
        });
        let there_is_more = matches!(expired.done, Ok((true, _)));
        if there_is_more {
            self.hand_over(expired, |_| {});
            return true;
        }
        let has_failed = expired.done.is_err();
        let waiting = std::mem::take(&mut self.wait_for_expiry);
        if has_failed {
            self.hand_over(expired, |_| {});
            self.expire_again = Some(Instant::now() + EXPIRE_AGAIN);
            self.hide_due(waiting);
        } else {
            self.hand_over(expired, move |_| waiting.into_iter().for_each(|reply| reply()));
        }
        false
    }

    /// NIP-09: removes a part of the targets of deletion requests, and replies to the requests that
    /// are complete. Returns whether more can be removed now.
    pub(super) fn delete_step(&mut self) -> bool {
        if !self.deletes {
            return false;
        }
        let put_off = Arc::clone(&self.put_off);
        let deleted = self.transact(|connection, _, _, written| {
            deletion::remove_some(connection, STEP_ROWS, written)
        });
        let (is_done, there_is_more) = match &deleted.done {
            Ok((left, _)) => (true, left.is_some()),
            Err(_) => (false, true),
        };
        self.hand_over(deleted, move |removed| {
            let first_left = removed.map_or(0, |left| left.unwrap_or(i64::MAX));
            let is_about = |waits_for| match waits_for {
                WaitsFor::Removal(last) => removed.is_err() || last < first_left,
                WaitsFor::Vanishing => false,
            };
            answer_put_off(&put_off, is_about, removed.map(|_| ()));
        });
        // A failed step is retried, but not at once.
        self.deletes = there_is_more;
        is_done && there_is_more
    }

    pub(super) fn retain(&mut self, rules: Retention, reply: &Answer) {
        let changed = self.rules.retaining.change(&self.connection, rules);
        let _ = reply.send(changed.map_err(StoreError::sqlite));
    }

    /// Removes a part of the events that retention does not keep. Returns whether there is more to
    /// check now.
    pub(super) fn retire_step(&mut self) -> bool {
        let now = self.beside.clock.now();
        if !self.rules.retaining.is_due(now) {
            std::mem::take(&mut self.wait_for_retention).into_iter().for_each(|reply| reply());
            return false;
        }
        let doomed = match self.rules.retaining.find(&self.connection, now) {
            Ok(doomed) => doomed,
            Err(error) => {
                self.trouble.failed(
                    "retention could not look for what is to go",
                    &StoreError::sqlite(error),
                );
                self.rules.retaining.failed(now);
                return false;
            }
        };
        if doomed.is_empty() {
            return self.rules.retaining.is_due(now);
        }
        let retired = self.transact(|connection, _, _, written| {
            retention::retire(connection, &doomed, STEP_ROWS, written)
        });
        let is_done = retired.done.is_ok();
        self.hand_over(retired, |_| {});
        match is_done {
            true => self.rules.retaining.removed(&doomed),
            false => self.rules.retaining.failed(now),
        }
        is_done
    }

    /// NIP-62: removes a part of the events of vanished keys, and replies once nothing is left.
    /// Returns whether more can be removed now.
    pub(super) fn vanish_step(&mut self) -> bool {
        if !self.rules.vanishing.is_pending {
            return false;
        }
        let put_off = Arc::clone(&self.put_off);
        let vanished = self.transact(|connection, _, rules, written| {
            let vanishing = &mut rules.vanishing;
            vanishing.is_pending = vanish::remove_some(connection, STEP_ROWS, written)?;
            Ok(vanishing.is_pending)
        });
        let is_done = vanished.done.is_ok();
        let is_about = |waits_for| waits_for == WaitsFor::Vanishing;
        self.hand_over(vanished, move |removed| match removed {
            Ok(true) => {}
            Ok(false) => answer_put_off(&put_off, is_about, Ok(())),
            Err(error) => answer_put_off(&put_off, is_about, Err(error)),
        });
        // A failed step is retried, but not at once.
        self.rules.vanishing.is_pending |= !is_done;
        is_done && self.rules.vanishing.is_pending
    }

    /// Hides expired events that cannot be removed from all sets and answers. This is permanent: if
    /// the clock goes back, they do not return. Then replies to the waiting callers.
    fn hide_due(&mut self, waiting: Vec<OnDone>) {
        let (steps, unpublished) = match self.make_hidden() {
            Ok((steps, unpublished)) => (steps, Some(unpublished)),
            Err(error) => {
                self.trouble
                    .failed("what has expired could not be read", &StoreError::sqlite(error));
                (Vec::new(), None)
            }
        };
        self.flusher.committed(Committed {
            unpublished,
            change: Change { steps },
            next_expiry: self.next_expiry,
            tell: Box::new(|_| waiting.into_iter().for_each(|reply| reply())),
        });
    }

    fn make_hidden(&mut self) -> rusqlite::Result<(Vec<Step>, Unpublished)> {
        let (hidden, now) = (self.beside.expired_until.load(Ordering::Acquire), self.now());
        let due = apply::due(&self.connection, hidden, now)?;
        let next_expiry = apply::next_expiry(&self.connection, now)?;
        // Equivalent to a commit: later reads do not show these events.
        let unpublished = self.beside.commits.commit(|| {
            self.beside.expired_until.store(now, Ordering::Release);
            Ok::<_, rusqlite::Error>(())
        })?;
        self.next_expiry = next_expiry;
        Ok((due.into_iter().map(Step::Removed).collect(), unpublished))
    }
}
