//! The relay: WebSocket and HTTP on one port, over an index. One file a verb or concern.

mod auth;
mod client;
mod connection;
mod count;
mod health;
mod http;
mod information;
mod limits;
pub mod message;
mod neg_sessions;
mod outbox;
mod page;
mod permission;
mod publish;
mod read_trouble;
mod refusals;
mod reload;
mod response;
mod server;
mod subscriptions;
mod websocket;

pub use reload::Reloaded;

use crate::config::Config;
use crate::index::Index;
use crate::metrics::{Metrics, Peers};
use crate::policy::WritePolicy;
use crate::store::{PrivateKinds, StoreError, StoreOptions, Verifier};
use health::Health;
use page::Page;
use read_trouble::ReadTrouble;
use reload::Settings;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How long connections have to end when the relay stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a relay could not start.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// The store could not be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The address could not be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: std::io::Error,
    },
}

/// A running relay.
pub struct Relay {
    address: SocketAddr,
    index: Index,
    settings: Arc<Settings>,
    peers: Peers,
    stop: watch::Sender<bool>,
    server: JoinHandle<()>,
    // Every connection holds a clone of the receiver: closed means that all have ended.
    ended: watch::Sender<()>,
}

/// What all connections share.
struct Shared {
    settings: Arc<Settings>,
    index: Index,
    verifier: Verifier,
    challenges: auth::Challenges,
    // As the index was opened with.
    private_kinds: PrivateKinds,
    counts: limits::Counts,
    policy: WritePolicy,
    // Shown by the page and the metrics; whoever syncs with them keeps it current.
    peers: Peers,
    metrics: Metrics,
    health: Health,
    read_trouble: ReadTrouble,
    page: Page,
    stopping: watch::Receiver<bool>,
    // Held to tell the relay that this connection has not ended.
    _running: watch::Receiver<()>,
}

impl Shared {
    /// The configuration in force.
    fn config(&self) -> Arc<Config> {
        self.settings.get()
    }
}

impl Relay {
    /// Opens the store, loads the index beside it, and serves.
    ///
    /// # Errors
    /// When the store cannot be opened or the address is taken.
    pub async fn start(config: Config) -> Result<Self, RelayError> {
        let (stop, stopping) = watch::channel(false);
        let (ended, running) = watch::channel(());
        let private_kinds = PrivateKinds::new(config.auth.private_kinds.iter().copied());
        let options = StoreOptions {
            private_kinds: private_kinds.clone(),
            ..StoreOptions::configured(&config)
        };
        let readers = options.readers;
        let index = Index::open(&config.store.path, options, config.index.memory_mb.size() << 20)?;
        let listen = config.relay.listen;
        let failed = |source| RelayError::Listen { address: listen, source };
        let listener = TcpListener::bind(listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let peers = Peers::default();
        let policy = WritePolicy::start(&config.write_policy).map_err(StoreError::Thread)?;
        let settings = Arc::new(Settings::new(config));
        let shared = Arc::new(Shared {
            settings: Arc::clone(&settings),
            index: index.clone(),
            verifier: Verifier::start()?,
            challenges: auth::Challenges::new(),
            private_kinds,
            counts: limits::Counts::new(readers),
            policy,
            peers: peers.clone(),
            metrics: Metrics::new(index.store().metrics(), index.sets().metrics()),
            health: Health::default(),
            read_trouble: ReadTrouble::default(),
            page: Page::default(),
            stopping,
            _running: running,
        });
        tokio::spawn(refusals::log(Arc::clone(&shared)));
        let server = tokio::spawn(server::accept(listener, shared));
        Ok(Self { address, index, settings, peers, stop, server, ended })
    }

    /// Where the relay listens; the port is the system's choice when the configuration names 0.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The index that the relay serves.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// Puts a new configuration in force, as far as that takes no restart: connections that are
    /// open keep what they were given when they began. Logs, `[sync]` and peers are no part of
    /// the relay; whoever runs these has to look at the keys that changed.
    pub fn reload(&self, config: Config) -> Reloaded {
        self.settings.replace(config)
    }

    /// How the relay's peers stand: filled by [`Schedule::start`](crate::sync::Schedule::start).
    pub fn peers(&self) -> &Peers {
        &self.peers
    }

    /// Stops accepting, stores what is under way, closes every socket with 1001, and returns when
    /// all have ended or after 10 seconds.
    pub async fn stop(self) {
        let _ = self.stop.send(true);
        let _ = self.server.await;
        if tokio::time::timeout(STOP_TIMEOUT, self.ended.closed()).await.is_err() {
            tracing::warn!("some connections did not end in time");
        }
        let store = self.index.store().clone();
        let _ = tokio::task::spawn_blocking(move || store.close()).await;
    }
}

/// Returns when the relay begins to stop.
async fn stopped(stopping: &mut watch::Receiver<bool>) {
    // An error means that the relay itself is gone.
    let _ = stopping.wait_for(|stop| *stop).await;
}
