//! `[auth]`: permissions by authenticated key (NIP-42).

use super::section::section;
use crate::hex;
use crate::relay_url::RelayUrl;
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};

section! {
    /// `[auth]`
    pub struct AuthConfig {
        /// The relay's own URL; if empty, the one that each client used.
        #[serde(deserialize_with = "relay_url")]
        pub relay_url: String => Restart,
        /// Whether every request requires authentication.
        pub required: bool => OnReload,
        /// Kinds that are visible only to their author and addressees.
        pub private_kinds: Vec<u16> => Restart,
        /// The authors whose events are accepted; empty for all.
        pub publish_keys: PublicKeys => OnReload,
        /// The keys that may reconcile; empty for all.
        pub sync_keys: PublicKeys => OnReload,
        /// The keys that see every event and may publish any.
        pub mirror_keys: PublicKeys => NewConnections,
    }
}

impl Default for AuthConfig {
    fn default() -> Self {
        Self {
            relay_url: String::new(),
            required: false,
            private_kinds: vec![4, 13, 14, 15, 1_059, 21_059],
            publish_keys: PublicKeys::default(),
            sync_keys: PublicKeys::default(),
            mirror_keys: PublicKeys::default(),
        }
    }
}

/// Public keys, written as 64 hex digits or as npub.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub struct PublicKeys(Vec<[u8; 32]>);

impl PublicKeys {
    /// Whether the list is empty.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the list contains the key.
    pub fn contains(&self, key: &[u8; 32]) -> bool {
        self.0.binary_search(key).is_ok()
    }
}

impl FromIterator<[u8; 32]> for PublicKeys {
    fn from_iter<I: IntoIterator<Item = [u8; 32]>>(keys: I) -> Self {
        let mut keys: Vec<[u8; 32]> = keys.into_iter().collect();
        keys.sort_unstable();
        keys.dedup();
        Self(keys)
    }
}

impl TryFrom<Vec<String>> for PublicKeys {
    type Error = String;

    fn try_from(texts: Vec<String>) -> Result<Self, String> {
        let key = |text: &String| {
            let key = nostr::PublicKey::parse(text).map(|key| key.to_bytes());
            key.map_err(|_| format!("{text:?} is neither 64 hex digits nor an npub"))
        };
        texts.iter().map(key).collect()
    }
}

impl From<PublicKeys> for Vec<String> {
    fn from(keys: PublicKeys) -> Self {
        keys.0.iter().map(|key| hex::encode(key)).collect()
    }
}

fn relay_url<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    let is_url = text.is_empty() || RelayUrl::parse(&text).is_ok();
    is_url
        .then_some(text)
        .ok_or_else(|| D::Error::custom("must be a ws:// or wss:// URL, or empty"))
}
