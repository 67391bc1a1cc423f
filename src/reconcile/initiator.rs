//! The side that asks, and learns what differs.

use super::found::Found;
use super::message::{Decoder, MessageError};
use super::range_set::RangeSet;
use super::reference::{self, FrameLimit, FrameLimitError};

/// How an initiator asks.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The longest message to send, in bytes before hex; 0 is no limit.
    pub frame_limit_bytes: usize,
}

impl Options {
    /// Ask as the reference implementations do, in messages of at most
    /// `frame_limit_bytes`; 0 is no limit.
    pub fn reference(frame_limit_bytes: usize) -> Self {
        Self { frame_limit_bytes }
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

/// Asks a responder for what differs from one set.
#[derive(Clone, Debug)]
pub struct Initiator<S> {
    set: S,
    limit: FrameLimit,
}

impl<S: RangeSet> Initiator<S> {
    /// An initiator over `set`.
    ///
    /// # Errors
    /// A frame limit of 1 to 4095 bytes.
    pub fn new(set: S, options: Options) -> Result<Self, FrameLimitError> {
        Ok(Self { set, limit: FrameLimit::new(options.frame_limit_bytes)? })
    }

    /// The first message.
    pub fn open(&mut self) -> Vec<u8> {
        reference::opening(&self.set)
    }

    /// Reads the responder's `message`, adds what it shows to `found`, and says
    /// what comes next.
    ///
    /// # Errors
    /// What is wrong with `message`, and where; the session is then over.
    pub fn receive(&mut self, message: &[u8], found: &mut Found) -> Result<Step, MessageError> {
        let ranges = Decoder::new(message)?;
        let next = reference::reply(&self.set, self.limit, ranges, Some(found))?;
        Ok(if next.len() == 1 { Step::Done } else { Step::Send(next) })
    }
}
