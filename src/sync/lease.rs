//! The lease on the schedule: of several nodes over one database one keeps the peers in sync, and another takes
//! over when it dies.

use crate::store::{EventStore, StoreError};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

/// How often the lease is asked for within its term.
const ASKED_IN_TERM: u32 = 3;

/// Whether this node has the lease.
#[derive(Clone)]
pub(super) struct Lease(watch::Receiver<bool>);

impl Lease {
    /// A lease that nobody else can have.
    pub(super) fn always() -> Self {
        // A channel without a sender keeps its value.
        Self(watch::channel(true).1)
    }

    /// Asks the store for the lease until `stop`; the future has to be run for that.
    pub(super) fn of(
        store: Arc<dyn EventStore>,
        term: Duration,
        stop: CancellationToken,
    ) -> (Self, impl Future<Output = ()>) {
        let (held, heard) = watch::channel(false);
        (Self(heard), keep(store, term, held, stop))
    }

    /// Waits until this node has the lease, or until `stop`.
    pub(super) async fn held(&mut self, stop: &CancellationToken) {
        self.becomes(true, stop).await;
    }

    /// Waits until this node does not have the lease any more, or until `stop`.
    pub(super) async fn lost(&mut self, stop: &CancellationToken) {
        self.becomes(false, stop).await;
    }

    async fn becomes(&mut self, held: bool, stop: &CancellationToken) {
        let changed = async {
            if self.0.wait_for(|it| *it == held).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = changed => {}
            () = stop.cancelled() => {}
        }
    }
}

/// Asks for the lease again and again. It is held from when it was asked for until its term ends, whatever
/// an answer takes.
async fn keep(
    store: Arc<dyn EventStore>,
    term: Duration,
    held: watch::Sender<bool>,
    stop: CancellationToken,
) {
    let mut held_until = Instant::now();
    loop {
        let (asked, asking) = (Instant::now(), Arc::clone(&store));
        let mut taking = tokio::task::spawn_blocking(move || asking.take_lease(term));
        let taken = tokio::select! {
            taken = &mut taking => taken,
            () = end(&held, held_until) => taking.await,
            () = stop.cancelled() => return,
        };
        match taken {
            Ok(Ok(true)) => held_until = asked + term,
            Ok(Ok(false)) => held_until = asked,
            Ok(Err(StoreError::Closed)) | Err(_) => {
                held.send_replace(false);
                return;
            }
            Ok(Err(error)) => tracing::debug!(%error, "lease on the peers not renewed"),
        }
        let is_held = Instant::now() < held_until;
        if held.send_replace(is_held) != is_held {
            let what = if is_held { "keeps" } else { "does not keep" };
            tracing::info!("this node {what} the peers in sync from now on");
        }
        tokio::select! {
            () = sleep(term / ASKED_IN_TERM) => {}
            () = end(&held, held_until) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// Ends the lease when its term does; never where it is not held.
async fn end(held: &watch::Sender<bool>, at: Instant) {
    if !*held.borrow() {
        return std::future::pending().await;
    }
    sleep_until(at).await;
    held.send_replace(false);
    tracing::warn!("lease on the peers not renewed in time: another node may keep them in sync");
}
