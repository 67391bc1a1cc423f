//! Commands that serve until a signal ends them, and reload their configuration at another signal.

use super::{Log, service_manager};
use negsync::config::{Config, ConfigError, ListenAddress, Reloaded};
use negsync::sync::Schedule;
use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::process::ExitCode;
use std::sync::Arc;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Where to serve.
#[derive(clap::Args)]
pub(super) struct ListenArguments {
    /// Where to serve, such as 127.0.0.1:7777, localhost:7777 (every address of the name) or :7777
    /// (every address of this machine); wins over the configuration. Port 0 takes any free one.
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<ListenAddress>,
}

impl ListenArguments {
    pub(super) fn apply(&self, config: &mut Config) {
        if let Some(listen) = &self.listen {
            config.relay.listen.clone_from(listen);
        }
    }
}

/// The passed sockets, which replace `relay.listen`; empty if this program has to listen itself.
pub(super) fn sockets_handed_over(config: &Config) -> anyhow::Result<Vec<TcpListener>> {
    let sockets = service_manager::sockets()?;
    if !sockets.is_empty() {
        tracing::info!(
            sockets = sockets.len(),
            listen = %config.relay.listen,
            "serving on the sockets that were handed over (LISTEN_FDS); relay.listen and --listen are not used"
        );
    }
    Ok(sockets)
}

/// Prints the addresses that are served.
pub(super) fn say_where(served: &str, addresses: &[SocketAddr]) {
    let urls: Vec<String> = addresses.iter().map(|address| format!("ws://{address}")).collect();
    // A closed standard output is not an error.
    let _ = writeln!(std::io::stdout(), "negsync serves {served} on {}", urls.join(", "));
}

/// The relay or the sidecar.
pub(super) trait Serves {
    /// The current configuration.
    fn config(&self) -> Arc<Config>;

    /// Starts to keep the configured peers in sync.
    fn schedule(&mut self) -> anyhow::Result<Schedule>;

    /// Applies a new configuration, except for keys that need a restart.
    fn reload(&self, config: Config) -> Result<Reloaded, ConfigError>;

    /// Stops serving.
    async fn stop(self) -> anyhow::Result<()>;
}

/// The signals that end serving or reload the configuration.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Option<Signal>,
}

impl Signals {
    /// Handles signals from now on: before serving begins, so that none is missed. Without a file
    /// there is nothing to reload, and SIGHUP ends the program.
    pub(super) fn heard(has_file: bool) -> anyhow::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: has_file.then(|| signal(SignalKind::hangup())).transpose()?,
        })
    }

    /// Waits for a signal; `true` if it asks for a reload, `false` if it ends the program.
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

/// A service that runs until a signal ends it.
pub(super) struct Serving<S> {
    serves: S,
    // `None` while peers change, and after a schedule could not be started.
    schedule: Option<Schedule>,
    log: Log,
}

impl<S: Serves> Serving<S> {
    pub(super) fn begin(mut serves: S, log: Log) -> anyhow::Result<Self> {
        let schedule = Some(serves.schedule()?);
        Ok(Self { serves, schedule, log })
    }

    /// Runs until the end; `read` reads the configuration for a reload.
    pub(super) async fn run(
        mut self,
        mut signals: Signals,
        read: impl Fn() -> anyhow::Result<Config>,
    ) -> anyhow::Result<ExitCode> {
        service_manager::ready();
        let _watchdog = service_manager::Watchdog::start();
        while signals.next().await {
            service_manager::reloading();
            let reloaded = match read() {
                Ok(config) => self.reload(config).await,
                Err(error) => Err(error),
            };
            if let Err(error) = reloaded {
                let error = crate::explain(&error);
                tracing::error!(
                    "configuration not reloaded, the previous one stays in force: {error}"
                );
            }
            service_manager::ready();
        }
        service_manager::stopping();
        tracing::info!("stopping");
        if let Some(schedule) = self.schedule {
            schedule.stop().await;
        }
        self.serves.stop().await?;
        tracing::info!("stopped");
        Ok(ExitCode::SUCCESS)
    }

    /// Applies a new configuration, and logs the result.
    async fn reload(&mut self, config: Config) -> anyhow::Result<()> {
        // Checks come first: an error leaves everything unchanged.
        Schedule::check(&config)?;
        (self.log.set_level)(&config.log)?;
        let before = self.serves.config();
        let reloaded = self.serves.reload(config)?;
        if let Err(error) = self.reschedule(&before).await {
            self.serves.reload(Config::clone(&before))?;
            (self.log.set_level)(&before.log)?;
            self.schedule = self.serves.schedule().ok();
            return Err(error);
        }
        let changed = match reloaded.changed.as_slice() {
            [] => "nothing".to_owned(),
            keys => keys.join(", "),
        };
        tracing::info!("configuration reloaded; changed: {changed}");
        if !reloaded.needs_restart.is_empty() {
            tracing::warn!(
                "configuration keys that need a restart: {}",
                reloaded.needs_restart.join(", ")
            );
        }
        Ok(())
    }

    /// Restarts the syncs if the peers or the settings for connecting have changed.
    async fn reschedule(&mut self, before: &Config) -> anyhow::Result<()> {
        let scheduled = |it: &Config| (it.sync.clone(), it.peers.clone(), it.page.clone());
        if scheduled(&self.serves.config()) == scheduled(before) {
            return Ok(());
        }
        if let Some(schedule) = self.schedule.take() {
            schedule.stop().await;
        }
        self.schedule = Some(self.serves.schedule()?);
        Ok(())
    }
}
