//! The way out of a connection: bounded queues that verbs fill and one task that empties them
//! into the socket, together with what is live.

use super::subscriptions::Subscriptions;
use super::websocket::Socket;
use super::{message, stopped};
use crate::config::Config;
use crate::index::{Subscriber, SubscriberError};
use crate::metrics::Labelled;
use crate::store::{Change, Step};
use futures_util::stream::SplitSink;
use futures_util::{Sink, SinkExt};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Bytes, Error, Message, Utf8Bytes};

/// The most answers, a chunk of events counting as one, that wait for the socket.
const QUEUE_ANSWERS: usize = 16;
/// So rarely is a client asked whether it is there where that is not wanted.
pub(super) const NEVER: Duration = Duration::from_secs(u32::MAX as u64);
/// How long a client may take nothing once the relay stops.
const STOP_SEND_TIMEOUT: Duration = Duration::from_secs(1);

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
    },
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
            Self::Close(..) => 0,
        }
    }
}

/// An answer, with its share of the bytes that may wait.
type Answer = (Outgoing, Option<OwnedSemaphorePermit>);

/// Where verbs put their answers.
#[derive(Clone)]
pub(super) struct Outbox {
    answers: mpsc::Sender<Answer>,
    // One permit a byte that may wait.
    room: Arc<Semaphore>,
    outbound_bytes: usize,
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
        // A message longer than everything that may wait, waits alone.
        let bytes = outgoing.bytes().min(self.outbound_bytes) as u32;
        let room = Arc::clone(&self.room).acquire_many_owned(bytes);
        let permit = tokio::select! {
            permit = room => permit.ok(),
            () = self.answers.closed() => return false,
        };
        self.answers.send((outgoing, permit)).await.is_ok()
    }

    /// Queues an event's outcome without waiting; the permit bounds how many there are.
    pub(super) fn outcome(&self, text: String, permit: OwnedSemaphorePermit) {
        let _ = self.outcomes.send((text, permit));
    }
}

/// The receiving ends, and what the sending task needs besides.
pub(super) struct Sending {
    answers: mpsc::Receiver<Answer>,
    outcomes: mpsc::UnboundedReceiver<(String, OwnedSemaphorePermit)>,
    live: Subscriber,
    subscriptions: Arc<Subscriptions>,
    patience: Patience,
    ping_interval: Duration,
    events_sent: Labelled,
}

/// How long a client may take nothing.
#[derive(Clone)]
struct Patience {
    send_timeout: Duration,
    stopping: watch::Receiver<bool>,
}

/// Makes both ends.
pub(super) fn outbox(
    live: Subscriber,
    subscriptions: Arc<Subscriptions>,
    config: &Config,
    events_sent: Labelled,
    stopping: watch::Receiver<bool>,
) -> (Outbox, Sending) {
    let outbound_bytes = config.connections.outbound_bytes.size();
    let room = Arc::new(Semaphore::new(outbound_bytes));
    let (answers, answers_out) = mpsc::channel(QUEUE_ANSWERS);
    let (outcomes, outcomes_out) = mpsc::unbounded_channel();
    let send_timeout = Duration::from_secs(config.limits.send_timeout_s.get());
    let ping_interval = match config.connections.ping_interval_s.get() {
        0 => NEVER,
        seconds => Duration::from_secs(seconds),
    };
    let sending = Sending {
        answers: answers_out,
        outcomes: outcomes_out,
        live,
        subscriptions,
        patience: Patience { send_timeout, stopping },
        ping_interval,
        events_sent,
    };
    (Outbox { answers, room, outbound_bytes, outcomes }, sending)
}

impl Sending {
    /// Sends until a close frame is sent, the connection's verbs are done or the socket fails;
    /// gives the socket's half back.
    pub(super) async fn run(
        mut self,
        mut sink: SplitSink<Socket, Message>,
    ) -> SplitSink<Socket, Message> {
        let mut wire = Wire { sink: &mut sink, patience: self.patience.clone() };
        let ended = self.pump(&mut wire).await;
        if let Err(error) = ended {
            tracing::debug!(%error, "a connection ended while it was sent to");
        }
        sink
    }

    async fn pump<S: Sink<Message, Error = Error> + Unpin>(
        &mut self,
        wire: &mut Wire<'_, S>,
    ) -> Result<(), Error> {
        let first_ping = Instant::now() + self.ping_interval;
        let mut pings = tokio::time::interval_at(first_ping, self.ping_interval);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some((text, permit)) = self.outcomes.recv() => {
                    wire.text(text).await?;
                    drop(permit);
                }
                outgoing = self.answers.recv() => match outgoing {
                    Some((Outgoing::Close(code, reason), _)) => {
                        return wire.close(code, reason).await;
                    }
                    Some((outgoing, permit)) => {
                        self.answer(wire, outgoing).await?;
                        drop(permit);
                    }
                    None => return wire.flush().await,
                },
                change = self.live.recv() => match change {
                    Ok(change) => self.pass_on(wire, &change).await?,
                    // Whoever subscribes from here on reads what was missed as stored.
                    Err(SubscriberError::Lagged)
                        if self.subscriptions.is_empty() => {}
                    Err(SubscriberError::Lagged) => {
                        wire.text(message::notice("error: you read too slowly")).await?;
                        return wire.close(CloseCode::Policy, "reads too slowly").await;
                    }
                    Err(SubscriberError::Closed) => return wire.flush().await,
                },
                _ = pings.tick() => wire.ping().await?,
            }
            if self.outcomes.is_empty() && self.answers.is_empty() && self.live.is_empty() {
                wire.flush().await?;
            }
        }
    }

    async fn answer<S: Sink<Message, Error = Error> + Unpin>(
        &self,
        wire: &mut Wire<'_, S>,
        outgoing: Outgoing,
    ) -> Result<(), Error> {
        match outgoing {
            Outgoing::Text(text) => wire.text(text).await,
            Outgoing::Events(events) => {
                self.events_sent.add("stored", events.len() as u64);
                wire.texts(events).await
            }
            Outgoing::EndOfStored { id, generation, sent } => {
                wire.text(message::eose(&id)).await?;
                let commits = self.live.len();
                for event in self.subscriptions.go_live(&id, generation, sent, commits) {
                    self.events_sent.count("live");
                    wire.text(event).await?;
                }
                Ok(())
            }
            Outgoing::Close(code, reason) => wire.close(code, reason).await,
        }
    }

    async fn pass_on<S: Sink<Message, Error = Error> + Unpin>(
        &self,
        wire: &mut Wire<'_, S>,
        change: &Change,
    ) -> Result<(), Error> {
        if self.subscriptions.is_empty() {
            return Ok(());
        }
        for step in &change.steps {
            if let Step::Added(event) | Step::Passed(event) = step {
                for text in self.subscriptions.matching(event) {
                    self.events_sent.count("live");
                    wire.text(text).await?;
                }
            }
        }
        self.subscriptions.end_commit();
        Ok(())
    }
}

/// The socket's sending half with its patience.
struct Wire<'socket, S> {
    sink: &'socket mut S,
    patience: Patience,
}

impl<S: Sink<Message, Error = Error> + Unpin> Wire<'_, S> {
    async fn text(&mut self, text: String) -> Result<(), Error> {
        let message = Message::Text(Utf8Bytes::from(text));
        within(&self.patience, self.sink.feed(message)).await
    }

    /// A chunk of messages, for which the client is waited for as for one.
    async fn texts(&mut self, texts: Vec<String>) -> Result<(), Error> {
        let sink = &mut self.sink;
        let feeding = async {
            for text in texts {
                sink.feed(Message::Text(Utf8Bytes::from(text))).await?;
            }
            Ok(())
        };
        within(&self.patience, feeding).await
    }

    async fn flush(&mut self) -> Result<(), Error> {
        within(&self.patience, self.sink.flush()).await
    }

    /// Asks whether the client is still there. RFC 6455, section 5.5.2.
    async fn ping(&mut self) -> Result<(), Error> {
        within(&self.patience, self.sink.send(Message::Ping(Bytes::new()))).await
    }

    async fn close(&mut self, code: CloseCode, reason: &'static str) -> Result<(), Error> {
        let frame = CloseFrame { code, reason: Utf8Bytes::from_static(reason) };
        within(&self.patience, self.sink.send(Message::Close(Some(frame)))).await
    }
}

async fn within(
    patience: &Patience,
    sending: impl Future<Output = Result<(), Error>>,
) -> Result<(), Error> {
    let mut stopping = patience.stopping.clone();
    let has_stopped = async {
        stopped(&mut stopping).await;
        tokio::time::sleep(STOP_SEND_TIMEOUT).await;
    };
    tokio::select! {
        biased;
        sent = sending => return sent,
        () = tokio::time::sleep(patience.send_timeout) => {}
        () = has_stopped => {}
    }
    Err(Error::Io(std::io::ErrorKind::TimedOut.into()))
}
