//! Whether acknowledged commits are on a second server.

use crate::connection::ServerSession;
use crate::fault::fault;
use negsync_store::StoreError;

/// Logs at the start what a commit waits for: a commit that waits for a missing replica takes until
/// the replica is back.
pub(crate) async fn log_replica(connection: &ServerSession) -> Result<(), StoreError> {
    // Users without the right to see the replicas' positions still see their rows.
    const REPLICAS: &str = "SELECT current_setting('synchronous_standby_names') <> '',
            EXISTS (SELECT FROM pg_stat_replication
                WHERE sync_state IS NULL OR sync_state IN ('sync', 'quorum'))";
    let rows = connection.query(REPLICAS, &[]).await.map_err(fault)?;
    let Some(row) = rows.first() else { return Ok(()) };
    let (is_named, is_connected): (bool, bool) =
        (row.try_get(0).map_err(fault)?, row.try_get(1).map_err(fault)?);
    match (is_named, is_connected) {
        (true, true) => tracing::info!(
            synchronous_replica = "connected",
            "acknowledged events are on two servers"
        ),
        (true, false) => tracing::warn!(
            synchronous_replica = "not connected",
            "nothing is acknowledged until a synchronous replica connects. Hint: start one that \
             synchronous_standby_names names, or empty that setting"
        ),
        (false, _) => tracing::info!(
            synchronous_replica = "none",
            "acknowledged events are on one server; a fail-over to another can lose the last ones. Hint: set \
             synchronous_standby_names"
        ),
    }
    Ok(())
}
