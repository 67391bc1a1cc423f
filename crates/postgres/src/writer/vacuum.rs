//! After an import of much the tables are vacuumed: until then a set is scanned from the table and not from an index,
//! which takes two to three times as long, and the planner knows nothing of what is there.

use super::NodeWriterThread;
use crate::fault::fault;
use negsync_store::Batches;
use std::time::{Duration, Instant};

/// Of fewer new events it is left to autovacuum.
const MUCH: usize = 10_000;
/// How long it may take; the server ends it before.
const TIMEOUT: Duration = Duration::from_secs(610);

impl NodeWriterThread {
    /// Vacuums the tables that grew, where this was an import of much. Another one that does so is not waited for.
    pub(super) fn vacuum_after_much(&mut self) {
        const VACUUM: &str = "VACUUM (ANALYZE, SKIP_LOCKED) event, tag";
        if self.added < MUCH || matches!(self.context.batches, Batches::Short) {
            return;
        }
        let Some(connection) = self.connection.take() else { return };
        let (began, events) = (Instant::now(), self.added);
        let done = self.context.engine.wait(connection.within(TIMEOUT, async {
            connection.client().batch_execute(VACUUM).await.map_err(fault)
        }));
        let elapsed_s = began.elapsed().as_secs_f64();
        match done {
            Ok(()) => tracing::debug!(events, elapsed_s, "tables vacuumed after an import"),
            Err(error) => {
                tracing::warn!(%error, "tables not vacuumed after an import; autovacuum does it");
            }
        }
    }
}
