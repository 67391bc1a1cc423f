//! Serving clients, whoever has the events: what the relay and the plugin before another relay
//! share. Connections are accepted and bounded here, messages read, and NEG sessions answered.

pub(crate) mod accept;
pub(crate) mod departure;
pub(crate) mod frames;
pub(crate) mod health;
pub(crate) mod limits;
pub(crate) mod lingering_close;
pub(crate) mod listeners;
pub(crate) mod log_pace;
pub(crate) mod media_type;
pub mod message;
pub(crate) mod neg_sessions;
pub(crate) mod nip42;
pub(crate) mod own_host;
mod proxy_watch;
pub(crate) mod refusal_log;
pub(crate) mod shutdown;
pub(crate) mod status;
mod usage;

use crate::config::{Config, ConfigHandle, ConnectionsConfig};
use crate::index::Sets;
use crate::metrics::{Metrics, Peers};
use crate::prefix::Prefix;
use crate::store::Deadline;
use departure::Departure;
use hyper::{Request, StatusCode};
use limits::{
    ConnectionCounts, FORWARDED_FOR, FairQueue, Full, OutboundRoom, Place, client_address,
};
use log_pace::LogPace;
use message::{ClientMessage, MessageRefusal};
use proxy_watch::ProxyWatch;
use shutdown::Running;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinError;
use tokio_tungstenite::tungstenite::Utf8Bytes;

/// A message longer than this is read on another thread.
const LONG_MESSAGE_BYTES: usize = 64 << 10;

/// Threads for the page, `/health` and the end of the store.
const OTHER_THREADS: usize = 3;

/// The threads of tokio's blocking pool that serving clients takes at a time, at most. Where the
/// system gives no more threads, a runtime that has started and keeps so many serves on
/// (`Builder::thread_keep_alive`).
#[must_use]
pub fn blocking_threads(config: &Config) -> usize {
    ConnectionCounts::new(config).threads() + OTHER_THREADS
}

/// What all connections share.
pub(crate) struct Service {
    config: ConfigHandle,
    pub(crate) sets: Sets,
    pub(crate) counts: ConnectionCounts,
    pub(crate) metrics: Metrics,
    // Shown by the page and the metrics; whoever syncs with them keeps it current.
    pub(crate) peers: Peers,
    /// For the line that the store cannot be read.
    pub(crate) read_errors: LogPace,
    /// The second at which serving began.
    pub(crate) started_at: u64,
    pub(crate) running: Running,
    proxy_watch: ProxyWatch,
}

impl Service {
    pub(crate) fn new(
        config: ConfigHandle,
        sets: Sets,
        metrics: Metrics,
        running: Running,
    ) -> Self {
        Self {
            started_at: sets.clock().now(),
            counts: ConnectionCounts::new(&config.load()),
            config,
            sets,
            metrics,
            peers: Peers::default(),
            read_errors: LogPace::default(),
            proxy_watch: ProxyWatch::default(),
            running,
        }
    }

    /// Room for the answers that wait for a new connection's socket.
    pub(crate) fn outbound_room(&self) -> OutboundRoom {
        self.counts.outbound.room(self.config().connections.outbound_bytes)
    }

    /// The second that it is, by the clock of the store.
    pub(crate) fn now(&self) -> u64 {
        self.sets.clock().now()
    }

    /// The configuration in force.
    pub(crate) fn config(&self) -> Arc<Config> {
        self.config.load()
    }

    /// Runs a query of the store in turns of the client's, for `limits.query_timeout_s` at the most:
    /// it ends when the client has gone or the relay stops.
    pub(crate) async fn query<T: Send + 'static>(
        &self,
        turns: &Arc<FairQueue>,
        address: IpAddr,
        departure: Departure,
        query: impl FnOnce(Deadline) -> T + Send + 'static,
    ) -> Result<T, JoinError> {
        let timeout = Duration::from_secs(self.config().limits.query_timeout_s);
        let stopping = self.running.stopping.clone();
        let is_cancelled = move || departure.has_ended() || stopping.is_cancelled();
        turns.query(address, timeout, is_cancelled, query).await
    }

    /// Names an address in the log, once, that looks like a proxy and is not trusted.
    fn watch_proxy<B>(&self, request: &Request<B>, peer: IpAddr, config: &ConnectionsConfig) {
        let is_trusted = config.trusted_proxies.iter().any(|network| network.contains(peer));
        let Some(named) = request.headers().get(FORWARDED_FOR).filter(|_| !is_trusted) else {
            return;
        };
        if let Some(connections) = self.proxy_watch.note(peer.to_canonical(), named.as_bytes()) {
            tracing::warn!(
                proxy = %peer.to_canonical(),
                connections,
                "proxy not trusted: connections from one address name many clients in X-Forwarded-For, and share \
                 the limits of that address. Hint: if it is your reverse proxy, add it to \
                 connections.trusted_proxies"
            );
        }
    }

    /// Takes what an HTTP request costs, a handshake included, and waits until its address may send it.
    pub(crate) async fn pace_request(&self, client: IpAddr) {
        self.counts.addresses.pace(client, &self.config()).await;
    }

    /// Takes a place for the WebSocket that is asked for.
    ///
    /// # Errors
    /// The answer where there is none.
    pub(crate) fn place<B>(
        &self,
        request: &Request<B>,
        peer: IpAddr,
    ) -> Result<Place, (StatusCode, String)> {
        let config = &self.config().connections;
        let client = client_address(peer, request.headers(), &config.trusted_proxies);
        tracing::debug!(%peer, %client, "WebSocket requested");
        self.watch_proxy(request, peer, config);
        self.counts.addresses.connect(client, config).map_err(|full| {
            self.metrics.connections_refused.count(full.reason());
            let (status, text) = match full {
                Full::InAll => (
                    StatusCode::SERVICE_UNAVAILABLE,
                    format!("All {} connections of this relay are taken.", config.in_all),
                ),
                Full::Address => (
                    StatusCode::TOO_MANY_REQUESTS,
                    format!("Your address has {} connections already.", config.per_address),
                ),
            };
            (status, format!("{text} Try again later.\n"))
        })
    }

    /// Reads a message, and takes what it costs from what its address may send. What is refused to
    /// nobody, or could not be read, waits until its address may send it.
    pub(crate) async fn read(
        &self,
        place: &Place,
        text: Utf8Bytes,
    ) -> Result<ClientMessage, MessageRefusal> {
        let config = self.config();
        let is_long = text.len() > LONG_MESSAGE_BYTES;
        let message = self.parse(place.address(), &config, text).await;
        if matches!(message, Ok(ClientMessage::Close(_) | ClientMessage::NegClose(_)) | Err(_)) {
            place.pace(&config.rates).await;
        }
        self.metrics.messages.count(message.as_ref().map_or("invalid", ClientMessage::verb));
        let message = match message.map(|message| (place.admit(&message, &config.rates), message)) {
            Ok((Ok(()), message)) => Ok(message),
            Ok((Err(limit), message)) if is_long => {
                // To find the id of a long event takes as long as to read it.
                let refuse = move || Err(message::rate_limited(message, &limit));
                self.counts.parsing.work(place.address(), refuse).await.unwrap_or_else(panicked)
            }
            Ok((Err(limit), message)) => Err(message::rate_limited(message, &limit)),
            Err(refusal) => Err(refusal),
        };
        if let Err(refusal) = &message {
            self.metrics.refused(refusal.verb, refusal.prefix);
        }
        message
    }

    /// Parses a message; a long one in a turn of the client's and on another thread.
    async fn parse(
        &self,
        address: IpAddr,
        config: &Arc<Config>,
        text: Utf8Bytes,
    ) -> Result<ClientMessage, MessageRefusal> {
        if text.len() <= LONG_MESSAGE_BYTES {
            return message::parse(&text, &config.limits);
        }
        let config = Arc::clone(config);
        let parse = move || message::parse(&text, &config.limits);
        self.counts.parsing.work(address, parse).await.unwrap_or_else(panicked)
    }
}

/// The answer to a message of which the reading panicked.
fn panicked(panic: JoinError) -> Result<ClientMessage, MessageRefusal> {
    Err(MessageRefusal::notice(Prefix::Error, panic))
}
