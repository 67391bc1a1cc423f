//! Telling a peer who we are (NIP-42).

use super::SyncError;
use super::message;
use super::peer::{Peer, PeerError};
use crate::config::SyncConfig;
use nostr::{EventBuilder, JsonUtil, Keys, RelayUrl};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The most challenges of one connection that are answered.
const MOST_CHALLENGES: u32 = 4;

/// The environment variable that holds a secret key.
const KEY_VARIABLE: &str = "NEGSYNC_KEY";

/// The key from the environment, else from the configured file.
pub(super) fn configured_keys(config: &SyncConfig) -> Result<Option<Keys>, SyncError> {
    let (place, text) = match std::env::var(KEY_VARIABLE) {
        Ok(text) if !text.is_empty() => (format!("${KEY_VARIABLE}"), Ok(text)),
        _ if config.key_file.as_os_str().is_empty() => return Ok(None),
        _ => {
            let place = config.key_file.display().to_string();
            check_permissions(&config.key_file)?;
            (place, std::fs::read_to_string(&config.key_file))
        }
    };
    let wrong = |reason: String| SyncError::Key { place: place.clone(), reason };
    let text = text.map_err(|error| wrong(error.to_string()))?;
    // The reason must not repeat any of the key.
    let keys = Keys::parse(text.trim());
    keys.map(Some).map_err(|_| wrong("is neither 64 hex digits nor an nsec".to_owned()))
}

/// As ssh does, refuses a key that others can read. A group is allowed where the administrator says so:
/// services are handed their secrets in files of root's and their own group.
fn check_permissions(file: &Path) -> Result<(), SyncError> {
    // What cannot be looked at cannot be read either, which says why.
    let Ok(metadata) = file.metadata() else { return Ok(()) };
    let mode = metadata.mode() & 0o777;
    let is_open = mode & 0o007 != 0 || mode & 0o070 != 0 && metadata.uid() != 0;
    if is_open && metadata.is_file() {
        return Err(SyncError::KeyPermissions { file: file.to_owned(), mode });
    }
    Ok(())
}

/// The state of authentication on one connection.
pub(super) struct Auth {
    keys: Option<Keys>,
    relay: String,
    challenges: u32,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// The peer has not asked.
    Unasked,
    /// The answer is under way, with this id.
    UnderWay([u8; 32]),
    /// The peer knows us.
    Known,
    /// The peer does not take our word, or we have no key to give it.
    Refused,
}

impl Auth {
    pub(super) fn new(keys: Option<Keys>, relay: &str) -> Self {
        Self { keys, relay: relay.to_owned(), challenges: 0, state: State::Unasked }
    }

    /// Whether what is refused for want of authentication may still be granted.
    pub(super) fn may_help(&self) -> bool {
        self.keys.is_some() && self.state != State::Refused
    }

    /// Whether the answer to a challenge is under way.
    pub(super) fn is_under_way(&self) -> bool {
        matches!(self.state, State::UnderWay(_))
    }

    /// Whether the peer has accepted who we are.
    pub(super) fn is_known(&self) -> bool {
        self.state == State::Known
    }

    /// Signs a challenge.
    pub(super) fn challenged(&mut self, peer: &Peer, challenge: &str) -> Result<(), PeerError> {
        self.challenges += 1;
        let (Some(keys), Ok(relay)) = (&self.keys, RelayUrl::parse(&self.relay)) else {
            return Ok(());
        };
        if self.challenges > MOST_CHALLENGES {
            return Ok(());
        }
        match EventBuilder::auth(challenge, relay).sign_with_keys(keys) {
            Ok(event) => {
                self.state = State::UnderWay(event.id.to_bytes());
                peer.send(message::auth(&event.as_json()))
            }
            Err(error) => {
                tracing::warn!(%error, "a challenge could not be signed");
                self.state = State::Refused;
                Ok(())
            }
        }
    }

    /// Takes the OK of the answer; `false` when it is another's.
    pub(super) fn answered(&mut self, id: &[u8; 32], accepted: bool) -> bool {
        if self.state != State::UnderWay(*id) {
            return false;
        }
        self.state = if accepted { State::Known } else { State::Refused };
        true
    }
}
