//! The key that tells peers who we are (NIP-42).

use super::SyncError;
use crate::config::SyncConfig;
use nostr::Keys;

/// The environment variable that holds a secret key.
const KEY_VARIABLE: &str = "NEGSYNC_KEY";

/// The key from the environment, else from the configured file.
pub(super) fn configured_keys(config: &SyncConfig) -> Result<Option<Keys>, SyncError> {
    let (place, text) = match std::env::var(KEY_VARIABLE) {
        Ok(text) if !text.is_empty() => (format!("${KEY_VARIABLE}"), Ok(text)),
        _ if config.key_file.as_os_str().is_empty() => return Ok(None),
        _ => {
            let read = std::fs::read_to_string(&config.key_file);
            (config.key_file.display().to_string(), read)
        }
    };
    let wrong = |reason: String| SyncError::Key { place: place.clone(), reason };
    let text = text.map_err(|error| wrong(error.to_string()))?;
    // The reason must not repeat any of the key.
    let keys = Keys::parse(text.trim());
    keys.map(Some).map_err(|_| wrong("is neither 64 hex digits nor an nsec".to_owned()))
}
