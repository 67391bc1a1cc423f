//! What serves until a signal ends it, and reads its configuration anew at another.

use super::Log;
use negsync::clients::Reloaded;
use negsync::config::Config;
use negsync::sync::Schedule;
use std::net::SocketAddr;
use std::process::ExitCode;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Where to serve.
#[derive(clap::Args)]
pub(super) struct ListenArguments {
    /// The address and port to serve on; wins over the configuration. Port 0 takes any free one.
    #[arg(long, value_name = "ADDR:PORT", value_parser = listen_address)]
    listen: Option<SocketAddr>,
}

fn listen_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "give an address and a port, such as 127.0.0.1:7777".to_owned())
}

impl ListenArguments {
    pub(super) fn apply(&self, config: &mut Config) {
        if let Some(listen) = self.listen {
            config.relay.listen = listen;
        }
    }
}

/// The relay, or the plugin before another one.
pub(super) trait Serves {
    /// Begins to keep the configured peers in sync.
    fn schedule(&mut self, config: &Config) -> anyhow::Result<Schedule>;

    /// Puts a new configuration in force, as far as that takes no restart.
    fn reload(&self, config: Config) -> Reloaded;

    /// Ends it.
    async fn stop(self) -> anyhow::Result<()>;
}

/// What ends it, and what has the configuration read anew.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Option<Signal>,
}

impl Signals {
    /// From now on: before anything is served, so that none is missed. Without a file there is
    /// nothing to read anew, and the terminal's end is the end.
    pub(super) fn heard(has_file: bool) -> anyhow::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: has_file.then(|| signal(SignalKind::hangup())).transpose()?,
        })
    }

    /// Whether the configuration is to be read anew; else this is the end.
    async fn next(&mut self) -> bool {
        let hangup = async {
            match &mut self.hangup {
                Some(signal) => signal.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => false,
            _ = self.terminate.recv() => false,
            _ = hangup => true,
        }
    }
}

/// What runs until a signal ends it.
pub(super) struct Serving<S> {
    config: Config,
    serves: S,
    // None while peers change, and where no schedule could be begun any more.
    schedule: Option<Schedule>,
    log: Log,
}

impl<S: Serves> Serving<S> {
    pub(super) fn begin(mut serves: S, config: Config, log: Log) -> anyhow::Result<Self> {
        let schedule = Some(serves.schedule(&config)?);
        Ok(Self { config, serves, schedule, log })
    }

    /// Runs to its end; `read` reads the configuration anew.
    pub(super) async fn run(
        mut self,
        mut signals: Signals,
        read: impl Fn() -> anyhow::Result<Config>,
    ) -> anyhow::Result<ExitCode> {
        while signals.next().await {
            let reloaded = match read() {
                Ok(config) => self.reload(config).await,
                Err(error) => Err(error),
            };
            if let Err(error) = reloaded {
                let error = crate::explain(&error);
                tracing::error!("the configuration stays as it was: {error}");
            }
        }
        tracing::info!("stopping");
        if let Some(schedule) = self.schedule {
            schedule.stop().await;
        }
        self.serves.stop().await?;
        tracing::info!("stopped");
        Ok(ExitCode::SUCCESS)
    }

    /// Takes a new configuration, and says in the log what has come of it.
    async fn reload(&mut self, config: Config) -> anyhow::Result<()> {
        // What can still be wrong comes first: an error leaves everything as it was.
        (self.log.set_level)(&config.log)?;
        if let Err(error) = self.reschedule(&config).await {
            (self.log.set_level)(&self.config.log)?;
            return Err(error);
        }
        let reloaded = self.serves.reload(config.clone());
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

    async fn reschedule(&mut self, config: &Config) -> anyhow::Result<()> {
        let scheduled = |it: &Config| (it.sync.clone(), it.peers.clone(), it.page.clone());
        if scheduled(config) == scheduled(&self.config) {
            return Ok(());
        }
        Schedule::check(config)?;
        if let Some(schedule) = self.schedule.take() {
            schedule.stop().await;
        }
        let begun = self.serves.schedule(config);
        let (schedule, outcome) = match begun {
            Ok(schedule) => (Some(schedule), Ok(())),
            Err(error) => (self.serves.schedule(&self.config).ok(), Err(error)),
        };
        self.schedule = schedule;
        outcome
    }
}
