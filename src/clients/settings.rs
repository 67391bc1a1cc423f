//! The configuration that is in force, and what of a new one can be put in its place without a
//! restart.

use crate::config::{AuthConfig, Config, ConnectionsConfig, RelayConfig};
use std::sync::{Arc, PoisonError, RwLock};

/// Keys, and sections by their dot, that are read once, at the start.
const FIXED: [&str; 9] = [
    "relay.listen",
    "store.",
    "index.",
    "connections.incoming_",
    "auth.relay_url",
    "auth.private_kinds",
    "attach.",
    "write_policy.",
    "log.format",
];

/// What came of a new configuration, key by key, such as `limits.filters`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reloaded {
    /// Keys whose new value is in force.
    pub changed: Vec<String>,
    /// Keys that keep their old value until a restart.
    pub needs_restart: Vec<String>,
}

/// The configuration in force; whoever is in the middle of something goes on with the one that
/// was in force when it began.
pub(crate) struct Settings {
    current: RwLock<Arc<Config>>,
}

impl Settings {
    pub(crate) fn new(config: Config) -> Self {
        Self { current: RwLock::new(Arc::new(config)) }
    }

    pub(crate) fn get(&self) -> Arc<Config> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts what can change of `config` in force.
    pub(crate) fn replace(&self, config: Config) -> Reloaded {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        let is_fixed = |key: &String| FIXED.iter().any(|fixed| key.starts_with(fixed));
        let (needs_restart, changed) =
            current.differing_keys(&config).into_iter().partition(is_fixed);
        let mut log = config.log;
        log.format = current.log.format;
        *current = Arc::new(Config {
            relay: RelayConfig { listen: current.relay.listen, ..config.relay },
            store: current.store.clone(),
            index: current.index.clone(),
            connections: ConnectionsConfig {
                incoming_bytes_per_address: current.connections.incoming_bytes_per_address,
                incoming_bytes_in_all: current.connections.incoming_bytes_in_all,
                ..config.connections
            },
            auth: AuthConfig {
                relay_url: current.auth.relay_url.clone(),
                private_kinds: current.auth.private_kinds.clone(),
                ..config.auth
            },
            attach: current.attach.clone(),
            write_policy: current.write_policy.clone(),
            log,
            ..config
        });
        Reloaded { changed, needs_restart }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{LogFormat, Within};

    #[test]
    fn what_is_fixed_stays_and_is_named_and_the_rest_is_in_force() {
        let settings = Settings::new(Config::default());
        let begun = settings.get();
        let mut config = Config::default();
        config.relay.listen = "127.0.0.1:1".parse().unwrap();
        config.relay.name = "another".into();
        config.store.readers = Within::new(3);
        config.index.memory_mb = Within::new(1);
        config.limits.filters = Within::new(7);
        config.log.format = LogFormat::Json;
        config.log.level = "debug".into();
        let reloaded = settings.replace(config.clone());
        assert_eq!(reloaded.changed, ["limits.filters", "log.level", "relay.name"]);
        let fixed = ["index.memory_mb", "log.format", "relay.listen", "store.readers"];
        assert_eq!(reloaded.needs_restart, fixed);
        assert_eq!(settings.get().differing_keys(&config), fixed);
        assert_eq!(*begun, Config::default());
        // The same file once more: what needs a restart still does.
        let again = settings.replace(config);
        assert_eq!((again.changed.len(), again.needs_restart.len()), (0, 4));
    }
}
