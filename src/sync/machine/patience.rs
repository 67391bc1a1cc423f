//! Timeouts of the questions to a peer, and its silences.

use super::{Machine, Now};
use std::time::Duration;

/// Timeout for the first answer to a question.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// Extension of the timeout after each unanswered question in a row.
const MORE_PATIENCE: Duration = Duration::from_secs(3);
/// Maximum timeout with extensions.
const MOST_PATIENCE: Duration = Duration::from_secs(17);
/// A deadline that is checked this much too late was missed by this side, not by the peer.
const LATE: Duration = Duration::from_millis(800);
/// Total waiting time without answers after which a round ends.
pub(super) const MOST_SILENCE: Duration = Duration::from_secs(27);

/// The peer's unanswered questions.
#[derive(Debug, Default)]
pub(super) struct Silence {
    /// Unanswered questions in a row.
    pub(super) questions: u32,
    /// Connections in a row that were closed because of unanswered questions.
    pub(super) connections: u32,
    /// The longest delay of an answer that was in time only because the timeout was extended.
    slowest: Duration,
    /// The total waiting time of this round's unanswered questions.
    pub(super) total: Duration,
}

impl Machine {
    /// The timeout for a question asked now: longer after unanswered questions and for a peer that
    /// was slow before, shorter after much waiting in vain.
    pub(super) fn patience(&self) -> Duration {
        let by_silences = PATIENCE + MORE_PATIENCE * self.silence.questions.min(4);
        let wanted = by_silences.max(self.silence.slowest * 2).min(MOST_PATIENCE);
        let left = match self.settings.attempts {
            Some(_) => MOST_SILENCE.saturating_sub(self.silence.total),
            None => MOST_PATIENCE,
        };
        self.now.at + wanted.min(left.max(PATIENCE))
    }

    /// Records an answer to a question.
    pub(super) fn answered(&mut self) {
        let took = self.now.at.saturating_sub(self.on.answered_at);
        if self.silence.questions > 0 && took >= PATIENCE {
            self.silence.slowest = self.silence.slowest.max(took.min(MOST_PATIENCE));
        }
        self.silence.questions = 0;
        self.on.idle_frames.0 = 0;
        self.on.answered_at = self.now.at;
    }

    /// Counts an unanswered question.
    pub(super) fn count_silence(&mut self) {
        self.silence.total += self.now.at.saturating_sub(self.on.answered_at);
        self.on.answered_at = self.now.at;
    }
}

/// Whether the peer missed `deadline`. If this side was late to check it, the deadline is extended.
pub(super) fn missed(now: Now, deadline: &mut Option<Duration>) -> bool {
    match *deadline {
        Some(at) if now.at > at + LATE => {
            *deadline = Some(now.at + LATE);
            false
        }
        Some(at) => now.at >= at,
        None => false,
    }
}
