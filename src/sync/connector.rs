//! Connects to a peer: TCP, directly or through a proxy, with TLS if the URL asks for it.

use super::SyncError;
use super::dial::{DialError, Duplex, unreached};
use super::rate_limit::RateLimited;
use super::tls::Trust;
use crate::config::{PeerConfig, Proxy, ProxyProtocol, SyncConfig, Via};
use crate::relay_url::RelayUrl;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http_body_util::Empty;
use hyper::Request;
use hyper::body::Bytes;
use hyper::header::{HOST, PROXY_AUTHORIZATION};
use hyper_util::rt::TokioIo;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_socks::tcp::Socks5Stream;

/// Timeout for each step of connecting.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);
/// Timeout for each step through a proxy: Tor builds a circuit first.
const PROXY_STEP_TIMEOUT: Duration = Duration::from_secs(45);

/// Settings for connecting to peers. Clones share the authorities.
#[derive(Debug, Clone, Default)]
pub struct Connector {
    trust: Trust,
    via: Via,
    // Bytes per second.
    max_up: Option<u64>,
    max_down: Option<u64>,
}

impl Connector {
    /// Settings from `[sync]`.
    pub(super) fn configured(config: &SyncConfig) -> Result<Self, SyncError> {
        let (trust, via) = (Trust::configured(config)?, config.proxy.clone());
        Ok(Self { trust, via, ..Self::default() })
    }

    /// Settings from `[sync]`, overridden by those of a `[[peer]]`.
    #[must_use]
    pub(super) fn for_peer(&self, peer: &PeerConfig) -> Self {
        Self {
            trust: self.trust.clone(),
            via: peer.proxy.clone().unwrap_or_else(|| self.via.clone()),
            max_up: peer.max_up_kib_s.map(|kib_s| kib_s << 10),
            max_down: peer.max_down_kib_s.map(|kib_s| kib_s << 10),
        }
    }

    /// The same without a proxy, for our own relay.
    #[must_use]
    pub(super) fn direct(&self) -> Self {
        Self { via: Via::Direct, ..self.clone() }
    }

    /// Timeout for one step of connecting.
    pub(super) fn step_timeout(&self) -> Duration {
        match self.via {
            Via::Direct => STEP_TIMEOUT,
            Via::Proxy(_) => PROXY_STEP_TIMEOUT,
        }
    }

    /// The timeout for an operation that takes up to `straight` without a proxy.
    pub(super) fn patience(&self, straight: Duration) -> Duration {
        match self.via {
            Via::Direct => straight,
            Via::Proxy(_) => straight.max(PROXY_STEP_TIMEOUT),
        }
    }

    /// Checks that the peer can be reached at all.
    ///
    /// # Errors
    /// [`SyncError`] when the peer is an onion service and there is no proxy.
    pub(super) fn check(&self, url: &RelayUrl) -> Result<(), SyncError> {
        match self.via {
            // RFC 7686: such a name must not be looked up in DNS.
            Via::Direct if url.is_onion() => {
                Err(SyncError::OnionWithoutProxy { url: url.to_string() })
            }
            _ => Ok(()),
        }
    }

    /// Opens a byte stream to the peer.
    pub(super) async fn dial(&self, url: &RelayUrl) -> Result<Box<dyn Duplex>, DialError> {
        self.check(url).map_err(|error| DialError::new(error.to_string()))?;
        let timeout = self.step_timeout();
        let stream = match &self.via {
            Via::Direct => {
                let tcp = tokio::time::timeout(timeout, straight(url));
                Box::new(tcp.await.map_err(|_| DialError::silence("no answer"))??)
                    as Box<dyn Duplex>
            }
            Via::Proxy(proxy) => {
                let tunnel = tokio::time::timeout(timeout, through(proxy, url)).await;
                let failed =
                    |error: &str| format!("the proxy {proxy} leads to no {}: {error}", url.host());
                tunnel
                    .map_err(|_| DialError::silence(failed("no answer")))?
                    .map_err(|error| DialError::new(failed(&error)))?
            }
        };
        let stream = match (self.max_up, self.max_down) {
            (None, None) => stream,
            (up, down) => Box::new(RateLimited::new(stream, up, down)),
        };
        if !url.is_encrypted() {
            return Ok(stream);
        }
        let tls = tokio::time::timeout(timeout, self.trust.connect(url.host(), stream));
        let tls = tls.await.map_err(|_| DialError::silence("no answer to TLS"))?;
        Ok(Box::new(tls?))
    }
}

async fn straight(url: &RelayUrl) -> Result<TcpStream, DialError> {
    let tcp = TcpStream::connect((url.host(), url.port())).await;
    let tcp = tcp.map_err(|error| DialError::new(unreached(url, &error)))?;
    tcp.set_nodelay(true).map_err(|error| DialError::new(error.to_string()))?;
    Ok(tcp)
}

/// Asks the proxy for a connection to the peer, by its host name.
async fn through(proxy: &Proxy, url: &RelayUrl) -> Result<Box<dyn Duplex>, String> {
    let tcp = TcpStream::connect((proxy.host.as_str(), proxy.port)).await;
    let tcp = tcp.map_err(|error| format!("it cannot be reached ({error}); is it running?"))?;
    tcp.set_nodelay(true).map_err(|error| error.to_string())?;
    match proxy.protocol {
        ProxyProtocol::Socks5 => {
            let target = (url.host(), url.port());
            let tunnel = match &proxy.login {
                Some((user, password)) => {
                    Socks5Stream::connect_with_password_and_socket(tcp, target, user, password)
                        .await
                }
                None => Socks5Stream::connect_with_socket(tcp, target).await,
            };
            Ok(Box::new(tunnel.map_err(|error| error.to_string())?.into_inner()))
        }
        ProxyProtocol::Http => http_connect(tcp, proxy, &url.authority()).await,
    }
}

/// HTTP CONNECT (RFC 9110, section 9.3.6).
async fn http_connect(
    tcp: TcpStream,
    proxy: &Proxy,
    authority: &str,
) -> Result<Box<dyn Duplex>, String> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tcp))
        .await
        .map_err(|error| error.to_string())?;
    let mut request = Request::connect(authority).header(HOST, authority);
    if let Some((user, password)) = &proxy.login {
        let login = BASE64_STANDARD.encode(format!("{user}:{password}"));
        request = request.header(PROXY_AUTHORIZATION, format!("Basic {login}"));
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| error.to_string())?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
        if !response.status().is_success() {
            return Err(format!("HTTP {}", response.status()));
        }
        hyper::upgrade::on(response).await.map_err(|error| error.to_string())
    };
    let mut connection = std::pin::pin!(connection.with_upgrades());
    let mut exchange = std::pin::pin!(exchange);
    let upgraded = tokio::select! {
        upgraded = exchange.as_mut() => upgraded,
        _ = connection.as_mut() => exchange.await,
    };
    Ok(Box::new(TokioIo::new(upgraded?)))
}
