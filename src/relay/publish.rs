//! EVENT (NIP-01): verified, admitted, stored, and answered once it is durable.

use super::auth::Auth;
use super::client::Client;
use super::{Shared, message};
use crate::admission::{Refusal, Source, Verdict};
use crate::prefix::Prefix;
use crate::store::{Event, Outcome, VANISH, VerifiedEvent, unix_now};
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use std::borrow::Cow;
use std::pin::pin;
use std::sync::Arc;

/// The most events of a connection that are being verified or stored; then it is not read on.
pub(super) const EVENTS_IN_FLIGHT: usize = 1_024;
/// An event counts once for each so many bytes of its JSON: together with
/// [`EVENTS_IN_FLIGHT`], 4 MiB of a connection, or a single event, are in flight.
const BYTES_COUNTED_ONCE: usize = 4 << 10;

/// How many of a connection's permits an event of so many bytes takes.
fn permits(bytes: usize) -> u32 {
    bytes.div_ceil(BYTES_COUNTED_ONCE).clamp(1, EVENTS_IN_FLIGHT) as u32
}

/// The events of one connection that are on their way. They go on only while the connection's task
/// polls them, by one of the methods here.
#[derive(Default)]
pub(super) struct EventsInFlight {
    events: FuturesUnordered<BoxFuture<'static, ()>>,
}

impl EventsInFlight {
    /// EVENT. Returns as soon as the event is on its way; the answer comes when it is stored.
    pub(super) async fn publish(&mut self, client: &Client, json: Box<str>) {
        let room = Arc::clone(&client.events_in_flight).acquire_many_owned(permits(json.len()));
        let Ok(permit) = self.beside(room).await else { return };
        let (relay, outbox) = (Arc::clone(&client.relay), client.outbox.clone());
        let auth = Arc::clone(&client.auth);
        let source = Source::Client { address: client.place.client(), viewer: auth.viewer() };
        self.events.push(Box::pin(async move {
            let (Ok(answer) | Err(answer)) = publish(&relay, auth, source, json).await;
            relay.service.metrics.events.count(answer.counted);
            outbox.outcome(answer.text(), permit);
        }));
    }

    /// Whether none is on its way.
    pub(super) fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// Returns when none is on its way any more.
    pub(super) async fn settle(&mut self) {
        while self.events.next().await.is_some() {}
    }

    /// Does other work of the connection, and goes on with the events meanwhile.
    pub(super) async fn beside<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        tokio::select! {
            biased;
            done = &mut work => return done,
            () = self.settle(), if !self.is_empty() => {}
        }
        work.await
    }
}

/// An event on its way through the relay: what its sender is told.
async fn publish(
    relay: &Arc<Shared>,
    auth: Arc<Auth>,
    source: Source,
    json: Box<str>,
) -> Result<EventAnswer, EventAnswer> {
    let event = verify(relay, auth, &source, json).await?;
    let id = event.id_hex();
    let event = judge(relay, event, &source).await?;
    let outcome = relay.index.store().put(vec![event]).await.pop();
    Ok(EventAnswer::stored(id, outcome))
}

/// Reads the event and checks its signature, on the pool.
async fn verify(
    relay: &Arc<Shared>,
    auth: Arc<Auth>,
    source: &Source,
    json: Box<str>,
) -> Result<VerifiedEvent, EventAnswer> {
    let (shared, source) = (Arc::clone(relay), source.clone());
    let verified = relay.verifier.check(move || read(&shared, &auth, &source, &json)).await;
    verified
        .unwrap_or_else(|| Err(EventAnswer::refused(None, "error: the event could not be checked")))
}

fn read(
    relay: &Shared,
    auth: &Auth,
    source: &Source,
    json: &str,
) -> Result<VerifiedEvent, EventAnswer> {
    let event = relay.admission.read(json, source)?;
    let vanishes = event.kind() == VANISH;
    if !vanishes && is_known(relay, &event) {
        return Err(EventAnswer::stored(event.id_hex(), Some(Outcome::Duplicate)));
    }
    let is_for_us = vanishes && auth.is_us(&event.tag_values("relay"));
    let event = event.verify().map_err(|error| {
        EventAnswer::refused(error.id, format!("{}: {}", Prefix::Invalid, error.reason))
    })?;
    Ok(if is_for_us { event.for_this_relay() } else { event })
}

/// Known ids are the common case in sync, and a look is far cheaper than a signature. That a private
/// one is known is told to nobody who cannot sign it.
fn is_known(relay: &Shared, event: &Event) -> bool {
    // What has expired is known for a moment longer.
    let has_expired = event.expires_at().is_some_and(|second| second <= unix_now());
    !has_expired && relay.index.sets().shows(&event.item())
}

/// Puts the event to the write policy.
async fn judge(
    relay: &Shared,
    event: VerifiedEvent,
    source: &Source,
) -> Result<VerifiedEvent, EventAnswer> {
    let verdict = relay.admission.judge(std::slice::from_ref(&event), source).await.pop();
    match verdict {
        Some(Verdict::Accept) => Ok(event),
        Some(Verdict::Reject(refusal)) => Err(refusal.into()),
        Some(Verdict::ShadowReject) => Err(EventAnswer::shadow(event.id_hex())),
        None => Err(EventAnswer::refused(Some(event.id_hex()), "error: no verdict; try again")),
    }
}

/// What the sender of an event is told, and how it is counted.
struct EventAnswer {
    // Unknown of what is no event.
    id: Option<String>,
    accepted: bool,
    reason: Cow<'static, str>,
    counted: &'static str,
}

impl EventAnswer {
    fn refused(id: Option<String>, reason: impl Into<Cow<'static, str>>) -> Self {
        let reason = reason.into();
        let counted = Prefix::of(&reason).map_or("", Prefix::as_str);
        Self { id, accepted: false, reason, counted }
    }

    /// An event that its sender is to believe stored.
    fn shadow(id: String) -> Self {
        let counted = Prefix::Blocked.as_str();
        Self { id: Some(id), accepted: true, reason: "".into(), counted }
    }

    /// What the store has done; nothing when it gave no answer.
    fn stored(id: String, outcome: Option<Outcome>) -> Self {
        let (counted, accepted, reason): (_, _, Cow<'static, str>) = match outcome {
            Some(Outcome::Stored) => ("stored", true, "".into()),
            Some(Outcome::PassedOn) => ("passed_on", true, "".into()),
            Some(Outcome::Duplicate) => {
                ("duplicate", true, "duplicate: already have this event".into())
            }
            Some(Outcome::Superseded) => {
                ("superseded", true, "duplicate: a newer version is stored".into())
            }
            Some(Outcome::Deleted) => ("deleted", false, "blocked: deleted by its author".into()),
            Some(Outcome::Vanished) => {
                ("vanished", false, "blocked: its author or addressee has vanished".into())
            }
            Some(Outcome::Expired) => {
                ("expired", false, "invalid: expiration: the event has expired".into())
            }
            Some(Outcome::Failed(reason)) => ("failed", false, format!("error: {reason}").into()),
            None => ("failed", false, "error: the store gave no answer".into()),
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A thousand events of the longest message were gigabytes.
    #[test]
    fn events_in_flight_hold_a_bounded_number_of_bytes_whatever_their_size() {
        for bytes in (0..25).map(|power| (1 << power) + 1).chain([1, 4_095, 4_096, 256 << 10]) {
            let most = EVENTS_IN_FLIGHT / permits(bytes) as usize;
            assert!(most >= 1, "{bytes}");
            assert!(most == 1 || most * bytes <= 4 << 20, "{most} of {bytes}");
        }
        assert_eq!(EVENTS_IN_FLIGHT / permits(4_000) as usize, EVENTS_IN_FLIGHT);
    }
}
