//! Replies of a peer other than an answer to NIP-77, and the reactions: smaller windows, a pause,
//! AUTH, or reading.

use super::super::notices::as_rate_limit;
use super::super::{Machine, Work};
use super::Stage;
use crate::prefix::Prefix;
use crate::store::{DAY_S, PeerTraits};
use crate::sync::message;
use crate::sync::report::Method;
use std::time::Duration;

/// Timeout for the first answer after a NOTICE that does not refuse anything.
const AFTER_NOTICE: Duration = Duration::from_millis(1_500);
/// Attempts for a window that the peer postpones.
const MOST_FAILURES: u32 = 5;
/// Attempts after an error in place of the first answer.
const MOST_FIRST_ERRORS: u32 = 1;
/// The pause before such an attempt.
const PUT_OFF: Duration = Duration::from_secs(2);
/// Windows in a row that are too large for the peer, even when divided, after which the rest is
/// read.
const MOST_TOO_LARGE: u32 = 1_000;
/// Time for which a peer is read without trying NIP-77 again: after a refusal, and after no answer.
const REFUSED_TERM_S: u64 = DAY_S;
const SILENT_TERM_S: u64 = 3_600;

impl Machine {
    /// NIP-77, Error message.
    pub(in super::super) fn neg_err(&mut self, text: &str, cap: Option<u64>) {
        let Some(session) = self.on.reconciling.take_waiting() else { return };
        self.answered();
        let window = session.window;
        let prefix = message::prefix(text);
        if cap.is_some() || text.contains("too many") && prefix == Some(Prefix::Blocked) {
            self.on.reconciling.was_answered = true;
            self.on.reconciling.too_large += 1;
            if self.on.reconciling.too_large >= MOST_TOO_LARGE
                || self.settings.filter.parsed().limit.is_some()
            {
                self.begin_work(Work::Forget { session: session.number });
                return self.read_from_now_on("every set is too large for it", false);
            }
            self.on.reconciling.stage = Stage::Dividing(session.filter);
            self.begin_work(Work::Divide { session: session.number, window, cap });
            return;
        }
        self.begin_work(Work::Forget { session: session.number });
        if self.waits_for_auth(prefix) {
            self.on.reconciling.windows.push_front((session.filter, window));
            self.auth_required(text);
            return;
        }
        self.on.reconciling.failures += 1;
        // An error in place of the first answer may mean that the peer does not know the verb.
        let most = match prefix {
            Some(Prefix::RateLimited) => MOST_FAILURES,
            Some(Prefix::Error | Prefix::Closed) if self.on.reconciling.was_answered => {
                MOST_FAILURES
            }
            Some(Prefix::Error | Prefix::Closed) => MOST_FIRST_ERRORS,
            _ => 0,
        };
        if self.on.reconciling.failures <= most {
            self.on.reconciling.windows.push_front((session.filter, window));
            self.on.not_before = Some(self.now.at + PUT_OFF);
            return;
        }
        self.read_from_now_on(text, true);
    }

    /// Handles a NOTICE about a rate limit. Returns whether it postponed a NEG message.
    pub(in super::super) fn reconciling_put_off(&mut self, text: &str) -> bool {
        let Stage::Waiting(session, _) = &self.on.reconciling.stage else { return false };
        // Unlike NEG-ERR, a NOTICE does not close the session, and the answer may still come.
        let close = message::neg_close(&session.id);
        self.send(close);
        self.neg_err(&as_rate_limit(text), None);
        true
    }

    /// Handles a NOTICE while NEG-OPEN is unanswered. Returns whether it counts as the reply.
    pub(in super::super) fn reconciling_noticed(&mut self, text: &str, refuses: bool) -> bool {
        let is_first = self.on.reconciling.is_first_unanswered();
        if !is_first && !refuses {
            return false;
        }
        if is_first && refuses {
            self.read_from_now_on(text, true);
            return true;
        }
        let soon = self.now.at + AFTER_NOTICE;
        if let Stage::Waiting(_, deadline) = &mut self.on.reconciling.stage {
            *deadline = deadline.map(|at| at.min(soon));
        }
        false
    }

    /// CLOSED in place of an answer. Returns whether it was for the session.
    pub(in super::super) fn neg_closed(&mut self, subscription: &str, text: &str) -> bool {
        if !self.on.reconciling.is_about(subscription) {
            return false;
        }
        if self.waits_for_auth(message::prefix(text)) {
            self.neg_err(text, None);
        } else {
            self.answered();
            self.read_from_now_on(text, true);
        }
        true
    }

    /// Switches to reading. With `refused`, NIP-77 is not tried again for a long time.
    pub(in super::super) fn read_from_now_on(&mut self, reason: &str, refused: bool) {
        if self.reads {
            return;
        }
        self.note(format!("the peer does not reconcile ({reason}); reading its events instead"));
        self.reads = true;
        self.report.method = Method::Req;
        if let Some(session) = self.on.reconciling.take_session() {
            if session.was_answered {
                self.send(message::neg_close(&session.id));
            }
            self.begin_work(Work::Forget { session: session.number });
        }
        let was_answered = self.on.reconciling.was_answered;
        self.on.reconciling.windows.clear();
        self.on.reconciling.unsettled_items = 0;
        if !was_answered {
            let term_s = if refused { REFUSED_TERM_S } else { SILENT_TERM_S };
            let until = self.now.unix_s.saturating_add(term_s);
            self.traits.without_negentropy = Some((until, reason.to_owned()));
            self.remember_traits();
        }
        if self.round.is_some() {
            self.read_this_round();
        }
    }

    /// Handles a late answer after the switch to reading: the peer does reconcile.
    pub(in super::super) fn late_answer(&mut self) {
        if self.reads && self.traits.without_negentropy.take().is_some() {
            self.remember_traits();
        }
    }

    pub(in super::super) fn remember_traits(&mut self) {
        if !self.settings.dry_run {
            let traits: PeerTraits = self.traits.clone();
            self.begin_work(Work::RememberTraits(traits));
        }
    }
}
