//! The responder: answers from its set and keeps no other state between messages.

use super::message::{DecodeFault, Decoder, MessageError, PROTOCOL_VERSION, WholeMessage};
use super::range_set::RangeSet;
use super::reference::{self, FrameLimit, FrameLimitError};
use alloc::vec;
use alloc::vec::Vec;

/// Answers the messages of an initiator from one set (negentropy v1, "Protocol", the responder's
/// part). The answers equal those of the `negentropy` crate byte for byte.
#[derive(Clone, Debug)]
pub struct Responder<S> {
    set: S,
    limit: FrameLimit,
}

impl<S: RangeSet> Responder<S> {
    /// A responder over `set`. Its answers are at most `frame_limit_bytes` long; 0 is unlimited.
    ///
    /// # Errors
    /// [`FrameLimitError`] for a limit of 1 to 4095 bytes.
    pub fn new(set: S, frame_limit_bytes: usize) -> Result<Self, FrameLimitError> {
        Ok(Self { set, limit: FrameLimit::new(frame_limit_bytes)? })
    }

    /// The set that it answers from.
    pub fn set(&self) -> &S {
        &self.set
    }

    /// The answer to `message`. A message of an unsupported negentropy version is answered with the
    /// supported version. A range that ends below its lower bound counts as empty, as in the
    /// `negentropy` crate.
    ///
    /// # Errors
    /// The message is malformed; the error names the fault and its offset. Ranges after the one
    /// that fills the frame are not read.
    pub fn answer(&mut self, message: &[u8]) -> Result<Vec<u8>, MessageError> {
        match Decoder::new(message) {
            Ok(ranges) => reference::reply(&self.set, self.limit, ranges, None),
            // negentropy v1, "Protocol version": the responder sends only the version that it
            // supports.
            Err(MessageError { fault: DecodeFault::OtherVersion(_), .. }) => {
                Ok(vec![PROTOCOL_VERSION])
            }
            Err(wrong) => Err(wrong),
        }
    }

    /// Like [`Responder::answer`], for a message that was decoded whole before.
    pub fn answer_read(&mut self, message: WholeMessage<'_>) -> Vec<u8> {
        match message {
            WholeMessage::Ranges(ranges) => {
                let ranges = ranges.into_iter().map(Ok);
                // A decoded message contains no faults.
                reference::reply(&self.set, self.limit, ranges, None).unwrap_or_default()
            }
            WholeMessage::OtherVersion => vec![PROTOCOL_VERSION],
        }
    }
}
