//! Looks up, at intervals, the days on which scheduled peers differ, for peers that a sync left
//! different. The result is shown without a request.

use super::{By, DiffOptions, Key, Local, PeerFilter, diff};
use crate::metrics::{DayDiffers, DriftLook, Verdict, Watched};
use crate::relay_url::RelayUrl;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Interval at which ended syncs are detected.
const TICK: Duration = Duration::from_millis(500);

/// The peers to check, and the minimum interval of checks.
pub(super) struct DriftCheck {
    pub(super) local: Local,
    pub(super) url: RelayUrl,
    pub(super) filter: PeerFilter,
    pub(super) interval: Duration,
    pub(super) stop: CancellationToken,
    pub(super) watched: Watched,
}

impl DriftCheck {
    /// Runs until the schedule stops.
    pub(super) async fn run(self) {
        // The number of ended syncs at the last check.
        let mut seen = 0;
        let mut next = Instant::now();
        loop {
            tokio::select! {
                () = tokio::time::sleep(TICK) => {}
                () = self.stop.cancelled() => return,
            }
            let status = self.watched.status();
            let Some(last) = status.last_sync.filter(|_| status.syncs != seen) else { continue };
            if last.verdict == Verdict::Equal {
                let look = DriftLook::new(last.ended_at, Vec::new());
                self.watched.update(|status| status.look = Some(Arc::new(look)));
            } else if Instant::now() >= next {
                self.look(status.look).await;
                next = Instant::now() + self.interval;
            } else {
                continue;
            }
            seen = status.syncs;
        }
    }

    async fn look(&self, before: Option<Arc<DriftLook>>) {
        let options = DiffOptions {
            filter: self.filter.clone(),
            by: By::Day,
            attempts: 1,
            stop: self.stop.clone(),
            ..DiffOptions::default()
        };
        let found = diff(&self.local, self.url.expose(), &options, |_| {}).await;
        let found = found.map_err(|error| error.to_string());
        let look = match found.and_then(|found| found.error.clone().map_or(Ok(found), Err)) {
            Ok(found) => {
                let day = |key| if let Key::Day(day) = key { Some(day) } else { None };
                let days = found.rows.iter().filter_map(|row| {
                    Some(DayDiffers { day: day(row.key)?, have: row.have, need: row.need })
                });
                DriftLook::new(self.local.clock().now(), days.collect())
            }
            Err(error) => {
                tracing::debug!(peer = %self.url, error, "comparison by day failed");
                let before = before.map_or_else(DriftLook::default, |look| (*look).clone());
                DriftLook { error: Some(error), ..before }
            }
        };
        self.watched.update(|status| status.look = Some(Arc::new(look)));
    }
}
