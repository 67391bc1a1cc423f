//! Memory for messages on their way in: a long one is read on only once its address, and all
//! addresses together, have room for the whole of it.

use crate::server::frames::{CONTINUATION, FrameHead};
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A message up to this length needs no room: it fits into what a connection reads at a time.
const SHORT_BYTES: usize = 16 << 10;

/// RFC 6455, section 5.5: the most of a control frame's payload.
const CONTROL_BYTES: usize = 125;

/// The bytes of messages that may be on their way in at a time. Clones share them.
#[derive(Clone)]
pub(super) struct Room {
    free: Arc<Semaphore>,
    bytes: usize,
}

/// The room that a message has; given back when this is dropped.
#[derive(Default)]
pub(crate) struct Reservation {
    bytes: usize,
    _address: Option<OwnedSemaphorePermit>,
    _in_all: Option<OwnedSemaphorePermit>,
}

impl Room {
    pub(super) fn new(bytes: usize) -> Self {
        Self { free: Arc::new(Semaphore::new(bytes)), bytes }
    }

    /// Waits for its turn; a message that is longer than all the room has it alone.
    async fn take(self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let permits = u32::try_from(bytes.min(self.bytes)).unwrap_or(u32::MAX);
        self.free.acquire_many_owned(permits).await.ok()
    }
}

impl Reservation {
    /// Waits for room of an address's own first, so that it keeps nobody else's while it waits.
    pub(super) async fn take(address: Room, in_all: Room, bytes: usize) -> Self {
        let address = address.take(bytes).await;
        Self { bytes, _address: address, _in_all: in_all.take(bytes).await }
    }

    /// Whether there is room for so many bytes.
    pub(crate) fn holds(&self, bytes: usize) -> bool {
        bytes <= self.bytes
    }
}

/// How long a message is, by the frames of it that have begun.
#[derive(Debug, Clone, Default)]
pub(crate) struct MessageSize {
    bytes: usize,
    is_in_parts: bool,
}

impl MessageSize {
    /// Adds a frame of the message. Returns the room that it needs, where no message is longer than
    /// `message_bytes`. Of a message in several frames the length is not known before its end: it
    /// has room for the longest, and for a frame beside what is put together, so that it never has
    /// to wait for more while it keeps others waiting.
    pub(crate) fn add(&mut self, frame: &FrameHead, message_bytes: usize) -> usize {
        let length = usize::try_from(frame.length).unwrap_or(usize::MAX);
        if frame.is_control() {
            // One that is too long is refused only once it is there.
            return if length <= CONTROL_BYTES || length > message_bytes { 0 } else { length };
        }
        if frame.opcode != CONTINUATION {
            *self = Self::default();
        }
        self.bytes = self.bytes.saturating_add(length);
        self.is_in_parts |= !frame.is_last;
        match self.bytes {
            // Whoever reads it refuses it by its head.
            _ if length > message_bytes => 0,
            0..=SHORT_BYTES => 0,
            bytes if !self.is_in_parts => bytes,
            _ => message_bytes.saturating_mul(2),
        }
    }
}
