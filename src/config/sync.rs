//! Whom the relay asks, and how.

use super::Within;
use super::section::section;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

section! {
    /// `[sync]`
    #[derive(Default)]
    pub struct SyncConfig {
        /// The file with the secret key for NIP-42; empty for none.
        pub key_file: PathBuf => OnReload,
        /// The file with the certificates (PEM) of authorities that are believed beside the public ones;
        /// empty for none.
        pub ca_file: PathBuf => OnReload,
        /// Whether protected events (NIP-70) are moved.
        pub protected: bool => OnReload,
    }
}

/// `[[peer]]`
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PeerConfig {
    /// The peer's `ws://` or `wss://` URL.
    pub url: String,
    /// Which events, as a NIP-01 filter; all of them without it.
    #[serde(default)]
    pub filter: serde_json::Map<String, serde_json::Value>,
    /// Which way events move.
    #[serde(default)]
    pub direction: Direction,
    /// The seconds between the end of a sync and the next.
    #[serde(default = "interval_s")]
    pub interval_s: Within<1, 31_536_000>,
    /// Whether events are passed on as they come.
    #[serde(default)]
    pub live: bool,
}

fn interval_s() -> Within<1, 31_536_000> {
    Within::new(300)
}

/// Which way events move in a sync.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// From the peer to us.
    Down,
    /// From us to the peer.
    Up,
    /// Both.
    #[default]
    Both,
}

impl Direction {
    /// As it is written in `relay.toml`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Down => "down",
            Self::Up => "up",
            Self::Both => "both",
        }
    }

    /// Whether events come from the peer.
    pub fn is_down(self) -> bool {
        self != Self::Up
    }

    /// Whether events go to the peer.
    pub fn is_up(self) -> bool {
        self != Self::Down
    }
}
