//! How commands connect to the given relays.

use negsync::config::{Config, Via};

#[derive(clap::Args)]
pub(super) struct ConnectArguments {
    /// Reach the relays through this proxy, socks5://HOST:PORT or http://HOST:PORT, in place of
    /// sync.proxy; empty for none. The proxy resolves their names.
    #[arg(long, value_name = "URL", value_parser = Via::parse)]
    proxy: Option<Via>,
}

impl ConnectArguments {
    pub(super) fn apply(&self, config: &mut Config) {
        if let Some(via) = &self.proxy {
            config.sync.proxy.clone_from(via);
        }
    }
}
