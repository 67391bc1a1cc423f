//! AUTH (NIP-42): a client proves its keys by signing the challenge that it got at the start of the
//! connection.

use super::{RelayState, message};
use crate::config::{AuthConfig, PublicKeys};
use crate::hex;
use crate::prefix::Prefix;
use crate::relay_url::{RelayName, RelayUrl};
use crate::server::nip42;
use crate::store::{Event, EventError, Origin, PrivateKinds, Viewer};
use sha2::{Digest, Sha256};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Maximum number of keys that a connection may authenticate.
const MOST_KEYS: usize = 16;
/// Maximum length of an AUTH event, in bytes: it contains a challenge and a URL.
const AUTH_BYTES: usize = 16 << 10;

/// Creates an unpredictable challenge for each connection.
pub(super) struct Challenges {
    secret: [u8; 32],
    made: AtomicU64,
}

impl Challenges {
    pub(super) fn new() -> Self {
        // A secret key is 32 bytes of the system's randomness.
        let secret = nostr::SecretKey::generate().to_secret_bytes();
        Self { secret, made: AtomicU64::new(0) }
    }

    fn next(&self) -> String {
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        let mut hash = Sha256::new();
        hash.update(self.secret);
        hash.update(number.to_be_bytes());
        hex::encode(hash.finalize().get(..16).unwrap_or_default())
    }
}

/// The authentication state of one connection.
pub(super) struct ClientAuth {
    challenge: String,
    // The URL by which the client knows this relay; `None` if its request had no host.
    us: Option<RelayName>,
    private: PrivateKinds,
    viewer: Mutex<Viewer>,
}

impl ClientAuth {
    /// A client without authentication; `host` is the `Host` header of its request.
    pub(super) fn new(
        challenges: &Challenges,
        config: &AuthConfig,
        private: &PrivateKinds,
        host: Option<&str>,
    ) -> Self {
        let configured = RelayUrl::parse(&config.relay_url).ok().map(|url| url.name());
        Self {
            challenge: challenges.next(),
            us: configured.or_else(|| RelayName::of_host(host?)),
            private: private.clone(),
            viewer: Mutex::new(Viewer::new(private.clone(), [])),
        }
    }

    #[cfg(test)]
    pub(super) fn stranger() -> Self {
        let (config, private) = (AuthConfig::default(), PrivateKinds::default());
        Self::new(&Challenges::new(), &config, &private, None)
    }

    pub(super) fn challenge(&self) -> &str {
        &self.challenge
    }

    /// The events that the client may see now.
    pub(super) fn viewer(&self) -> Viewer {
        self.lock().clone()
    }

    /// Whether the client may see the event now.
    pub(super) fn sees(&self, event: &Event) -> bool {
        self.lock().sees(event)
    }

    /// Checks an AUTH event, except for its signature.
    fn check(&self, event: &Event, now: u64) -> Result<(), String> {
        let is_us = |url: &str| self.us.as_ref().is_some_and(|us| us.is(url));
        let name = self.us.as_ref().map_or_else(|| "unknown".to_owned(), ToString::to_string);
        nip42::check(event, &self.challenge, is_us, name, now)?;
        let viewer = self.lock();
        if viewer.keys().len() >= MOST_KEYS && !viewer.keys().contains(event.pubkey()) {
            return Err(Prefix::Restricted.before("this connection has shown enough keys"));
        }
        Ok(())
    }

    fn admit(&self, key: [u8; 32], mirrors: &PublicKeys) {
        let mut viewer = self.lock();
        let keys = viewer.keys().iter().copied().chain([key]);
        let sees_all = viewer.sees_all() || mirrors.contains(&key);
        *viewer = Viewer::new(self.private.clone(), keys).seeing_all(sees_all);
    }

    fn lock(&self) -> MutexGuard<'_, Viewer> {
        self.viewer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the answer to AUTH. The connection waits for it, because later messages depend on it.
pub(super) async fn answer(
    auth: &ClientAuth,
    relay: &RelayState,
    origin: &Origin,
    json: &str,
) -> String {
    if json.len() > AUTH_BYTES {
        let text = Prefix::Invalid
            .before(format_args!("AUTH takes an event of at most {AUTH_BYTES} bytes"));
        relay.service.metrics.auth.count_prefix(&text);
        // Finding the id takes time too.
        let (bytes, json) = (json.len(), json.to_owned());
        let id =
            relay.verifier.check(origin, bytes, move || Event::claimed_id(&json)).await.flatten();
        return message::not_taken(id.as_deref(), &text);
    }
    let (id, shown) = match Event::parse(json) {
        Ok(event) => (Some(event.id_hex()), show(auth, relay, origin, event).await),
        Err(error) => (error.id.clone(), Err(invalid(&error))),
    };
    match (id, shown) {
        (Some(id), Ok(())) => {
            relay.service.metrics.auth.count("accepted");
            message::ok(&id, true, "")
        }
        (id, shown) => {
            let reason = shown.err().unwrap_or_default();
            relay.service.metrics.auth.count_prefix(&reason);
            message::not_taken(id.as_deref(), &reason)
        }
    }
}

/// Adds the event's author to the authenticated keys, or returns a refusal.
async fn show(
    auth: &ClientAuth,
    relay: &RelayState,
    origin: &Origin,
    event: Event,
) -> Result<(), String> {
    auth.check(&event, relay.service.now())?;
    let bytes = event.json().len();
    let verified = relay.verifier.check(origin, bytes, move || event.verify()).await;
    let verified =
        verified.ok_or_else(|| Prefix::Error.before("the signature could not be checked"))?;
    let event = verified.map_err(|error| invalid(&error))?;
    auth.admit(*event.pubkey(), &relay.config().auth.mirror_keys);
    Ok(())
}

fn invalid(error: &EventError) -> String {
    Prefix::Invalid.before(&error.reason)
}
