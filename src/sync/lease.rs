//! The lease on the schedule: of several nodes over one database, one keeps the peers in sync.
//! Another node takes over when it fails.

use crate::store::{EventStore, StoreError};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

/// Renewals within the lease's term.
const ASKED_IN_TERM: u32 = 3;

/// Whether this node holds the lease.
#[derive(Clone)]
pub(super) struct Lease(watch::Receiver<bool>);

impl Lease {
    /// A lease that this node always holds.
    pub(super) fn always() -> Self {
        // A channel without a sender keeps its value.
        Self(watch::channel(true).1)
    }

    /// Renews the lease at the store until `stop`. The returned future must be polled.
    pub(super) fn of(
        store: Arc<dyn EventStore>,
        term: Duration,
        stop: CancellationToken,
    ) -> (Self, impl Future<Output = ()>) {
        let (held, heard) = watch::channel(false);
        (Self(heard), keep(store, term, held, stop))
    }

    /// Waits until this node holds the lease, or until `stop`.
    pub(super) async fn held(&mut self, stop: &CancellationToken) {
        self.becomes(true, stop).await;
    }

    /// Waits until this node no longer holds the lease, or until `stop`.
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

/// Renews the lease at intervals. The lease is held from the time of the request until its term
/// ends, independent of the duration of the answer.
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

/// Ends the lease at the end of its term; pending forever if it is not held.
async fn end(held: &watch::Sender<bool>, at: Instant) {
    if !*held.borrow() {
        return std::future::pending().await;
    }
    sleep_until(at).await;
    held.send_replace(false);
    tracing::warn!("lease on the peers not renewed in time: another node may keep them in sync");
}
