//! The address of a client, for limits by address.

use crate::config::Network;
use hyper::header::HeaderName;
use hyper::{HeaderMap, Request};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// Lists the addresses that a request passed, the client's first.
pub(crate) const FORWARDED_FOR: &str = "x-forwarded-for";
/// The headers by which proxies mark forwarded requests.
const FORWARDED_BY: [&str; 3] = ["forwarded", "x-forwarded-for", "x-real-ip"];
/// The headers in which proxies and hosting services name the client, in lower case. A relay may
/// trust any of them.
const CLIENT_HEADERS: [&str; 11] = [
    "client-ip",
    "fastly-client-ip",
    "fly-client-ip",
    "forwarded",
    "forwarded-for",
    "true-client-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-envoy-external-address",
    "x-original-forwarded-for",
    "x-real-ip",
];
/// The prefixes of further such headers.
const CLIENT_HEADERS_BEGIN: [&str; 3] = ["cf-", "x-appengine-user-ip", "x-forwarded"];
/// The part of an IPv6 address that identifies a customer; the customer chooses the rest.
const IPV6_NETWORK: u128 = !0 << 64;

/// The address for limits: an IPv4 address, or an IPv6 network of 64 bits.
pub(crate) fn counted_as(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & IPV6_NETWORK).into(),
        address => address,
    }
}

/// The address from which a request comes: the peer's, or, if that is a trusted proxy, the last one
/// in `X-Forwarded-For` that is not. Addresses before it may be forged.
pub(crate) fn client_address(peer: IpAddr, headers: &HeaderMap, trusted: &[Network]) -> IpAddr {
    let is_trusted = |address: IpAddr| trusted.iter().any(|network| network.contains(address));
    let mut client = peer.to_canonical();
    let values = headers.get_all(FORWARDED_FOR).into_iter().rev();
    let hops = values.flat_map(|value| value.to_str().unwrap_or("").rsplit(','));
    for hop in hops {
        if !is_trusted(client) {
            break;
        }
        let Some(address) = parse(hop.trim()) else { break };
        client = address.to_canonical();
    }
    client
}

/// Removes all headers by which a client could claim another address.
pub(crate) fn remove_forwarding(headers: &mut HeaderMap) {
    let is_forwarding = |name: &HeaderName| {
        // Some relays treat an underscore like a hyphen.
        let name = name.as_str().replace('_', "-");
        CLIENT_HEADERS.contains(&name.as_str())
            || CLIENT_HEADERS_BEGIN.iter().any(|begin| name.starts_with(begin))
    };
    let forwarding: Vec<HeaderName> =
        headers.keys().filter(|name| is_forwarding(name)).cloned().collect();
    for name in forwarding {
        headers.remove(name);
    }
}

/// Whether a request came through a proxy, and so from another address than the connection's.
pub(crate) fn is_forwarded<B>(request: &Request<B>) -> bool {
    FORWARDED_BY.iter().any(|header| request.headers().contains_key(*header))
}

/// Some proxies add the port.
fn parse(hop: &str) -> Option<IpAddr> {
    hop.parse().ok().or_else(|| hop.parse().ok().map(|address: SocketAddr| address.ip()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(peer: &str, headers: &[&str], trusted: &[&str]) -> String {
        let mut map = HeaderMap::new();
        for value in headers {
            map.append(FORWARDED_FOR, value.parse().unwrap());
        }
        let trusted: Vec<Network> = trusted.iter().map(|text| text.parse().unwrap()).collect();
        client_address(peer.parse().unwrap(), &map, &trusted).to_string()
    }

    #[test]
    fn only_what_trusted_proxies_have_added_is_believed() {
        let (own, proxy) = ("198.51.100.1", "10.0.0.1");
        let trusted = ["10.0.0.0/8", "::1"];
        for (peer, headers, expected) in [
            (own, &["1.2.3.4"][..], own),
            (proxy, &[], proxy),
            (proxy, &["1.2.3.4"], "1.2.3.4"),
            (proxy, &["1.2.3.4, 198.51.100.1"], own),
            (proxy, &["1.2.3.4", "198.51.100.1,10.0.0.2"], own),
            (proxy, &["1.2.3.4,198.51.100.1:4711"], own),
            (proxy, &["198.51.100.1, nonsense"], proxy),
            (proxy, &["nonsense, 10.0.0.3"], "10.0.0.3"),
            (proxy, &["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
            (proxy, &["1.2.3.4, [2001:db8::7]:80"], "2001:db8::7"),
            ("::1", &["2001:db8::7"], "2001:db8::7"),
            ("::ffff:10.0.0.1", &["1.2.3.4"], "1.2.3.4"),
        ] {
            assert_eq!(client(peer, headers, &trusted), expected, "{peer} {headers:?}");
            assert_ne!(client(peer, headers, &[]), "1.2.3.4");
        }
    }

    #[test]
    fn addresses_of_one_ipv6_network_are_one() {
        let counted = |text: &str| counted_as(text.parse().unwrap());
        assert_eq!(counted("2001:db8:0:1::5"), counted("2001:db8:0:1:ffff::"));
        assert_ne!(counted("2001:db8:0:1::"), counted("2001:db8:0:2::"));
        assert_eq!(counted("::ffff:10.0.0.1"), counted("10.0.0.1"));
        assert_ne!(counted("10.0.0.1"), counted("10.0.0.2"));
    }
}
