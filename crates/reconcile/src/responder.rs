//! The side that answers: it keeps no state between messages but its set.

use super::message::{DecodeFault, Decoder, MessageError, PROTOCOL_VERSION, WholeMessage};
use super::range_set::RangeSet;
use super::reference::{self, FrameLimit, FrameLimitError};
use alloc::vec;
use alloc::vec::Vec;

/// Answers the messages of an initiator from one set (negentropy v1,
/// "Protocol", the responder's part). Messages are those of the `negentropy`
/// crate, byte for byte.
#[derive(Clone, Debug)]
pub struct Responder<S> {
    set: S,
    limit: FrameLimit,
}

impl<S: RangeSet> Responder<S> {
    /// A responder over `set` whose messages are at most `frame_limit_bytes`
    /// long; 0 is no limit.
    ///
    /// # Errors
    /// A limit of 1 to 4095 bytes.
    pub fn new(set: S, frame_limit_bytes: usize) -> Result<Self, FrameLimitError> {
        Ok(Self { set, limit: FrameLimit::new(frame_limit_bytes)? })
    }

    /// The set it answers from.
    pub fn set(&self) -> &S {
        &self.set
    }

    /// The answer to `message`. A version of negentropy that this does not
    /// speak is answered with the one that it does. A range that ends below its
    /// beginning is taken as empty, as the crate takes it.
    ///
    /// # Errors
    /// What is wrong with `message`, and where. What follows the range that
    /// filled the frame is not read.
    pub fn answer(&mut self, message: &[u8]) -> Result<Vec<u8>, MessageError> {
        match Decoder::new(message) {
            Ok(ranges) => reference::reply(&self.set, self.limit, ranges, None),
            // negentropy v1, "Protocol version": the responder names the
            // version it supports, and nothing else.
            Err(MessageError { fault: DecodeFault::OtherVersion(_), .. }) => {
                Ok(vec![PROTOCOL_VERSION])
            }
            Err(wrong) => Err(wrong),
        }
    }

    /// As [`Responder::answer`], to a message that was read whole before.
    pub fn answer_read(&mut self, message: WholeMessage<'_>) -> Vec<u8> {
        match message {
            WholeMessage::Ranges(ranges) => {
                let ranges = ranges.into_iter().map(Ok);
                // Nothing can be wrong with a message that was read.
                reference::reply(&self.set, self.limit, ranges, None).unwrap_or_default()
            }
            WholeMessage::OtherVersion => vec![PROTOCOL_VERSION],
        }
    }
}
