//! A peer's NOTICEs: a little of them is told, and some refuse what was asked.

use super::{Machine, Now};
use std::time::Duration;

/// In so long the same words are told once, and so many bytes in all.
const EVERY: Duration = Duration::from_secs(60);
const MOST_BYTES: usize = 1_024;
/// What one note costs beside its words.
const WRAPPING_BYTES: usize = 160;
/// A question that is open when the peer refuses something has so long left.
pub(super) const AFTER_REFUSAL: Duration = Duration::from_millis(500);
/// Words of NOTICEs by which relays refuse a verb or a question.
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

/// What was told of late.
#[derive(Debug, Default)]
pub(super) struct Notices {
    since: Duration,
    words: Vec<String>,
    bytes: usize,
}

impl Notices {
    /// Whether the words are to be told now.
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

impl Machine {
    /// NOTICE. Some relays refuse a verb or a question with nothing else.
    pub(super) fn notice(&mut self, text: &str) {
        self.count_idle_frame();
        if self.notices.take(text, self.now) {
            self.note(format!("the peer says: {text}"));
        }
        let lower = text.to_lowercase();
        let refuses = REFUSING.iter().any(|words| lower.contains(words));
        if self.reconciling_noticed(text, refuses) || !refuses {
            return;
        }
        let soon = self.now.at + AFTER_REFUSAL;
        self.on.probe.shorten(soon);
        self.on.download.shorten(soon);
        self.on.second_look.shorten(soon);
        self.reading.shorten(soon);
    }
}
