//! The way to a peer: TCP, and TLS where its URL asks for it.

use super::peer::PeerError;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tokio_tungstenite::tungstenite::http::Uri;

/// How long connecting may take, each step.
pub(super) const DIAL_TIMEOUT: Duration = Duration::from_secs(10);

/// A byte stream, encrypted or not.
pub(super) trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Duplex for T {}

/// Where a peer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerUrl {
    text: String,
    host: String,
    port: u16,
    encrypted: bool,
}

/// A URL that leads to no relay.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{url:?} is not the URL of a relay: {reason}")]
pub struct UrlError {
    url: String,
    reason: &'static str,
}

impl PeerUrl {
    /// Reads a `ws://` or `wss://` URL.
    ///
    /// # Errors
    /// When it is no URL, or one of another scheme.
    pub fn parse(text: &str) -> Result<Self, UrlError> {
        let wrong = |reason| UrlError { url: text.to_owned(), reason };
        let uri: Uri = text.trim().parse().map_err(|_| wrong("it cannot be read"))?;
        let encrypted = match uri.scheme_str() {
            Some(scheme) if scheme.eq_ignore_ascii_case("ws") => false,
            Some(scheme) if scheme.eq_ignore_ascii_case("wss") => true,
            _ => return Err(wrong("it must begin with ws:// or wss://")),
        };
        let authority = uri.authority().ok_or_else(|| wrong("it names no host"))?;
        if authority.as_str().contains('@') {
            return Err(wrong("it must not hold a user name"));
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = match (authority.port_u16(), authority.as_str().rsplit_once(':')) {
            (Some(port), _) => port,
            // What follows the last colon of an IPv6 address is no port.
            (None, Some((_, port))) if !port.is_empty() && !port.ends_with(']') => {
                return Err(wrong("its port is no number from 1 to 65535"));
            }
            (None, _) if encrypted => 443,
            (None, _) => 80,
        };
        let scheme = if encrypted { "wss" } else { "ws" };
        let (_, place) = text.trim().split_once("://").ok_or_else(|| wrong("it cannot be read"))?;
        let text = format!("{scheme}://{}", place.trim_end_matches('/'));
        Ok(Self { text, host, port, encrypted })
    }

    /// The URL.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Host and port, as HTTP names them.
    pub(super) fn authority(&self) -> String {
        let host =
            if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        format!("{host}:{}", self.port)
    }

    /// Path and query, as HTTP names them.
    pub(super) fn path(&self) -> String {
        let uri: Option<Uri> = self.text.parse().ok();
        let path = uri.as_ref().and_then(|uri| uri.path_and_query());
        path.map_or_else(|| "/".to_owned(), |path| path.as_str().to_owned())
    }

    /// Why there is no connection, and what may be wrong.
    fn unreached(&self, error: &std::io::Error) -> String {
        match (error.kind(), error.raw_os_error()) {
            (ErrorKind::ConnectionRefused, _) => {
                format!("nothing serves at {}; is the relay running?", self.authority())
            }
            // Looking the name up is no call of the system, and has no number.
            (_, None) => format!("{error}; is the name {} right?", self.host),
            _ => error.to_string(),
        }
    }

    /// Opens a byte stream.
    pub(super) async fn dial(&self) -> Result<Box<dyn Duplex>, PeerError> {
        let failed = |reason: String| PeerError::Connect { reason };
        let tcp =
            tokio::time::timeout(DIAL_TIMEOUT, TcpStream::connect((self.host.as_str(), self.port)));
        let tcp = tcp
            .await
            .map_err(|_| failed("no answer".into()))?
            .map_err(|error| failed(self.unreached(&error)))?;
        tcp.set_nodelay(true).map_err(|error| failed(error.to_string()))?;
        if !self.encrypted {
            return Ok(Box::new(tcp));
        }
        let name = ServerName::try_from(self.host.clone())
            .map_err(|_| failed("the host name cannot be certified".into()))?;
        let tls = tokio::time::timeout(DIAL_TIMEOUT, tls_connector()?.connect(name, tcp));
        let tls = tls
            .await
            .map_err(|_| failed("no answer to TLS".into()))?
            .map_err(|error| failed(untrusted(&error)))?;
        Ok(Box::new(tls))
    }
}

/// Why there is no encrypted stream.
fn untrusted(error: &std::io::Error) -> String {
    let cause =
        error.get_ref().and_then(|cause| cause.downcast_ref::<tokio_rustls::rustls::Error>());
    match cause {
        Some(tokio_rustls::rustls::Error::InvalidMessage(_)) => {
            "it does not speak TLS; is it a ws:// relay?".to_owned()
        }
        _ => format!("TLS: {error}"),
    }
}

impl std::fmt::Display for PeerUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

fn tls_connector() -> Result<TlsConnector, PeerError> {
    let roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| PeerError::Connect { reason: format!("TLS: {error}") })?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_a_host_and_a_port_that_there_is() {
        for (url, authority) in [
            ("ws://relay.example.com", "relay.example.com:80"),
            ("wss://relay.example.com/nostr?x=1", "relay.example.com:443"),
            ("wss://relay.example.com:8443/", "relay.example.com:8443"),
            ("WSS://relay.example.com", "relay.example.com:443"),
            ("ws://[::1]", "[::1]:80"),
            (" ws://[2001:db8::1]:7777 ", "[2001:db8::1]:7777"),
            ("ws://relay.example.com:", "relay.example.com:80"),
        ] {
            let parsed = PeerUrl::parse(url).unwrap();
            assert_eq!(parsed.authority(), authority, "{url}");
            assert!(["ws:", "wss:"].iter().any(|scheme| parsed.as_str().starts_with(scheme)));
        }
        for (url, reason) in [
            ("", "cannot be read"),
            ("relay.example.com", "begin with ws://"),
            ("https://relay.example.com", "begin with ws://"),
            ("ws://::1:7777", "cannot be read"),
            ("ws://me@relay.example.com", "user name"),
            ("ws://127.0.0.1:99999", "port"),
            ("ws://127.0.0.1:abc", "port"),
            ("ws://[::1]:70000", "port"),
        ] {
            let error = PeerUrl::parse(url).unwrap_err().to_string();
            assert!(error.contains(reason), "{url}: {error}");
        }
    }
}
