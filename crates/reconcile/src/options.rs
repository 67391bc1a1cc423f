//! Options of an initiator, its next step after each answer, and its errors.

use super::message::MessageError;
use alloc::vec::Vec;
use core::fmt;
use core::num::NonZeroU64;

/// How an initiator asks. All sizes are bytes of negentropy messages, before hex encoding.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct InitiatorOptions {
    /// The rule that chooses the questions.
    pub rule: Rule,
    /// Maximum length of a message; 0 is unlimited.
    pub frame_limit_bytes: usize,
    /// Maximum length of the first message, which shares a frame with the filter; 0 means
    /// `frame_limit_bytes`. Adaptive only.
    pub opening_limit_bytes: usize,
    /// Maximum length of the peer's answers, if known; otherwise it is learned. Adaptive only.
    pub reply_limit_bytes: Option<usize>,
    /// The time, in seconds, up to which both sides were equal at the last sync. Differences are
    /// expected to be newer. Adaptive only.
    pub sync_mark: Option<u64>,
    /// The `since` of the window to which both sets are cut, in seconds: no bound below it is sent.
    /// Adaptive only.
    pub since: Option<u64>,
    /// Length in seconds of the time buckets by which differences are counted; see
    /// [`Difference::time_buckets`](super::Difference::time_buckets). Costs one fingerprint for
    /// each time bucket in which we hold items, and disables the sync mark. Adaptive only.
    pub time_bucket_s: Option<NonZeroU64>,
    /// Whether the peer may be asked for a list with an empty IdList. All known responders support
    /// this. Not used by the reference rule.
    pub empty_id_lists: bool,
    /// Seed for random bounds instead of even ones: a session that verifies an earlier session then
    /// compares other ranges. Adaptive only.
    pub bounds_seed: Option<u64>,
}

/// The rule that chooses the questions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rule {
    /// Fewest round trips, then fewest bytes. Settles each range once.
    #[default]
    Adaptive,
    /// Id lists of the whole set, 32 bytes an id. No fingerprint is sent, and none is trusted. For
    /// callers that do not trust sums, which an attacker can make collide.
    Exact,
    /// The messages of the reference implementations, byte for byte. Where frames are cut it may
    /// find an id twice, and it trusts closing fingerprints that some responders compute wrongly.
    Reference,
}

impl Default for InitiatorOptions {
    fn default() -> Self {
        Self {
            rule: Rule::Adaptive,
            frame_limit_bytes: 0,
            opening_limit_bytes: 0,
            reply_limit_bytes: None,
            sync_mark: None,
            since: None,
            time_bucket_s: None,
            empty_id_lists: true,
            bounds_seed: None,
        }
    }
}

impl InitiatorOptions {
    /// Options that ask like the reference implementations, in messages of at most
    /// `frame_limit_bytes`; 0 is unlimited.
    #[must_use]
    pub fn reference(frame_limit_bytes: usize) -> Self {
        Self { rule: Rule::Reference, frame_limit_bytes, ..Self::default() }
    }

    /// Sets [`InitiatorOptions::rule`].
    #[must_use]
    pub fn rule(mut self, rule: Rule) -> Self {
        self.rule = rule;
        self
    }

    /// Sets [`InitiatorOptions::frame_limit_bytes`].
    #[must_use]
    pub fn frame_limit_bytes(mut self, frame_limit_bytes: usize) -> Self {
        self.frame_limit_bytes = frame_limit_bytes;
        self
    }

    /// Sets [`InitiatorOptions::opening_limit_bytes`].
    #[must_use]
    pub fn opening_limit_bytes(mut self, opening_limit_bytes: usize) -> Self {
        self.opening_limit_bytes = opening_limit_bytes;
        self
    }

    /// Sets [`InitiatorOptions::reply_limit_bytes`].
    #[must_use]
    pub fn reply_limit_bytes(mut self, reply_limit_bytes: impl Into<Option<usize>>) -> Self {
        self.reply_limit_bytes = reply_limit_bytes.into();
        self
    }

    /// Sets [`InitiatorOptions::sync_mark`].
    #[must_use]
    pub fn sync_mark(mut self, sync_mark: impl Into<Option<u64>>) -> Self {
        self.sync_mark = sync_mark.into();
        self
    }

    /// Sets [`InitiatorOptions::since`].
    #[must_use]
    pub fn since(mut self, since: impl Into<Option<u64>>) -> Self {
        self.since = since.into();
        self
    }

    /// Sets [`InitiatorOptions::time_bucket_s`].
    #[must_use]
    pub fn time_bucket_s(mut self, time_bucket_s: impl Into<Option<NonZeroU64>>) -> Self {
        self.time_bucket_s = time_bucket_s.into();
        self
    }

    /// Sets [`InitiatorOptions::empty_id_lists`].
    #[must_use]
    pub fn empty_id_lists(mut self, empty_id_lists: bool) -> Self {
        self.empty_id_lists = empty_id_lists;
        self
    }

    /// Sets [`InitiatorOptions::bounds_seed`].
    #[must_use]
    pub fn bounds_seed(mut self, bounds_seed: impl Into<Option<u64>>) -> Self {
        self.bounds_seed = bounds_seed.into();
        self
    }
}

/// The next step after a message was received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InitiatorStep {
    /// Send this message.
    Send(Vec<u8>),
    /// The session is complete: all differences were found.
    Done,
}

/// Why a session ended early. The differences found until then are valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InitiatorError {
    /// The peer's message is malformed.
    Message(MessageError),
    /// The peer's answers make no progress.
    NoProgress {
        /// The number of such answers in a row.
        answers: u32,
    },
    /// A fingerprint of the peer differed from ours, and its later answers settled every range
    /// without a difference: its set has changed meanwhile, or its answers are wrong.
    Contradiction,
    /// The peer's answers divide the set into too many ranges.
    TooManyRanges {
        /// The maximum number of pending ranges.
        limit: usize,
    },
}

impl fmt::Display for InitiatorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Message(it) => write!(f, "the peer's negentropy message is wrong at {it}"),
            Self::NoProgress { answers } => write!(
                f,
                "the last {answers} answers of the peer settled nothing; ask another peer, or with the reference rule"
            ),
            Self::Contradiction => f.write_str(
                "the peer's answers contradict each other: a range differs, its parts do not",
            ),
            Self::TooManyRanges { limit } => {
                write!(f, "more than {limit} ranges are open; reconcile in smaller windows of time")
            }
        }
    }
}

impl core::error::Error for InitiatorError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            Self::Message(error) => Some(error),
            _ => None,
        }
    }
}

impl From<MessageError> for InitiatorError {
    fn from(error: MessageError) -> Self {
        Self::Message(error)
    }
}
