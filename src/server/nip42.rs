//! What an AUTH event has to say (NIP-42, Signed Event Verification), for the relay and for the plugin
//! before another one.

use crate::prefix::Prefix;
use crate::store::{AUTHENTICATION, Event};

/// How far the time of an AUTH event may be from now, in seconds.
const MOST_AGE_S: u64 = 600;

/// Checks everything about an AUTH event but its signature. `is_us` knows the URL of the relay.
///
/// # Errors
/// The refusal, with its prefix.
pub(crate) fn check(
    event: &Event,
    challenge: &str,
    is_us: impl Fn(&str) -> bool,
    now: u64,
) -> Result<(), String> {
    if event.kind() != AUTHENTICATION {
        return Err(Prefix::Invalid.before("kind: AUTH takes 22242"));
    }
    if event.item().created_at.abs_diff(now) > MOST_AGE_S {
        return Err(Prefix::Invalid.before("created_at: more than ten minutes from now"));
    }
    if !event.tag_values("challenge").iter().any(|value| value == challenge) {
        return Err(
            Prefix::Invalid.before("challenge: is not the one that this connection was given")
        );
    }
    if !event.tag_values("relay").iter().any(|url| is_us(url)) {
        return Err(Prefix::Invalid.before("relay: is not the URL of this relay"));
    }
    Ok(())
}
