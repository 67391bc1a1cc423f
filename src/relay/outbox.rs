//! The way out of a connection: a bounded queue that verbs fill and `sending` empties.

use super::message_chunk::MessageChunk;
use super::queue::{Entrance, Exit, queue};
use crate::server::limits::{OutboundPermit, OutboundRoom};
use crate::store::LeftOut;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

/// The most answers, a chunk of events counting as one, that wait for the socket.
const QUEUE_ANSWERS: usize = 4;

/// Something to send.
pub(super) enum Outgoing {
    /// One message.
    Text(String),
    /// Stored events, each a message.
    Events(MessageChunk),
    /// The end of a subscription's stored events; from here it is live.
    EndOfStored {
        /// The subscription.
        id: String,
        /// Tells it from an earlier one of the same id.
        generation: u64,
        /// What was sent, so that nothing comes twice.
        sent: Vec<[u8; 32]>,
        /// Whether a limit left some out.
        left_out: LeftOut,
    },
    /// What the socket has buffered, such as a pong.
    Flush,
    /// The last thing: a close frame.
    Close(CloseCode, &'static str),
}

impl Outgoing {
    /// What it takes in memory, about.
    fn bytes(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Events(events) => events.bytes(),
            Self::EndOfStored { sent, .. } => size_of_val(sent.as_slice()),
            Self::Flush | Self::Close(..) => 0,
        }
    }
}

/// Something that waits to be sent, with what it keeps until it is.
pub(super) struct Waiting {
    pub(super) outgoing: Outgoing,
    // Its share of the bytes that may wait; an outcome has none.
    _room: Option<OutboundPermit>,
    // Its place in the queue, or among the events in flight.
    _place: OwnedSemaphorePermit,
}

/// Where verbs put their answers.
#[derive(Clone)]
pub(super) struct Outbox {
    queue: Entrance<Waiting>,
    // A permit for each answer that may wait.
    answers: Arc<Semaphore>,
    room: OutboundRoom,
}

impl Outbox {
    /// Queues a message; waits while the queue is full, in bytes or in answers. Once the socket is gone nothing happens.
    pub(super) async fn text(&self, text: String) {
        self.send(Outgoing::Text(text)).await;
    }

    /// As [`Outbox::text`], for anything. Returns whether the socket is still there.
    pub(super) async fn send(&self, outgoing: Outgoing) -> bool {
        // Whoever waits here goes on when the socket is gone: what it held is dropped with it.
        let room = self.room.take(outgoing.bytes()).await;
        let Ok(place) = Arc::clone(&self.answers).acquire_owned().await else { return false };
        self.queue.put(Waiting { outgoing, _room: room, _place: place }).is_ok()
    }

    /// As [`Outbox::send`] where that takes no waiting; else gives it back.
    pub(super) fn try_send(&self, outgoing: Outgoing) -> Result<(), Outgoing> {
        let Some(room) = self.room.try_take(outgoing.bytes()) else { return Err(outgoing) };
        let Ok(place) = Arc::clone(&self.answers).try_acquire_owned() else { return Err(outgoing) };
        let sent = self.queue.put(Waiting { outgoing, _room: Some(room), _place: place });
        sent.map_err(|refused| refused.outgoing)
    }

    /// Queues an event's outcome without waiting; the permit bounds how many there are.
    pub(super) fn outcome(&self, text: String, permit: OwnedSemaphorePermit) {
        let outgoing = Outgoing::Text(text);
        let _ = self.queue.put(Waiting { outgoing, _room: None, _place: permit });
    }
}

/// Makes both ends. What waits between them is in `room`.
pub(super) fn outbox(room: OutboundRoom) -> (Outbox, Exit<Waiting>) {
    let (queue, waiting) = queue();
    (Outbox { queue, answers: Arc::new(Semaphore::new(QUEUE_ANSWERS)), room }, waiting)
}
