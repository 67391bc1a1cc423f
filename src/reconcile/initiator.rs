//! The side that asks, and learns what differs.

use super::adaptive::Session;
use super::found::Found;
use super::message::Decoder;
use super::options::{InitiatorError, Options, Rule, Step};
use super::range_set::RangeSet;
use super::reference::{self, FRAME_LIMIT_MIN_BYTES, FrameLimit, FrameLimitError};

/// After how many answers in a row that show no difference a session by the reference rule ends. A
/// responder that does no more than halve ranges is through the largest set in half of them.
const MAX_EMPTY_ANSWERS: u32 = 128;

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
