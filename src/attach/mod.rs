//! A plugin for the relay that people already run: clients connect here, NEG verbs (NIP-77) are
//! answered from the relay's own database, and everything else passes through untouched.

mod auth;
mod frames;
mod http;
mod neg;
mod tunnel;

use crate::config::Config;
use crate::index::Sets;
use crate::store::{PrivateKinds, RelayKind, StoreError};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How long connections have to end when this stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may take over the headers of its request.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long to wait when the system has no connection to give (out of descriptors, say).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why nothing could be attached to a relay.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The relay's database cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The configuration does not say which relay.
    #[error("attach.kind and attach.path in relay.toml, or --attach KIND:PATH, name the relay")]
    NotConfigured,
    /// The relay's address leads nowhere.
    #[error("attach.url is {url:?}, and must be ws://HOST:PORT without a path")]
    Url {
        /// The address.
        url: String,
    },
    /// `attach.forward_header` cannot be the name of a header.
    #[error("attach.forward_header is {name:?}, which is not the name of a header")]
    Header {
        /// The name.
        name: String,
    },
    /// The address could not be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: std::io::Error,
    },
}

/// Opens the sets over the relay's database as it is configured.
///
/// # Errors
/// When the configuration names no relay, or its database cannot be used.
pub fn open_sets(config: &Config) -> Result<Sets, AttachError> {
    let attach = &config.attach;
    let kind = attach.kind.ok_or(AttachError::NotConfigured)?;
    if attach.path.as_os_str().is_empty() {
        return Err(AttachError::NotConfigured);
    }
    let (readers, memory_mb) = (config.store.readers.size(), config.index.memory_mb.size());
    let private = PrivateKinds::new(config.auth.private_kinds.iter().copied());
    Ok(Sets::attach(kind, &attach.path, readers, memory_mb << 20, private)?)
}

/// A running plugin.
pub struct Attach {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    accepting: JoinHandle<()>,
    // Every connection holds a clone of the receiver: closed means that all have ended.
    ended: watch::Sender<()>,
}

/// What all connections share.
struct Shared {
    config: Config,
    kind: RelayKind,
    sets: Sets,
    // Host and port of the relay.
    relay: String,
    forward_header: hyper::header::HeaderName,
    stopping: watch::Receiver<bool>,
    // Held to tell that this connection has not ended.
    _running: watch::Receiver<()>,
}

impl Attach {
    /// Serves `sets`, and all else from the relay that is configured.
    ///
    /// # Errors
    /// When the configuration cannot be used or the address is taken.
    pub async fn start(config: Config, sets: Sets) -> Result<Self, AttachError> {
        let attach = &config.attach;
        let kind = attach.kind.ok_or(AttachError::NotConfigured)?;
        let relay = http::authority(&attach.url)
            .ok_or_else(|| AttachError::Url { url: attach.url.clone() })?;
        let forward_header = attach
            .forward_header
            .parse()
            .map_err(|_| AttachError::Header { name: attach.forward_header.clone() })?;
        let (stop, stopping) = watch::channel(false);
        let (ended, running) = watch::channel(());
        let listen = config.relay.listen;
        let failed = |source| AttachError::Listen { address: listen, source };
        let listener = TcpListener::bind(listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let shared = Arc::new(Shared {
            kind,
            sets,
            relay,
            forward_header,
            stopping,
            _running: running,
            config,
        });
        let accepting = tokio::spawn(accept(listener, shared));
        Ok(Self { address, stop, accepting, ended })
    }

    /// Where clients connect; the port is the system's choice when the configuration names 0.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops accepting, closes every socket with 1001, and returns when all have ended or after 10
    /// seconds.
    pub async fn stop(self) {
        let _ = self.stop.send(true);
        let _ = self.accepting.await;
        if tokio::time::timeout(STOP_TIMEOUT, self.ended.closed()).await.is_err() {
            tracing::warn!("some connections did not end in time");
        }
    }
}

/// Returns when this begins to stop.
async fn stopped(stopping: &mut watch::Receiver<bool>) {
    // An error means that the plugin itself is gone.
    let _ = stopping.wait_for(|stop| *stop).await;
}

/// Accepts until this stops.
async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut stopping = shared.stopping.clone();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stopped(&mut stopping) => return,
        };
        match accepted {
            Ok((stream, from)) => {
                tokio::spawn(serve(stream, from.ip().to_canonical(), Arc::clone(&shared)));
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve(stream: TcpStream, from: IpAddr, shared: Arc<Shared>) {
    // What passes through was sent by somebody who did not want it held back.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a connection cannot send at once");
    }
    let mut stopping = shared.stopping.clone();
    let service = service_fn(move |request| {
        let shared = Arc::clone(&shared);
        async move { Ok::<_, Infallible>(http::respond(request, from, shared).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HANDSHAKE_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let ended = tokio::select! {
        ended = served => ended,
        () = stopped(&mut stopping) => Ok(()),
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended before its request was answered");
    }
}
