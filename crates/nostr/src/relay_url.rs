//! A relay's address, as far as it tells relays apart.

use http::Uri;

/// Host, port and path of a relay. The scheme is left out, because a proxy may have taken the
/// encryption off, and with it the ports that go without saying.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayUrl {
    host: String,
    port: Option<u16>,
    // Unknown where only a host is known.
    path: Option<String>,
}

impl RelayUrl {
    /// Reads a `ws://` or `wss://` URL; `None` when it is none.
    pub fn parse(text: &str) -> Option<Self> {
        let uri: Uri = text.trim().parse().ok()?;
        let scheme = uri.scheme_str()?;
        if !scheme.eq_ignore_ascii_case("ws") && !scheme.eq_ignore_ascii_case("wss") {
            return None;
        }
        let path = uri.path().trim_end_matches('/').to_owned();
        Some(Self { path: Some(path), ..Self::of_uri(&uri)? })
    }

    /// Reads the `Host` header of a request.
    pub fn of_host(header: &str) -> Option<Self> {
        Self::of_uri(&header.trim().parse().ok()?)
    }

    fn of_uri(uri: &Uri) -> Option<Self> {
        let host = uri.host()?.trim_end_matches('.').to_ascii_lowercase();
        let port = uri.port_u16().filter(|port| ![80, 443].contains(port));
        (!host.is_empty()).then_some(Self { host, port, path: None })
    }

    /// Whether the URL leads to this relay.
    pub fn is(&self, url: &str) -> bool {
        Self::parse(url).is_some_and(|other| {
            self.host == other.host
                && self.port == other.port
                && (self.path.is_none() || self.path == other.path)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_compared_by_host_port_and_path() {
        let configured = RelayUrl::parse("wss://Relay.example.com/nostr/").unwrap();
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
        let host = RelayUrl::of_host("127.0.0.1:7777").unwrap();
        assert!(host.is("ws://127.0.0.1:7777/") && host.is("wss://127.0.0.1:7777/any"));
        assert!(!host.is("ws://127.0.0.1/") && !host.is("ws://localhost:7777"));
        assert!(RelayUrl::of_host("relay.example.com").unwrap().is("wss://relay.example.com:443"));
        assert!(RelayUrl::of_host("[::1]:9").unwrap().is("ws://[::1]:9/"));
        assert_eq!(RelayUrl::of_host(""), None);
    }
}
