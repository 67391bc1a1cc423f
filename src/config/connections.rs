//! How many clients there may be, and for how long they may do nothing.

use super::section::section;
use super::{Network, Within};
use serde::{Deserialize, Serialize};

section! {
    /// `[connections]`
    pub struct ConnectionsConfig {
        /// WebSocket connections in all.
        pub in_all: Within<1, 1_000_000> => OnReload,
        /// WebSocket connections an address.
        pub per_address: Within<1, 1_000_000> => OnReload,
        /// Connections that are no WebSocket yet.
        pub half_open: Within<1, 100_000> => OnReload,
        /// How long a connection may be no WebSocket.
        pub handshake_timeout_s: Within<1, 3_600> => NewConnections,
        /// How long between pings; 0 for none.
        pub ping_interval_s: Within<0, 3_600> => NewConnections,
        /// How long after a ping nothing may be heard.
        pub pong_timeout_s: Within<1, 3_600> => NewConnections,
        /// How long a message may take to come once it has begun.
        pub message_timeout_s: Within<1, 3_600> => NewConnections,
        /// Messages on their way in, of an address.
        pub incoming_bytes_per_address: Within<65_536, 1_073_741_824> => Restart,
        /// Messages on their way in, of all addresses.
        pub incoming_bytes_in_all: Within<65_536, 1_073_741_824> => Restart,
        /// What may wait for a client to take it.
        pub outbound_bytes: Within<65_536, 1_073_741_824> => NewConnections,
        /// What may wait for all clients, beside 64 KiB for each.
        pub outbound_bytes_in_all: Within<65_536, 68_719_476_736> => Restart,
        /// Whose `X-Forwarded-For` is believed.
        pub trusted_proxies: Vec<Network> => NewConnections,
    }
}

impl Default for ConnectionsConfig {
    fn default() -> Self {
        Self {
            in_all: Within::new(4_096),
            per_address: Within::new(100),
            half_open: Within::new(256),
            handshake_timeout_s: Within::new(10),
            ping_interval_s: Within::new(30),
            pong_timeout_s: Within::new(60),
            message_timeout_s: Within::new(30),
            incoming_bytes_per_address: Within::new(8 << 20),
            incoming_bytes_in_all: Within::new(32 << 20),
            outbound_bytes: Within::new(2 << 20),
            outbound_bytes_in_all: Within::new(512 << 20),
            trusted_proxies: Vec::new(),
        }
    }
}
