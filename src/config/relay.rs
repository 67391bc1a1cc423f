//! `[relay]`: the listening address and the NIP-11 document.

use super::ListenAddress;
use super::section::section;
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use std::net::SocketAddr;

section! {
    /// `[relay]`
    pub struct RelayConfig {
        /// Address and port of WebSocket and HTTP.
        pub listen: ListenAddress => Restart,
        /// NIP-11 `name`.
        pub name: String => OnReload,
        /// NIP-11 `description`.
        pub description: String => OnReload,
        /// NIP-11 `contact`; empty leaves it out.
        pub contact: String => OnReload,
        /// NIP-11 `icon`: the URL of a picture; empty leaves it out.
        #[serde(deserialize_with = "web_url")]
        pub icon: String => OnReload,
        /// NIP-11 `banner`: the URL of a picture; empty leaves it out.
        #[serde(deserialize_with = "web_url")]
        pub banner: String => OnReload,
        /// NIP-11 `posting_policy`: the URL of a page; empty leaves it out.
        #[serde(deserialize_with = "web_url")]
        pub posting_policy: String => OnReload,
        /// NIP-11 `terms_of_service`: the URL of a page; empty leaves it out.
        #[serde(deserialize_with = "web_url")]
        pub terms_of_service: String => OnReload,
        /// Host names of the relay for its operator, in addition to addresses, names without a dot
        /// and the host of the relay's URL.
        #[serde(deserialize_with = "host_names")]
        pub hosts: Vec<String> => OnReload,
        /// NIP-11 `pubkey`; empty leaves it out.
        #[serde(deserialize_with = "public_key")]
        pub pubkey: String => OnReload,
    }
}

impl Default for RelayConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7777)).into(),
            name: "negsync".into(),
            description: "A Nostr relay that stays in sync".into(),
            contact: String::new(),
            icon: String::new(),
            banner: String::new(),
            posting_policy: String::new(),
            terms_of_service: String::new(),
            hosts: Vec::new(),
            pubkey: String::new(),
        }
    }
}

fn web_url<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    let is_web =
        |text: &str| nostr::Url::parse(text).is_ok_and(|url| url.scheme().starts_with("http"));
    let is_url = text.is_empty() || is_web(&text);
    is_url.then_some(text).ok_or_else(|| D::Error::custom("must be an https:// URL, or empty"))
}

/// Names that a `Host` header could have, without a port.
fn host_names<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let names = Vec::<String>::deserialize(deserializer)?;
    let is_name = |name: &String| {
        let is_of_name = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_');
        !name.is_empty() && name.chars().all(is_of_name)
    };
    match names.iter().find(|name| !is_name(name)) {
        None => Ok(names),
        Some(other) => Err(D::Error::custom(format!(
            "{other:?} is not a host name such as relay.lan.example.com, without ws://, port and path"
        ))),
    }
}

fn public_key<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    let is_key = text.is_empty() || nostr::PublicKey::from_hex(&text).is_ok();
    is_key.then_some(text).ok_or_else(|| D::Error::custom("must be 64 hex digits, or empty"))
}
