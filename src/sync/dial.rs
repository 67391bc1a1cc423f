//! Where a peer is, and why it could not be reached.

use std::io::ErrorKind;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::tungstenite::http::Uri;

/// A byte stream, encrypted or not.
pub(super) trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Duplex for T {}

/// Why a peer could not be reached.
#[derive(Debug, thiserror::Error)]
#[error("cannot connect: {reason}")]
pub(super) struct DialError {
    reason: String,
    /// Whether another attempt cannot do better; the hint may.
    pub(super) is_final: bool,
    pub(super) hint: Option<&'static str>,
}

impl DialError {
    pub(super) fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), is_final: false, hint: None }
    }

    /// One that stays as it is, however often it is tried.
    pub(super) fn lasting(reason: impl Into<String>, hint: Option<&'static str>) -> Self {
        Self { reason: reason.into(), is_final: true, hint }
    }
}

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

    /// The name or address; of an IPv6 address without brackets.
    pub(super) fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// Whether TLS is spoken there.
    pub(super) fn is_encrypted(&self) -> bool {
        self.encrypted
    }

    /// Whether it is an onion service (RFC 7686), which only Tor leads to.
    pub fn is_onion(&self) -> bool {
        let host = self.host.trim_end_matches('.');
        host.rsplit_once('.').is_some_and(|(_, last)| last.eq_ignore_ascii_case("onion"))
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
    pub(super) fn unreached(&self, error: &std::io::Error) -> String {
        match (error.kind(), error.raw_os_error()) {
            (ErrorKind::ConnectionRefused, _) => {
                format!("nothing serves at {}; is the relay running?", self.authority())
            }
            // DriftCheck the name up is no call of the system, and has no number.
            (_, None) => format!("{error}; is the name {} right?", self.host),
            _ => error.to_string(),
        }
    }
}

impl std::fmt::Display for PeerUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
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
