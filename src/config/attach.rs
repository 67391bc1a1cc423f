//! `[attach]`: the relay behind `negsync attach`.

use super::ListenAddress;
use super::section::section;
use crate::relay_url::redacted;
use crate::store::RelayKind;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use std::path::PathBuf;

section! {
    /// `[attach]`
    pub struct AttachConfig {
        /// The relay's software; `None` for no relay.
        #[serde(deserialize_with = "kind", serialize_with = "kind_name")]
        pub kind: Option<RelayKind> => Restart,
        /// Its SQLite file; empty if it has none.
        pub path: PathBuf => Restart,
        /// Its PostgreSQL database, `postgres://USER@HOST/DATABASE`, instead of `path`.
        pub database_url: String => Restart,
        /// Its address, `ws://HOST:PORT`.
        pub url: String => Restart,
        /// The header in which the relay gets the client's address.
        pub forward_header: String => Restart,
        /// The address of `/health` and `/metrics`; `None` for none.
        #[serde(deserialize_with = "listen", serialize_with = "listen_text")]
        pub status_listen: Option<ListenAddress> => Restart,
        /// The URL by which clients know the relay (NIP-42, `relay`). If it is empty,
        /// authentication does not count for relays that do not answer AUTH.
        pub relay_url: String => Restart,
    }
}

impl Default for AttachConfig {
    fn default() -> Self {
        Self {
            kind: None,
            path: PathBuf::new(),
            database_url: String::new(),
            url: "ws://127.0.0.1:8080".into(),
            forward_header: "X-Forwarded-For".into(),
            status_listen: None,
            relay_url: String::new(),
        }
    }
}

impl AttachConfig {
    /// The relay's database for display, without a password.
    pub fn shown_database(&self) -> String {
        match self.database_url.as_str() {
            "" => self.path.display().to_string(),
            url => redacted(url),
        }
    }
}

fn kind<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<RelayKind>, D::Error> {
    let name = String::deserialize(deserializer)?;
    if name.is_empty() {
        return Ok(None);
    }
    let unknown = || {
        let names = "must be \"nostr-rs-relay\", \"nostr-relay-py\", \"nostream\" or empty";
        D::Error::custom(names)
    };
    RelayKind::named(&name).map(Some).ok_or_else(unknown)
}

fn listen<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<ListenAddress>, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.is_empty() {
        return Ok(None);
    }
    let wrong = |error| D::Error::custom(format!("{error}, or empty"));
    text.parse().map(Some).map_err(wrong)
}

fn listen_text<S: Serializer>(
    address: &Option<ListenAddress>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let text = address.as_ref().map(ToString::to_string);
    serializer.serialize_str(&text.unwrap_or_default())
}

fn kind_name<S: Serializer>(kind: &Option<RelayKind>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(kind.map_or("", RelayKind::name))
}
