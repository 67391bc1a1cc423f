//! `negsync relay`

use super::service_manager::Starting;
use super::serving::{ListenArguments, Serves, Serving, Signals, say_where, sockets_handed_over};
use super::{StoreArguments, log_memory, start_log};
use negsync::config::{Config, ConfigError, Reloaded};
use negsync::relay::Relay;
use negsync::sync::Schedule;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;

pub(super) const EXAMPLES: &str = "Examples:
  negsync relay
  negsync relay --store events.sqlite --listen localhost:7777
  NEGSYNC__PAGE__ENABLED=true negsync relay --config /etc/negsync/relay.toml

SIGHUP reads the configuration anew; SIGTERM and Ctrl-C end the relay.";

#[derive(clap::Args)]
pub(super) struct RelayArguments {
    #[command(flatten)]
    store: StoreArguments,
    #[command(flatten)]
    listen: ListenArguments,
}

impl RelayArguments {
    fn config(&self) -> anyhow::Result<Config> {
        let mut config = self.store.config()?;
        self.listen.apply(&mut config);
        Ok(config)
    }
}

pub(super) fn run(arguments: &RelayArguments) -> anyhow::Result<ExitCode> {
    let config = arguments.config()?;
    let log = start_log(&config.log)?;
    log_memory(&config);
    super::descriptors::raise_limit(&config);
    let runtime = super::runtime::start(&config)?;
    runtime.block_on(async {
        let store = config.store.name();
        let signals = Signals::heard(arguments.store.config.is_some())?;
        let relay_url = config.auth.relay_url.clone();
        let sockets = sockets_handed_over(&config)?;
        let starting = Starting::begin();
        let relay = Relay::start_on(config, sockets).await?;
        let peers = relay.admission().config().peers.len();
        let addresses = relay.addresses().to_vec();
        let serving = Serving::begin(relay, log)?;
        drop(starting);
        tracing::info!(?addresses, store, peers, version = env!("CARGO_PKG_VERSION"), "serving");
        say_where(&store, &addresses);
        if names_no_url(&relay_url, &addresses) {
            tracing::warn!(
                ?addresses,
                "auth.relay_url is empty on a public address: AUTH accepts any URL with the Host that \
                 the client's connection names, so another relay can pass on what was signed for it; \
                 of requests to vanish (NIP-62) only those to ALL_RELAYS are followed. Hint: set \
                 auth.relay_url to the wss:// URL that clients use"
            );
        }
        serving.run(signals, || arguments.config()).await
    })
}

/// Whether a relay with public addresses has no configured URL.
fn names_no_url(relay_url: &str, addresses: &[SocketAddr]) -> bool {
    let is_local = |address: &SocketAddr| address.ip().to_canonical().is_loopback();
    relay_url.is_empty() && !addresses.iter().all(is_local)
}

impl Serves for Relay {
    fn config(&self) -> Arc<Config> {
        self.admission().config()
    }

    fn schedule(&mut self) -> anyhow::Result<Schedule> {
        Ok(Schedule::start(self.index(), self.admission(), self.peers())?)
    }

    fn reload(&self, config: Config) -> Result<Reloaded, ConfigError> {
        Relay::reload(self, config)
    }

    async fn stop(self) -> anyhow::Result<()> {
        Relay::stop(self).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_public_address_wants_a_url() {
        for (relay_url, address, wants) in [
            ("", "127.0.0.1:7777", false),
            ("", "[::1]:7777", false),
            ("", "[::ffff:127.0.0.1]:7777", false),
            ("", "0.0.0.0:7777", true),
            ("", "[::]:7777", true),
            ("", "192.0.2.1:7777", true),
            ("wss://relay.example.com", "0.0.0.0:7777", false),
        ] {
            let addresses = ["127.0.0.1:1".parse().unwrap(), address.parse().unwrap()];
            assert_eq!(names_no_url(relay_url, &addresses), wants, "{address}");
        }
    }
}
