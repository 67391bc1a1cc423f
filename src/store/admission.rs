//! What every event has to pass before its signature is worth checking, published or synced.

use super::event::{Event, EventError, VANISH};
use super::writer::unix_now;
use crate::config::Limits;

/// Reads an event from JSON, and holds it against the limits.
///
/// # Errors
/// Names the field that is malformed or over its limit.
pub fn read_within_limits(json: &str, limits: &Limits) -> Result<Event, EventError> {
    within_limits(Event::parse(json)?, limits)
}

/// Holds an event against the limits. Its length is that of the form in which it is stored and sent,
/// whatever white space and escapes it came with.
///
/// # Errors
/// Names the field that is over its limit.
pub fn within_limits(event: Event, limits: &Limits) -> Result<Event, EventError> {
    let (now, created_at) = (unix_now(), event.item().created_at);
    let newest = now.saturating_add(limits.created_at_ahead_s.get());
    let oldest = match limits.created_at_behind_s.get() {
        0 => 0,
        behind => now.saturating_sub(behind),
    };
    let (bytes, longest) = (event.json().len(), limits.longest_event());
    let reason = if bytes > longest {
        format!("event: {bytes} bytes, {longest} at the most")
    } else if event.tag_count() > limits.event_tags.size() {
        format!("tags: {}, {} at the most", event.tag_count(), limits.event_tags.get())
    } else if event.content_chars() > limits.content_chars.size() {
        let most = limits.content_chars.get();
        format!("content: {} characters, {most} at the most", event.content_chars())
    } else if created_at < oldest {
        let behind = limits.created_at_behind_s.get();
        format!("created_at: more than {behind} seconds in the past")
    } else if created_at > newest {
        let ahead = limits.created_at_ahead_s.get();
        format!("created_at: more than {ahead} seconds in the future")
    } else if event.kind() == VANISH && event.tag_values("relay").iter().all(String::is_empty) {
        "relay: a request to vanish (NIP-62) has to name a relay, or ALL_RELAYS".into()
    } else {
        return Ok(event);
    };
    Err(EventError { id: Some(event.id_hex()), reason })
}
