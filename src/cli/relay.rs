//! `negsync relay`

use super::serving::{ListenArguments, Serves, Serving, Signals};
use super::{StoreArguments, log_memory, start_log};
use anyhow::Context;
use negsync::config::{Config, Reloaded};
use negsync::relay::Relay;
use negsync::sync::Schedule;
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

#[derive(clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    store: StoreArguments,
    #[command(flatten)]
    listen: ListenArguments,
}

impl Arguments {
    fn config(&self) -> anyhow::Result<Config> {
        let mut config = self.store.config()?;
        self.listen.apply(&mut config);
        Ok(config)
    }
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let config = arguments.config()?;
    let log = start_log(&config.log)?;
    log_memory(&config);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(async {
        let store = config.store.path.display().to_string();
        let signals = Signals::heard(arguments.store.config.is_some())?;
        let relay = Relay::start(config).await?;
        let (address, peers) = (relay.address(), relay.admission().config().peers.len());
        let serving = Serving::begin(relay, log)?;
        tracing::info!(%address, store, peers, version = env!("CARGO_PKG_VERSION"), "serving");
        // A closed standard output is no reason not to serve.
        let _ = writeln!(std::io::stdout(), "negsync serves {store} on ws://{address}");
        serving.run(signals, || arguments.config()).await
    })
}

impl Serves for Relay {
    fn config(&self) -> Arc<Config> {
        self.admission().config()
    }

    fn schedule(&mut self) -> anyhow::Result<Schedule> {
        Ok(Schedule::start(self.index(), self.admission(), self.peers())?)
    }

    fn reload(&self, config: Config) -> Reloaded {
        Relay::reload(self, config)
    }

    async fn stop(self) -> anyhow::Result<()> {
        Relay::stop(self).await;
        Ok(())
    }
}
