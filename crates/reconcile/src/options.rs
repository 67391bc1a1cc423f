//! How an initiator asks, what it says after each answer, and why it ends early.

use super::message::MessageError;
use alloc::vec::Vec;
use core::fmt;
use core::num::NonZeroU64;

/// How an initiator asks. All sizes are bytes of negentropy messages, before
/// hex.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InitiatorOptions {
    /// Who chooses what to ask.
    pub rule: Rule,
    /// The longest message to send; 0 is no limit.
    pub frame_limit_bytes: usize,
    /// The longest first message, which shares a frame with the filter; 0 is
    /// that of the others. Adaptive only.
    pub opening_limit_bytes: usize,
    /// The longest answer that the peer sends, if it is known; else it is
    /// learnt. Adaptive only.
    pub reply_limit_bytes: Option<usize>,
    /// The time, in seconds, up to which both sides were equal when they last
    /// met: what differs is expected to be newer. Adaptive only.
    pub sync_mark: Option<u64>,
    /// The `since` of the window that both sets are cut to, in seconds: no bound
    /// is sent that lies below it. Adaptive only.
    pub since: Option<u64>,
    /// Tell also in which time buckets the differences lie, all of this many
    /// seconds; see [`Difference::time_buckets`](super::Difference::time_buckets). Costs a fingerprint for each time bucket in which
    /// we hold something, and sets the sync mark aside. Adaptive only.
    pub time_bucket_s: Option<NonZeroU64>,
    /// Whether the peer may be asked for its list with a list of no ids. Every
    /// known responder may. Not with the reference rule.
    pub empty_id_lists: bool,
    /// Divide ranges at random, by this seed, and not evenly: a session that
    /// proves what another one found compares ranges of its own. Adaptive only.
    pub bounds_seed: Option<u64>,
}

/// Who chooses what to ask.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rule {
    /// Fewest round trips, then fewest bytes; settles every range once.
    #[default]
    Adaptive,
    /// Id lists of everything, 32 bytes an id: no fingerprint is sent, and none
    /// is believed. For those who do not trust sums that an attacker can make
    /// collide.
    Exact,
    /// The messages of the reference implementations, byte for byte. Where
    /// frames are cut it may find an id twice, and believes closing
    /// fingerprints that some responders get wrong.
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
    /// Ask as the reference implementations do, in messages of at most
    /// `frame_limit_bytes`; 0 is no limit.
    #[must_use]
    pub fn reference(frame_limit_bytes: usize) -> Self {
        Self { rule: Rule::Reference, frame_limit_bytes, ..Self::default() }
    }
}

/// What to do after a message has been received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InitiatorStep {
    /// Send this message.
    Send(Vec<u8>),
    /// Nothing: all differences have been found.
    Done,
}

/// Why a session is over before all differences were found. What was found is
/// true and stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InitiatorError {
    /// The peer's message cannot be read.
    Message(MessageError),
    /// The peer does not answer what it is asked.
    NoProgress {
        /// How many in a row.
        answers: u32,
    },
    /// The peer's answers divide the set beyond reason.
    TooManyRanges {
        /// How many may be.
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
