//! EVENT (NIP-01): read and verified on the pool, stored by the writer, answered once durable.

use super::auth::Auth;
use super::client::Client;
use super::outbox::Outbox;
use super::{Shared, message, permission};
use crate::policy::{Source, Verdict};
use crate::store::{EventError, Outcome, VANISH, VerifiedEvent, read_within_limits, unix_now};
use std::sync::Arc;
use tokio::sync::OwnedSemaphorePermit;

/// The most events of a connection that are being verified or stored; then it is not read on.
pub(super) const EVENTS_IN_FLIGHT: usize = 1_024;
/// An event counts once for each so many bytes of its JSON: together with
/// [`EVENTS_IN_FLIGHT`], 4 MiB of a connection, or a single event, are in flight.
const BYTES_COUNTED_ONCE: usize = 4 << 10;

/// EVENT. Returns as soon as the event is on its way; the answer comes when it is stored.
pub(super) async fn publish(client: &Client, json: Box<str>) {
    let in_flight = Arc::clone(&client.events_in_flight);
    let Ok(permit) = in_flight.acquire_many_owned(permits(json.len())).await else { return };
    let (relay, outbox) = (Arc::clone(&client.relay), client.outbox.clone());
    let auth = Arc::clone(&client.auth);
    let verifier = client.relay.verifier.clone();
    let source = Source::client(client.place.client());
    verifier.run(move || accept(&json, &relay, &auth, &source, outbox, permit)).await;
}

/// How many of a connection's permits an event of so many bytes takes.
fn permits(bytes: usize) -> u32 {
    bytes.div_ceil(BYTES_COUNTED_ONCE).clamp(1, EVENTS_IN_FLIGHT) as u32
}

fn accept(
    json: &str,
    relay: &Arc<Shared>,
    auth: &Auth,
    source: &Source,
    outbox: Outbox,
    permit: OwnedSemaphorePermit,
) {
    let event = match read_within_limits(json, &relay.config().limits) {
        Ok(event) => event,
        Err(error) => return outbox.outcome(refuse(relay, error), permit),
    };
    let id = event.id_hex();
    if let Err(reason) = permission::may_publish(&relay.config().auth, &auth.viewer(), &event) {
        relay.service.metrics.events.count_prefix(reason);
        return outbox.outcome(message::ok(&id, false, reason), permit);
    }
    // A request to vanish that is known is answered when all is gone, and what has expired is known
    // for a moment longer.
    let vanishes = event.kind() == VANISH;
    let is_over = event.expires_at().is_some_and(|second| second <= unix_now());
    // Known ids are the common case in sync, and a look is far cheaper than a signature. That a
    // private one is known is told to nobody who cannot sign it.
    if !vanishes && !is_over && relay.index.sets().shows(&event.item()) {
        return outbox.outcome(answer(relay, &id, &Outcome::Duplicate), permit);
    }
    match event.verify() {
        Ok(event) => {
            let judged_for = Arc::clone(relay);
            relay.policy.judge(vec![event], source, move |mut judged| {
                let Some((event, verdict)) = judged.pop() else { return };
                match unwanted(&judged_for, &id, &verdict) {
                    Some(answer) => outbox.outcome(answer, permit),
                    None => store(&judged_for, id, event, outbox, permit),
                }
            });
        }
        Err(error) => outbox.outcome(refuse(relay, error), permit),
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
    permit: OwnedSemaphorePermit,
) {
    let told = Arc::clone(relay);
    let reply = move |outcomes: Vec<Outcome>| {
        let failed = Outcome::Failed("the store gave no answer".into());
        let outcome = outcomes.first().unwrap_or(&failed);
        outbox.outcome(answer(&told, &id, outcome), permit);
    };
    relay.index.store().submit(vec![event], Box::new(reply));
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
        Outcome::Vanished => ("vanished", false, "blocked: its author or addressee has vanished"),
        Outcome::Expired => ("expired", false, "invalid: expiration: the event has expired"),
        Outcome::Failed(reason) => ("failed", false, &*format!("error: {reason}")),
    };
    relay.service.metrics.events.count(counted);
    message::ok(id, accepted, text)
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
