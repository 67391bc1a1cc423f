//! The outgoing side of a connection: a bounded queue that verbs fill and `sending` empties.

use super::message_chunk::MessageChunk;
use super::queue::{Entrance, Exit, queue};
use crate::server::limits::{OutboundPermit, OutboundRoom};
use crate::store::LeftOut;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

/// Maximum number of queued answers; a chunk of events counts as one.
const QUEUE_ANSWERS: usize = 4;

/// An item to send.
pub(super) enum Outgoing {
    /// One message.
    Text(String),
    /// Stored events, one message each.
    Events(MessageChunk),
    /// The end of a subscription's stored events; live events follow.
    EndOfStored {
        /// The subscription.
        id: String,
        /// Distinguishes it from an earlier one with the same id.
        generation: u64,
        /// The ids of the stored events that were sent, so that no event is sent twice.
        sent: Vec<[u8; 32]>,
        /// Whether a limit left events out.
        left_out: LeftOut,
    },
    /// Flush buffered frames, such as a pong.
    Flush,
    /// A close frame; nothing follows it.
    Close(CloseCode, &'static str),
}

impl Outgoing {
    /// Estimated memory, in bytes.
    fn bytes(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Events(events) => events.bytes(),
            Self::EndOfStored { sent, .. } => size_of_val(sent.as_slice()),
            Self::Flush | Self::Close(..) => 0,
        }
    }
}

/// A queued item, with the permits that it holds until it is sent.
pub(super) struct Waiting {
    pub(super) outgoing: Outgoing,
    // Its share of the outbound bytes; an outcome has none.
    _room: Option<OutboundPermit>,
    // Its slot in the queue, or among the events in flight.
    _place: OwnedSemaphorePermit,
}

/// The queue for the answers of verbs.
#[derive(Clone)]
pub(super) struct Outbox {
    queue: Entrance<Waiting>,
    // One permit for each queued answer.
    answers: Arc<Semaphore>,
    room: OutboundRoom,
}

impl Outbox {
    /// Queues a message; waits while the queue is full, in bytes or in answers. Does nothing once
    /// the socket is gone.
    pub(super) async fn text(&self, text: String) {
        self.send(Outgoing::Text(text)).await;
    }

    /// Like [`Outbox::text`], for any item. Returns whether the socket is still there.
    pub(super) async fn send(&self, outgoing: Outgoing) -> bool {
        // If the socket is gone, the queue has dropped its items, and the wait ends.
        let room = self.room.take(outgoing.bytes()).await;
        let Ok(place) = Arc::clone(&self.answers).acquire_owned().await else { return false };
        self.queue.put(Waiting { outgoing, _room: room, _place: place }).is_ok()
    }

    /// Like [`Outbox::send`] without waiting; returns the item if that is not possible.
    pub(super) fn try_send(&self, outgoing: Outgoing) -> Result<(), Outgoing> {
        let Some(room) = self.room.try_take(outgoing.bytes()) else { return Err(outgoing) };
        let Ok(place) = Arc::clone(&self.answers).try_acquire_owned() else { return Err(outgoing) };
        let sent = self.queue.put(Waiting { outgoing, _room: Some(room), _place: place });
        sent.map_err(|refused| refused.outgoing)
    }

    /// Queues an event's outcome without waiting; the permits bound their number.
    pub(super) fn outcome(&self, text: String, permit: OwnedSemaphorePermit) {
        let outgoing = Outgoing::Text(text);
        let _ = self.queue.put(Waiting { outgoing, _room: None, _place: permit });
    }
}

/// Creates both ends. Queued items take their memory from `room`.
pub(super) fn outbox(room: OutboundRoom) -> (Outbox, Exit<Waiting>) {
    let (queue, waiting) = queue();
    (Outbox { queue, answers: Arc::new(Semaphore::new(QUEUE_ANSWERS)), room }, waiting)
}
