//! The relay: WebSocket and HTTP on one port, over an index. One file for each verb or concern.

mod auth;
mod builder;
mod client;
mod connection;
mod count;
mod dispatcher;
mod endpoint;
mod filter_index;
mod health;
mod http;
mod information;
mod management;
mod message_chunk;
mod message_gate;
mod outbox;
mod page;
mod publish;
mod queue;
mod read_ahead;
mod req;
mod response;
mod sending;
mod subscriptions;
mod upgrade;
mod websocket;

pub use builder::RelayBuilder;

use crate::admission::{Admission, AdmissionError, Hooks};
use crate::config::{Config, ConfigError, ListenAddress, Reloaded};
use crate::control::ControlServer;
use crate::engine::open_index;
use crate::index::Index;
use crate::metrics::{Metrics, Peers};
use crate::server::accept::accept;
use crate::server::health::Health;
use crate::server::listeners::Listeners;
use crate::server::shutdown::{Stop, running};
use crate::server::{Service, message, refusal_log};
use crate::store::{Clock, PrivateKinds, StoreError, Verifier};
use crate::sync::SyncError;
use dispatcher::Dispatcher;
use endpoint::Endpoint;
use negsync_nostr::RelayDocument;
use page::PageState;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use subscriptions::Registry;

/// Why a relay could not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RelayError {
    /// The configuration is inconsistent, or a value is out of bounds.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A key of the configuration would have no effect.
    #[error("the relay would ignore {key}. Hint: {hint}")]
    Ignored {
        /// The key, such as `log.level`.
        key: String,
        /// A hint.
        hint: &'static str,
    },
    /// The configuration of a peer is invalid.
    #[error(transparent)]
    Peer(#[from] SyncError),
    /// The store could not be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The write policy or the ban list cannot be used.
    #[error(transparent)]
    Admission(#[from] AdmissionError),
    /// Listening on the address failed.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The configured address.
        address: ListenAddress,
        /// What the system says.
        source: std::io::Error,
    },
}

/// A running relay.
pub struct Relay {
    addresses: Vec<SocketAddr>,
    index: Index,
    admission: Admission,
    peers: Peers,
    stop: Stop,
    // Receives commands beside the store; `None` if the system provides no socket there.
    control: Option<ControlServer>,
}

impl std::fmt::Debug for Relay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Relay").finish_non_exhaustive()
    }
}

/// State shared by all connections.
struct RelayState {
    service: Arc<Service>,
    index: Index,
    verifier: Verifier,
    // The subscriptions of all connections.
    subscriptions: Arc<Registry>,
    challenges: auth::Challenges,
    // The kinds with which the index was opened.
    private_kinds: PrivateKinds,
    admission: Admission,
    health: Health,
    page: PageState,
    management: management::ManagementState,
    // From `auth.relay_url`, which is read only at the start.
    endpoint: Endpoint,
}

impl RelayState {
    /// The current configuration.
    fn config(&self) -> Arc<Config> {
        self.service.config()
    }

    /// The relay's NIP-11 document.
    fn document(&self) -> RelayDocument {
        information::document(&self.config(), &self.admission.moderation().current())
    }
}

/// Listens for commands beside the store's file. Commands can open a database on a server
/// themselves, without the relay.
fn listen_for_commands(config: &Config, index: &Index) -> Option<ControlServer> {
    if !config.store.url.is_empty() {
        return None;
    }
    let control = ControlServer::start(&config.store.path, index.store().clone());
    let control = control.inspect_err(|error| {
        tracing::warn!(
            %error,
            "no control socket beside the store: `negsync delete` and other commands that change it \
             cannot reach this relay"
        );
    });
    control.ok()
}

impl Relay {
    /// A builder for a relay inside another program, with its own sockets and hooks.
    pub fn builder(config: Config) -> RelayBuilder {
        RelayBuilder::new(config)
    }

    /// Opens the store, loads the index, and serves at `relay.listen`.
    ///
    /// # Errors
    /// [`RelayError`] when the store cannot be opened or the address is in use.
    pub async fn start(config: Config) -> Result<Self, RelayError> {
        Self::start_on(config, Vec::new()).await
    }

    /// Like [`Relay::start`], on sockets that are listening already, instead of `relay.listen`.
    /// Without sockets it listens at `relay.listen` itself.
    ///
    /// # Errors
    /// When the store cannot be opened, or the sockets cannot be used.
    #[doc(hidden)]
    pub async fn start_on(config: Config, sockets: Vec<TcpListener>) -> Result<Self, RelayError> {
        Self::start_as(config, sockets, Hooks::default(), Clock::system()).await
    }

    async fn start_as(
        config: Config,
        sockets: Vec<TcpListener>,
        hooks: Hooks,
        clock: Clock,
    ) -> Result<Self, RelayError> {
        config.check()?;
        let private_kinds = PrivateKinds::new(config.auth.private_kinds.iter().copied());
        let options = config.store_options().retention(config.retention.retention()).clock(clock);
        let opened = {
            let config = config.clone();
            let open = move || open_index(&config, options, config.index.cache_size());
            tokio::task::spawn_blocking(open).await
        };
        let index = opened.unwrap_or(Err(StoreError::Closed))?;
        let control = listen_for_commands(&config, &index);
        let listen = &config.relay.listen;
        let listeners = match sockets.as_slice() {
            [] => Listeners::bind(listen).await,
            _ => Listeners::handed_over(sockets),
        };
        let Listeners { sockets, addresses } =
            listeners.map_err(|source| RelayError::Listen { address: listen.clone(), source })?;
        let endpoint = Endpoint::new(&config.auth.relay_url);
        let admission = Admission::start_with(config, hooks)?.by_clock(index.sets().clock());
        let metrics = Metrics::new(index.store().metrics(), index.sets().metrics());
        let (mut stop, running) = running();
        let config = admission.config_handle().clone();
        let service = Arc::new(Service::new(config, index.sets().clone(), metrics, running));
        let peers = service.peers.clone();
        tokio::spawn(refusal_log::log(Arc::clone(&service)));
        let subscriptions = Arc::<Registry>::default();
        let wakeups = service.metrics.live_wakeups.clone();
        tokio::spawn(Dispatcher::new(&index, Arc::clone(&subscriptions), wakeups).run());
        let shared = Arc::new(RelayState {
            service: Arc::clone(&service),
            index: index.clone(),
            verifier: Verifier::start()?,
            subscriptions,
            challenges: auth::Challenges::new(),
            private_kinds,
            admission: admission.clone(),
            health: Health::default(),
            page: PageState::default(),
            management: management::ManagementState::default(),
            endpoint,
        });
        accept(&mut stop, sockets, &service, move |request, peer| {
            upgrade::respond(request, peer, Arc::clone(&shared))
        });
        Ok(Self { addresses, index, admission, peers, stop, control })
    }

    /// The address on which the relay listens; the system chooses the port if the configuration has
    /// 0. The first one, if there are several.
    pub fn address(&self) -> SocketAddr {
        self.addresses[0]
    }

    /// All addresses on which the relay listens, at least one.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// The index of the relay.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// The admission of events, for further sources such as syncs.
    pub fn admission(&self) -> &Admission {
        &self.admission
    }

    /// Applies a new configuration, except for keys that need a restart. The caller applies changed
    /// keys of the log and of the schedule of syncs.
    ///
    /// # Errors
    /// As [`Config::check`]; the configuration is then unchanged.
    pub fn reload(&self, config: Config) -> Result<Reloaded, ConfigError> {
        let reloaded = self.admission.reload(config)?;
        if reloaded.changed.iter().any(|key| key.starts_with("retention.")) {
            let rules = self.admission.config().retention.retention();
            let store = self.index.store();
            // A store may block on its server, which a thread of the runtime must not do.
            let retained = std::thread::scope(|scope| scope.spawn(|| store.retain(rules)).join());
            if let Err(error) = retained.unwrap_or(Err(StoreError::Closed)) {
                tracing::error!(%error, "retention not changed: the previous rules stay in force");
            }
        }
        Ok(reloaded)
    }

    /// The states of the relay's peers, updated by
    /// [`Schedule::start`](crate::sync::Schedule::start).
    pub fn peers(&self) -> &Peers {
        &self.peers
    }

    /// Stops accepting, stores the events in flight, closes every socket with 1001, and returns
    /// when all connections have ended or after 10 seconds.
    pub async fn stop(self) {
        drop(self.control);
        self.stop.stop().await;
        let index = self.index.clone();
        let _ = tokio::task::spawn_blocking(move || index.close()).await;
    }
}
