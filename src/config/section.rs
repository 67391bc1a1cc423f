//! Sections of `relay.toml`; for each key, when a changed value takes effect.

use super::bounds::{self, KeyBounds};
use super::{
    AttachConfig, AuthConfig, Config, ConfigError, ConnectionsConfig, IndexConfig, Limits,
    LogConfig, MetricsConfig, ModerationConfig, NegentropyConfig, PageConfig, PeerConfig,
    RatesConfig, RelayConfig, RetentionConfig, StoreConfig, SyncConfig, WritePolicyConfig,
};

/// When a changed key takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TakesEffect {
    /// At SIGHUP, for all connections.
    OnReload,
    /// At SIGHUP, for connections opened after it.
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

/// The keys of a section, as [`section!`] declares them.
pub(super) trait Section: Sized + 'static {
    /// The keys, in file order.
    const KEYS: &'static [(&'static str, TakesEffect)];
    /// The keys with numeric bounds.
    const BOUNDS: &'static [KeyBounds<Self>];

    /// `new`, but with the values of `self` for keys that need a restart.
    fn reloaded(&self, new: Self) -> Self;

    /// Moves each number to its nearest bound.
    fn clamp(&mut self) {
        for bounds in Self::BOUNDS {
            let number = (bounds.get)(self).clamp(bounds.least, bounds.most);
            (bounds.set)(self, number);
        }
    }

    /// Checks each number against its bounds.
    fn check(&self, section: &str) -> Result<(), ConfigError> {
        Self::BOUNDS.iter().try_for_each(|bounds| {
            let key = format!("{section}.{}", bounds.key);
            bounds::check(&key, (bounds.get)(self), bounds.least, bounds.most)
        })
    }
}

/// Declares a section: `pub key: Type => When,` for each key, where `When` is a variant of
/// [`TakesEffect`]; a number with bounds is `pub key: Type where 1..=9 => When,`. A second struct,
/// whose types contain the bounds, parses the file, so that an error names the line.
macro_rules! section {
    (
        $(#[$attribute:meta])*
        pub struct $Name:ident {
            $(
                $(#[$key_attribute:meta])*
                pub $key:ident: $Type:ty $(where $least:literal..=$most:literal)? => $When:ident,
            )*
        }
    ) => {
        $(#[$attribute])*
        #[derive(Debug, Clone, PartialEq, Serialize)]
        #[non_exhaustive]
        pub struct $Name {
            $($(#[$key_attribute])* pub $key: $Type,)*
        }

        const _: () = {
            use crate::config::TakesEffect;
            use crate::config::bounds::KeyBounds;
            use crate::config::section::{Section, in_force, read_type, to_read, value_of};

            #[derive(Deserialize)]
            #[serde(default, deny_unknown_fields, expecting = "a section, such as [relay], with its keys")]
            struct Read {
                $($(#[$key_attribute])* $key: read_type!($Type $(, $least, $most)?),)*
            }

            impl Default for Read {
                fn default() -> Self {
                    let default = $Name::default();
                    Self { $($key: to_read!(default.$key $(, $least)?),)* }
                }
            }

            impl<'de> Deserialize<'de> for $Name {
                fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                    let read = Read::deserialize(from)?;
                    Ok(Self { $($key: value_of!(read.$key $(, $least)?),)* })
                }
            }

            impl Section for $Name {
                const KEYS: &'static [(&'static str, TakesEffect)] =
                    &[$((stringify!($key), TakesEffect::$When)),*];
                const BOUNDS: &'static [KeyBounds<Self>] = &[$($(KeyBounds {
                    key: stringify!($key),
                    least: $least,
                    most: $most,
                    get: |section| crate::config::bounds::Number::to_u64(section.$key),
                    set: |section, number| section.$key = crate::config::bounds::Number::from_u64(number),
                },)?)*];

                fn reloaded(&self, new: Self) -> Self {
                    Self { $($key: in_force(TakesEffect::$When, &self.$key, new.$key)),* }
                }
            }
        };
    };
}
pub(super) use section;

/// The type as which a key is parsed.
macro_rules! read_type {
    ($Type:ty) => { $Type };
    ($Type:ty, $least:literal, $most:literal) => { crate::config::bounds::Bounded<$least, $most> };
}
pub(super) use read_type;

macro_rules! to_read {
    ($value:expr) => {
        $value
    };
    ($value:expr, $least:literal) => {
        crate::config::bounds::Bounded::of($value)
    };
}
pub(super) use to_read;

macro_rules! value_of {
    ($read:expr) => {
        $read
    };
    ($read:expr, $least:literal) => {
        $read.get()
    };
}
pub(super) use value_of;

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

    /// Checks values that a program has set; values from a file were checked with their lines.
    ///
    /// # Errors
    /// [`ConfigError`] with the key, when a number is out of its bounds or values are inconsistent.
    pub fn check(&self) -> Result<(), ConfigError> {
        self.store.check("store")?;
        self.connections.check("connections")?;
        self.limits.check("limits")?;
        self.rates.check("rates")?;
        self.negentropy.check("negentropy")?;
        self.negentropy.check_frame_limit()?;
        self.index.check("index")?;
        self.retention.check("retention")?;
        self.write_policy.check("write_policy")?;
        self.sync.check("sync")?;
        self.page.check("page")?;
        self.peers.iter().try_for_each(PeerConfig::check)?;
        let contradiction = |message| Err(ConfigError::Contradiction { message });
        self.limits.contradiction().map_or(Ok(()), contradiction)
    }

    /// `new`, but with the values of `self` for keys that need a restart.
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
