//! `negsync relay`

use super::{Log, StoreArguments, start_log};
use anyhow::Context;
use negsync::config::Config;
use negsync::relay::Relay;
use negsync::sync::Schedule;
use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;
use tokio::signal::unix::{Signal, SignalKind, signal};

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

impl Arguments {
    fn config(&self) -> anyhow::Result<Config> {
        let mut config = self.store.config()?;
        if let Some(listen) = self.listen {
            config.relay.listen = listen;
        }
        Ok(config)
    }
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let config = arguments.config()?;
    let log = start_log(&config.log)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(async {
        let store = config.store.path.display().to_string();
        // Before anything is served, so that no signal is missed.
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        // Without a file there is nothing to reload: the terminal's end is the relay's.
        let has_file = arguments.store.config.is_some();
        let mut hangup = has_file.then(|| signal(SignalKind::hangup())).transpose()?;
        let relay = Relay::start(config.clone()).await?;
        let schedule = Some(Schedule::start(relay.index(), &config, relay.peers())?);
        tracing::info!(
            address = %relay.address(),
            store,
            peers = config.peers.len(),
            version = env!("CARGO_PKG_VERSION"),
            "serving"
        );
        let mut serving = Serving { config, relay, schedule, log };
        // A closed standard output is no reason not to serve.
        let address = serving.relay.address();
        let _ = writeln!(std::io::stdout(), "negsync serves {store} on ws://{address}");
        loop {
            tokio::select! {
                _ = interrupt.recv() => break,
                _ = terminate.recv() => break,
                Some(()) = next(&mut hangup) => {
                    let reloaded = match arguments.config() {
                        Ok(config) => serving.reload(config).await,
                        Err(error) => Err(error),
                    };
                    if let Err(error) = reloaded {
                        let error = crate::explain(&error);
                        tracing::error!("the configuration stays as it was: {error}");
                    }
                }
            }
        }
        tracing::info!("stopping");
        if let Some(schedule) = serving.schedule {
            schedule.stop().await;
        }
        serving.relay.stop().await;
        tracing::info!("stopped");
        Ok(ExitCode::SUCCESS)
    })
}

/// The next signal, or never.
async fn next(signal: &mut Option<Signal>) -> Option<()> {
    match signal {
        Some(signal) => signal.recv().await,
        None => std::future::pending().await,
    }
}

/// What runs until a signal ends it.
struct Serving {
    config: Config,
    relay: Relay,
    // None only while peers change.
    schedule: Option<Schedule>,
    log: Log,
}

impl Serving {
    /// Takes a new configuration, and says in the log what has come of it.
    async fn reload(&mut self, config: Config) -> anyhow::Result<()> {
        // What can still be wrong comes first: an error leaves everything as it was.
        let scheduled = |it: &Config| (it.sync.clone(), it.peers.clone(), it.page.clone());
        if scheduled(&config) != scheduled(&self.config) {
            Schedule::check(self.relay.index(), &config)?;
            if let Some(schedule) = self.schedule.take() {
                schedule.stop().await;
            }
            let peers = self.relay.peers();
            self.schedule = Some(Schedule::start(self.relay.index(), &config, peers)?);
        }
        (self.log.set_level)(&config.log)?;
        let reloaded = self.relay.reload(config.clone());
        self.config = config;
        let changed = match reloaded.changed.as_slice() {
            [] => "nothing".to_owned(),
            keys => keys.join(", "),
        };
        tracing::info!("the configuration was read anew; changed: {changed}");
        if !reloaded.needs_restart.is_empty() {
            tracing::warn!("only a restart changes {}", reloaded.needs_restart.join(", "));
        }
        Ok(())
    }
}
