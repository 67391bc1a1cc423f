//! The key with which the sync authenticates to peers (NIP-42).

use super::SyncError;
use crate::config::SyncConfig;
use nostr::Keys;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The environment variable that holds a secret key.
const KEY_VARIABLE: &str = "NEGSYNC_KEY";

/// The key from the environment, or else from the configured file.
pub(super) fn configured_keys(config: &SyncConfig) -> Result<Option<Keys>, SyncError> {
    let (place, text) = match std::env::var(KEY_VARIABLE) {
        Ok(text) if !text.is_empty() => (format!("${KEY_VARIABLE}"), Ok(text)),
        _ if config.key_file.as_os_str().is_empty() => return Ok(None),
        _ => {
            check_permissions(&config.key_file)?;
            let read = std::fs::read_to_string(&config.key_file);
            (config.key_file.display().to_string(), read)
        }
    };
    let wrong = |reason: String| SyncError::Key { place: place.clone(), reason };
    let text = text.map_err(|error| wrong(error.to_string()))?;
    // The error must not contain any part of the key.
    let keys = Keys::parse(text.trim());
    keys.map(Some).map_err(|_| wrong("is neither 64 hex digits nor an nsec".to_owned()))
}

/// Refuses a key file that others can read, as ssh does. Group access is allowed on request of the
/// administrator: some services get their secrets in files owned by root and their own group.
fn check_permissions(file: &Path) -> Result<(), SyncError> {
    // If the metadata cannot be read, reading the file fails too, with a better error.
    let Ok(metadata) = file.metadata() else { return Ok(()) };
    let mode = metadata.mode() & 0o777;
    let is_open = mode & 0o007 != 0 || mode & 0o070 != 0 && metadata.uid() != 0;
    if is_open && metadata.is_file() {
        return Err(SyncError::KeyPermissions { file: file.to_owned(), mode });
    }
    Ok(())
}
