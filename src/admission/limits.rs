//! Checks an event against `[limits]`. The errors name the field that exceeds its limit.

use crate::config::Limits;
use crate::store::{Event, VANISH};

/// Checks the sizes of an event, and that a request to vanish names a relay. The length is that of
/// the stored form, without the white space and escapes of the received JSON.
pub(super) fn check_form(event: &Event, limits: &Limits) -> Result<(), String> {
    let (bytes, most) = (event.json().len(), limits.longest_event());
    if bytes > most {
        return Err(format!("event: {bytes} bytes, maximum {most}"));
    }
    if event.tag_count() > limits.event_tags {
        let most = limits.event_tags;
        return Err(format!("tags: {}, maximum {most}", event.tag_count()));
    }
    if event.content_chars() > limits.content_chars {
        let most = limits.content_chars;
        return Err(format!("content: {} characters, maximum {most}", event.content_chars()));
    }
    if event.kind() == VANISH && event.tag_values("relay").iter().all(String::is_empty) {
        return Err("relay: a request to vanish (NIP-62) has to name a relay, or ALL_RELAYS".into());
    }
    Ok(())
}

/// Checks that an event is neither too old nor too far in the future.
pub(super) fn check_time(event: &Event, limits: &Limits, now: u64) -> Result<(), String> {
    let created_at = event.item().created_at;
    let (ahead, behind) = (limits.created_at_ahead_s, limits.created_at_behind_s);
    if behind > 0 && created_at < now.saturating_sub(behind) {
        return Err(format!("created_at: more than {behind} seconds in the past"));
    }
    if created_at > now.saturating_add(ahead) {
        return Err(format!("created_at: more than {ahead} seconds in the future"));
    }
    Ok(())
}
