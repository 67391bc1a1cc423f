//! The configuration in `relay.toml`. The file in the project's root has the defaults, key by key.

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

use crate::store::{PrivateKinds, StoreOptions};
use negsync_nostr::RelayUrl;
use serde::{Deserialize, Serialize};

/// The whole configuration.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Config {
    /// The address and the description of the relay.
    pub relay: RelayConfig,
    /// The storage of events and its durability.
    pub store: StoreConfig,
    /// The number of clients and their timeouts.
    pub connections: ConnectionsConfig,
    /// Limits on the requests of a client.
    pub limits: Limits,
    /// Rate limits.
    pub rates: RatesConfig,
    /// Limits of NIP-77.
    pub negentropy: NegentropyConfig,
    /// Permissions.
    pub auth: AuthConfig,
    /// The memory of the index.
    pub index: IndexConfig,
    /// Bans and management.
    pub moderation: ModerationConfig,
    /// Retention of events.
    pub retention: RetentionConfig,
    /// The operator's program that decides about events.
    pub write_policy: WritePolicyConfig,
    /// Settings of syncs.
    pub sync: SyncConfig,
    /// The peers that the relay keeps in sync with.
    #[serde(
        rename = "peer",
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "sync::peers"
    )]
    pub peers: Vec<PeerConfig>,
    /// Another relay, for `negsync attach`.
    pub attach: AttachConfig,
    /// Who may see the metrics.
    pub metrics: MetricsConfig,
    /// The page for browsers.
    pub page: PageConfig,
    /// The log.
    pub log: LogConfig,
}

impl Config {
    /// The options with which all commands open the store, so that they share its index files.
    pub fn store_options(&self) -> StoreOptions {
        let private_kinds = PrivateKinds::new(self.auth.private_kinds.iter().copied());
        StoreOptions::default()
            .synchronous(self.store.synchronous)
            .readers(self.store.readers)
            .cache_mb(self.store.cache_mb)
            .wal_mb(self.store.wal_mb)
            .private_kinds(private_kinds.clone())
            .private_times(private_kinds)
            .relay_url(RelayUrl::parse(&self.auth.relay_url).ok())
            // A command without a configuration uses the rules that the relay has recorded in the
            // store.
            .retention(Some(self.retention.retention()).filter(|it| !it.is_empty()))
    }
}
