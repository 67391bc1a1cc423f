//! Serving clients: the part that the relay and the sidecar share. Accepts and bounds connections,
//! parses messages, and answers NEG sessions.

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

/// A message above this length is parsed on another thread.
const LONG_MESSAGE_BYTES: usize = 64 << 10;

/// Threads for the page, `/health` and closing the store.
const OTHER_THREADS: usize = 3;

/// Maximum number of threads of tokio's blocking pool that serving uses at a time. A runtime that
/// has started and keeps this many (`Builder::thread_keep_alive`) continues to serve even if the
/// system gives no more threads.
#[must_use]
pub fn blocking_threads(config: &Config) -> usize {
    ConnectionCounts::new(config).threads() + OTHER_THREADS
}

/// State shared by all connections.
pub(crate) struct Service {
    config: ConfigHandle,
    pub(crate) sets: Sets,
    pub(crate) counts: ConnectionCounts,
    pub(crate) metrics: Metrics,
    // Shown by the page and the metrics; updated by the schedule of syncs.
    pub(crate) peers: Peers,
    /// Bounds the log lines about an unreadable store.
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

    /// Room for answers that wait to be sent on a new connection.
    pub(crate) fn outbound_room(&self) -> OutboundRoom {
        self.counts.outbound.room(self.config().connections.outbound_bytes)
    }

    /// The current second, by the clock of the store.
    pub(crate) fn now(&self) -> u64 {
        self.sets.clock().now()
    }

    /// The current configuration.
    pub(crate) fn config(&self) -> Arc<Config> {
        self.config.load()
    }

    /// Runs a query of the store in the client's turns, for at most `limits.query_timeout_s`. It
    /// ends when the client disconnects or the relay stops.
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

    /// Logs an address, once, that looks like a proxy and is not trusted.
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

    /// Takes the cost of an HTTP request, including WebSocket upgrades, and waits until the rate
    /// limit of its address allows it.
    pub(crate) async fn pace_request(&self, client: IpAddr) {
        self.counts.addresses.pace(client, &self.config()).await;
    }

    /// Takes a slot for the requested WebSocket.
    ///
    /// # Errors
    /// The HTTP response if there is none.
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

    /// Parses a message, and takes its cost from the rate limit of its address. A message that is
    /// never refused, or is malformed, waits until the limit allows it.
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
                // Finding the id of a long event takes as long as parsing it.
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

    /// Parses a message; a long one on another thread, in the client's turn.
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

/// The answer to a message whose parsing panicked.
fn panicked(panic: JoinError) -> Result<ClientMessage, MessageRefusal> {
    Err(MessageRefusal::notice(Prefix::Error, panic))
}
