//! A section of `relay.toml`, each key of which says when a changed value takes effect.

use super::{
    AttachConfig, AuthConfig, Config, ConnectionsConfig, IndexConfig, Limits, LogConfig,
    MetricsConfig, ModerationConfig, NegentropyConfig, PageConfig, RatesConfig, RelayConfig,
    RetentionConfig, StoreConfig, SyncConfig, WritePolicyConfig,
};

/// When a changed key takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TakesEffect {
    /// At SIGHUP, for everybody.
    OnReload,
    /// At SIGHUP, for connections that are opened after it.
    NewConnections,
    /// At the next start.
    Restart,
}

impl TakesEffect {
    /// The mark at the end of the key's comment in `relay.toml`.
    pub fn mark(self) -> &'static str {
        match self {
            Self::OnReload => "[reload]",
            Self::NewConnections => "[new connections]",
            Self::Restart => "[restart]",
        }
    }
}

/// A key of `relay.toml`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConfigKey {
    /// Section and key, such as `limits.filters`. All peers together are the key `peer`.
    pub name: String,
    /// When a changed value takes effect.
    pub takes_effect: TakesEffect,
}

/// What [`section!`] says about a section.
pub(super) trait Section: Sized {
    /// The keys in the order of the file.
    const KEYS: &'static [(&'static str, TakesEffect)];

    /// `new`, with the values of `self` where only a restart changes them.
    fn reloaded(&self, new: Self) -> Self;
}

/// Declares a section: `pub key: Type => When,` for each key, where `When` is a variant of
/// [`TakesEffect`].
macro_rules! section {
    (
        $(#[$attribute:meta])*
        pub struct $Name:ident {
            $($(#[$key_attribute:meta])* pub $key:ident: $Type:ty => $When:ident,)*
        }
    ) => {
        $(#[$attribute])*
        #[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $Name {
            $($(#[$key_attribute])* pub $key: $Type,)*
        }

        impl crate::config::section::Section for $Name {
            const KEYS: &'static [(&'static str, crate::config::TakesEffect)] =
                &[$((stringify!($key), crate::config::TakesEffect::$When)),*];

            fn reloaded(&self, new: Self) -> Self {
                use crate::config::{TakesEffect, section::in_force};
                Self { $($key: in_force(TakesEffect::$When, &self.$key, new.$key)),* }
            }
        }
    };
}
pub(super) use section;

/// The value of a key after a reload.
pub(super) fn in_force<T: Clone>(takes_effect: TakesEffect, old: &T, new: T) -> T {
    if takes_effect == TakesEffect::Restart { old.clone() } else { new }
}

impl Config {
    /// Every key of `relay.toml`.
    pub fn keys() -> Vec<ConfigKey> {
        fn of<S: Section>(section: &'static str) -> impl Iterator<Item = ConfigKey> {
            S::KEYS.iter().map(move |(key, takes_effect)| ConfigKey {
                name: format!("{section}.{key}"),
                takes_effect: *takes_effect,
            })
        }
        let peers = ConfigKey { name: "peer".to_owned(), takes_effect: TakesEffect::OnReload };
        of::<RelayConfig>("relay")
            .chain(of::<StoreConfig>("store"))
            .chain(of::<ConnectionsConfig>("connections"))
            .chain(of::<Limits>("limits"))
            .chain(of::<RatesConfig>("rates"))
            .chain(of::<NegentropyConfig>("negentropy"))
            .chain(of::<AuthConfig>("auth"))
            .chain(of::<IndexConfig>("index"))
            .chain(of::<ModerationConfig>("moderation"))
            .chain(of::<RetentionConfig>("retention"))
            .chain(of::<WritePolicyConfig>("write_policy"))
            .chain(of::<SyncConfig>("sync"))
            .chain([peers])
            .chain(of::<MetricsConfig>("metrics"))
            .chain(of::<AttachConfig>("attach"))
            .chain(of::<PageConfig>("page"))
            .chain(of::<LogConfig>("log"))
            .collect()
    }

    /// `new`, with the values of `self` where only a restart changes them.
    pub(super) fn reloaded(&self, new: Self) -> Self {
        Self {
            relay: self.relay.reloaded(new.relay),
            store: self.store.reloaded(new.store),
            connections: self.connections.reloaded(new.connections),
            limits: self.limits.reloaded(new.limits),
            rates: self.rates.reloaded(new.rates),
            negentropy: self.negentropy.reloaded(new.negentropy),
            auth: self.auth.reloaded(new.auth),
            index: self.index.reloaded(new.index),
            moderation: self.moderation.reloaded(new.moderation),
            retention: self.retention.reloaded(new.retention),
            write_policy: self.write_policy.reloaded(new.write_policy),
            sync: self.sync.reloaded(new.sync),
            peers: new.peers,
            metrics: self.metrics.reloaded(new.metrics),
            attach: self.attach.reloaded(new.attach),
            page: self.page.reloaded(new.page),
            log: self.log.reloaded(new.log),
        }
    }
}
