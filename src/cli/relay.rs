//! `negsync relay`

use super::{StoreArguments, start_log};
use anyhow::Context;
use negsync::relay::Relay;
use negsync::sync::Schedule;
use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};

#[derive(clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    store: StoreArguments,
    /// The address and port to serve on; wins over the configuration. Port 0 takes any free one.
    #[arg(long, value_name = "ADDR:PORT", value_parser = listen_address)]
    listen: Option<SocketAddr>,
}

fn listen_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "give an address and a port, such as 127.0.0.1:7777".to_owned())
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let mut config = arguments.store.config()?;
    if let Some(listen) = arguments.listen {
        config.relay.listen = listen;
    }
    start_log(&config.log)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(async {
        let store = config.store.path.display().to_string();
        // Before anything is served, so that no signal is missed.
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let relay = Relay::start(config.clone()).await?;
        let schedule = Schedule::start(relay.index(), &config, relay.peers())?;
        tracing::info!(
            address = %relay.address(),
            store,
            peers = config.peers.len(),
            version = env!("CARGO_PKG_VERSION"),
            "serving"
        );
        // A closed standard output is no reason not to serve.
        let _ = writeln!(std::io::stdout(), "negsync serves {store} on ws://{}", relay.address());
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        tracing::info!("stopping");
        schedule.stop().await;
        relay.stop().await;
        tracing::info!("stopped");
        Ok(ExitCode::SUCCESS)
    })
}
