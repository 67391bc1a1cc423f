//! The one path of the relay (NIP-01, Communication between clients and relays).

use crate::relay_url::RelayUrl;

/// The path of WebSocket, NIP-11 document and page: that of `auth.relay_url`, or `/` without it.
pub(super) struct Endpoint {
    // Without a trailing slash.
    path: String,
}

impl Endpoint {
    pub(super) fn new(relay_url: &str) -> Self {
        let path =
            RelayUrl::parse(relay_url).map_or_else(|_| String::new(), |url| url.path().into());
        Self { path }
    }

    /// Whether the path of a request is this one, with or without a trailing slash.
    pub(super) fn is(&self, path: &str) -> bool {
        path.strip_suffix('/').unwrap_or(path) == self.path
    }

    /// Whether the path is that of the page's updates.
    pub(super) fn is_updates(&self, path: &str) -> bool {
        path.strip_prefix(self.path.as_str()) == Some("/events")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_path_is_served() {
        for (relay_url, served) in [
            ("", &["/"][..]),
            ("wss://relay.example.com", &["/"]),
            ("wss://relay.example.com/nostr", &["/nostr", "/nostr/"]),
            ("wss://relay.example.com:7/a/b/?x=1", &["/a/b", "/a/b/"]),
        ] {
            let endpoint = Endpoint::new(relay_url);
            let paths = ["/", "//", "/foo", "/nostr", "/nostr/", "/nostr//", "/a/b", "/a/b/", "*"];
            let is: Vec<&str> = paths.into_iter().filter(|path| endpoint.is(path)).collect();
            assert_eq!(is, served, "{relay_url}");
        }
        assert!(Endpoint::new("").is_updates("/events"));
        assert!(Endpoint::new("ws://a/b").is_updates("/b/events"));
        assert!(!Endpoint::new("ws://a/b").is_updates("/events"));
    }
}
