//! The URL of a relay: compared by the relay it leads to, displayed without secrets.

use crate::hex;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use sha2::{Digest, Sha256};
use std::fmt::{self, Debug, Display, Formatter};
use url::{Host, Url};

/// A `ws://` or `wss://` URL. Spellings of one relay are equal: upper case, default port, trailing
/// slash or dot, percent-encoding and international names make no difference.
///
/// [`Display`] and [`Debug`] hide the values of the query, which may be secrets;
/// [`RelayUrl::expose`] and [`Serialize`] do not.
///
/// ```
/// use negsync_nostr::relay_url::RelayUrl;
///
/// let url: RelayUrl = "WSS://Relay.Example.com:443/?token=secret".parse()?;
/// assert_eq!(url, "wss://relay.example.com?token=secret".parse()?);
/// assert_eq!(url.to_string(), "wss://relay.example.com?token=...");
/// # Ok::<(), negsync_nostr::relay_url::RelayUrlError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RelayUrl {
    // Without fragment, user name or trailing slash of the path.
    url: Url,
    // Without brackets.
    host: String,
}

/// The text is not the URL of a relay.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{shown:?} is not the URL of a relay: {reason}")]
pub struct RelayUrlError {
    // The text without its secrets.
    shown: String,
    reason: &'static str,
}

impl RelayUrl {
    /// Parses a URL.
    ///
    /// # Errors
    /// The text is not a URL, has another scheme, or contains a user name or password.
    pub fn parse(text: &str) -> Result<Self, RelayUrlError> {
        let url = parse(text.trim())
            .map_err(|reason| RelayUrlError { shown: redacted(text.trim()), reason })?;
        let host = match url.host() {
            Some(Host::Ipv6(address)) => address.to_string(),
            Some(host) => host.to_string(),
            None => String::new(),
        };
        Ok(Self { url, host })
    }

    /// The URL with its secrets, for a request to the relay.
    #[must_use]
    pub fn expose(&self) -> &str {
        self.url.as_str()
    }

    /// Path and query with their secrets, as in an HTTP request line.
    #[must_use]
    pub fn expose_target(&self) -> &str {
        &self.url[url::Position::BeforePath..url::Position::AfterQuery]
    }

    /// The URL with a digest in place of its secrets. A peer's state is stored under this key,
    /// since another token may show other events.
    #[must_use]
    pub fn key(&self) -> String {
        match self.url.query() {
            None => self.to_string(),
            Some(query) => {
                let digest = Sha256::digest(query);
                format!("{self}#{}", hex::encode(&digest[..8]))
            }
        }
    }

    /// The URL without a query, as an AUTH event names the relay (NIP-42).
    #[must_use]
    pub fn address(&self) -> String {
        format!("{}{}", &self.url[..url::Position::BeforePath], self.path())
    }

    /// Whether the connection is encrypted (`wss://`).
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        self.url.scheme() == "wss"
    }

    /// The host: a name, or an IP address without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Whether the host is an onion service (RFC 7686), reachable only through Tor.
    #[must_use]
    pub fn is_onion(&self) -> bool {
        self.host.rsplit_once('.').is_some_and(|(_, last)| last == "onion")
    }

    /// The path, without a trailing slash.
    #[must_use]
    pub fn path(&self) -> &str {
        self.url.path().trim_end_matches('/')
    }

    /// The explicit port, or the default port of the scheme.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.url.port_or_known_default().unwrap_or_default()
    }

    /// Host and port, in the form of an HTTP `Host` header.
    #[must_use]
    pub fn authority(&self) -> String {
        format!("{}:{}", self.url.host_str().unwrap_or_default(), self.port())
    }

    /// Whether the URL has no path and no query.
    #[must_use]
    pub fn is_bare(&self) -> bool {
        self.url.path() == "/" && self.url.query().is_none()
    }

    /// The name under which clients know the relay.
    #[must_use]
    pub fn name(&self) -> RelayName {
        RelayName { path: Some(self.url.path().to_owned()), ..RelayName::of(&self.url) }
    }
}

fn parse(text: &str) -> Result<Url, &'static str> {
    let (scheme, rest) = text.split_once("://").unwrap_or_default();
    if !["ws", "wss"].iter().any(|known| scheme.eq_ignore_ascii_case(known)) {
        return Err("it must begin with ws:// or wss://");
    }
    // The URL Standard accepts these characters but changes their meaning.
    if text.contains(|c: char| c.is_whitespace() || c.is_control() || c == '\\') {
        return Err("it cannot be read");
    }
    if rest.starts_with(['/', '?', '#']) || rest.is_empty() {
        return Err("it names no host");
    }
    let mut url = Url::parse(text).map_err(|error| match error {
        url::ParseError::InvalidPort => "its port is no number from 1 to 65535",
        url::ParseError::EmptyHost => "it names no host",
        url::ParseError::IdnaError
        | url::ParseError::InvalidDomainCharacter
        | url::ParseError::InvalidIpv4Address
        | url::ParseError::InvalidIpv6Address => "its host is neither a name nor an address",
        _ => "it cannot be read",
    })?;
    if !url.username().is_empty() || url.password().is_some() || rest_has_user(rest) {
        return Err("it must not hold a user name or password");
    }
    if url.port() == Some(0) {
        return Err("its port is no number from 1 to 65535");
    }
    if let Some(host) = url.host_str().and_then(|host| host.strip_suffix('.')) {
        let host = host.to_owned();
        url.set_host(Some(&host)).map_err(|_| "it names no host")?;
    }
    url.set_fragment(None);
    if url.query() == Some("") {
        url.set_query(None);
    }
    let path = without_needless_escapes(url.path());
    url.set_path(path.trim_end_matches('/'));
    Ok(url)
}

/// Whether an authority contains an `@`, even with nothing before it.
fn rest_has_user(rest: &str) -> bool {
    rest.split(['/', '?', '#']).next().is_some_and(|authority| authority.contains('@'))
}

/// RFC 3986, section 6.2.2: decodes escapes of unreserved characters, and writes the hex of all
/// other escapes in upper case.
fn without_needless_escapes(path: &str) -> String {
    let mut parts = path.split('%');
    let mut shown = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let byte = part.get(..2).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        let (Some(byte), Some(rest)) = (byte, part.get(2..)) else {
            shown += &format!("%{part}");
            continue;
        };
        match char::from(byte) {
            c if c.is_ascii_alphanumeric() || "-._~".contains(c) => shown.push(c),
            _ => shown += &format!("%{byte:02X}"),
        }
        shown += rest;
    }
    shown
}

/// A text that may be a URL, without user name, password, fragment and query values.
pub fn redacted(text: &str) -> String {
    let (scheme, rest) = match text.find("://") {
        Some(at) => text.split_at(at + "://".len()),
        None => ("", text),
    };
    let (place, extra) = rest.split_at(rest.find(['?', '#']).unwrap_or(rest.len()));
    if extra.contains('@') {
        // Either a query, or a password that contains a question mark.
        return format!("{scheme}...");
    }
    let place = match place.rsplit_once('@') {
        Some((_, place)) => format!("...@{place}"),
        None => place.to_owned(),
    };
    let query = extra.split('#').next().and_then(|query| query.strip_prefix('?'));
    format!("{scheme}{place}{}", query.map(redacted_query).unwrap_or_default())
}

/// Parsers of URLs disagree on where the login part ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "ambiguous login in the URL. Hint: write @, / and ? in a user name, password or parameter as %40, %2F and \
     %3F"
)]
pub struct AmbiguousLogin;

/// Checks that all URL parsers find the same login part. Otherwise a part of a password may be
/// taken for a host name, or the reverse.
///
/// # Errors
/// [`AmbiguousLogin`] when there is more than one `@`, or a `/` or `?` before it.
pub fn check_login(url: &str) -> Result<(), AmbiguousLogin> {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    match rest.split_once('@') {
        Some((login, place)) if login.contains(['/', '?']) || place.contains('@') => {
            Err(AmbiguousLogin)
        }
        _ => Ok(()),
    }
}

fn redacted_query(query: &str) -> String {
    let pairs = query.split('&').map(|pair| match pair.split_once('=') {
        Some((name, _)) => format!("{name}=..."),
        None => "...".to_owned(),
    });
    format!("?{}", pairs.collect::<Vec<_>>().join("&"))
}

impl Display for RelayUrl {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&self.address())?;
        match self.url.query() {
            Some(query) => f.write_str(&redacted_query(query)),
            None => Ok(()),
        }
    }
}

impl Debug for RelayUrl {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.to_string())
    }
}

impl std::str::FromStr for RelayUrl {
    type Err = RelayUrlError;

    fn from_str(text: &str) -> Result<Self, RelayUrlError> {
        Self::parse(text)
    }
}

impl Serialize for RelayUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.expose())
    }
}

impl<'de> Deserialize<'de> for RelayUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// Host, port and path of a relay, as its clients name it. The scheme is left out, because a proxy
/// may terminate TLS; default ports are left out with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayName {
    host: String,
    port: Option<u16>,
    // `None` if only a host is known.
    path: Option<String>,
}

impl RelayName {
    /// Parses the `Host` header of a request.
    #[must_use]
    pub fn of_host(header: &str) -> Option<Self> {
        if header.contains(['/', '?', '#']) {
            return None;
        }
        let url = parse(&format!("ws://{}", header.trim())).ok()?;
        Some(Self::of(&url))
    }

    fn of(url: &Url) -> Self {
        let port = url.port().filter(|port| ![80, 443].contains(port));
        Self { host: url.host_str().unwrap_or_default().to_owned(), port, path: None }
    }

    /// Whether the URL leads to this relay.
    #[must_use]
    pub fn is(&self, url: &str) -> bool {
        RelayUrl::parse(url).is_ok_and(|url| {
            let other = url.name();
            self.host == other.host
                && self.port == other.port
                && (self.path.is_none() || self.path == other.path)
        })
    }

    /// The host, without a port.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }
}

/// As in a URL, without the scheme: `relay.example.com:7777/path`.
impl Display for RelayName {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&self.host)?;
        if let Some(port) = self.port {
            write!(f, ":{port}")?;
        }
        f.write_str(self.path.as_deref().unwrap_or_default().trim_end_matches('/'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_one_relay_are_equal_and_shown_alike() {
        for (shown, spellings) in [
            (
                "wss://relay.example.com",
                &[
                    "wss://relay.example.com/",
                    " WSS://Relay.EXAMPLE.com:443// ",
                    "wss://relay.example.com.:443",
                    "wss://relay.example.com/#top",
                    "wss://relay.example.com/?",
                    "wss://relay.example.com:",
                ][..],
            ),
            ("ws://relay.example.com/a~b", &["ws://relay.example.com:80/%61%7eb/"]),
            ("ws://relay.example.com/a%2Fb", &["ws://relay.example.com/x/../a%2fb"]),
            ("wss://xn--bcher-kva.example", &["wss://bücher.example", "wss://B%C3%BCCHER.example"]),
            ("ws://[2001:db8::1]:7777", &["ws://[2001:DB8:0:0::1]:7777/"]),
            ("ws://127.0.0.1:7777", &["ws://127.0.0.1:07777"]),
        ] {
            let url = RelayUrl::parse(shown).unwrap();
            assert_eq!(url.to_string(), shown);
            for spelling in spellings {
                let other = RelayUrl::parse(spelling).unwrap();
                assert_eq!((&other, other.to_string()), (&url, shown.to_owned()), "{spelling}");
            }
        }
        let differ =
            ["wss://a.example", "ws://a.example", "wss://a.example/A", "wss://a.example/a"];
        let differ: Vec<RelayUrl> =
            differ.iter().map(|url| RelayUrl::parse(url).unwrap()).collect();
        assert!((1..differ.len()).all(|at| !differ[..at].contains(&differ[at])));
    }

    #[test]
    fn a_url_leads_to_a_host_and_a_port() {
        for (url, authority, host, target) in [
            ("ws://relay.example.com", "relay.example.com:80", "relay.example.com", "/"),
            (
                "wss://relay.example.com/a?b=c",
                "relay.example.com:443",
                "relay.example.com",
                "/a?b=c",
            ),
            ("wss://[::1]:8443/a/", "[::1]:8443", "::1", "/a"),
        ] {
            let url = RelayUrl::parse(url).unwrap();
            assert_eq!((url.authority().as_str(), url.host()), (authority, host));
            assert_eq!(url.expose_target(), target);
        }
    }

    #[test]
    fn what_leads_to_no_relay_is_refused_with_a_reason() {
        for (url, reason) in [
            ("", "begin with ws://"),
            ("relay.example.com", "begin with ws://"),
            ("https://relay.example.com", "begin with ws://"),
            ("ws:relay.example.com", "begin with ws://"),
            ("ws://", "no host"),
            ("ws:///nostr", "no host"),
            ("ws://:80", "no host"),
            ("ws://::1:7777", "no host"),
            ("ws://[::1", "neither a name nor an address"),
            ("ws://a b.example", "cannot be read"),
            ("ws:\\\\relay.example", "begin with ws://"),
            ("ws://relay.example\\@evil.example", "cannot be read"),
            ("ws://me@relay.example.com", "user name"),
            ("ws://@relay.example.com", "user name"),
            ("ws://127.0.0.1:99999", "port"),
            ("ws://127.0.0.1:0", "port"),
            ("ws://127.0.0.1:abc", "port"),
            ("ws://[::1]:70000", "port"),
        ] {
            let error = RelayUrl::parse(url).unwrap_err().to_string();
            assert!(error.contains(reason), "{url}: {error}");
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        for url in [
            "wss://a.example?token=hush",
            "wss://a.example/nostr?x=1&token=hush&hush",
            "wss://hush:hush@a.example",
            "wss://hush@a.example/",
            "wss://hu@sh:hush@a.example:99999",
            "wss://a.example#hush",
            "https://hush@a.example/?token=hush",
            "postgres://me:hush/hush@a.example/db?password=hush",
            "hush@a.example?hush",
            "wss://a.example?a@b=hush@hush",
        ] {
            let (shown, debug) = match RelayUrl::parse(url) {
                Ok(url) => (url.to_string(), format!("{url:?}")),
                Err(error) => (error.to_string(), format!("{error:?}")),
            };
            for text in [shown, debug, redacted(url)] {
                assert!(!text.contains("hush"), "{url}: {text}");
            }
        }
        for text in ["wss://a.example?token=hush@hush", "postgres://me:hush?#hush@a.example/db"] {
            assert!(!redacted(text).contains("hush"), "{text}");
        }
        assert_eq!(
            redacted("postgres://me:hush@a.example/db?x=1"),
            "postgres://...@a.example/db?x=..."
        );
    }

    #[test]
    fn a_relay_is_named_by_host_port_and_path() {
        let configured = RelayUrl::parse("wss://Relay.example.com/nostr/").unwrap().name();
        for (url, is) in [
            ("wss://relay.example.com/nostr", true),
            ("ws://RELAY.example.com:80/nostr/", true),
            ("wss://relay.example.com.:443/nostr?x=1", true),
            ("wss://relay.example.com", false),
            ("wss://relay.example.com:7777/nostr", false),
            ("wss://example.com/nostr", false),
            ("https://relay.example.com/nostr", false),
            ("relay.example.com/nostr", false),
            ("wss://relay.example.com.evil.example/nostr", false),
            ("wss://relay.example.com@evil.example/nostr", false),
            ("ALL_RELAYS", false),
            ("", false),
        ] {
            assert_eq!(configured.is(url), is, "{url}");
        }
        let host = RelayName::of_host("127.0.0.1:7777").unwrap();
        assert!(host.is("ws://127.0.0.1:7777/") && host.is("wss://127.0.0.1:7777/any"));
        assert!(!host.is("ws://127.0.0.1/") && !host.is("ws://localhost:7777"));
        assert_eq!(host.to_string(), "127.0.0.1:7777");
        assert!(RelayName::of_host("relay.example.com").unwrap().is("wss://relay.example.com:443"));
        assert!(RelayName::of_host("[::1]:9").unwrap().is("ws://[::1]:9/"));
        assert_eq!(RelayName::of_host(""), None);
        assert_eq!(RelayName::of_host("a/b@c"), None);
    }
}
