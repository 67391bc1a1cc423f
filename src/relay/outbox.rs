//! The way out of a connection: bounded queues that verbs fill and one task that empties them
//! into the socket, together with what is live.

use super::message;
use super::subscriptions::Subscriptions;
use crate::metrics::Labelled;
use crate::store::{Change, Step};
use futures_util::stream::SplitSink;
use futures_util::{Sink, SinkExt};
use hyper_util::rt::TokioIo;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, broadcast, mpsc};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error, Message, Utf8Bytes};

/// The WebSocket of one client.
pub(super) type Socket = WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>;

/// The most answers, a chunk of events counting as one, that wait for the socket.
const QUEUE_ANSWERS: usize = 16;

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

/// Where verbs put their answers.
#[derive(Clone)]
pub(super) struct Outbox {
    answers: mpsc::Sender<Outgoing>,
    // Filled from threads that must not wait; each entry holds one of the connection's permits.
    outcomes: mpsc::UnboundedSender<(String, OwnedSemaphorePermit)>,
}

impl Outbox {
    /// Queues a message; waits while the queue is full. Once the socket is gone nothing happens.
    pub(super) async fn text(&self, text: String) {
        self.send(Outgoing::Text(text)).await;
    }

    /// As [`Outbox::text`], for anything. Returns whether the socket is still there.
    pub(super) async fn send(&self, outgoing: Outgoing) -> bool {
        self.answers.send(outgoing).await.is_ok()
    }

    /// Queues an event's outcome without waiting; the permit bounds how many there are.
    pub(super) fn outcome(&self, text: String, permit: OwnedSemaphorePermit) {
        let _ = self.outcomes.send((text, permit));
    }
}

/// The receiving ends, and what the sending task needs besides.
pub(super) struct Sending {
    answers: mpsc::Receiver<Outgoing>,
    outcomes: mpsc::UnboundedReceiver<(String, OwnedSemaphorePermit)>,
    live: broadcast::Receiver<Arc<Change>>,
    subscriptions: Arc<Subscriptions>,
    // A client that takes nothing for so long is given up.
    send_timeout: Duration,
    events_sent: Labelled,
}

/// Makes both ends.
pub(super) fn outbox(
    live: broadcast::Receiver<Arc<Change>>,
    subscriptions: Arc<Subscriptions>,
    send_timeout: Duration,
    events_sent: Labelled,
) -> (Outbox, Sending) {
    let (answers, answers_out) = mpsc::channel(QUEUE_ANSWERS);
    let (outcomes, outcomes_out) = mpsc::unbounded_channel();
    let sending = Sending {
        answers: answers_out,
        outcomes: outcomes_out,
        live,
        subscriptions,
        send_timeout,
        events_sent,
    };
    (Outbox { answers, outcomes }, sending)
}

impl Sending {
    /// Sends until a close frame is sent, the connection's verbs are done or the socket fails;
    /// gives the socket's half back.
    pub(super) async fn run(
        mut self,
        mut sink: SplitSink<Socket, Message>,
    ) -> SplitSink<Socket, Message> {
        let mut wire = Wire { sink: &mut sink, send_timeout: self.send_timeout };
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
        loop {
            tokio::select! {
                Some((text, permit)) = self.outcomes.recv() => {
                    wire.text(text).await?;
                    drop(permit);
                }
                outgoing = self.answers.recv() => match outgoing {
                    Some(Outgoing::Close(code, reason)) => return wire.close(code, reason).await,
                    Some(outgoing) => self.answer(wire, outgoing).await?,
                    None => return wire.flush().await,
                },
                change = self.live.recv() => match change {
                    Ok(change) => self.pass_on(wire, &change).await?,
                    // Whoever subscribes from here on reads what was missed as stored.
                    Err(broadcast::error::RecvError::Lagged(_))
                        if self.subscriptions.is_empty() => {}
                    Err(broadcast::error::RecvError::Lagged(_)) => {
                        wire.text(message::notice("error: you read too slowly")).await?;
                        return wire.close(CloseCode::Policy, "reads too slowly").await;
                    }
                    Err(broadcast::error::RecvError::Closed) => return wire.flush().await,
                },
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
    send_timeout: Duration,
}

impl<S: Sink<Message, Error = Error> + Unpin> Wire<'_, S> {
    async fn text(&mut self, text: String) -> Result<(), Error> {
        let message = Message::Text(Utf8Bytes::from(text));
        within(self.send_timeout, self.sink.feed(message)).await
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
        within(self.send_timeout, feeding).await
    }

    async fn flush(&mut self) -> Result<(), Error> {
        within(self.send_timeout, self.sink.flush()).await
    }

    async fn close(&mut self, code: CloseCode, reason: &'static str) -> Result<(), Error> {
        let frame = CloseFrame { code, reason: Utf8Bytes::from_static(reason) };
        within(self.send_timeout, self.sink.send(Message::Close(Some(frame)))).await
    }
}

async fn within(
    patience: Duration,
    sending: impl Future<Output = Result<(), Error>>,
) -> Result<(), Error> {
    tokio::time::timeout(patience, sending)
        .await
        .unwrap_or_else(|_| Err(Error::Io(std::io::ErrorKind::TimedOut.into())))
}
