//! What `relay.toml` says. The file in the project's root is the default, key by key.

use crate::store::Synchronous;
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// A whole number between two bounds, both included; anything else is refused where it stands in
/// the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Within<const LEAST: u64, const MOST: u64>(u64);

impl<const LEAST: u64, const MOST: u64> Within<LEAST, MOST> {
    /// The number, kept between the bounds.
    pub const fn new(number: u64) -> Self {
        let number = if number < LEAST { LEAST } else { number };
        Self(if number > MOST { MOST } else { number })
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The number as a size or count in memory.
    pub const fn size(self) -> usize {
        self.0 as usize
    }
}

impl<'de, const LEAST: u64, const MOST: u64> Deserialize<'de> for Within<LEAST, MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = i64::deserialize(deserializer)?;
        u64::try_from(number)
            .ok()
            .filter(|number| (LEAST..=MOST).contains(number))
            .map(Self)
            .ok_or_else(|| D::Error::custom(format!("{number} is not between {LEAST} and {MOST}")))
    }
}

/// The whole file.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where the relay listens and what it says of itself.
    pub relay: RelayConfig,
    /// Where events are kept and how safely.
    pub store: StoreConfig,
    /// What a client may ask for.
    pub limits: Limits,
    /// Limits of NIP-77.
    pub negentropy: NegentropyConfig,
    /// Memory of the index.
    pub index: IndexConfig,
    /// How this store asks others.
    pub sync: SyncConfig,
    /// The peers that the relay keeps in sync with.
    #[serde(rename = "peer", skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<PeerConfig>,
    /// What is logged.
    pub log: LogConfig,
}

/// `[relay]`
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct RelayConfig {
    /// Address and port of WebSocket and HTTP.
    pub listen: SocketAddr,
    /// NIP-11 `name`.
    pub name: String,
    /// NIP-11 `description`.
    pub description: String,
    /// NIP-11 `contact`; empty leaves it out.
    pub contact: String,
    /// NIP-11 `pubkey`; empty leaves it out.
    #[serde(deserialize_with = "public_key")]
    pub pubkey: String,
}

impl Default for RelayConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7777)),
            name: "negsync".into(),
            description: "A Nostr relay that stays in sync".into(),
            contact: String::new(),
            pubkey: String::new(),
        }
    }
}

/// `[store]`
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct StoreConfig {
    /// The SQLite file.
    pub path: PathBuf,
    /// What an acknowledged event survives.
    pub synchronous: Synchronous,
    /// Connections that read at the same time.
    pub readers: Within<1, 256>,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            path: PathBuf::from("negsync.sqlite"),
            synchronous: Synchronous::Full,
            readers: Within::new(8),
        }
    }
}

/// `[limits]`
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// The longest WebSocket message taken.
    pub message_bytes: Within<1_024, 1_073_741_824>,
    /// The longest event taken, as JSON.
    pub event_bytes: Within<512, 1_073_741_824>,
    /// The most tags of an event.
    pub event_tags: Within<0, 1_000_000>,
    /// How far ahead an event's `created_at` may be.
    pub created_at_ahead_s: Within<0, 4_294_967_295>,
    /// Subscriptions a connection.
    pub subscriptions: Within<1, 10_000>,
    /// Filters a message.
    pub filters: Within<1, 1_000>,
    /// Values in all lists of a filter.
    pub filter_values: Within<1, 1_000_000>,
    /// Bytes of a subscription id.
    pub subscription_id_bytes: Within<1, 1_024>,
    /// Stored events that answer one filter.
    pub events_per_filter: Within<1, 1_000_000>,
    /// How long a client may take nothing of what it is sent.
    pub send_timeout_s: Within<1, 3_600>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            message_bytes: Within::new(4 << 20),
            event_bytes: Within::new(256 << 10),
            event_tags: Within::new(5_000),
            created_at_ahead_s: Within::new(900),
            subscriptions: Within::new(64),
            filters: Within::new(32),
            filter_values: Within::new(10_000),
            subscription_id_bytes: Within::new(64),
            events_per_filter: Within::new(5_000),
            send_timeout_s: Within::new(60),
        }
    }
}

/// `[negentropy]`
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct NegentropyConfig {
    /// The most items of a session's set.
    pub max_sync_events: Within<1, 1_000_000_000>,
    /// The longest NEG-MSG sent, before hex; 0 for no limit.
    #[serde(deserialize_with = "frame_limit")]
    pub frame_limit_bytes: u64,
    /// NEG sessions a connection.
    pub sessions: Within<1, 10_000>,
}

impl Default for NegentropyConfig {
    fn default() -> Self {
        Self {
            max_sync_events: Within::new(10_000_000),
            frame_limit_bytes: 500_000,
            sessions: Within::new(64),
        }
    }
}

/// `[index]`
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct IndexConfig {
    /// Memory for kept sets.
    pub memory_mb: Within<0, 1_048_576>,
}

impl Default for IndexConfig {
    fn default() -> Self {
        Self { memory_mb: Within::new(256) }
    }
}

/// `[sync]`
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct SyncConfig {
    /// The file with the secret key for NIP-42; empty for none.
    pub key_file: PathBuf,
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
    /// Whether events come from the peer.
    pub fn is_down(self) -> bool {
        self != Self::Up
    }

    /// Whether events go to the peer.
    pub fn is_up(self) -> bool {
        self != Self::Down
    }
}

/// `[log]`
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// A level, or directives by module.
    #[serde(deserialize_with = "log_level")]
    pub level: String,
    /// How a line is written.
    pub format: LogFormat,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { level: "info".into(), format: LogFormat::Text }
    }
}

/// How a log line is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Why a configuration file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A line of it is wrong.
    #[error("{path}, line {line}: {key}{message}", path = path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// The key on that line and a colon, where there is one.
        key: String,
        /// What is wrong.
        message: String,
    },
}

impl Config {
    /// Reads a configuration file.
    ///
    /// # Errors
    /// With the line and the key when a key is unknown or a value is bad.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text, path)
    }

    /// Reads a configuration from text; `path` is only for the error.
    ///
    /// # Errors
    /// As [`Config::read`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        toml::from_str(text).map_err(|error| {
            let start = error.span().map_or(0, |span| span.start);
            let before = text.get(..start).unwrap_or("");
            let line = before.matches('\n').count() + 1;
            let key = text
                .lines()
                .nth(line - 1)
                .and_then(|line| line.split_once('='))
                .map_or(String::new(), |(key, _)| format!("{}: ", key.trim()));
            ConfigError::Invalid {
                path: path.to_owned(),
                line,
                key,
                message: error.message().to_owned(),
            }
        })
    }
}

fn public_key<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    let is_key = text.is_empty() || nostr::PublicKey::from_hex(&text).is_ok();
    is_key.then_some(text).ok_or_else(|| D::Error::custom("must be 64 hex digits, or empty"))
}

/// Checked here, because `tracing` takes any word for the name of a module.
fn log_level<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let text = String::deserialize(deserializer)?;
    for directive in text.split(',') {
        let level = directive.rsplit_once('=').map_or(directive, |(_, level)| level).trim();
        if !LEVELS.contains(&level) {
            return Err(D::Error::custom(format!("{level:?} is not one of {}", LEVELS.join(", "))));
        }
    }
    Ok(text)
}

fn frame_limit<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let number = i64::deserialize(deserializer)?;
    u64::try_from(number)
        .ok()
        .filter(|bytes| *bytes == 0 || (4_096..=1_073_741_824).contains(bytes))
        .ok_or_else(|| D::Error::custom(format!("{number} is neither 0 nor at least 4096")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHIPPED: &str = include_str!("../relay.toml");

    fn keys(value: &toml::Value, path: &str, found: &mut Vec<String>) {
        match value.as_table() {
            Some(table) => {
                table.iter().for_each(|(key, value)| keys(value, &format!("{path}.{key}"), found));
            }
            None => found.push(path.to_owned()),
        }
    }

    #[test]
    fn the_shipped_file_holds_every_key_with_its_default() {
        let shipped = Config::parse(SHIPPED, Path::new("relay.toml")).unwrap();
        assert_eq!(shipped, Config::default());
        let mut in_file = Vec::new();
        keys(&toml::Value::Table(toml::from_str(SHIPPED).unwrap()), "", &mut in_file);
        let mut in_program = Vec::new();
        keys(&toml::Value::try_from(Config::default()).unwrap(), "", &mut in_program);
        in_file.sort();
        in_program.sort();
        assert_eq!(in_file, in_program);
    }

    #[test]
    fn a_bad_file_is_refused_with_key_and_line() {
        for (text, line, key) in [
            ("[relay]\nnam = \"x\"", 2, "nam"),
            ("[limits]\n\nfilters = 0", 3, "filters"),
            ("[limits]\nfilters = \"many\"", 2, "filters"),
            ("[negentropy]\nframe_limit_bytes = 100", 2, "frame_limit_bytes"),
            ("[relay]\nlisten = \"here\"", 2, "listen"),
            ("[relay]\npubkey = \"npub\"", 2, "pubkey"),
            ("[store]\nsynchronous = \"off\"", 2, "synchronous"),
            ("[nothing]\nx = 1", 1, "nothing"),
            ("[[peer]]\nurl = \"ws://a\"\ndirection = \"in\"", 3, "direction"),
            ("[[peer]]\nurl = \"ws://a\"\ninterval_s = 0", 3, "interval_s"),
            ("[relay\n", 1, ""),
        ] {
            let error = Config::parse(text, Path::new("a.toml")).unwrap_err().to_string();
            assert!(error.starts_with(&format!("a.toml, line {line}: ")), "{text}: {error}");
            assert!(error.contains(key), "{text}: {error}");
        }
    }
}
