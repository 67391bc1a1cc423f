//! A relay inside another program.

use super::{Relay, RelayError};
use crate::admission::{Hooks, Source};
use crate::config::Config;
use crate::store::{Clock, Filter, VerifiedEvent, Viewer};
use crate::sync::Schedule;
use std::net::TcpListener;
use std::sync::Arc;

/// Sections of `relay.toml` that configure the program `negsync` and not a relay.
const FOR_THE_PROGRAM: [&str; 2] = ["attach.", "log."];

/// Builds a relay inside another program: with its own sockets, and with hooks in Rust.
///
/// It refuses keys that would have no effect: `relay.listen` together with
/// [`RelayBuilder::listener`], keys of `[attach]` and `[log]`, and a `[[peer]]` without a schedule
/// of syncs.
///
/// ```no_run
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// use negsync::config::Config;
/// use negsync::relay::Relay;
///
/// let mut config = Config::default();
/// config.store.path = "embedded.sqlite".into();
/// let relay = Relay::builder(config)
///     .listener(std::net::TcpListener::bind("127.0.0.1:0")?)
///     .admit(|event, _source| match event.kind() {
///         1 => Ok(()),
///         kind => Err(format!("blocked: kind {kind} is not for this relay")),
///     })
///     .may_read(|viewer, _filters| match viewer.keys() {
///         [] => Err("auth-required: members only".to_owned()),
///         _ => Ok(()),
///     })
///     .start()
///     .await?;
/// println!("serving on ws://{}", relay.address());
/// # relay.stop().await;
/// # Ok(())
/// # }
/// ```
#[must_use = "a builder does nothing until it is started"]
pub struct RelayBuilder {
    config: Config,
    listeners: Vec<TcpListener>,
    hooks: Hooks,
    clock: Clock,
}

impl std::fmt::Debug for RelayBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RelayBuilder")
            .field("config", &self.config)
            .field("listeners", &self.listeners)
            .field("has_admit", &self.hooks.admit.is_some())
            .field("has_may_read", &self.hooks.may_read.is_some())
            .finish()
    }
}

impl RelayBuilder {
    pub(super) fn new(config: Config) -> Self {
        Self { config, listeners: Vec::new(), hooks: Hooks::default(), clock: Clock::system() }
    }

    /// Serves on a listening socket instead of `relay.listen`. May be called for several sockets.
    pub fn listener(mut self, socket: TcpListener) -> Self {
        self.listeners.push(socket);
        self
    }

    /// Calls `hook` for every verified event of clients and peers, after the limits and the ban
    /// list and before the write policy. The client gets the text of a refusal; `blocked: ` is
    /// prepended if it has no machine-readable prefix (NIP-01). The hook runs on the runtime's
    /// threads and must not block.
    ///
    /// A later hook replaces an earlier one.
    pub fn admit(
        mut self,
        hook: impl Fn(&VerifiedEvent, &Source) -> Result<(), String> + Send + Sync + 'static,
    ) -> Self {
        self.hooks.admit = Some(Arc::new(hook));
        self
    }

    /// Calls `hook` for every REQ, COUNT and NEG-OPEN that the configuration allows, to decide
    /// whether the client, with its authenticated keys, may ask for the filters. A refusal applies
    /// to the whole request, so no set is answered in part; `restricted: ` is prepended if it has
    /// no machine-readable prefix. The hook runs on the runtime's threads and must not block.
    ///
    /// A later hook replaces an earlier one.
    pub fn may_read(
        mut self,
        hook: impl Fn(&Viewer, &[Filter]) -> Result<(), String> + Send + Sync + 'static,
    ) -> Self {
        self.hooks.may_read = Some(Arc::new(hook));
        self
    }

    /// Uses `clock` instead of the system's clock, also for the store and the syncs: for tests.
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// Starts the relay, for a configuration without a `[[peer]]`.
    ///
    /// # Errors
    /// As [`Relay::start`], and [`RelayError::Ignored`] when a key of the configuration would have
    /// no effect.
    pub async fn start(self) -> Result<Relay, RelayError> {
        if !self.config.peers.is_empty() {
            let hint = "start it by RelayBuilder::start_with_peers";
            return Err(RelayError::Ignored { key: "peer".to_owned(), hint });
        }
        self.start_relay().await
    }

    /// Starts the relay, and keeps it in sync with each `[[peer]]`. Stop the schedule before the
    /// relay.
    ///
    /// # Errors
    /// As [`RelayBuilder::start`], and when the configuration of a peer is invalid.
    pub async fn start_with_peers(self) -> Result<(Relay, Schedule), RelayError> {
        Schedule::check(&self.config)?;
        let relay = self.start_relay().await?;
        match Schedule::start(relay.index(), relay.admission(), relay.peers()) {
            Ok(schedule) => Ok((relay, schedule)),
            Err(error) => {
                relay.stop().await;
                Err(error.into())
            }
        }
    }

    async fn start_relay(self) -> Result<Relay, RelayError> {
        let set = self.config.differing_keys(&Config::default());
        let ignored = |key: &String| {
            let hint = if !self.listeners.is_empty() && key == "relay.listen" {
                "leave it out: the relay serves on the listeners that it is given"
            } else if FOR_THE_PROGRAM.iter().any(|section| key.starts_with(section)) {
                "leave it out: only the program negsync uses it"
            } else {
                return None;
            };
            Some(RelayError::Ignored { key: key.clone(), hint })
        };
        match set.iter().find_map(ignored) {
            Some(error) => Err(error),
            None => Relay::start_as(self.config, self.listeners, self.hooks, self.clock).await,
        }
    }
}
