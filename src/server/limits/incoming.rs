//! Memory for incoming messages: a long message is read only once its address, and all addresses
//! together, have room for all of it.

use crate::server::frames::{CONTINUATION, FrameHead};
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A message up to this length needs no room: it fits into a connection's read buffer.
const SHORT_BYTES: usize = 16 << 10;

/// RFC 6455, section 5.5: maximum payload of a control frame.
const CONTROL_BYTES: usize = 125;

/// The bytes available for incoming messages. Clones share them.
#[derive(Clone)]
pub(super) struct Room {
    free: Arc<Semaphore>,
    bytes: usize,
}

/// The room of a message; returned when this is dropped.
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

    /// Waits for room; a message above the total waits for all of it.
    async fn take(self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let permits = u32::try_from(bytes.min(self.bytes)).unwrap_or(u32::MAX);
        self.free.acquire_many_owned(permits).await.ok()
    }
}

impl Reservation {
    /// Waits for room of the address first, so that it holds no shared room while it waits.
    pub(super) async fn take(address: Room, in_all: Room, bytes: usize) -> Self {
        let address = address.take(bytes).await;
        Self { bytes, _address: address, _in_all: in_all.take(bytes).await }
    }

    /// Whether there is room for this many bytes.
    pub(crate) fn holds(&self, bytes: usize) -> bool {
        bytes <= self.bytes
    }
}

/// The length of a message, from the heads of its frames so far.
#[derive(Debug, Clone, Default)]
pub(crate) struct MessageSize {
    bytes: usize,
    is_in_parts: bool,
}

impl MessageSize {
    /// Adds a frame of the message, and returns the room that it needs; no message may exceed
    /// `message_bytes`. The length of a message in several frames is unknown before its end: it
    /// gets room for the maximum length plus one frame, so that it never waits for more while it
    /// holds room.
    pub(crate) fn add(&mut self, frame: &FrameHead, message_bytes: usize) -> usize {
        let length = usize::try_from(frame.length).unwrap_or(usize::MAX);
        if frame.is_control() {
            // A frame above the limit is refused only when it is complete.
            return if length <= CONTROL_BYTES || length > message_bytes { 0 } else { length };
        }
        if frame.opcode != CONTINUATION {
            *self = Self::default();
        }
        self.bytes = self.bytes.saturating_add(length);
        self.is_in_parts |= !frame.is_last;
        match self.bytes {
            // The reader refuses it by its head.
            _ if length > message_bytes => 0,
            0..=SHORT_BYTES => 0,
            bytes if !self.is_in_parts => bytes,
            _ => message_bytes.saturating_mul(2),
        }
    }
}
