//! Checks AUTH events (NIP-42, Signed Event Verification), for the relay and for the sidecar.

use crate::prefix::Prefix;
use crate::store::{AUTHENTICATION, Event};

/// Maximum difference between the time of an AUTH event and now, in seconds.
const MOST_AGE_S: u64 = 600;

/// Checks an AUTH event, except for its signature. `is_us` returns whether a URL is the relay's.
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
