//! Detects a reverse proxy that is missing in `connections.trusted_proxies`: all its clients would
//! share the limits of one address.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

/// Maximum number of watched addresses; the one with the fewest connections is dropped.
const MOST_ADDRESSES: usize = 16;
/// Connections, and different clients, from which an address counts as a proxy.
const CONNECTIONS: u64 = 16;
const CLIENTS: usize = 4;

/// Connections with `X-Forwarded-For` from addresses that are not trusted.
#[derive(Default)]
pub(crate) struct ProxyWatch {
    seen: Mutex<SeenProxies>,
    hasher: RandomState,
}

#[derive(Default)]
struct SeenProxies {
    is_told: bool,
    by_address: HashMap<IpAddr, Forwarded>,
}

#[derive(Default)]
struct Forwarded {
    connections: u64,
    // Hashes of the clients that it named, at most `CLIENTS`.
    clients: Vec<u64>,
}

impl ProxyWatch {
    /// Records a connection from an untrusted address with a named client. Returns its number of
    /// connections, once, when the address looks like a proxy.
    pub(crate) fn note(&self, address: IpAddr, client: &[u8]) -> Option<u64> {
        let client = self.hasher.hash_one(client);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.is_told {
            return None;
        }
        if seen.by_address.len() >= MOST_ADDRESSES && !seen.by_address.contains_key(&address) {
            let fewest = seen.by_address.iter().min_by_key(|(_, it)| it.connections);
            if let Some(fewest) = fewest.map(|(address, _)| *address) {
                seen.by_address.remove(&fewest);
            }
        }
        let forwarded = seen.by_address.entry(address).or_default();
        forwarded.connections += 1;
        if forwarded.clients.len() < CLIENTS && !forwarded.clients.contains(&client) {
            forwarded.clients.push(client);
        }
        let connections = forwarded.connections;
        let is_proxy = connections >= CONNECTIONS && forwarded.clients.len() >= CLIENTS;
        if is_proxy {
            *seen = SeenProxies { is_told: true, by_address: HashMap::new() };
        }
        is_proxy.then_some(connections)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: u32) -> IpAddr {
        IpAddr::V4(number.into())
    }

    #[test]
    fn an_address_that_brings_many_clients_is_told_once() {
        let watch = ProxyWatch::default();
        let mut told: Vec<Option<u64>> =
            (0..40u8).map(|n| watch.note(address(1), &[n % 5])).collect();
        told.extend((0..40u8).map(|n| watch.note(address(2), &[n])));
        let told: Vec<u64> = told.into_iter().flatten().collect();
        assert_eq!(told, [CONNECTIONS]);
    }

    #[test]
    fn one_client_is_no_proxy_and_strangers_do_not_fill_the_table() {
        let watch = ProxyWatch::default();
        for n in 0..1_000u32 {
            assert_eq!(watch.note(address(1), b"always the same"), None);
            assert_eq!(watch.note(address(n + 2), &n.to_be_bytes()), None);
        }
        assert!(watch.seen.lock().unwrap().by_address.len() <= MOST_ADDRESSES);
        assert!((0..4u8).any(|n| watch.note(address(1), &[n]).is_some()));
    }
}
