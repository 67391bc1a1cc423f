//! Storage of events in another relay (`--into`): events from peers are sent to it as EVENT
//! messages, each OK is read, and its own database shows what it kept.

use super::backoff::Backoff;
use super::connector::Connector;
use super::machine::Fate;
use super::message::{self, PeerMessage};
use super::nip11::Information;
use super::peer::{Frame, Peer, PeerError};
use super::reason::Reason;
use crate::index::Sets;
use crate::item::Item;
use crate::prefix::Prefix;
use crate::relay_url::{RelayUrl, RelayUrlError};
use crate::store::{Event, Lifetime, VerifiedEvent};
use nostr::{EventBuilder, JsonUtil, Keys};
use std::collections::VecDeque;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Utf8Bytes;

/// Maximum number of events of a batch without an OK.
const EVENTS_IN_FLIGHT: usize = 64;
/// Timeout without any message while an OK is pending.
const SILENCE: Duration = Duration::from_secs(60);
/// Time for the relay's challenge before the first event, and for its reply.
const GREETING: Duration = Duration::from_millis(500);
const AUTH_ANSWER: Duration = Duration::from_secs(2);
/// Maximum number of challenges that are answered on one connection.
const MOST_CHALLENGES: u32 = 4;
/// Failed connections in a row before the relay is given up.
const MOST_FAILURES: u32 = 8;
/// Attempts for an event at which the connection breaks.
const MOST_TRIES: u32 = 3;

/// Called with the fate of each event, in order.
type Done = Box<dyn FnOnce(Vec<Fate>) + Send>;

/// The handle to the relay. Clones share it; dropping the last one ends the connection.
#[derive(Clone)]
pub(super) struct RelaySink {
    // Bounded by the sessions that fill it: each stops reading above its bytes of unsettled events.
    batches: mpsc::UnboundedSender<(Vec<VerifiedEvent>, Done)>,
}

impl RelaySink {
    /// Starts sending to the relay at `url`, whose events are in `sets`.
    pub(super) fn start(
        url: &str,
        sets: Sets,
        keys: Option<Keys>,
        connector: Connector,
    ) -> Result<Self, RelayUrlError> {
        let url = RelayUrl::parse(url)?;
        let (batches, queue) = mpsc::unbounded_channel();
        let hands = Hands {
            url,
            sets,
            keys,
            connector,
            peer: None,
            auth: RelayAuth::default(),
            backoff: Backoff::default(),
        };
        tokio::spawn(hands.run(queue));
        Ok(Self { batches })
    }

    /// Queues events.
    pub(super) fn submit(&self, events: Vec<VerifiedEvent>, done: Done) {
        if let Err(refused) = self.batches.send((events, done)) {
            let (events, done) = refused.0;
            done(vec![Fate::Failed("the handing over has ended".to_owned()); events.len()]);
        }
    }
}

/// The task that sends events.
struct Hands {
    url: RelayUrl,
    sets: Sets,
    keys: Option<Keys>,
    connector: Connector,
    peer: Option<Peer>,
    auth: RelayAuth,
    backoff: Backoff,
}

/// An event and the relay's reply.
struct Handed {
    item: Item,
    lifetime: Lifetime,
    json: String,
    tries: u32,
    said: Option<Said>,
}

enum Said {
    /// The relay has it, or says so.
    Ok,
    /// The relay has a newer version.
    Superseded,
    Refused,
    /// The relay requires authentication.
    AuthRequired,
    /// No reply after all attempts.
    Nothing,
}

/// The state of authentication to the relay (NIP-42).
#[derive(Default)]
struct RelayAuth {
    challenges: u32,
    /// The id of the pending answer.
    answer: Option<[u8; 32]>,
    accepted: Option<bool>,
}

impl RelayAuth {
    fn is_settled(&self) -> bool {
        self.accepted.is_some() && self.answer.is_none()
    }
}

impl Hands {
    async fn run(mut self, mut queue: mpsc::UnboundedReceiver<(Vec<VerifiedEvent>, Done)>) {
        while let Some((events, done)) = queue.recv().await {
            let mut batch: Vec<Handed> = events.into_iter().map(Handed::new).collect();
            let failure = self.hand_over(&mut batch).await.err();
            done(self.fates(batch, failure).await);
        }
        if let Some(peer) = self.peer {
            peer.close().await;
        }
    }

    /// Sends all events of a batch, over as many connections as needed. The error is why the relay
    /// is out of reach.
    async fn hand_over(&mut self, batch: &mut [Handed]) -> Result<(), String> {
        while batch.iter().any(|event| event.said.is_none()) {
            let lost = match self.converse(batch).await {
                Ok(()) => continue,
                Err(error) => error,
            };
            self.peer = None;
            let pause = self.backoff.next();
            if self.backoff.failures() >= MOST_FAILURES {
                return Err(format!("the relay {} takes no events: {lost}", self.url));
            }
            tokio::time::sleep(pause).await;
        }
        Ok(())
    }

    /// Connects, and authenticates if the relay sends a challenge: before the first event, because
    /// events that require authentication would be refused.
    async fn connect(&mut self) -> Result<(), PeerError> {
        let known = Some(Information::default());
        self.peer = Some(Peer::connect(&self.url, &self.connector, known, None).await?);
        self.auth = RelayAuth::default();
        if self.keys.is_some() {
            self.wait_for_auth(GREETING).await?;
        }
        Ok(())
    }

    /// Waits until the relay has sent a challenge and accepted the answer. A relay that sends none
    /// within `patience` requires no authentication.
    async fn wait_for_auth(&mut self, patience: Duration) -> Result<(), PeerError> {
        let mut until = tokio::time::Instant::now() + patience;
        while !self.auth.is_settled() {
            let Ok(heard) = tokio::time::timeout_at(until, self.next()).await else { break };
            let heard = heard?;
            if self.take_auth(&message::parse(&heard))? {
                until = tokio::time::Instant::now() + AUTH_ANSWER;
            }
        }
        Ok(())
    }

    /// The relay's next message.
    async fn next(&mut self) -> Result<Utf8Bytes, PeerError> {
        let Some(peer) = &mut self.peer else { return std::future::pending().await };
        loop {
            if let Frame::Text(text) = peer.next().await? {
                return Ok(text);
            }
        }
    }

    /// Handles AUTH messages (NIP-42). Returns whether the message was one.
    fn take_auth(&mut self, message: &PeerMessage<'_>) -> Result<bool, PeerError> {
        match message {
            PeerMessage::Auth(challenge) => {
                let signed = self.keys.as_ref().and_then(|keys| sign(keys, &self.url, challenge));
                if let (Some(event), Some(peer)) = (signed, &self.peer)
                    && self.auth.challenges < MOST_CHALLENGES
                {
                    self.auth.challenges += 1;
                    self.auth.answer = Some(event.id.to_bytes());
                    peer.send(message::auth(&event.as_json()))?;
                }
                Ok(true)
            }
            PeerMessage::Ok { id, accepted, .. } if id.is_some() && *id == self.auth.answer => {
                self.auth.answer = None;
                self.auth.accepted = Some(*accepted);
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Sends unanswered events and reads the replies, on one connection. Ends when all are
    /// answered, or early if the relay delays clients after a refusal.
    async fn converse(&mut self, batch: &mut [Handed]) -> Result<(), PeerError> {
        if self.peer.is_none() {
            self.connect().await?;
        }
        let mut waiting: VecDeque<usize> = (0..batch.len()).collect();
        let mut in_flight: VecDeque<usize> = VecDeque::new();
        waiting.retain(|place| batch.get(*place).is_some_and(|event| event.said.is_none()));
        while !waiting.is_empty() || !in_flight.is_empty() {
            while in_flight.len() < EVENTS_IN_FLIGHT
                && let Some(place) = waiting.pop_front()
            {
                let Some(event) = batch.get_mut(place) else { continue };
                event.tries += 1;
                if event.tries > MOST_TRIES {
                    event.said = Some(Said::Nothing);
                    continue;
                }
                if let Some(peer) = &self.peer {
                    peer.send(message::event(&event.json))?;
                }
                in_flight.push_back(place);
            }
            if in_flight.is_empty() {
                break;
            }
            let heard = tokio::time::timeout(SILENCE, self.next()).await;
            let silent = || PeerError::Lost { reason: "no answer to EVENT".to_owned() };
            let heard = heard.map_err(|_| silent())??;
            let parsed = message::parse(&heard);
            if self.take_auth(&parsed)? {
                continue;
            }
            // nostr-relay (Python) answers in order, and refuses without an id.
            let PeerMessage::Ok { id, accepted, text } = parsed else { continue };
            let at = in_flight.iter().position(|place| {
                id.is_none_or(|id| batch.get(*place).is_some_and(|event| event.item.id == id))
            });
            let Some(place) = at.and_then(|at| in_flight.remove(at)) else { continue };
            let Some(event) = batch.get_mut(place) else { continue };
            self.backoff.reset();
            match message::prefix(&text) {
                _ if accepted => event.said = Some(Said::Ok),
                Some(Prefix::Duplicate) => event.said = Some(Said::Ok),
                Some(Prefix::RateLimited | Prefix::Error) => {
                    tokio::time::sleep(self.backoff.next()).await;
                    waiting.push_back(place);
                }
                // The event may be accepted after authentication.
                Some(Prefix::AuthRequired | Prefix::Restricted) if self.auth.accepted.is_none() => {
                    if self.keys.is_some() && event.tries < MOST_TRIES {
                        waiting.push_back(place);
                        self.wait_for_auth(AUTH_ANSWER).await?;
                    } else {
                        event.said = Some(Said::AuthRequired);
                    }
                }
                Some(Prefix::Replaced) => event.said = Some(Said::Superseded),
                _ => event.said = Some(Said::Refused),
            }
            if id.is_none() {
                // The relay slows this connection down permanently: the other events use a new one.
                for place in in_flight {
                    if let Some(event) = batch.get_mut(place) {
                        event.tries = event.tries.saturating_sub(1);
                    }
                }
                self.peer = None;
                return Ok(());
            }
        }
        Ok(())
    }

    /// The fates of the events, determined by the relay's database and not by its replies.
    async fn fates(&self, batch: Vec<Handed>, failure: Option<String>) -> Vec<Fate> {
        let sets = self.sets.clone();
        let count = batch.len();
        let judged = tokio::task::spawn_blocking(move || {
            let unread = sets.source().catch_up().err().map(|error| error.to_string());
            let failure = failure.or(unread);
            batch.into_iter().map(|event| fate(&sets, &event, failure.as_deref())).collect()
        });
        judged.await.unwrap_or_else(|panic| vec![Fate::Failed(panic.to_string()); count])
    }
}

impl Handed {
    fn new(event: VerifiedEvent) -> Self {
        let event: Event = event.into_inner();
        let json = event.json().to_owned();
        Self { item: event.item(), lifetime: event.lifetime(), json, tries: 0, said: None }
    }
}

fn fate(sets: &Sets, event: &Handed, failure: Option<&str>) -> Fate {
    match (&event.said, failure) {
        (None, Some(failure)) => Fate::Failed(failure.to_owned()),
        _ if sets.contains(&event.item) => Fate::Stored,
        (_, Some(failure)) => Fate::Failed(failure.to_owned()),
        (Some(Said::Ok), None) if event.lifetime == Lifetime::Ephemeral => {
            Fate::Refused(Reason::Ephemeral)
        }
        // Replaced, deleted or hidden: the relay says that it has the event, but does not show it.
        (Some(Said::Ok | Said::Superseded), None) => Fate::Refused(Reason::Superseded),
        // Nothing is known about the event itself: it is tried again.
        (Some(Said::AuthRequired), None) => {
            Fate::Refused(Reason::RefusedByPeer(Some(Prefix::AuthRequired)))
        }
        (Some(Said::Refused | Said::Nothing) | None, None) => Fate::Refused(Reason::RefusedByRelay),
    }
}

/// NIP-42: the answer to a challenge.
fn sign(keys: &Keys, url: &RelayUrl, challenge: &str) -> Option<nostr::Event> {
    let relay = nostr::RelayUrl::parse(&url.address()).ok()?;
    EventBuilder::auth(challenge, relay).sign_with_keys(keys).ok()
}
