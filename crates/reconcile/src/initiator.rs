//! The initiator: asks a responder and collects the differences.

use super::adaptive::AdaptiveInitiator;
use super::difference::{Difference, SessionEvidence};
use super::message::Decoder;
use super::options::{InitiatorError, InitiatorOptions, InitiatorStep, Rule};
use super::range_set::RangeSet;
use super::reference::{self, FRAME_LIMIT_MIN_BYTES, FrameLimit, FrameLimitError, Learned};
use alloc::boxed::Box;
use alloc::vec::Vec;

/// Consecutive answers without a difference after which a session by the reference rule ends. A
/// responder that only halves ranges needs half as many for the largest set.
const MAX_EMPTY_ANSWERS: u32 = 128;

/// Asks a responder how its set differs from ours.
#[derive(Clone, Debug)]
pub struct Initiator<S> {
    set: S,
    asking: RuleState,
}

#[derive(Clone, Debug)]
enum RuleState {
    Reference { limit: FrameLimit, empty_answers: u32, evidence: SessionEvidence },
    Adaptive { session: Box<AdaptiveInitiator>, sync_mark: Option<u64> },
}

impl<S: RangeSet> Initiator<S> {
    /// An initiator over `set`, which must not change during the session.
    ///
    /// # Errors
    /// [`FrameLimitError`] for a frame limit or opening limit of 1 to 4095 bytes.
    pub fn new(set: S, options: InitiatorOptions) -> Result<Self, FrameLimitError> {
        let limit = FrameLimit::new(options.frame_limit_bytes)?;
        if (1..FRAME_LIMIT_MIN_BYTES).contains(&options.opening_limit_bytes) {
            return Err(FrameLimitError { limit_bytes: options.opening_limit_bytes });
        }
        let asking = match options.rule {
            Rule::Reference => RuleState::Reference {
                limit,
                empty_answers: 0,
                evidence: SessionEvidence::default(),
            },
            Rule::Adaptive | Rule::Exact => RuleState::Adaptive {
                session: Box::new(AdaptiveInitiator::new(&options)),
                sync_mark: options.sync_mark,
            },
        };
        Ok(Self { set, asking })
    }

    /// The set of this side.
    pub fn set(&self) -> &S {
        &self.set
    }

    /// The number of items in ranges that are not settled yet. Always 0 with the reference rule,
    /// which keeps no such count.
    pub fn unsettled_items(&self) -> usize {
        match &self.asking {
            RuleState::Reference { .. } => 0,
            RuleState::Adaptive { session, .. } => session.unsettled_items(),
        }
    }

    /// The first message. Calling it again restarts the session.
    pub fn open(&mut self) -> Vec<u8> {
        match &mut self.asking {
            RuleState::Reference { empty_answers, evidence, .. } => {
                (*empty_answers, *evidence) = (0, SessionEvidence::default());
                reference::opening(&self.set)
            }
            RuleState::Adaptive { session, sync_mark } => session.open(&self.set, *sync_mark),
        }
    }

    /// Reads the responder's `message`, adds the differences it shows to `found`, and returns the
    /// next step.
    ///
    /// The adaptive rule finds no id twice, unless the peer lists the id at two places of its
    /// order.
    ///
    /// # Errors
    /// The message is malformed, or it answers nothing that was asked. The session is then over.
    pub fn receive(
        &mut self,
        message: &[u8],
        found: &mut Difference,
    ) -> Result<InitiatorStep, InitiatorError> {
        match &mut self.asking {
            RuleState::Reference { limit, empty_answers, evidence } => {
                let ranges = Decoder::new(message)?;
                let known = found.len();
                let mut learned = Learned { found, unequal: false };
                let next = reference::reply(&self.set, *limit, ranges, Some(&mut learned))?;
                evidence.unequal |= learned.unequal;
                let is_empty = found.len() == known;
                evidence.difference |= !is_empty;
                if next.len() == 1 {
                    return evidence.end();
                }
                *empty_answers = if is_empty { *empty_answers + 1 } else { 0 };
                if *empty_answers >= MAX_EMPTY_ANSWERS {
                    return Err(InitiatorError::NoProgress { answers: *empty_answers });
                }
                Ok(InitiatorStep::Send(next))
            }
            RuleState::Adaptive { session, .. } => session.receive(&self.set, message, found),
        }
    }
}
