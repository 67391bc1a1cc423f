//! What serves until a signal ends it, and reads its configuration anew at another.

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

/// The sockets that were handed over to be served, which then stand in for `relay.listen`; none where
/// this program is to listen itself.
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

/// Prints what is served, and where.
pub(super) fn say_where(served: &str, addresses: &[SocketAddr]) {
    let urls: Vec<String> = addresses.iter().map(|address| format!("ws://{address}")).collect();
    // A closed standard output is no reason not to serve.
    let _ = writeln!(std::io::stdout(), "negsync serves {served} on {}", urls.join(", "));
}

/// The relay, or the plugin before another one.
pub(super) trait Serves {
    /// The configuration in force.
    fn config(&self) -> Arc<Config>;

    /// Begins to keep the configured peers in sync.
    fn schedule(&mut self) -> anyhow::Result<Schedule>;

    /// Puts a new configuration in force, as far as that takes no restart.
    fn reload(&self, config: Config) -> Result<Reloaded, ConfigError>;

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
    serves: S,
    // None while peers change, and where no schedule could be begun any more.
    schedule: Option<Schedule>,
    log: Log,
}

impl<S: Serves> Serving<S> {
    pub(super) fn begin(mut serves: S, log: Log) -> anyhow::Result<Self> {
        let schedule = Some(serves.schedule()?);
        Ok(Self { serves, schedule, log })
    }

    /// Runs to its end; `read` reads the configuration anew.
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
                tracing::error!("the configuration stays as it was: {error}");
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

    /// Takes a new configuration, and says in the log what has come of it.
    async fn reload(&mut self, config: Config) -> anyhow::Result<()> {
        // What can be wrong comes first: an error leaves everything as it was.
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
        tracing::info!("the configuration was read anew; changed: {changed}");
        if !reloaded.needs_restart.is_empty() {
            tracing::warn!("only a restart changes {}", reloaded.needs_restart.join(", "));
        }
        Ok(())
    }

    /// Begins the syncs anew where the peers, or how they are reached, have changed.
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
