//! EVENT (NIP-01): read and verified on the pool, stored by the writer, answered once durable.

use super::auth::Auth;
use super::client::Client;
use super::outbox::Outbox;
use super::{Shared, message, permission};
use crate::clients::limits::{EventShare, event_cost};
use crate::policy::{Source, Verdict};
use crate::store::{
    EventError, Origin, Outcome, VANISH, VerifiedEvent, read_within_limits, unix_now,
};
use std::sync::Arc;
use tokio::sync::OwnedSemaphorePermit;

/// What the events of a connection that are being verified or stored may cost; then it is not read on.
pub(super) const EVENTS_IN_FLIGHT: usize = 1_024;

/// What an event that is being verified or stored holds.
struct UnderWay {
    origin: Origin,
    // Until its answer has been sent.
    permit: OwnedSemaphorePermit,
    // Until its outcome is known: a client that does not read must not keep others waiting.
    _share: EventShare,
}

/// EVENT. Returns as soon as the event is on its way; the answer comes when it is stored.
pub(super) async fn publish(client: &Client, json: Box<str>) {
    let (in_flight, cost) = (Arc::clone(&client.events_in_flight), event_cost(&json));
    let permits = cost.min(EVENTS_IN_FLIGHT as u32);
    let Ok(permit) = in_flight.acquire_many_owned(permits).await else { return };
    let share = client.place.event_share(cost).await;
    let bytes = json.len();
    let under_way = UnderWay { origin: client.origin(), permit, _share: share };
    let (relay, outbox) = (Arc::clone(&client.relay), client.outbox.clone());
    let auth = Arc::clone(&client.auth);
    let source = Source::client(client.place.client());
    let accept = move || accept(&json, &relay, &auth, &source, outbox, under_way);
    client.relay.verifier.run(&client.origin(), bytes, accept);
}

fn accept(
    json: &str,
    relay: &Arc<Shared>,
    auth: &Auth,
    source: &Source,
    outbox: Outbox,
    under_way: UnderWay,
) {
    let event = match read_within_limits(json, &relay.config().limits) {
        Ok(event) => event,
        Err(error) => return under_way.answer(&outbox, refuse(relay, error)),
    };
    let id = event.id_hex();
    if let Err(reason) = permission::may_publish(&relay.config().auth, &auth.viewer(), &event) {
        relay.service.metrics.events.count_prefix(reason);
        return under_way.answer(&outbox, message::ok(&id, false, reason));
    }
    // A request to vanish that is known is answered when all is gone, and what has expired is known
    // for a moment longer.
    let vanishes = event.kind() == VANISH;
    let is_over = event.expires_at().is_some_and(|second| second <= unix_now());
    // Known ids are the common case in sync, and a look is far cheaper than a signature. That a
    // private one is known is told to nobody who cannot sign it. After a flush that failed what is
    // known may not be on the disk, and the writer answers.
    let is_known = !vanishes && !is_over && relay.index.sets().shows(&event.item());
    if is_known && relay.index.store().is_durable() {
        return under_way.answer(&outbox, answer(relay, &id, &Outcome::Duplicate));
    }
    match event.verify() {
        Ok(event) => {
            let judged_for = Arc::clone(relay);
            relay.policy.judge(vec![event], source, move |mut judged| {
                let Some((event, verdict)) = judged.pop() else { return };
                match unwanted(&judged_for, &id, &verdict) {
                    Some(answer) => under_way.answer(&outbox, answer),
                    None => store(&judged_for, id, event, outbox, under_way),
                }
            });
        }
        Err(error) => under_way.answer(&outbox, refuse(relay, error)),
    }
}

impl UnderWay {
    fn answer(self, outbox: &Outbox, text: String) {
        outbox.outcome(text, self.permit);
    }
}

/// The answer about an event that the write policy does not accept.
fn unwanted(relay: &Shared, id: &str, verdict: &Verdict) -> Option<String> {
    let (accepted, text) = match verdict {
        Verdict::Accepted => return None,
        Verdict::Refused(reason) => (false, reason.as_str()),
        Verdict::RefusedQuietly => (true, ""),
        Verdict::Unknown => (false, "error: the write policy does not answer; try again"),
    };
    relay.service.metrics.events.count_prefix(if text.is_empty() { "blocked:" } else { text });
    Some(message::ok(id, accepted, text))
}

fn store(
    relay: &Arc<Shared>,
    id: String,
    event: VerifiedEvent,
    outbox: Outbox,
    under_way: UnderWay,
) {
    let (told, origin) = (Arc::clone(relay), under_way.origin.clone());
    let reply = move |outcomes: Vec<Outcome>| {
        let failed = Outcome::Failed("the store gave no answer".into());
        let outcome = outcomes.first().unwrap_or(&failed);
        under_way.answer(&outbox, answer(&told, &id, outcome));
    };
    relay.index.store().submit(&origin, vec![event], Box::new(reply));
}

fn refuse(relay: &Shared, error: EventError) -> String {
    relay.service.metrics.events.count("invalid");
    message::not_taken(error.id.as_deref(), &format!("invalid: {}", error.reason))
}

/// NIP-01, OK: with the machine-readable prefixes.
fn answer(relay: &Shared, id: &str, outcome: &Outcome) -> String {
    let (counted, accepted, text) = match outcome {
        Outcome::Stored => ("stored", true, ""),
        Outcome::PassedOn => ("passed_on", true, ""),
        Outcome::Duplicate => ("duplicate", true, "duplicate: already have this event"),
        // Clients know strfry's words; NIP-01 has no prefix for it.
        Outcome::Superseded => ("superseded", false, "replaced: have newer event"),
        Outcome::Deleted => ("deleted", false, "blocked: deleted by its author"),
        Outcome::DeletesTooMuch => {
            ("blocked", false, "blocked: more is deleted by this author than a relay can remember")
        }
        Outcome::Vanished => ("vanished", false, "blocked: its author or addressee has vanished"),
        Outcome::Expired => ("expired", false, "invalid: expiration: the event has expired"),
        Outcome::Failed(reason) => ("failed", false, &*format!("error: {reason}")),
    };
    relay.service.metrics.events.count(counted);
    message::ok(id, accepted, text)
}
