//! Whether a request names this relay by one of its own host names.
//!
//! A browser can be made to send requests to any address under a foreign host name (DNS rebinding):
//! a page of `evil.example` could then read responses that are meant for this machine only. Its
//! `Host` header is the foreign name. So responses for the operator require a `Host` that nobody
//! else can own: an IP address, `localhost`, a name without a dot, or a configured name.

use crate::config::Config;
use crate::relay_url::{RelayName, RelayUrl};
use hyper::Request;
use hyper::header::{HOST, HeaderValue};
use std::net::IpAddr;

/// Whether the request's `Host` is our own.
pub(crate) fn names_own_host<B>(request: &Request<B>, config: &Config) -> bool {
    is_own_host(request.headers().get(HOST), config)
}

/// Whether a `Host` header is our own. Browsers always send the header.
pub(crate) fn is_own_host(header: Option<&HeaderValue>, config: &Config) -> bool {
    let Some(host) = header else { return true };
    let name = host.to_str().ok().and_then(RelayName::of_host);
    name.is_some_and(|name| is_own(name.host(), config))
}

fn is_own(host: &str, config: &Config) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    let is_configured = || {
        let urls = [&config.auth.relay_url, &config.attach.relay_url];
        let hosts = urls.into_iter().filter_map(|url| RelayUrl::parse(url).ok());
        let mut names = config.relay.hosts.iter().map(|name| name.to_ascii_lowercase());
        names.any(|name| name == host)
            || hosts.map(|url| url.name()).any(|name| name.host() == host)
    };
    address.parse::<IpAddr>().is_ok()
        || !host.contains('.')
        || host.ends_with(".localhost")
        || is_configured()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_others_can_hold_are_not_ours() {
        let mut config = Config::default();
        config.auth.relay_url = "wss://Relay.example.com/nostr".into();
        config.relay.hosts = vec!["metrics.internal.example".into()];
        for (host, is) in [
            ("127.0.0.1:7777", true),
            ("[::1]:7777", true),
            ("localhost", true),
            ("negsync:7777", true),
            ("a.localhost:1", true),
            ("relay.example.com.", true),
            ("relay.example.com:443", true),
            ("metrics.internal.example:7777", true),
            ("evil.example", false),
            ("127.0.0.1.evil.example", false),
            ("relay.example.com.evil.example", false),
            ("", false),
            ("a b", false),
        ] {
            let request = Request::builder().header(HOST, host).body(()).unwrap();
            assert_eq!(names_own_host(&request, &config), is, "{host}");
        }
        assert!(names_own_host(&Request::new(()), &config));
    }
}
