//! Sends a connection's queued answers and its live events to the socket.

use super::message_chunk::MessageChunk;
use super::message_gate::Socket;
use super::outbox::{Outgoing, Waiting};
use super::queue::Exit;
use super::subscriptions::{LiveEvent, Subscriptions, TooSlow};
use super::{RelayState, message};
use crate::prefix::Prefix;
use crate::server::limits::Place;
use futures_util::stream::SplitSink;
use futures_util::{Sink, SinkExt};
use std::future::poll_fn;
use std::ops::ControlFlow;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Bytes, Error, Message, Utf8Bytes};
use tokio_util::sync::CancellationToken;

/// Ping interval used when pings are disabled.
pub(super) const NEVER: Duration = seconds(NEVER_S);
const NEVER_S: u32 = u32::MAX;
/// Timeout for sending once the relay stops.
const STOP_SEND_TIMEOUT: Duration = Duration::from_secs(1);

/// The sending task of a connection.
pub(super) struct Sending {
    waiting: Exit<Waiting>,
    subscriptions: Arc<Subscriptions>,
    relay: Arc<RelayState>,
    // The connection's slot, for matching in turns of its address.
    place: Arc<Place>,
    send_timeout_s: u32,
    ping_interval_s: u32,
}

/// The next item for a connection's socket.
enum NextToSend {
    /// From the outbox; `None` once it has ended.
    Waiting(Option<Waiting>),
    /// A live event.
    Live(Result<LiveEvent, TooSlow>),
    /// A ping is due.
    Ping,
}

impl Sending {
    /// Sends queued items and live events to the client in the slot.
    pub(super) fn new(
        waiting: Exit<Waiting>,
        subscriptions: Arc<Subscriptions>,
        relay: Arc<RelayState>,
        place: Arc<Place>,
    ) -> Self {
        let config = relay.config();
        let short = |seconds: u64| u32::try_from(seconds).unwrap_or(u32::MAX);
        let send_timeout_s = short(config.limits.send_timeout_s);
        let ping_interval_s = match config.connections.ping_interval_s {
            0 => NEVER_S,
            interval => short(interval),
        };
        Self { waiting, subscriptions, relay, place, send_timeout_s, ping_interval_s }
    }

    /// Sends until a close frame is sent, the connection's verbs have ended, or the socket fails.
    pub(super) async fn run(&mut self, sink: &mut SplitSink<Socket, Message>) {
        let mut ping = pin!(tokio::time::sleep(self.ping_interval()));
        loop {
            let next = tokio::select! {
                waiting = self.waiting.next() => NextToSend::Waiting(waiting),
                live = self.subscriptions.next_live() => NextToSend::Live(live),
                () = &mut ping => {
                    ping.as_mut().reset(Instant::now() + self.ping_interval());
                    NextToSend::Ping
                }
            };
            // Boxed: an idle connection reserves no memory for sending.
            match Box::pin(self.send(sink, next)).await {
                Ok(ControlFlow::Continue(())) => {}
                Ok(ControlFlow::Break(())) => return,
                Err(error) => {
                    tracing::debug!(%error, "connection lost while sending");
                    return;
                }
            }
        }
    }

    fn ping_interval(&self) -> Duration {
        seconds(self.ping_interval_s)
    }

    /// Sends the next item, and breaks off after the last one.
    async fn send<S: Sink<Message, Error = Error> + Unpin>(
        &self,
        sink: &mut S,
        next: NextToSend,
    ) -> Result<ControlFlow<()>, Error> {
        let stopping = &self.relay.service.running.stopping;
        let patience = Patience { send_timeout: seconds(self.send_timeout_s), stopping };
        let wire = &mut SendingHalf { sink, patience };
        match next {
            NextToSend::Waiting(Some(waiting)) => {
                if let Outgoing::Close(code, reason) = waiting.outgoing {
                    wire.close(code, reason).await?;
                    return Ok(ControlFlow::Break(()));
                }
                // Its permits are returned after it is sent.
                let Waiting { outgoing, .. } = waiting;
                self.answer(wire, outgoing).await?;
            }
            NextToSend::Waiting(None) => {
                wire.flush().await?;
                return Ok(ControlFlow::Break(()));
            }
            NextToSend::Live(Ok(live)) => {
                match self.relay.admission.may_stay_subscribed(&self.subscriptions.viewer()) {
                    Ok(()) => self.pass_on(wire, live).await?,
                    Err(reason) => self.end_subscriptions(wire, &reason).await?,
                }
            }
            NextToSend::Live(Err(TooSlow)) => {
                wire.text(message::notice(&Prefix::Error.before("you read too slowly"))).await?;
                wire.close(CloseCode::Policy, "reads too slowly").await?;
                return Ok(ControlFlow::Break(()));
            }
            NextToSend::Ping => wire.ping().await?,
        }
        if self.waiting.is_empty() && !self.subscriptions.has_live() {
            wire.flush().await?;
        }
        Ok(ControlFlow::Continue(()))
    }

    async fn answer<S: Sink<Message, Error = Error> + Unpin>(
        &self,
        wire: &mut SendingHalf<'_, S>,
        outgoing: Outgoing,
    ) -> Result<(), Error> {
        match outgoing {
            Outgoing::Text(text) => wire.text(text).await,
            Outgoing::Events(events) => {
                self.relay.service.metrics.events_sent.add("stored", events.count() as u64);
                wire.chunk(events).await
            }
            Outgoing::EndOfStored { id, generation, sent, left_out } => {
                wire.text(message::eose(&id, left_out)).await?;
                let published = self.relay.index.commits_published();
                for event in self.subscriptions.go_live(&id, generation, sent, published) {
                    self.relay.service.metrics.events_sent.count("live");
                    wire.text(event).await?;
                }
                Ok(())
            }
            Outgoing::Flush => wire.flush().await,
            Outgoing::Close(code, reason) => wire.close(code, reason).await,
        }
    }

    /// Ends the subscriptions of a client that may not read any more.
    async fn end_subscriptions<S: Sink<Message, Error = Error> + Unpin>(
        &self,
        wire: &mut SendingHalf<'_, S>,
        reason: &str,
    ) -> Result<(), Error> {
        for id in self.subscriptions.end_all() {
            self.relay.service.metrics.query_refusals.count_prefix(reason);
            wire.text(message::closed(&id, reason)).await?;
        }
        Ok(())
    }

    async fn pass_on<S: Sink<Message, Error = Error> + Unpin>(
        &self,
        wire: &mut SendingHalf<'_, S>,
        live: LiveEvent,
    ) -> Result<(), Error> {
        let texts = match &live.to {
            Some(to) => self.subscriptions.text(&live.event, to).into_iter().collect(),
            None => {
                let subscriptions = Arc::clone(&self.subscriptions);
                let matching = move || subscriptions.texts(&live);
                let turns = &self.relay.service.counts.short;
                let matched = turns.work(self.place.address(), matching).await;
                matched.map_err(|panic| Error::Io(std::io::Error::other(panic)))?
            }
        };
        for text in texts {
            self.relay.service.metrics.events_sent.count("live");
            wire.text(text).await?;
        }
        Ok(())
    }
}

/// The socket's sending half, with the timeout of a send.
struct SendingHalf<'sending, S> {
    sink: &'sending mut S,
    patience: Patience<'sending>,
}

#[derive(Clone, Copy)]
struct Patience<'sending> {
    send_timeout: Duration,
    stopping: &'sending CancellationToken,
}

impl<S: Sink<Message, Error = Error> + Unpin> SendingHalf<'_, S> {
    async fn text(&mut self, text: String) -> Result<(), Error> {
        let message = Message::Text(Utf8Bytes::from(text));
        within(self.patience, self.sink.feed(message)).await
    }

    /// Sends a chunk of messages with one timeout.
    async fn chunk(&mut self, messages: MessageChunk) -> Result<(), Error> {
        let sink = &mut self.sink;
        let feeding = async {
            for message in messages.into_frames() {
                sink.feed(message).await?;
            }
            Ok(())
        };
        within(self.patience, feeding).await
    }

    async fn flush(&mut self) -> Result<(), Error> {
        within(self.patience, self.sink.flush()).await
    }

    /// Sends a ping. RFC 6455, section 5.5.2.
    async fn ping(&mut self) -> Result<(), Error> {
        within(self.patience, self.sink.send(Message::Ping(Bytes::new()))).await
    }

    async fn close(&mut self, code: CloseCode, reason: &'static str) -> Result<(), Error> {
        let frame = CloseFrame { code, reason: Utf8Bytes::from_static(reason) };
        within(self.patience, self.sink.send(Message::Close(Some(frame)))).await
    }
}

async fn within(
    patience: Patience<'_>,
    sending: impl Future<Output = Result<(), Error>>,
) -> Result<(), Error> {
    let mut sending = pin!(sending);
    // Most often the socket takes everything at once, and no timer is needed.
    let at_once = poll_fn(|context| Poll::Ready(sending.as_mut().poll(context))).await;
    if let Poll::Ready(sent) = at_once {
        return sent;
    }
    let has_stopped = async {
        patience.stopping.cancelled().await;
        tokio::time::sleep(STOP_SEND_TIMEOUT).await;
    };
    tokio::select! {
        biased;
        sent = &mut sending => return sent,
        () = tokio::time::sleep(patience.send_timeout) => {}
        () = has_stopped => {}
    }
    Err(Error::Io(std::io::ErrorKind::TimedOut.into()))
}

const fn seconds(seconds: u32) -> Duration {
    Duration::new(seconds as u64, 0)
}
