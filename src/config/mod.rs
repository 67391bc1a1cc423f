//! What `relay.toml` says. The file in the project's root is the default, key by key.

mod attach;
mod auth;
mod bounds;
mod connections;
mod database_url;
mod difference;
mod error;
mod handle;
mod limits;
mod listen_address;
mod log;
mod memory_shares;
mod metrics;
mod moderation;
mod network;
mod page;
mod proxy;
mod rates;
mod relay;
mod retention;
mod section;
mod source;
mod store;
mod sync;
#[cfg(test)]
mod tests;
mod write_policy;

pub use attach::AttachConfig;
pub use auth::{AuthConfig, PublicKeys};
pub use connections::ConnectionsConfig;
pub use database_url::DatabaseUrl;
pub use error::ConfigError;
pub use handle::{ConfigHandle, Reloaded};
pub use limits::{Limits, NegentropyConfig};
pub use listen_address::{ListenAddress, ListenAddressError};
pub use log::{LogConfig, LogFormat};
pub use metrics::MetricsConfig;
pub use moderation::ModerationConfig;
pub use network::{Network, NetworkError};
pub use page::PageConfig;
pub use proxy::{Proxy, ProxyError, ProxyProtocol, Via};
pub use rates::RatesConfig;
pub use relay::RelayConfig;
pub use retention::RetentionConfig;
pub use section::{ConfigKey, TakesEffect};
pub use source::{LoadedConfig, ValueOrigin};
pub use store::{IndexConfig, StoreConfig};
pub use sync::{Direction, FilterObjects, PeerConfig, SyncConfig};
pub use write_policy::WritePolicyConfig;

use crate::store::{Batches, Clock, PrivateKinds, StoreOptions};
use negsync_nostr::RelayUrl;
use serde::{Deserialize, Serialize};

/// The whole file.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
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
            clock: Clock::system(),
        }
    }
}
