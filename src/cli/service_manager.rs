//! The protocol of service managers: sd_listen_fds(3), sd_notify(3), sd_watchdog_enabled(3).
//! Without a service manager all functions do nothing.

use anyhow::Context;
use listenfd::ListenFd;
use sd_notify::NotifyState;
use std::net::TcpListener;
use std::time::Duration;
use tokio::task::JoinHandle;

/// While a store is opened or upgraded: the interval of requests for more time, and the time
/// requested.
const START_INTERVAL: Duration = Duration::from_secs(10);
const MORE_START_TIME: Duration = Duration::from_secs(60);

/// The passed sockets: `LISTEN_FDS`, if `LISTEN_PID` is this process.
pub(super) fn sockets() -> anyhow::Result<Vec<TcpListener>> {
    let mut handed_over = ListenFd::from_env();
    (0..handed_over.len())
        .filter_map(|place| handed_over.take_tcp_listener(place).transpose())
        .collect::<Result<_, _>>()
        .context("LISTEN_FDS: a socket that was handed over is no listening TCP socket")
}

/// While this lives, the service manager waits for the start, without a time limit.
pub(super) struct Starting(JoinHandle<()>);

impl Starting {
    pub(super) fn begin() -> Self {
        Self(tokio::spawn(async {
            let more = u32::try_from(MORE_START_TIME.as_micros()).unwrap_or(u32::MAX);
            let mut tick = tokio::time::interval(START_INTERVAL);
            loop {
                tick.tick().await;
                notify(&[NotifyState::ExtendTimeoutUsec(more)]);
            }
        }))
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        self.0.abort();
    }
}

pub(super) fn ready() {
    notify(&[NotifyState::Ready]);
}

/// Reports a reload, until the next [`ready`].
pub(super) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(_) => notify(&[NotifyState::Reloading]),
    }
}

pub(super) fn stopping() {
    notify(&[NotifyState::Stopping]);
}

/// Reports to the service manager that this program's threads make progress, as often as it
/// requires (`WatchdogSec`).
pub(super) struct Watchdog(Option<JoinHandle<()>>);

impl Watchdog {
    pub(super) fn start() -> Self {
        let beat = |timeout: Duration| async move {
            // Twice in each timeout, as sd_watchdog_enabled(3) recommends.
            let mut tick = tokio::time::interval((timeout / 2).max(Duration::from_millis(1)));
            loop {
                tick.tick().await;
                notify(&[NotifyState::Watchdog]);
            }
        };
        Self(sd_notify::watchdog_enabled().map(|timeout| tokio::spawn(beat(timeout))))
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        if let Some(beating) = &self.0 {
            beating.abort();
        }
    }
}

fn notify(state: &[NotifyState]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "service manager not notified (NOTIFY_SOCKET)");
    }
}
