//! A peer's NOTICEs: a bounded amount is reported, and some of them refuse a question.

use super::{Loss, Machine, Now};
use crate::prefix::Prefix;
use crate::sync::message;
use std::time::Duration;

/// Period in which the same text is reported once, and all texts together up to `MOST_BYTES`.
const EVERY: Duration = Duration::from_secs(60);
const MOST_BYTES: usize = 1_024;
/// Size of a note without its text.
const WRAPPING_BYTES: usize = 160;
/// Remaining time of an unanswered question after a NOTICE that refuses something.
pub(super) const AFTER_REFUSAL: Duration = Duration::from_millis(500);
/// First pause for a peer with a rate limit on questions, and the number of pauses without an
/// answer before the sync gives up.
const FIRST_RATE_PAUSE: Duration = Duration::from_secs(1);
const MOST_RATE_PAUSES: u32 = 5;
/// Phrases of NOTICEs by which relays refuse a verb or a question.
const REFUSING: [&str; 26] = [
    "neg",
    "bad msg",
    "parse",
    "unknown",
    "support",
    "invalid",
    "error",
    "unrecog",
    "command",
    "disabled",
    "too many",
    "rate",
    "blocked",
    "restricted",
    "not allowed",
    "unhandled",
    "failed",
    "malformed",
    "limit",
    "denied",
    "verb",
    "message type",
    "implement",
    "could not",
    "cannot",
    "must be",
];

/// Phrases of NOTICEs about a rate limit.
const OF_RATE: [&str; 5] = ["rate-limit", "rate limit", "slow down", "too fast", "too quickly"];

/// The texts reported recently.
#[derive(Debug, Default)]
pub(super) struct Notices {
    since: Duration,
    words: Vec<String>,
    bytes: usize,
}

impl Notices {
    /// Whether to report the text now.
    fn take(&mut self, text: &str, now: Now) -> bool {
        if now.at >= self.since + EVERY || self.words.is_empty() {
            *self = Self { since: now.at, ..Self::default() };
        }
        let cost = text.len() + WRAPPING_BYTES;
        if self.words.iter().any(|words| words == text) || self.bytes + cost > MOST_BYTES {
            return false;
        }
        self.bytes += cost;
        self.words.push(text.to_owned());
        true
    }
}

/// Adds the prefix `rate-limited:` to a text that lacks it.
pub(super) fn as_rate_limit(text: &str) -> String {
    match message::prefix(text) {
        Some(Prefix::RateLimited) => text.to_owned(),
        _ => format!("{}: {text}", Prefix::RateLimited),
    }
}

impl Machine {
    /// Handles a rate limit that does not name what it limits: assumes the last unanswered
    /// question, which is asked again after a pause, or else the events being sent. Returns whether
    /// there was either.
    fn refuse_last(&mut self, text: &str) -> bool {
        let text = as_rate_limit(text);
        let page = self.reading.unanswered_page();
        let of_ids = self.on.download.unanswered().chain(self.on.second_look.unanswered());
        // The names are numbered.
        let last = page.into_iter().chain(of_ids).max_by_key(|name| (name.len(), name.clone()));
        let Some(subscription) = last else {
            return self.limit_upload_rate();
        };
        self.send(message::close(&subscription));
        if self.on.second_look.is_about(&subscription) {
            self.look_refused(&subscription, &text);
        } else if self.on.download.asked(&subscription).is_some() {
            self.download_refused(&subscription, &text);
        } else {
            self.page_refused(&subscription, &text);
        }
        true
    }

    /// Handles a rate limit on questions: asks the next one after a pause, twice as long as the
    /// previous pause.
    pub(super) fn pause_for_rate(&mut self, text: &str) {
        if self.on.not_before.is_some_and(|at| self.now.at < at) {
            // The refusal is for a question from before the pause.
            return;
        }
        if self.rate_pauses >= MOST_RATE_PAUSES {
            self.count_silence();
            let reason = format!("rate limit: the peer answers no question any more: {text}");
            return self.leave(Loss::Silent(reason));
        }
        self.on.not_before = Some(self.now.at + FIRST_RATE_PAUSE * (1 << self.rate_pauses));
        self.rate_pauses += 1;
    }

    /// NOTICE. Some relays refuse a verb or a question only by a NOTICE.
    pub(super) fn notice(&mut self, text: &str) {
        self.count_idle_frame();
        if self.notices.take(text, self.now) {
            self.note(format!("the peer says: {text}"));
        }
        let lower = text.to_lowercase();
        let refuses = REFUSING.iter().any(|words| lower.contains(words));
        let is_of_rate = OF_RATE.iter().any(|words| lower.contains(words));
        if is_of_rate && self.reconciling_put_off(text) {
            return;
        }
        if self.reconciling_noticed(text, refuses) || !refuses {
            return;
        }
        if is_of_rate && self.refuse_last(text) {
            return;
        }
        self.limit_was_refused |= lower.contains("limit");
        let soon = self.now.at + AFTER_REFUSAL;
        self.on.probe.shorten(soon);
        self.on.download.shorten(soon);
        self.on.second_look.shorten(soon);
        self.reading.shorten(soon);
    }
}
