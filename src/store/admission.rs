//! What every event has to pass before its signature is worth checking, published or synced.

use super::event::{Event, EventError};
use super::writer::unix_now;
use crate::config::Limits;

/// Holds an event, read from `json`, against the limits.
///
/// # Errors
/// Names the field that is over its limit.
pub fn within_limits(event: Event, json: &str, limits: &Limits) -> Result<Event, EventError> {
    let newest = unix_now().saturating_add(limits.created_at_ahead_s.get());
    let reason = if json.len() > limits.event_bytes.size() {
        format!("event: {} bytes, {} at the most", json.len(), limits.event_bytes.get())
    } else if event.tag_count() > limits.event_tags.size() {
        format!("tags: {}, {} at the most", event.tag_count(), limits.event_tags.get())
    } else if event.item().created_at > newest {
        let ahead = limits.created_at_ahead_s.get();
        format!("created_at: more than {ahead} seconds in the future")
    } else {
        return Ok(event);
    };
    Err(EventError { id: Some(event.id_hex()), reason })
}
