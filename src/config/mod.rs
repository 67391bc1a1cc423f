//! What `relay.toml` says. The file in the project's root is the default, key by key.

mod attach;
mod auth;
mod bounds;
mod connections;
mod database_url;
mod difference;
mod handle;
mod limits;
mod listen_address;
mod metrics;
mod moderation;
mod network;
mod page;
mod proxy;
mod rates;
mod retention;
mod section;
mod source;
mod sync;
mod write_policy;

pub use attach::AttachConfig;
pub use auth::{AuthConfig, PublicKeys};
pub use connections::ConnectionsConfig;
pub use database_url::DatabaseUrl;
pub use handle::{ConfigHandle, Reloaded};
pub use limits::{Limits, NegentropyConfig};
pub use listen_address::{ListenAddress, ListenAddressError};
pub use metrics::MetricsConfig;
pub use moderation::ModerationConfig;
pub use network::{Network, NetworkError};
pub use page::PageConfig;
pub use proxy::{Proxy, ProxyError, ProxyProtocol, Via};
pub use rates::RatesConfig;
pub use retention::RetentionConfig;
pub use section::{ConfigKey, TakesEffect};
pub use source::{LoadedConfig, ValueOrigin};
pub use sync::{Direction, FilterObjects, PeerConfig, SyncConfig};
pub use write_policy::WritePolicyConfig;

use crate::memory::Memory;
use crate::store::{Batches, PrivateKinds, StoreOptions, Synchronous};
use negsync_nostr::RelayUrl;
use section::{Section, section};
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use toml::Spanned;

/// The shares of the memory: one part in so many for the pages that the writer works on, for kept sets,
/// and for sets that only NEG sessions hold.
const CACHE_PARTS: u64 = 8;
const SETS_PARTS: u64 = 8;
const SESSIONS_PARTS: u64 = 4;
/// For the filters of all subscriptions.
const SUBSCRIPTIONS_PARTS: u64 = 16;
/// And for what waits for the socket of one connection, and for those of all.
const OUTBOUND_PARTS: u64 = 1_024;
const OUTBOUND_IN_ALL_PARTS: u64 = 16;

/// The whole file.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where the relay listens and what it says of itself.
    pub relay: RelayConfig,
    /// Where events are kept and how safely.
    pub store: StoreConfig,
    /// How many clients there may be.
    pub connections: ConnectionsConfig,
    /// What a client may ask for.
    pub limits: Limits,
    /// How often a client may ask.
    pub rates: RatesConfig,
    /// Limits of NIP-77.
    pub negentropy: NegentropyConfig,
    /// Who may do and see what.
    pub auth: AuthConfig,
    /// Memory of the index.
    pub index: IndexConfig,
    /// What the operator does not want.
    pub moderation: ModerationConfig,
    /// What is kept, and for how long.
    pub retention: RetentionConfig,
    /// The operator's own program that decides about events.
    pub write_policy: WritePolicyConfig,
    /// How this store asks others.
    pub sync: SyncConfig,
    /// The peers that the relay keeps in sync with.
    #[serde(rename = "peer", skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<PeerConfig>,
    /// Another relay, for `negsync attach`.
    pub attach: AttachConfig,
    /// Who may see what the relay measures.
    pub metrics: MetricsConfig,
    /// The page for browsers.
    pub page: PageConfig,
    /// What is logged.
    pub log: LogConfig,
}

impl Config {
    /// How the store is opened, by every command in the same way, so that one goes on from the index
    /// files of another.
    pub fn store_options(&self) -> StoreOptions {
        let private_kinds = PrivateKinds::new(self.auth.private_kinds.iter().copied());
        StoreOptions {
            synchronous: self.store.synchronous,
            readers: self.store.readers,
            cache_mb: self.store.cache_mb,
            wal_mb: self.store.wal_mb,
            private_kinds: private_kinds.clone(),
            private_times: Some(private_kinds),
            relay_url: RelayUrl::parse(&self.auth.relay_url).ok(),
            // Whoever has no configuration goes by what the relay has put into the store.
            retention: Some(self.retention.retention()).filter(|it| !it.is_empty()),
            batches: Batches::Short,
        }
    }
}

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
        /// Names by which the operator reaches the relay, beside addresses, names without a dot and
        /// the host of the relay's URL.
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

section! {
    /// `[store]`
    pub struct StoreConfig {
        /// The SQLite file.
        #[serde(deserialize_with = "store_path")]
        pub path: PathBuf => Restart,
        /// The PostgreSQL database in place of the file; empty for none.
        pub url: DatabaseUrl => Restart,
        /// What an acknowledged event survives.
        pub synchronous: Synchronous => Restart,
        /// Connections that read at the same time.
        pub readers: usize where 1..=256 => Restart,
        /// Memory for the pages that the writer works on.
        pub cache_mb: usize where 1..=65_536 => Restart,
        /// The length at which the write-ahead log is moved into the file.
        pub wal_mb: usize where 1..=65_536 => Restart,
    }
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            path: PathBuf::from("negsync.sqlite"),
            url: DatabaseUrl::default(),
            synchronous: Synchronous::Full,
            readers: 16,
            cache_mb: 256,
            wal_mb: 256,
        }
    }
}

impl StoreConfig {
    /// The store as people name it, without a password.
    pub fn name(&self) -> String {
        if self.url.is_empty() { self.path.display().to_string() } else { self.url.to_string() }
    }

    /// A file that goes with the store: its name with `ending`, or in the working directory where the
    /// store is a database.
    pub fn file_beside(&self, ending: &str) -> PathBuf {
        let store = if self.url.is_empty() { self.path.as_os_str() } else { "negsync".as_ref() };
        let mut name = store.to_owned();
        name.push(ending);
        name.into()
    }
}

section! {
    /// `[index]`
    pub struct IndexConfig {
        /// Memory for kept sets.
        pub memory_mb: usize where 0..=1_048_576 => Restart,
    }
}

impl Default for IndexConfig {
    fn default() -> Self {
        Self { memory_mb: 256 }
    }
}

section! {
    /// `[log]`
    pub struct LogConfig {
        /// A level, or directives by module.
        #[serde(deserialize_with = "log_level")]
        pub level: String => OnReload,
        /// How a line is written.
        pub format: LogFormat => Restart,
    }
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
#[non_exhaustive]
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
    /// A program has set a number that is out of bounds.
    #[error("{key} = {number}: it must be from {least} to {most}")]
    OutOfBounds {
        /// The key, such as `limits.filters`.
        key: String,
        /// What was set.
        number: u64,
        /// The least number.
        least: u64,
        /// The greatest number.
        most: u64,
    },
    /// A program has set values that contradict each other.
    #[error("{message}")]
    Contradiction {
        /// Which, and what to do.
        message: String,
    },
    /// An environment variable is wrong.
    #[error("environment variable {variable}: {message}")]
    Variable {
        /// Its name.
        variable: String,
        /// What is wrong.
        message: String,
    },
}

impl Config {
    /// Lowers what caches and sets may take to shares of the memory that is there. Whether anything was
    /// lowered.
    #[doc(hidden)]
    pub fn fit(&mut self, memory: Memory) -> bool {
        let before = self.clone();
        let share = |parts, configured: usize| memory.share(parts, configured << 20) >> 20;
        self.store.cache_mb = share(CACHE_PARTS, self.store.cache_mb);
        self.index.memory_mb = share(SETS_PARTS, self.index.memory_mb);
        self.negentropy.memory_mb = share(SESSIONS_PARTS, self.negentropy.memory_mb);
        self.limits.subscription_memory_mb =
            share(SUBSCRIPTIONS_PARTS, self.limits.subscription_memory_mb);
        let outbound = &mut self.connections.outbound_bytes;
        *outbound = memory.share(OUTBOUND_PARTS, *outbound);
        let in_all = &mut self.connections.outbound_bytes_in_all;
        *in_all = memory.share(OUTBOUND_IN_ALL_PARTS, *in_all);
        self.store.clamp();
        self.negentropy.clamp();
        self.limits.clamp();
        self.connections.clamp();
        before != *self
    }

    /// Reads a configuration file, and no environment variables: see [`Config::load`].
    ///
    /// # Errors
    /// With the line and the key when a key is unknown or a value is bad.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        Self::parse(&read_text(path)?, path)
    }

    /// Reads a configuration from text; `path` is only for the error.
    ///
    /// # Errors
    /// As [`Config::read`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        Ok(Self::load_text(text, path, [])?.config)
    }
}

fn read_text(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })
}

/// Reads each value by itself; whether they contradict each other is not looked at.
fn parse_file(text: &str, path: &Path) -> Result<Config, ConfigError> {
    toml::from_str(text).map_err(|error| {
        let line = line_at(text, error.span().map_or(0, |span| span.start));
        let key = text
            .lines()
            .nth(line - 1)
            .and_then(|line| line.split_once('='))
            .map_or(String::new(), |(key, _)| format!("{}: ", key.trim()));
        let message = error.message().to_owned();
        ConfigError::Invalid { path: path.to_owned(), line, key, message }
    })
}

impl ConfigError {
    /// That an event is allowed more than a message: where the one stands in the text, else where
    /// the other does.
    fn of_event_bytes(text: &str, path: &Path, message: String) -> Self {
        #[derive(Deserialize)]
        struct Tables {
            limits: BTreeMap<String, Spanned<toml::Value>>,
        }
        let tables = toml::from_str::<Tables>(text).ok();
        let limit = |key: &'static str| Some((key, tables.as_ref()?.limits.get(key)?));
        let found = limit("event_bytes").or_else(|| limit("message_bytes"));
        let (key, start) = found.map_or(("limits", 0), |(key, value)| (key, value.span().start));
        let line = line_at(text, start);
        Self::Invalid { path: path.to_owned(), line, key: format!("{key}: "), message }
    }

    /// That a `key` of a `[[peer]]` is wrong, the one that is `place`-th in the text, from 0.
    fn in_peer(text: &str, path: &Path, place: usize, key: &str, message: String) -> Self {
        #[derive(Deserialize)]
        struct PeerTables {
            peer: Vec<BTreeMap<String, Spanned<toml::Value>>>,
        }
        let peers = toml::from_str::<PeerTables>(text).ok();
        let value = peers.as_ref().and_then(|it| it.peer.get(place)?.get(key));
        let line = line_at(text, value.map_or(0, |value| value.span().start));
        Self::Invalid { path: path.to_owned(), line, key: format!("{key}: "), message }
    }
}

/// The line, from 1, of the byte at `start`.
fn line_at(text: &str, start: usize) -> usize {
    text.get(..start).unwrap_or("").matches('\n').count() + 1
}

fn web_url<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    let is_web =
        |text: &str| nostr::Url::parse(text).is_ok_and(|url| url.scheme().starts_with("http"));
    let is_url = text.is_empty() || is_web(&text);
    is_url.then_some(text).ok_or_else(|| D::Error::custom("must be an https:// URL, or empty"))
}

fn store_path<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    let path = PathBuf::deserialize(deserializer)?;
    if path.to_str().is_some_and(|text| text.contains("://")) {
        return Err(D::Error::custom("must name a file; a database goes into url"));
    }
    let is_named = !path.as_os_str().is_empty();
    is_named.then_some(path).ok_or_else(|| D::Error::custom("must name a file"))
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

#[cfg(test)]
mod tests {
    use super::*;

    const SHIPPED: &str = include_str!("../../relay.toml");

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
    fn every_key_says_when_a_change_takes_effect() {
        let mut in_program = Vec::new();
        keys(&toml::Value::try_from(Config::default()).unwrap(), "", &mut in_program);
        let in_program: Vec<&str> = in_program.iter().map(|key| &key[1..]).collect();
        let mut described: Vec<String> =
            Config::keys().into_iter().map(|key| key.name).filter(|key| key != "peer").collect();
        described.sort();
        assert_eq!(described, in_program);
    }

    /// The comment above a key ends with its mark; keys that share a comment share it.
    #[test]
    fn the_shipped_file_says_of_every_key_when_a_change_takes_effect() {
        let (mut section, mut comment, mut found) = ("", "", BTreeMap::new());
        for line in SHIPPED.lines() {
            if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
                section = name;
            } else if line.starts_with("# [[peer]]") {
                section = "peer";
            } else if let Some(text) = line.strip_prefix("# ").filter(|text| !is_commented(text)) {
                comment = text;
            } else if let Some((key, _)) = line.trim_start_matches("# ").split_once(" = ") {
                found.insert(format!("{section}.{key}"), comment);
            }
        }
        for ConfigKey { name, takes_effect } in Config::keys() {
            let is_its = |key: &str| key == name || key.starts_with(&format!("{name}."));
            let comments: Vec<_> = found.iter().filter(|(key, _)| is_its(key)).collect();
            assert!(!comments.is_empty(), "{name} is not in relay.toml");
            for (key, comment) in comments {
                assert!(comment.ends_with(takes_effect.mark()), "{key}: {comment}");
            }
        }
    }

    /// Whether it is a key of the peer that stands there as an example.
    fn is_commented(text: &str) -> bool {
        text.split_once(" = ").is_some_and(|(key, _)| !key.contains(' '))
    }

    #[test]
    fn on_a_small_machine_memory_is_shared_out_and_on_a_large_one_nothing_changes() {
        let mut config = Config::default();
        assert!(!config.fit(Memory::of_bytes(64 << 30)));
        assert_eq!(config, Config::default());
        assert!(config.fit(Memory::of_bytes(256 << 20)));
        let shares = (config.store.cache_mb, config.index.memory_mb, config.negentropy.memory_mb);
        assert_eq!(shares, (32, 32, 64));
        assert_eq!(config.limits.subscription_memory_mb, 16);
        assert_eq!(config.connections.outbound_bytes, 256 << 10);
        assert_eq!(config.connections.outbound_bytes_in_all, 16 << 20);
        config.store.cache_mb = 5;
        assert!(!config.fit(Memory::of_bytes(256 << 20)));
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
            ("[relay]\nicon = \"icon.png\"", 2, "icon"),
            ("[relay]\nterms_of_service = \"javascript:alert(1)\"", 2, "terms_of_service"),
            ("[store]\nsynchronous = \"off\"", 2, "synchronous"),
            ("[store]\npath = \"\"", 2, "path"),
            ("[store]\npath = \"postgres://db/events\"", 2, "path"),
            ("[store]\nurl = \"mysql://db/events\"", 2, "url"),
            ("[store]\npath = \"a\"\nurl = \"postgres://db/events\"", 3, "url"),
            ("[auth]\nrelay_url = \"relay.example\"", 2, "relay_url"),
            ("[auth]\nsync_keys = [\"nobody\"]", 2, "sync_keys"),
            ("[auth]\nprivate_kinds = [70000]", 2, "private_kinds"),
            ("[nothing]\nx = 1", 1, "nothing"),
            ("[[peer]]\nurl = \"ws://a\"\ndirection = \"in\"", 3, "direction"),
            ("[[peer]]\nurl = \"http://a\"", 2, "url"),
            ("[[peer]]\nurl = \"ws://a\"\n[[peer]]\nurl = \"WS://A:80/\"", 4, "url"),
            ("[[peer]]\nurl = \"ws://a\"\ninterval_s = 0", 3, "interval_s"),
            ("[relay\n", 1, ""),
        ] {
            let error = Config::parse(text, Path::new("a.toml")).unwrap_err().to_string();
            assert!(error.starts_with(&format!("a.toml, line {line}: ")), "{text}: {error}");
            assert!(error.contains(key), "{text}: {error}");
        }
    }
}
