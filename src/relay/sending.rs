//! The one task that empties a connection's outbox into its socket, together with what is live.

use super::message_gate::Socket;
use super::outbox::{OutboxEnds, Outgoing};
use super::subscriptions::{LiveEvent, Subscriptions, TooSlow};
use super::{RelayState, message, stopped};
use crate::index::Index;
use crate::metrics::Labelled;
use crate::server::limits::FairQueue;
use futures_util::stream::SplitSink;
use futures_util::{Sink, SinkExt};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Bytes, Error, Message, Utf8Bytes};

/// So rarely is a client asked whether it is there where that is not wanted.
pub(super) const NEVER: Duration = Duration::from_secs(u32::MAX as u64);
/// How long a client may take nothing once the relay stops.
const STOP_SEND_TIMEOUT: Duration = Duration::from_secs(1);

/// What the task that sends needs.
pub(super) struct Sending {
    waiting: OutboxEnds,
    subscriptions: Arc<Subscriptions>,
    index: Index,
    // Whose turns the connection's own matching takes.
    turns: Arc<FairQueue>,
    address: IpAddr,
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

impl Sending {
    /// Sends what is waiting, and live events to a client at `address`.
    pub(super) fn new(
        waiting: OutboxEnds,
        subscriptions: Arc<Subscriptions>,
        relay: &RelayState,
        address: IpAddr,
    ) -> Self {
        let (config, service) = (relay.config(), &relay.service);
        let send_timeout = Duration::from_secs(config.limits.send_timeout_s);
        let ping_interval = match config.connections.ping_interval_s {
            0 => NEVER,
            seconds => Duration::from_secs(seconds),
        };
        let patience = Patience { send_timeout, stopping: service.running.stopping.clone() };
        Self {
            waiting,
            subscriptions,
            index: relay.index.clone(),
            turns: Arc::clone(&service.counts.short),
            address,
            patience,
            ping_interval,
            events_sent: service.metrics.events_sent.clone(),
        }
    }

    /// Sends until a close frame is sent, the connection's verbs are done or the socket fails;
    /// gives the socket's half back.
    pub(super) async fn run(
        mut self,
        mut sink: SplitSink<Socket, Message>,
    ) -> SplitSink<Socket, Message> {
        let mut wire = SendingHalf { sink: &mut sink, patience: self.patience.clone() };
        let ended = self.pump(&mut wire).await;
        if let Err(error) = ended {
            tracing::debug!(%error, "a connection ended while it was sent to");
        }
        sink
    }

    async fn pump<S: Sink<Message, Error = Error> + Unpin>(
        &mut self,
        wire: &mut SendingHalf<'_, S>,
    ) -> Result<(), Error> {
        let first_ping = Instant::now() + self.ping_interval;
        let mut pings = tokio::time::interval_at(first_ping, self.ping_interval);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some((text, permit)) = self.waiting.outcomes.recv() => {
                    wire.text(text).await?;
                    drop(permit);
                }
                outgoing = self.waiting.answers.recv() => match outgoing.map(|answer| *answer) {
                    Some((Outgoing::Close(code, reason), _)) => {
                        return wire.close(code, reason).await;
                    }
                    Some((outgoing, permit)) => {
                        self.answer(wire, outgoing).await?;
                        drop(permit);
                    }
                    None => return wire.flush().await,
                },
                live = self.subscriptions.next_live() => match live {
                    Ok(live) => self.pass_on(wire, live).await?,
                    Err(TooSlow) => {
                        wire.text(message::notice("error: you read too slowly")).await?;
                        return wire.close(CloseCode::Policy, "reads too slowly").await;
                    }
                },
                _ = pings.tick() => wire.ping().await?,
            }
            if self.waiting.outcomes.is_empty()
                && self.waiting.answers.is_empty()
                && !self.subscriptions.has_live()
            {
                wire.flush().await?;
            }
        }
    }

    async fn answer<S: Sink<Message, Error = Error> + Unpin>(
        &self,
        wire: &mut SendingHalf<'_, S>,
        outgoing: Outgoing,
    ) -> Result<(), Error> {
        match outgoing {
            Outgoing::Text(text) => wire.text(text).await,
            Outgoing::Events(events) => {
                self.events_sent.add("stored", events.len() as u64);
                wire.texts(events).await
            }
            Outgoing::EndOfStored { id, generation, sent, left_out } => {
                wire.text(message::eose(&id, left_out)).await?;
                let published = self.index.commits_published();
                for event in self.subscriptions.go_live(&id, generation, sent, published) {
                    self.events_sent.count("live");
                    wire.text(event).await?;
                }
                Ok(())
            }
            Outgoing::Flush => wire.flush().await,
            Outgoing::Close(code, reason) => wire.close(code, reason).await,
        }
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
                let matched = self.turns.work(self.address, matching).await;
                matched.map_err(|panic| Error::Io(std::io::Error::other(panic)))?
            }
        };
        for text in texts {
            self.events_sent.count("live");
            wire.text(text).await?;
        }
        Ok(())
    }
}

/// The socket's sending half with its patience.
struct SendingHalf<'socket, S> {
    sink: &'socket mut S,
    patience: Patience,
}

impl<S: Sink<Message, Error = Error> + Unpin> SendingHalf<'_, S> {
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
