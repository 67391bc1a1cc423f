//! COUNT (NIP-45): exact, from the same sets that reconcile.

use super::connection::Client;
use super::{message, permission};
use crate::index::SnapshotError;
use crate::reconcile::RangeSet;
use crate::store::Filter;

/// COUNT
pub(super) async fn count(client: &Client, id: String, filters: Vec<Filter>) {
    let viewer = client.auth.viewer();
    if let Err(reason) = permission::may_read(&client.relay.config.auth, &viewer, &filters) {
        return client.outbox.text(message::closed(&id, reason)).await;
    }
    let index = client.relay.index.clone();
    let limit = client.relay.config.negentropy.max_sync_events.size();
    let counted = tokio::task::spawn_blocking(move || {
        index.snapshot_for(&viewer, &filters, limit).map(|set| set.len())
    });
    let answer = match counted.await {
        Ok(Ok(events)) => message::count(&id, events),
        Ok(Err(SnapshotError::Store(error))) => {
            client.relay.read_trouble.failed("a COUNT", &error);
            message::closed(&id, "error: the store could not be read")
        }
        Ok(Err(error)) => message::closed(&id, &format!("error: {error}")),
        Err(panic) => message::closed(&id, &format!("error: {panic}")),
    };
    client.outbox.text(answer).await;
}
