//! How many clients there may be, and for how long they may do nothing.

use super::Network;
use super::section::section;
use serde::{Deserialize, Serialize};

section! {
    /// `[connections]`
    pub struct ConnectionsConfig {
        /// WebSocket connections in all.
        pub in_all: usize where 1..=1_000_000 => OnReload,
        /// WebSocket connections an address.
        pub per_address: usize where 1..=1_000_000 => OnReload,
        /// Connections that are no WebSocket yet.
        pub half_open: usize where 1..=100_000 => OnReload,
        /// How long a connection may be no WebSocket.
        pub handshake_timeout_s: u64 where 1..=3_600 => NewConnections,
        /// How long between pings; 0 for none.
        pub ping_interval_s: u64 where 0..=3_600 => NewConnections,
        /// How long after a ping nothing may be heard.
        pub pong_timeout_s: u64 where 1..=3_600 => NewConnections,
        /// How long a message may take to come once it has begun.
        pub message_timeout_s: u64 where 1..=3_600 => NewConnections,
        /// Messages on their way in, of an address.
        pub incoming_bytes_per_address: usize where 65_536..=1_073_741_824 => Restart,
        /// Messages on their way in, of all addresses.
        pub incoming_bytes_in_all: usize where 65_536..=1_073_741_824 => Restart,
        /// What may wait for a client to take it.
        pub outbound_bytes: usize where 65_536..=1_073_741_824 => NewConnections,
        /// What may wait for all clients, beside 64 KiB for each.
        pub outbound_bytes_in_all: usize where 65_536..=68_719_476_736 => Restart,
        /// Whose `X-Forwarded-For` is believed.
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
