//! `[connections]`: the number of clients, and their timeouts.

use super::Network;
use super::section::section;
use serde::{Deserialize, Serialize};

section! {
    /// `[connections]`
    pub struct ConnectionsConfig {
        /// Maximum number of WebSocket connections.
        pub in_all: usize where 1..=1_000_000 => OnReload,
        /// Maximum number of WebSocket connections of an address.
        pub per_address: usize where 1..=1_000_000 => OnReload,
        /// Maximum number of connections that are not a WebSocket yet.
        pub half_open: usize where 1..=100_000 => OnReload,
        /// Timeout for a connection to become a WebSocket.
        pub handshake_timeout_s: u64 where 1..=3_600 => NewConnections,
        /// Interval of pings; 0 for none.
        pub ping_interval_s: u64 where 0..=3_600 => NewConnections,
        /// Timeout after a ping without any message or pong.
        pub pong_timeout_s: u64 where 1..=3_600 => NewConnections,
        /// Timeout for a message to be complete.
        pub message_timeout_s: u64 where 1..=3_600 => NewConnections,
        /// Maximum bytes of incoming messages of an address.
        pub incoming_bytes_per_address: usize where 65_536..=1_073_741_824 => Restart,
        /// Maximum bytes of incoming messages of all addresses.
        pub incoming_bytes_in_all: usize where 65_536..=1_073_741_824 => Restart,
        /// Maximum bytes waiting to be sent to one client.
        pub outbound_bytes: usize where 65_536..=1_073_741_824 => NewConnections,
        /// Maximum bytes waiting to be sent to all clients, in addition to 64 KiB for each.
        pub outbound_bytes_in_all: usize where 65_536..=68_719_476_736 => Restart,
        /// Proxies whose `X-Forwarded-For` is trusted.
        pub trusted_proxies: Vec<Network> => NewConnections,
    }
}

impl Default for ConnectionsConfig {
    fn default() -> Self {
        Self {
            in_all: 4_096,
            per_address: 100,
            half_open: 256,
            handshake_timeout_s: 10,
            ping_interval_s: 30,
            pong_timeout_s: 60,
            message_timeout_s: 30,
            incoming_bytes_per_address: 8 << 20,
            incoming_bytes_in_all: 32 << 20,
            outbound_bytes: 2 << 20,
            outbound_bytes_in_all: 512 << 20,
            trusted_proxies: Vec::new(),
        }
    }
}
