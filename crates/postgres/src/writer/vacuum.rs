//! Vacuums the tables after a large import. Before that, a set is scanned from the table instead of
//! an index, which takes two to three times as long, and the planner has no statistics.

use super::NodeWriterThread;
use crate::fault::{fault, within};
use negsync_store::Batches;
use std::time::{Duration, Instant};

/// With fewer new events, vacuuming is left to autovacuum.
const MUCH: usize = 10_000;
/// How long closing the store waits for it. The server continues on its own.
const PATIENCE: Duration = Duration::from_secs(60);

impl NodeWriterThread {
    /// Vacuums the tables that grew, after a large import. Does not wait for another vacuum of the
    /// same table.
    pub(super) fn vacuum_after_much(&mut self) {
        const VACUUM: &str = "VACUUM (ANALYZE, SKIP_LOCKED) event, tag";
        if self.added < MUCH || matches!(self.context.batches, Batches::Short) {
            return;
        }
        let Some(connection) = self.connection.take() else { return };
        let (began, events) = (Instant::now(), self.added);
        let done = self.context.engine.wait(within(PATIENCE, async {
            connection.client().batch_execute(VACUUM).await.map_err(fault)
        }));
        let elapsed_s = began.elapsed().as_secs_f64();
        match done {
            Ok(()) => tracing::debug!(events, elapsed_s, "tables vacuumed after an import"),
            Err(error) => {
                tracing::warn!(%error, "tables not vacuumed yet after an import; the server does it later");
            }
        }
    }
}
