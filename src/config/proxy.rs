//! The connection to peers: direct, or through a proxy.

use nostr::Url;
use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Whether to use a proxy; written as the proxy's URL, or empty for none.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Via {
    /// Without a proxy.
    #[default]
    Direct,
    /// Through this proxy.
    Proxy(Proxy),
}

/// A proxy. It resolves the names of peers itself. `Debug` and `Display` leave out its password.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    /// Its protocol.
    pub protocol: ProxyProtocol,
    /// Its host name or address.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// The user name and the password.
    pub login: Option<(String, String)>,
    // As configured.
    text: String,
}

/// The protocol of a proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyProtocol {
    /// SOCKS version 5 (RFC 1928), as used by Tor.
    Socks5,
    /// HTTP CONNECT (RFC 9110, section 9.3.6).
    Http,
}

/// The text is not a proxy's URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be socks5://HOST:PORT or http://HOST:PORT, or empty: {0}")]
pub struct ProxyError(&'static str);

impl Via {
    /// Parses a proxy's URL; an empty text means no proxy.
    ///
    /// # Errors
    /// [`ProxyError`] with the fault; it does not contain the text, which may have a password.
    pub fn parse(text: &str) -> Result<Self, ProxyError> {
        let text = text.trim();
        if text.is_empty() { Ok(Self::Direct) } else { Proxy::parse(text).map(Self::Proxy) }
    }
}

impl Proxy {
    fn parse(text: &str) -> Result<Self, ProxyError> {
        let url = Url::parse(text).map_err(|_| ProxyError("it is no URL"))?;
        let (protocol, default_port) = match url.scheme() {
            // curl's name for a SOCKS5 proxy that resolves names; here every proxy does.
            "socks5" | "socks5h" => (ProxyProtocol::Socks5, 1_080),
            "http" => (ProxyProtocol::Http, 80),
            _ => return Err(ProxyError("it begins with another scheme")),
        };
        let host = url.host_str().filter(|host| !host.is_empty());
        let host = host.ok_or(ProxyError("it names no host"))?;
        if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
            return Err(ProxyError("it holds more than a host and a port"));
        }
        let decode = |part: &str| {
            let decoded = percent_decode_str(part).decode_utf8();
            decoded.map(|part| part.into_owned()).map_err(|_| ProxyError("its login is not UTF-8"))
        };
        let login = match (url.username(), url.password()) {
            ("", None) => None,
            (user, password) => Some((decode(user)?, decode(password.unwrap_or_default())?)),
        };
        let is_socks_login = |part: &str| (1..=255).contains(&part.len());
        if let (ProxyProtocol::Socks5, Some((user, password))) = (protocol, &login)
            && !(is_socks_login(user) && is_socks_login(password))
        {
            return Err(ProxyError("SOCKS5 takes a user name and a password of 1 to 255 bytes"));
        }
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = url.port().unwrap_or(default_port);
        Ok(Self { protocol, host, port, login, text: text.to_owned() })
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.protocol {
            ProxyProtocol::Socks5 => "socks5",
            ProxyProtocol::Http => "http",
        };
        match self.host.contains(':') {
            true => write!(f, "{scheme}://[{}]:{}", self.host, self.port),
            false => write!(f, "{scheme}://{}:{}", self.host, self.port),
        }
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proxy({self})")
    }
}

impl fmt::Debug for Via {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Direct => f.write_str("Direct"),
            Self::Proxy(proxy) => write!(f, "{proxy:?}"),
        }
    }
}

impl TryFrom<String> for Via {
    type Error = ProxyError;

    fn try_from(text: String) -> Result<Self, ProxyError> {
        Self::parse(&text)
    }
}

impl From<Via> for String {
    fn from(via: Via) -> Self {
        match via {
            Via::Direct => Self::new(),
            Via::Proxy(proxy) => proxy.text,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_read_and_never_shows_its_password() {
        assert_eq!(Via::parse(" "), Ok(Via::Direct));
        for (text, shown, user) in [
            ("socks5://127.0.0.1:9050", "socks5://127.0.0.1:9050", None),
            ("SOCKS5h://tor", "socks5://tor:1080", None),
            ("socks5://[::1]:9050/", "socks5://[::1]:9050", None),
            ("http://proxy.example", "http://proxy.example:80", None),
            ("http://me:s%40cret@proxy:3128", "http://proxy:3128", Some(("me", "s@cret"))),
            ("socks5://me:s%40cret@proxy", "socks5://proxy:1080", Some(("me", "s@cret"))),
        ] {
            let Ok(Via::Proxy(proxy)) = Via::parse(text) else { panic!("{text}") };
            assert_eq!(proxy.to_string(), shown, "{text}");
            let login = proxy.login.as_ref().map(|(user, password)| (&**user, &**password));
            assert_eq!(login, user, "{text}");
            let via = Via::Proxy(proxy);
            assert!(!format!("{via:?}").contains("cret"), "{via:?}");
            assert_eq!(String::from(via), text);
        }
        for text in [
            "127.0.0.1:9050",
            "socks4://proxy:1080",
            "https://proxy",
            "socks5://",
            "socks5://proxy:99999",
            "http://proxy/path",
            "socks5://me@proxy",
        ] {
            assert!(Via::parse(text).is_err(), "{text}");
        }
    }
}
