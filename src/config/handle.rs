//! The current configuration, shared through a handle.

use super::{Config, ConfigError, TakesEffect};
use arc_swap::ArcSwap;
use std::sync::Arc;

/// The result of a reload, by key, such as `limits.filters`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Reloaded {
    /// Keys whose new value is in effect.
    pub changed: Vec<String>,
    /// Keys that keep their old value until a restart.
    pub needs_restart: Vec<String>,
}

/// The current configuration. Clones share it.
#[derive(Debug, Clone)]
pub struct ConfigHandle {
    current: Arc<ArcSwap<Config>>,
}

impl ConfigHandle {
    /// A handle with `config` as the current configuration.
    pub fn new(config: Config) -> Self {
        Self { current: Arc::new(ArcSwap::from_pointee(config)) }
    }

    /// The current configuration. Work in progress continues with the one it loaded.
    pub fn load(&self) -> Arc<Config> {
        self.current.load_full()
    }

    /// Applies `config`, except for keys that need a restart.
    ///
    /// # Errors
    /// As [`Config::check`]; the configuration is then unchanged.
    pub fn reload(&self, config: Config) -> Result<Reloaded, ConfigError> {
        config.check()?;
        let restart: Vec<String> = Config::keys()
            .into_iter()
            .filter(|key| key.takes_effect == TakesEffect::Restart)
            .map(|key| key.name)
            .collect();
        let mut reloaded = Reloaded::default();
        self.current.rcu(|current| {
            let (needs_restart, changed) =
                current.differing_keys(&config).into_iter().partition(|key| restart.contains(key));
            reloaded = Reloaded { changed, needs_restart };
            current.reloaded(config.clone())
        });
        Ok(reloaded)
    }
}

impl From<Config> for ConfigHandle {
    fn from(config: Config) -> Self {
        Self::new(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::LogFormat;

    #[test]
    fn keys_that_need_a_restart_keep_their_value_and_are_named() {
        let handle = ConfigHandle::new(Config::default());
        let begun = handle.load();
        let mut config = Config::default();
        config.relay.listen = "127.0.0.1:1".parse().unwrap();
        config.relay.name = "another".into();
        config.store.readers = 3;
        config.index.memory_mb = 1;
        config.limits.filters = 7;
        config.log.format = LogFormat::Json;
        config.log.level = "debug".into();
        let reloaded = handle.reload(config.clone()).unwrap();
        assert_eq!(reloaded.changed, ["limits.filters", "log.level", "relay.name"]);
        let restart = ["index.memory_mb", "log.format", "relay.listen", "store.readers"];
        assert_eq!(reloaded.needs_restart, restart);
        assert_eq!(handle.load().differing_keys(&config), restart);
        assert_eq!(*begun, Config::default());
        // The same file again: keys that need a restart still do.
        let again = handle.reload(config).unwrap();
        assert_eq!((again.changed.len(), again.needs_restart.len()), (0, 4));
    }

    #[test]
    fn a_number_out_of_bounds_leaves_everything_as_it_was() {
        let handle = ConfigHandle::new(Config::default());
        let mut config = Config::default();
        config.relay.name = "another".into();
        config.limits.filters = 0;
        let error = handle.reload(config).unwrap_err().to_string();
        assert_eq!(error, "limits.filters = 0: it must be from 1 to 1000");
        assert_eq!(*handle.load(), Config::default());
    }
}
