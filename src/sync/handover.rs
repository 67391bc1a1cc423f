//! Where another relay keeps the events (`--into`): what comes from peers is handed to it as EVENT
//! messages, each OK is read, and its own database says what it kept.

use super::arrival::{Fate, Refusal};
use super::auth::Auth;
use super::backoff::Backoff;
use super::connector::Connector;
use super::dial::{PeerUrl, UrlError};
use super::information::Information;
use super::message::{self, PeerMessage};
use super::peer::{Peer, PeerError};
use crate::index::Sets;
use crate::item::Item;
use crate::store::{Event, Lifetime, VerifiedEvent};
use nostr::Keys;
use std::collections::VecDeque;
use std::time::Duration;
use tokio::sync::mpsc;

/// The most events of a batch that wait for their OK.
const EVENTS_IN_FLIGHT: usize = 64;
/// How long the relay may say nothing while it owes an OK.
const SILENCE: Duration = Duration::from_secs(60);
/// How often in a row the relay may be out of reach before it is given up.
const MOST_FAILURES: u32 = 8;
/// How often an event is handed over that the connection breaks with.
const MOST_TRIES: u32 = 3;

/// Called with what became of each event, in order.
type Done = Box<dyn FnOnce(Vec<Fate>) + Send>;

/// The way into the relay. Clones share it; it ends with the last one.
#[derive(Clone)]
pub(super) struct Handover {
    // Each session that fills it stops reading with so many bytes of events under way.
    batches: mpsc::UnboundedSender<(Vec<VerifiedEvent>, Done)>,
}

impl Handover {
    /// Hands over to the relay at `url`, whose events are in `sets`.
    pub(super) fn start(
        url: &str,
        sets: Sets,
        keys: Option<Keys>,
        connector: Connector,
    ) -> Result<Self, UrlError> {
        let url = PeerUrl::parse(url)?;
        let (batches, queue) = mpsc::unbounded_channel();
        let hands = Hands {
            url,
            sets,
            keys,
            connector,
            peer: None,
            auth: None,
            backoff: Backoff::default(),
        };
        tokio::spawn(hands.run(queue));
        Ok(Self { batches })
    }

    /// Hands over events.
    pub(super) fn submit(&self, events: Vec<VerifiedEvent>, done: Done) {
        if let Err(refused) = self.batches.send((events, done)) {
            let (events, done) = refused.0;
            done(vec![Fate::Failed("the handing over has ended".to_owned()); events.len()]);
        }
    }
}

/// Whoever hands over.
struct Hands {
    url: PeerUrl,
    sets: Sets,
    keys: Option<Keys>,
    connector: Connector,
    peer: Option<Peer>,
    auth: Option<Auth>,
    backoff: Backoff,
}

/// An event and what the relay said to it.
struct Handed {
    item: Item,
    lifetime: Lifetime,
    json: String,
    tries: u32,
    said: Option<Said>,
}

enum Said {
    /// It has it, or says so.
    Ok,
    /// It has a newer version.
    Superseded,
    Refused,
    /// Nothing, however often it was asked.
    Nothing,
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

    /// Hands over all events of a batch, by as many connections as it takes. The error is why the
    /// relay cannot be reached.
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

    /// Sends what has no answer and reads the answers, on one connection. It ends when all are
    /// answered, or early where the relay makes those wait who were refused.
    async fn converse(&mut self, batch: &mut [Handed]) -> Result<(), PeerError> {
        if self.peer.is_none() {
            self.auth = Some(Auth::new(self.keys.clone(), self.url.as_str()));
            let known = Some(Information::default());
            self.peer = Some(Peer::connect(&self.url, &self.connector, known, None).await?);
        }
        let (Some(peer), Some(auth)) = (&mut self.peer, &mut self.auth) else { return Ok(()) };
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
                peer.send(message::event(&event.json))?;
                in_flight.push_back(place);
            }
            if in_flight.is_empty() {
                break;
            }
            let heard = tokio::time::timeout(SILENCE, peer.next())
                .await
                .unwrap_or(Err(PeerError::Silent { waited: SILENCE }))?;
            let (id, accepted, text) = match message::parse(&heard) {
                PeerMessage::Auth(challenge) => {
                    auth.challenged(peer, &challenge)?;
                    continue;
                }
                PeerMessage::Ok { id, .. } if auth.answered(&id, true) => continue,
                PeerMessage::Ok { id, accepted, text } => (Some(id), accepted, text),
                // nostr-relay (Python) answers in order, and refuses without an id.
                _ if is_refusal_without_id(&heard) => (None, false, String::new()),
                _ => continue,
            };
            let at = in_flight.iter().position(|place| {
                id.is_none_or(|id| batch.get(*place).is_some_and(|event| event.item.id == id))
            });
            let Some(place) = at.and_then(|at| in_flight.remove(at)) else { continue };
            let Some(event) = batch.get_mut(place) else { continue };
            self.backoff.reset();
            let is_known = text.starts_with("duplicate:");
            match text.split_once(':').map_or("", |(prefix, _)| prefix) {
                _ if accepted || is_known => event.said = Some(Said::Ok),
                "rate-limited" | "error" => {
                    tokio::time::sleep(self.backoff.next()).await;
                    waiting.push_back(place);
                }
                "replaced" => event.said = Some(Said::Superseded),
                _ => event.said = Some(Said::Refused),
            }
            if id.is_none() {
                // It slows the connection down for good: the others need not wait for that.
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

    /// What became of the events: the relay's database decides, not its word.
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
            Fate::Refused(Refusal::Ephemeral)
        }
        // Replaced, deleted or hidden: it says that it has it, and does not show it.
        (Some(Said::Ok | Said::Superseded), None) => Fate::Refused(Refusal::Superseded),
        (Some(Said::Refused | Said::Nothing) | None, None) => Fate::Refused(Refusal::NotTaken),
    }
}

/// `["OK", "", false, ...]`
fn is_refusal_without_id(text: &str) -> bool {
    let elements: Option<Vec<serde_json::Value>> = serde_json::from_str(text).ok();
    elements.is_some_and(|elements| {
        matches!(elements.as_slice(), [verb, id, accepted, ..]
            if verb == "OK" && id == "" && accepted == false)
    })
}
