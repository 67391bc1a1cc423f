//! Permissions of a client, by its authenticated keys. A refusal begins with `auth-required: ` if
//! authentication may help, and with `restricted: ` if the keys lack the permission (NIP-42).

use crate::config::{AuthConfig, PublicKeys};
use crate::moderation::BanList;
use crate::prefix::Prefix;
use crate::store::{AUTHENTICATION, Event, Filter, VANISH, Viewer};

/// Checks that the client may publish the event.
///
/// # Errors
/// The refusal, with its prefix.
pub(crate) fn may_publish(
    config: &AuthConfig,
    bans: &BanList,
    viewer: &Viewer,
    event: &Event,
) -> Result<(), String> {
    if event.kind() == AUTHENTICATION {
        return Err(Prefix::Invalid.before("kind: 22242 goes into AUTH and is never published"));
    }
    if viewer.sees_all() {
        return Ok(());
    }
    // NIP-70: only the author may publish it.
    if event.is_protected() && !viewer.keys().contains(event.pubkey()) {
        return Err(refusal(viewer, "this event may only be published by its author"));
    }
    if event.holds_protected() {
        return Err(Prefix::Blocked.before("a repost must not hold a protected event"));
    }
    // NIP-62: requests to vanish are accepted from every author.
    if event.kind() == VANISH {
        return Ok(());
    }
    may_do_anything(config, viewer)?;
    let keys = &config.publish_keys;
    let is_allowed = |key: &[u8; 32]| keys.contains(key) || bans.allows(key);
    if keys.is_empty() || is_allowed(event.pubkey()) || viewer.keys().iter().any(is_allowed) {
        return Ok(());
    }
    Err(refusal(viewer, "only listed keys may publish here"))
}

/// Checks that the client may ask for the filters. Events that it may not see are left out of the
/// answer; the request is refused only if the answer could not contain any event.
///
/// # Errors
/// The refusal, with its prefix.
pub(crate) fn may_read(
    config: &AuthConfig,
    viewer: &Viewer,
    filters: &[Filter],
) -> Result<(), String> {
    may_do_anything(config, viewer)?;
    if viewer.needs_keys_for(filters) {
        return Err(
            Prefix::AuthRequired.before("these kinds are shown to their authors and addressees")
        );
    }
    Ok(())
}

/// Checks that the client may reconcile the filters.
///
/// # Errors
/// The refusal, with its prefix.
pub(crate) fn may_sync(
    config: &AuthConfig,
    viewer: &Viewer,
    filters: &[Filter],
) -> Result<(), String> {
    may_read(config, viewer, filters)?;
    may_sync_public(config, viewer)
}

/// Like [`may_sync`], for public events only.
///
/// # Errors
/// The refusal, with its prefix.
pub(crate) fn may_sync_public(config: &AuthConfig, viewer: &Viewer) -> Result<(), String> {
    may_do_anything(config, viewer)?;
    if viewer.sees_all() || config.sync_keys.is_empty() || has_shown(viewer, &config.sync_keys) {
        return Ok(());
    }
    Err(refusal(viewer, "only listed keys may reconcile here"))
}

/// Checks that the client may be served at all. A reload can withdraw this while it is connected.
///
/// # Errors
/// The refusal, with its prefix.
pub(super) fn may_do_anything(config: &AuthConfig, viewer: &Viewer) -> Result<(), String> {
    if config.required && viewer.keys().is_empty() {
        return Err(Prefix::AuthRequired.before("this relay serves clients that show who they are"));
    }
    Ok(())
}

fn has_shown(viewer: &Viewer, keys: &PublicKeys) -> bool {
    viewer.keys().iter().any(|key| keys.contains(key))
}

fn refusal(viewer: &Viewer, reason: &str) -> String {
    let is_stranger = viewer.keys().is_empty();
    if is_stranger { Prefix::AuthRequired } else { Prefix::Restricted }.before(reason)
}
