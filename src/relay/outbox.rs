//! The way out of a connection: bounded queues that verbs fill and `sending` empties.

use crate::server::limits::{OutboundPermit, OutboundRoom};
use crate::store::LeftOut;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

/// The most answers, a chunk of events counting as one, that wait for the socket.
const QUEUE_ANSWERS: usize = 4;

/// Something to send.
pub(super) enum Outgoing {
    /// One message.
    Text(String),
    /// Stored events, each a message.
    Events(Vec<String>),
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
            Self::Events(events) => events.iter().map(String::len).sum(),
            Self::EndOfStored { sent, .. } => size_of_val(sent.as_slice()),
            Self::Flush | Self::Close(..) => 0,
        }
    }
}

/// An answer, with its share of the bytes that may wait.
pub(super) type Answer = (Outgoing, Option<OutboundPermit>);

/// Where verbs put their answers.
#[derive(Clone)]
pub(super) struct Outbox {
    // Boxed: a queue has room for 32 from its beginning.
    answers: mpsc::Sender<Box<Answer>>,
    room: OutboundRoom,
    // Filled from threads that must not wait; each entry holds one of the connection's permits.
    outcomes: mpsc::UnboundedSender<(String, OwnedSemaphorePermit)>,
}

impl Outbox {
    /// Queues a message; waits while the queue is full, in bytes or in answers. Once the socket is gone nothing happens.
    pub(super) async fn text(&self, text: String) {
        self.send(Outgoing::Text(text)).await;
    }

    /// As [`Outbox::text`], for anything. Returns whether the socket is still there.
    pub(super) async fn send(&self, outgoing: Outgoing) -> bool {
        let taken = tokio::select! {
            taken = self.room.take(outgoing.bytes()) => taken,
            () = self.answers.closed() => return false,
        };
        self.answers.send(Box::new((outgoing, taken))).await.is_ok()
    }

    /// As [`Outbox::send`] where that takes no waiting; else gives it back.
    pub(super) fn try_send(&self, outgoing: Outgoing) -> Result<(), Outgoing> {
        let Some(taken) = self.room.try_take(outgoing.bytes()) else { return Err(outgoing) };
        let sent = self.answers.try_send(Box::new((outgoing, Some(taken))));
        sent.map_err(|refused| refused.into_inner().0)
    }

    /// Queues an event's outcome without waiting; the permit bounds how many there are.
    pub(super) fn outcome(&self, text: String, permit: OwnedSemaphorePermit) {
        let _ = self.outcomes.send((text, permit));
    }
}

/// The other ends of an outbox.
pub(super) struct OutboxEnds {
    pub(super) answers: mpsc::Receiver<Box<Answer>>,
    pub(super) outcomes: mpsc::UnboundedReceiver<(String, OwnedSemaphorePermit)>,
}

/// Makes both ends. What waits between them is in `room`.
pub(super) fn outbox(room: OutboundRoom) -> (Outbox, OutboxEnds) {
    let (answers, answers_out) = mpsc::channel(QUEUE_ANSWERS);
    let (outcomes, outcomes_out) = mpsc::unbounded_channel();
    let waiting = OutboxEnds { answers: answers_out, outcomes: outcomes_out };
    (Outbox { answers, room, outcomes }, waiting)
}
