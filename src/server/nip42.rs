//! Checks AUTH events (NIP-42, Signed Event Verification), for the relay and for the sidecar.

use crate::prefix::Prefix;
use crate::store::{AUTHENTICATION, Event};
use std::fmt::Display;

/// Maximum difference between the time of an AUTH event and now, in seconds.
const MOST_AGE_S: u64 = 600;

/// Checks an AUTH event, except for its signature. `is_us` returns whether a URL is the relay's, and
/// `us` names the relay in the refusal.
///
/// # Errors
/// The refusal, with its prefix.
pub(crate) fn check(
    event: &Event,
    challenge: &str,
    is_us: impl Fn(&str) -> bool,
    us: impl Display,
    now: u64,
) -> Result<(), String> {
    if event.kind() != AUTHENTICATION {
        return Err(Prefix::Invalid.before("kind: AUTH takes 22242"));
    }
    if event.item().created_at.abs_diff(now) > MOST_AGE_S {
        return Err(Prefix::Invalid
            .before(format_args!("created_at: more than ten minutes from now, which is {now}")));
    }
    if !event.tag_values("challenge").iter().any(|value| value == challenge) {
        return Err(Prefix::Invalid.before(format_args!(
            "challenge: is not the one that this connection was given, {challenge}"
        )));
    }
    if !event.tag_values("relay").iter().any(|url| is_us(url)) {
        return Err(
            Prefix::Invalid.before(format_args!("relay: is not the URL of this relay, {us}"))
        );
    }
    Ok(())
}
