//! `[metrics]`: who may see the metrics.

use super::Network;
use super::section::section;
use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, Ipv6Addr};

section! {
    /// `[metrics]`
    pub struct MetricsConfig {
        /// The networks from which `/metrics` is answered.
        pub allow: Vec<Network> => OnReload,
    }
}

impl Default for MetricsConfig {
    fn default() -> Self {
        let here = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        Self { allow: here.map(Network::only).to_vec() }
    }
}
