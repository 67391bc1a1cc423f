//! A plugin for an existing relay: clients connect here, NEG verbs (NIP-77) are answered from the
//! relay's own database, and everything else is passed through unchanged.

mod auth;
mod connection;
mod http;
mod neg;
mod socket;
mod status;
mod upstream;

use crate::admission::{Admission, AdmissionError};
use crate::config::{Config, ConfigError, ListenAddress, Reloaded};
use crate::index::Sets;
use crate::metrics::{Metrics, Peers};
use crate::moderation::Moderation;
use crate::relay_url::redacted;
use crate::server::accept::accept;
use crate::server::health::Health;
use crate::server::listeners::Listeners;
use crate::server::log_pace::LogPace;
use crate::server::shutdown::{Stop, running};
use crate::server::{Service, refusal_log};
use crate::store::{AttachedOptions, PrivateKinds, RelayKind, StoreError};
use hyper::header::HeaderName;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

/// Why the sidecar cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    /// The configuration is inconsistent, or a value is out of bounds.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The write policy or the ban list cannot be used.
    #[error(transparent)]
    Admission(#[from] AdmissionError),
    /// The relay's database cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The configuration does not name a relay.
    #[error(
        "attach.kind and attach.path or attach.database_url in relay.toml, or --attach KIND:PATH, \
         name the relay"
    )]
    NotConfigured,
    /// Both a file and a server are configured as the database.
    #[error("attach.path and attach.database_url are both set; a relay has one database")]
    TwoDatabases,
    /// The program was built without the feature `postgres`.
    #[error("this negsync was built without PostgreSQL; build one with the feature `postgres`")]
    NoPostgres,
    /// The relay's URL is invalid.
    #[error("attach.url is {url:?}, and must be ws://HOST:PORT without a path")]
    Url {
        /// The URL.
        url: String,
    },
    /// NIP-42: an AUTH event must name the relay.
    #[error(
        "[auth] asks clients for a key, and attach.relay_url is empty: set it to the URL by which \
         they know the relay, as their AUTH names it"
    )]
    NoRelayUrl,
    /// `attach.forward_header` is not a valid header name.
    #[error("attach.forward_header is {name:?}, which is not the name of a header")]
    Header {
        /// The name.
        name: String,
    },
    /// Listening on the address failed.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The configured address.
        address: ListenAddress,
        /// What the system says.
        source: std::io::Error,
    },
}

/// Opens the sets over the configured relay's database.
///
/// # Errors
/// [`AttachError`] when the configuration names no relay, or its database cannot be used.
pub fn open_sets(config: &Config) -> Result<Sets, AttachError> {
    let attach = &config.attach;
    let kind = attach.kind.ok_or(AttachError::NotConfigured)?;
    let (readers, memory_mb) = (config.store.readers, config.index.memory_mb);
    let memory_bytes = memory_mb << 20;
    let options = AttachedOptions::default().readers(readers).private_kinds(private_kinds(config));
    match (attach.path.as_os_str().is_empty(), attach.database_url.as_str()) {
        (true, "") => Err(AttachError::NotConfigured),
        (false, "") => Ok(Sets::attach(kind, &attach.path, options, memory_bytes)?),
        (false, _) => Err(AttachError::TwoDatabases),
        (true, url) => open_postgres(kind, url, options, memory_bytes),
    }
}

#[cfg(feature = "postgres")]
fn open_postgres(
    kind: RelayKind,
    url: &str,
    options: AttachedOptions,
    memory_bytes: usize,
) -> Result<Sets, AttachError> {
    use negsync_attached::AttachedPostgres;
    Ok(Sets::attach_with(memory_bytes, options.private_kinds.clone(), |heard| {
        Ok(Arc::new(AttachedPostgres::open(kind, url, options, heard)?))
    })?)
}

#[cfg(not(feature = "postgres"))]
fn open_postgres(_: RelayKind, _: &str, _: AttachedOptions, _: usize) -> Result<Sets, AttachError> {
    Err(AttachError::NoPostgres)
}

/// Checks that clients can fulfil the configured requirements.
///
/// # Errors
/// [`AttachError`] when authentication is required but cannot succeed.
pub fn check(config: &Config) -> Result<(), AttachError> {
    let asks = config.auth.required || !config.auth.sync_keys.is_empty();
    if asks && config.attach.relay_url.is_empty() {
        return Err(AttachError::NoRelayUrl);
    }
    Ok(())
}

fn private_kinds(config: &Config) -> PrivateKinds {
    PrivateKinds::new(config.auth.private_kinds.iter().copied())
}

/// A running sidecar.
pub struct Attach {
    addresses: Vec<SocketAddr>,
    status_address: Option<SocketAddr>,
    admission: Admission,
    peers: Peers,
    stop: Stop,
}

impl std::fmt::Debug for Attach {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Attach").finish_non_exhaustive()
    }
}

/// State shared by all connections.
struct SidecarState {
    service: Arc<Service>,
    kind: RelayKind,
    // Host and port of the relay.
    relay: String,
    forward_header: HeaderName,
    // The kinds with which the sets were opened.
    private_kinds: PrivateKinds,
    // The banned addresses.
    moderation: Moderation,
    // The health of the database and of the relay.
    database: Health,
    answers: Health,
    // Bounds the log lines about a relay that does not answer.
    unanswered: LogPace,
}

impl Attach {
    /// Serves `sets`, and forwards everything else to the configured relay.
    ///
    /// # Errors
    /// [`AttachError`] when the configuration cannot be used or an address is in use.
    pub async fn start(config: Config, sets: Sets) -> Result<Self, AttachError> {
        Self::start_on(config, sets, Vec::new()).await
    }

    /// Like [`Attach::start`], on sockets that are listening already, instead of `relay.listen`.
    /// Without sockets it listens at `relay.listen` itself.
    ///
    /// # Errors
    /// As [`Attach::start`].
    pub async fn start_on(
        config: Config,
        sets: Sets,
        sockets: Vec<TcpListener>,
    ) -> Result<Self, AttachError> {
        config.check()?;
        check(&config)?;
        let attach = &config.attach;
        let kind = attach.kind.ok_or(AttachError::NotConfigured)?;
        let relay = http::authority(&attach.url)
            .ok_or_else(|| AttachError::Url { url: redacted(&attach.url) })?;
        let forward_header = attach
            .forward_header
            .parse()
            .map_err(|_| AttachError::Header { name: attach.forward_header.clone() })?;
        let failed = |address: &ListenAddress, source| AttachError::Listen {
            address: address.clone(),
            source,
        };
        let listen = &config.relay.listen;
        let listeners = match sockets.as_slice() {
            [] => Listeners::bind(listen).await,
            _ => Listeners::handed_over(sockets),
        };
        let Listeners { sockets, addresses } = listeners.map_err(|it| failed(listen, it))?;
        let for_status = match &attach.status_listen {
            Some(listen) => Some(Listeners::bind(listen).await.map_err(|it| failed(listen, it))?),
            None => None,
        };
        let status_address = for_status.as_ref().and_then(|it| it.addresses.first().copied());
        let private_kinds = private_kinds(&config);
        let metrics = Metrics::attached(sets.metrics());
        let (mut stop, running) = running();
        let admission = Admission::start(config)?.by_clock(sets.clock());
        let config = admission.config_handle().clone();
        let service = Arc::new(Service::new(config, sets, metrics, running));
        let peers = service.peers.clone();
        tokio::spawn(refusal_log::log(Arc::clone(&service)));
        let shared = Arc::new(SidecarState {
            service: Arc::clone(&service),
            kind,
            relay,
            forward_header,
            private_kinds,
            moderation: admission.moderation().clone(),
            database: Health::default(),
            answers: Health::default(),
            unanswered: LogPace::default(),
        });
        if let Some(listeners) = for_status {
            let shared = Arc::clone(&shared);
            accept(&mut stop, listeners.sockets, &service, move |request, from| {
                status::respond(request, from, Arc::clone(&shared))
            });
        }
        accept(&mut stop, sockets, &service, move |request, from| {
            http::respond(request, from, Arc::clone(&shared))
        });
        Ok(Self { addresses, status_address, admission, peers, stop })
    }

    /// The address for clients; the system chooses the port if the configuration has 0. The first
    /// one, if there are several.
    pub fn address(&self) -> SocketAddr {
        self.addresses[0]
    }

    /// All addresses for clients, at least one.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// The address of `/health` and `/metrics`, if one is configured.
    pub fn status_address(&self) -> Option<SocketAddr> {
        self.status_address
    }

    /// The states of the peers, updated by [`Schedule::attached`](crate::sync::Schedule::attached).
    pub fn peers(&self) -> &Peers {
        &self.peers
    }

    /// The admission of events that syncs bring to the relay.
    pub fn admission(&self) -> &Admission {
        &self.admission
    }

    /// Applies a new configuration, except for keys that need a restart. The caller applies changed
    /// keys of the log and of the schedule of syncs.
    ///
    /// # Errors
    /// As [`Config::check`]; the configuration is then unchanged.
    pub fn reload(&self, config: Config) -> Result<Reloaded, ConfigError> {
        self.admission.reload(config)
    }

    /// Stops accepting, closes every socket with 1001, and returns when all connections have ended
    /// or after 10 seconds.
    pub async fn stop(self) {
        self.stop.stop().await;
    }
}
