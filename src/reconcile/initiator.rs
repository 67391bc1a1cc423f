//! The side that asks, and learns what differs.

use super::adaptive::Session;
use super::found::Found;
use super::message::{Decoder, MessageError};
use super::range_set::RangeSet;
use super::reference::{self, FRAME_LIMIT_MIN_BYTES, FrameLimit, FrameLimitError};
use std::num::NonZeroU64;

/// After how many answers in a row that show no difference a session by the reference rule ends. A
/// responder that does no more than halve ranges is through the largest set in half of them.
const MAX_EMPTY_ANSWERS: u32 = 128;

/// How an initiator asks. All sizes are bytes of negentropy messages, before
/// hex.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
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
    pub checkpoint: Option<u64>,
    /// The `since` of the window that both sets are cut to, in seconds: no bound
    /// is sent that lies below it. Adaptive only.
    pub since: Option<u64>,
    /// Tell also in which cells of time the differences lie, all of this many
    /// seconds; see [`Found::cells`]. Costs a fingerprint for each cell in which
    /// we hold something, and sets the checkpoint aside. Adaptive only.
    pub cell_s: Option<NonZeroU64>,
    /// Whether the peer may be asked for its list with a list of no ids. Every
    /// known responder may. Adaptive only.
    pub empty_id_lists: bool,
}

/// Who chooses what to ask.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rule {
    /// Fewest round trips, then fewest bytes; settles every range once.
    #[default]
    Adaptive,
    /// The messages of the reference implementations, byte for byte. Where
    /// frames are cut it may find an id twice, and believes closing
    /// fingerprints that some responders get wrong.
    Reference,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            rule: Rule::Adaptive,
            frame_limit_bytes: 0,
            opening_limit_bytes: 0,
            reply_limit_bytes: None,
            checkpoint: None,
            since: None,
            cell_s: None,
            empty_id_lists: true,
        }
    }
}

impl Options {
    /// Ask as the reference implementations do, in messages of at most
    /// `frame_limit_bytes`; 0 is no limit.
    pub fn reference(frame_limit_bytes: usize) -> Self {
        Self { rule: Rule::Reference, frame_limit_bytes, ..Self::default() }
    }
}

/// What to do after a message has been received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Send this message.
    Send(Vec<u8>),
    /// Nothing: all differences have been found.
    Done,
}

/// Why a session is over before all differences were found. What was found is
/// true and stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InitiatorError {
    /// The peer's message cannot be read.
    #[error("the peer's negentropy message is wrong at {0}")]
    Message(#[from] MessageError),
    /// The peer does not answer what it is asked.
    #[error(
        "the last {answers} answers of the peer settled nothing; ask another peer, or with the reference rule"
    )]
    NoProgress {
        /// How many in a row.
        answers: u32,
    },
    /// The peer's answers divide the set beyond reason.
    #[error("more than {limit} ranges are open; reconcile in smaller windows of time")]
    TooManyRanges {
        /// How many may be.
        limit: usize,
    },
}

/// Asks a responder for what differs from one set.
#[derive(Clone, Debug)]
pub struct Initiator<S> {
    set: S,
    asking: Asking,
}

#[derive(Clone, Debug)]
enum Asking {
    Reference { limit: FrameLimit, empty_answers: u32 },
    Adaptive { session: Box<Session>, checkpoint: Option<u64> },
}

impl<S: RangeSet> Initiator<S> {
    /// An initiator over `set`, which must stay as it is.
    ///
    /// # Errors
    /// A frame or opening limit of 1 to 4095 bytes.
    pub fn new(set: S, options: Options) -> Result<Self, FrameLimitError> {
        let limit = FrameLimit::new(options.frame_limit_bytes)?;
        if (1..FRAME_LIMIT_MIN_BYTES).contains(&options.opening_limit_bytes) {
            return Err(FrameLimitError { limit_bytes: options.opening_limit_bytes });
        }
        let asking = match options.rule {
            Rule::Reference => Asking::Reference { limit, empty_answers: 0 },
            Rule::Adaptive => Asking::Adaptive {
                session: Box::new(Session::new(&options)),
                checkpoint: options.checkpoint,
            },
        };
        Ok(Self { set, asking })
    }

    /// The set it asks about.
    pub fn set(&self) -> &S {
        &self.set
    }

    /// How many items of the set lie in ranges that are not settled yet; 0 with the reference
    /// rule, which does not know.
    pub fn unsettled_items(&self) -> usize {
        match &self.asking {
            Asking::Reference { .. } => 0,
            Asking::Adaptive { session, .. } => session.unsettled_items(),
        }
    }

    /// The first message. Calling it again begins anew.
    pub fn open(&mut self) -> Vec<u8> {
        match &mut self.asking {
            Asking::Reference { empty_answers, .. } => {
                *empty_answers = 0;
                reference::opening(&self.set)
            }
            Asking::Adaptive { session, checkpoint } => session.open(&self.set, *checkpoint),
        }
    }

    /// Reads the responder's `message`, adds what it shows to `found`, and says
    /// what comes next.
    ///
    /// The adaptive rule finds no id twice, unless the peer lists it in two
    /// places of its order.
    ///
    /// # Errors
    /// The message cannot be read, or answers nothing that was asked; the
    /// session is then over.
    pub fn receive(&mut self, message: &[u8], found: &mut Found) -> Result<Step, InitiatorError> {
        match &mut self.asking {
            Asking::Reference { limit, empty_answers } => {
                let ranges = Decoder::new(message)?;
                let known = found.have.len() + found.need.len();
                let next = reference::reply(&self.set, *limit, ranges, Some(found))?;
                if next.len() == 1 {
                    return Ok(Step::Done);
                }
                let is_empty = found.have.len() + found.need.len() == known;
                *empty_answers = if is_empty { *empty_answers + 1 } else { 0 };
                if *empty_answers >= MAX_EMPTY_ANSWERS {
                    return Err(InitiatorError::NoProgress { answers: *empty_answers });
                }
                Ok(Step::Send(next))
            }
            Asking::Adaptive { session, .. } => session.receive(&self.set, message, found),
        }
    }
}
