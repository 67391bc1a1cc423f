//! EVENT (NIP-01): verified, admitted, stored, and answered once it is durable.

use super::client::Client;
use super::queue::{Entrance, Exit, queue};
use super::{RelayState, message};
use crate::admission::{Judgement, Refusal, Source};
use crate::prefix::Prefix;
use crate::server::limits::event_cost;
use crate::store::{Event, Origin, Outcome, VANISH, VerifiedEvent};
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use std::sync::Arc;

/// Maximum cost of a connection's events that are being verified or stored; above it, the
/// connection is not read.
pub(super) const EVENTS_IN_FLIGHT: usize = 1_024;

/// An event in progress; completes when its answer is queued.
type InFlight = BoxFuture<'static, ()>;

/// The queue of a connection's events. Permits bound its length.
pub(super) type Publishing = Entrance<InFlight>;

/// A connection's events in progress; its task polls them while it reads.
pub(super) struct EventsInFlight(Exit<InFlight>);

/// An empty queue.
pub(super) fn events_in_flight() -> (Publishing, EventsInFlight) {
    let (publishing, begun) = queue();
    (publishing, EventsInFlight(begun))
}

impl EventsInFlight {
    /// Processes all events, until no more can begin and all are answered.
    pub(super) async fn run(&mut self) {
        while let Some(event) = self.0.next().await {
            // Boxed: an idle connection reserves no memory for events.
            Box::pin(self.go_on_with(event)).await;
        }
    }

    /// Processes an event, and those that arrive meanwhile, until none is left.
    async fn go_on_with(&mut self, event: InFlight) {
        let mut events = FuturesUnordered::new();
        events.push(event);
        loop {
            tokio::select! {
                Some(event) = self.0.next() => events.push(event),
                done = events.next() => if done.is_none() { return },
            }
        }
    }
}

/// EVENT. Returns as soon as the event is queued; the answer follows when it is stored.
pub(super) async fn publish(client: &Client, json: Box<str>) {
    let (in_flight, cost) = (Arc::clone(&client.events_in_flight), event_cost(&json));
    let permits = cost.min(EVENTS_IN_FLIGHT as u32);
    let Ok(permit) = in_flight.acquire_many_owned(permits).await else { return };
    // Returned when the outcome is known: a client that does not read must not delay others.
    let share = client.place.event_share(cost).await;
    let (relay, outbox, origin) =
        (Arc::clone(&client.relay), client.outbox.clone(), client.origin());
    let source = Source::Client {
        address: client.place.client(),
        counted_as: client.address(),
        viewer: client.auth.viewer(),
    };
    let event = async move {
        let (Ok(answer) | Err(answer)) = accept(&relay, &origin, source, json).await;
        drop(share);
        relay.service.metrics.events.count(answer.counted);
        outbox.outcome(answer.text(), permit);
    };
    // Fails only if the connection has ended.
    let _ = client.publishing.put(Box::pin(event));
}

/// Processes an event, and returns the answer to its sender.
async fn accept(
    relay: &Arc<RelayState>,
    origin: &Origin,
    source: Source,
    json: Box<str>,
) -> Result<EventAnswer, EventAnswer> {
    let CheckedEvent { event, is_known } = verify(relay, origin, &source, json).await?;
    let id = event.id_hex();
    // A stored event was judged before.
    let event = if is_known { event } else { judge(relay, event, &source).await? };
    let outcome = relay.index.store().put(origin, vec![event]).await.pop();
    Ok(EventAnswer::stored(id, outcome))
}

/// An event with a valid signature.
struct CheckedEvent {
    event: VerifiedEvent,
    // Whether the index has it.
    is_known: bool,
}

/// Parses the event and verifies its signature, on the pool.
async fn verify(
    relay: &Arc<RelayState>,
    origin: &Origin,
    source: &Source,
    json: Box<str>,
) -> Result<CheckedEvent, EventAnswer> {
    let (shared, source, bytes) = (Arc::clone(relay), source.clone(), json.len());
    let read = move || read(&shared, &source, &json);
    relay.verifier.check(origin, bytes, read).await.unwrap_or_else(|| {
        Err(EventAnswer::refused(None, Prefix::Error.before("the event could not be checked")))
    })
}

fn read(relay: &RelayState, source: &Source, json: &str) -> Result<CheckedEvent, EventAnswer> {
    let event = relay.admission.read(json, source)?;
    let is_known = is_known(relay, &event);
    // On a server, other nodes may have removed the event. The writer checks that, without blocking
    // a thread of the verifier, and keeps what it acknowledges, to write it again after a
    // fail-over.
    if is_known && !relay.index.store().waits_for_server() {
        return Err(EventAnswer::stored(event.id_hex(), Some(Outcome::Duplicate)));
    }
    let event = event.verify().map_err(|error| {
        EventAnswer::refused(error.id, format!("{}: {}", Prefix::Invalid, error.reason))
    })?;
    Ok(CheckedEvent { event, is_known })
}

/// A sync often sends known events, and a lookup is far cheaper than a signature check. For private
/// events the signature is checked first, so that only their author learns that they are stored.
/// After a failed flush a known event may not be durable, so the writer answers.
fn is_known(relay: &RelayState, event: &Event) -> bool {
    // A known request to vanish is answered when all its targets are gone. Expired events stay
    // known for a moment.
    let vanishes = event.kind() == VANISH;
    let has_expired = event.expires_at().is_some_and(|second| second <= relay.service.now());
    !vanishes
        && !has_expired
        && relay.index.sets().shows(&event.item())
        && relay.index.store().is_durable()
}

/// Passes the event to the write policy.
async fn judge(
    relay: &RelayState,
    event: VerifiedEvent,
    source: &Source,
) -> Result<VerifiedEvent, EventAnswer> {
    let verdict = relay.admission.judge(std::slice::from_ref(&event), source).await.pop();
    match verdict {
        Some(Judgement::Accept) => Ok(event),
        Some(Judgement::Reject(refusal)) => Err(refusal.into()),
        Some(Judgement::ShadowReject) => Err(EventAnswer::shadow(event.id_hex())),
        None => Err(EventAnswer::refused(
            Some(event.id_hex()),
            Prefix::Error.before("no verdict; try again"),
        )),
    }
}

/// The answer to the sender of an event, and its label among the metrics.
struct EventAnswer {
    // `None` if the event was malformed.
    id: Option<String>,
    accepted: bool,
    reason: String,
    counted: &'static str,
}

impl EventAnswer {
    fn refused(id: Option<String>, reason: String) -> Self {
        let counted = Prefix::of(&reason).map_or("", Prefix::as_str);
        Self { id, accepted: false, reason, counted }
    }

    /// The answer that pretends that the event is stored.
    fn shadow(id: String) -> Self {
        let counted = Prefix::Blocked.as_str();
        Self { id: Some(id), accepted: true, reason: String::new(), counted }
    }

    /// The answer for the store's outcome; `None` if there was no outcome.
    fn stored(id: String, outcome: Option<Outcome>) -> Self {
        let refused =
            |counted, prefix: Prefix, reason: &str| (counted, false, prefix.before(reason));
        let (counted, accepted, reason) = match outcome {
            Some(Outcome::Stored) => ("stored", true, String::new()),
            Some(Outcome::PassedOn) => ("passed_on", true, String::new()),
            Some(Outcome::Duplicate) => {
                ("duplicate", true, Prefix::Duplicate.before("already have this event"))
            }
            // Clients know strfry's wording; NIP-01 has no prefix for it.
            Some(Outcome::Superseded) => {
                refused("superseded", Prefix::Replaced, "have newer event")
            }
            Some(Outcome::Deleted) => refused("deleted", Prefix::Blocked, "deleted by its author"),
            Some(Outcome::RemovedByOperator) => {
                refused("blocked", Prefix::Blocked, "removed by the relay's operator")
            }
            Some(Outcome::Retired) => {
                let reason = "retention: older than what this relay keeps";
                refused("blocked", Prefix::Blocked, reason)
            }
            Some(Outcome::DeletesTooMuch) => {
                let reason = "more is deleted by this author than a relay can remember";
                refused("blocked", Prefix::Blocked, reason)
            }
            Some(Outcome::Vanished) => {
                refused("vanished", Prefix::Blocked, "its author or addressee has vanished")
            }
            Some(Outcome::Expired) => {
                refused("expired", Prefix::Invalid, "expiration: the event has expired")
            }
            Some(Outcome::Failed(reason)) => refused("failed", Prefix::Error, &reason),
            _ => refused("failed", Prefix::Error, "the store gave no answer"),
        };
        Self { id: Some(id), accepted, reason, counted }
    }

    /// The message.
    fn text(&self) -> String {
        match (&self.id, self.accepted) {
            (Some(id), accepted) => message::ok(id, accepted, &self.reason),
            (None, _) => message::not_taken(None, &self.reason),
        }
    }
}

impl From<Refusal> for EventAnswer {
    fn from(refusal: Refusal) -> Self {
        Self::refused(refusal.id, refusal.text)
    }
}
