//! Who may see what the relay measures.

use super::Network;
use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, Ipv6Addr};

/// `[metrics]`
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct MetricsConfig {
    /// The networks from which `/metrics` is answered.
    pub allow: Vec<Network>,
}

impl Default for MetricsConfig {
    fn default() -> Self {
        let here = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        Self { allow: here.map(Network::only).to_vec() }
    }
}
