//! `[sync]` and `[[peer]]`: the peers of the relay, and settings of syncs.

use super::bounds::{self, Bounded};
use super::section::section;
use super::{ConfigError, Via};
use crate::relay_url::RelayUrl;
use crate::store::DAY_S;
use serde::de::value::SeqAccessDeserializer;
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use std::fmt;
use std::path::PathBuf;

section! {
    /// `[sync]`
    pub struct SyncConfig {
        /// The file with the secret key for NIP-42; empty for none.
        pub key_file: PathBuf => OnReload,
        /// The file with certificates (PEM) of authorities that are trusted in addition to the
        /// public ones; empty for none.
        pub ca_file: PathBuf => OnReload,
        /// Whether to move protected events (NIP-70).
        pub protected: bool => OnReload,
        /// Interval of complete readings of a peer without NIP-77, in seconds; in between only new
        /// events are read.
        pub full_interval_s: u64 where 60..=31_536_000 => OnReload,
        /// Time in seconds after which another node over the same database takes over the syncs of
        /// a failed node.
        pub lease_s: u64 where 3..=3_600 => OnReload,
        /// The proxy for connections to peers.
        pub proxy: Via => OnReload,
    }
}

impl Default for SyncConfig {
    fn default() -> Self {
        Self {
            key_file: PathBuf::new(),
            ca_file: PathBuf::new(),
            protected: false,
            full_interval_s: 7 * DAY_S,
            lease_s: 30,
            proxy: Via::default(),
        }
    }
}

/// `[[peer]]`
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct PeerConfig {
    /// The peer's `ws://` or `wss://` URL.
    pub url: RelayUrl,
    /// The events to sync, as one NIP-01 filter or several; all events by default.
    #[serde(default)]
    pub filter: FilterObjects,
    /// The direction of moves.
    #[serde(default)]
    pub direction: Direction,
    /// Time between the end of a sync and the next one, in seconds.
    #[serde(default = "interval_s", deserialize_with = "read_interval_s")]
    pub interval_s: u64,
    /// Whether to pass on new events between syncs.
    #[serde(default)]
    pub live: bool,
    /// The proxy for this peer, instead of the one in `[sync]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<Via>,
    /// Maximum upload rate, in KiB per second; unlimited if `None`.
    #[serde(default, deserialize_with = "read_kib_s", skip_serializing_if = "Option::is_none")]
    pub max_up_kib_s: Option<u64>,
    /// Maximum download rate, in KiB per second; unlimited if `None`.
    #[serde(default, deserialize_with = "read_kib_s", skip_serializing_if = "Option::is_none")]
    pub max_down_kib_s: Option<u64>,
}

/// Reads the `[[peer]]` sections. `[peer]` is a likely mistake.
pub(super) fn peers<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<PeerConfig>, D::Error> {
    struct Sections;

    impl<'de> Visitor<'de> for Sections {
        type Value = Vec<PeerConfig>;

        fn expecting(&self, text: &mut fmt::Formatter<'_>) -> fmt::Result {
            text.write_str("sections that begin with [[peer]]")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, sections: A) -> Result<Self::Value, A::Error> {
            Vec::deserialize(SeqAccessDeserializer::new(sections))
        }
    }

    from.deserialize_seq(Sections)
}

impl PeerConfig {
    /// A peer with the defaults of `relay.toml`.
    pub fn new(url: RelayUrl) -> Self {
        Self {
            url,
            filter: FilterObjects::default(),
            direction: Direction::default(),
            interval_s: interval_s(),
            live: false,
            proxy: None,
            max_up_kib_s: None,
            max_down_kib_s: None,
        }
    }

    /// Checks each number against its bounds.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        bounds::check("peer.interval_s", self.interval_s, LEAST_INTERVAL_S, MOST_INTERVAL_S)?;
        [("peer.max_up_kib_s", self.max_up_kib_s), ("peer.max_down_kib_s", self.max_down_kib_s)]
            .into_iter()
            .filter_map(|(key, kib_s)| Some((key, kib_s?)))
            .try_for_each(|(key, kib_s)| bounds::check(key, kib_s, LEAST_KIB_S, MOST_KIB_S))
    }
}

/// The first section with the same relay and filter as an earlier one, and the error text. Both
/// would move the same events at the same time.
pub(super) fn repeated_peer(peers: &[PeerConfig]) -> Option<(usize, String)> {
    peers.iter().enumerate().find_map(|(place, peer)| {
        let is_same = |other: &PeerConfig| {
            other.url == peer.url && other.filter.0.iter().any(|it| peer.filter.0.contains(it))
        };
        peers.iter().take(place).any(is_same).then(|| {
            let url = &peer.url;
            (
                place,
                format!("{url} is in an earlier [[peer]] with the same filter; keep one of them"),
            )
        })
    })
}

/// One filter or an array of filters, as in NIP-01; at least one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Value", into = "Value")]
pub struct FilterObjects(Vec<Map<String, Value>>);

impl FilterObjects {
    /// Each filter as JSON text.
    pub fn texts(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(|filter| Value::Object(filter.clone()).to_string())
    }
}

impl Default for FilterObjects {
    /// One filter that matches everything.
    fn default() -> Self {
        Self(vec![Map::new()])
    }
}

impl TryFrom<Value> for FilterObjects {
    type Error = &'static str;

    fn try_from(value: Value) -> Result<Self, Self::Error> {
        let object = |value| match value {
            Value::Object(filter) => Ok(filter),
            _ => Err("must be a filter, such as { kinds = [1] }, or an array of filters"),
        };
        match value {
            Value::Array(values) if values.is_empty() => Err("must hold at least one filter"),
            Value::Array(values) => {
                values.into_iter().map(object).collect::<Result<_, _>>().map(Self)
            }
            value => object(value).map(|filter| Self(vec![filter])),
        }
    }
}

impl From<FilterObjects> for Value {
    fn from(FilterObjects(mut filters): FilterObjects) -> Self {
        match filters.pop() {
            Some(filter) if filters.is_empty() => Self::Object(filter),
            last => filters.into_iter().chain(last).map(Self::Object).collect(),
        }
    }
}

const LEAST_INTERVAL_S: u64 = 1;
const MOST_INTERVAL_S: u64 = 31_536_000;
const LEAST_KIB_S: u64 = 16;
const MOST_KIB_S: u64 = 4_194_304;

fn interval_s() -> u64 {
    300
}

fn read_interval_s<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    Bounded::<LEAST_INTERVAL_S, MOST_INTERVAL_S>::deserialize(deserializer).map(Bounded::get)
}

fn read_kib_s<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    Bounded::<LEAST_KIB_S, MOST_KIB_S>::deserialize(deserializer).map(|read| Some(read.get()))
}

/// The direction in which a sync moves events.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// From the peer to us.
    Down,
    /// From us to the peer.
    Up,
    /// Both directions.
    #[default]
    Both,
}

impl Direction {
    /// The name in `relay.toml`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Down => "down",
            Self::Up => "up",
            Self::Both => "both",
        }
    }

    /// Whether events are moved from the peer.
    pub fn is_down(self) -> bool {
        self != Self::Up
    }

    /// Whether events are moved to the peer.
    pub fn is_up(self) -> bool {
        self != Self::Down
    }
}
