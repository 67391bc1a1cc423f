//! COUNT (NIP-45): exact counts, from the same sets that are reconciled.

use super::client::Client;
use super::message;
use crate::index::SnapshotError;
use crate::prefix::Prefix;
use crate::reconcile::RangeSet;
use crate::store::{Filter, StoreError, Viewer};
use std::sync::Arc;

/// COUNT
pub(super) async fn count(client: &Client, id: String, filters: Vec<Filter>) {
    let viewer = client.auth.viewer();
    if let Err(reason) = client.relay.admission.may_read(&viewer, &filters) {
        return client.closed(&id, &reason).await;
    }
    match events(client, viewer, filters).await {
        Ok(events) => client.outbox.text(message::count(&id, events)).await,
        Err(error) => client.closed(&id, &Prefix::Error.before(error)).await,
    }
}

/// The number of matching events: without a query if their set is in memory.
async fn events(client: &Client, viewer: Viewer, filters: Vec<Filter>) -> Result<usize, String> {
    let limit = client.relay.config().negentropy.max_sync_events;
    let (index, filters) = (client.relay.index.clone(), Arc::new(filters));
    let (sets, kept_viewer, kept_filters) =
        (index.sets().clone(), viewer.clone(), Arc::clone(&filters));
    let kept = move || Ok(sets.kept_for(&kept_viewer, &kept_filters, limit)?.map(|set| set.len()));
    let any = move |deadline| {
        Ok(index.sets().with_deadline(deadline).snapshot_for(&viewer, &filters, limit)?.len())
    };
    let counts = &client.relay.service.counts;
    let kept = client.work(&counts.short, kept).await.map_err(|panic| panic.to_string())?;
    match kept.map_err(|error| in_words(client, error))? {
        Some(events) => Ok(events),
        None => {
            let any = client.query(&counts.long, any).await.map_err(|panic| panic.to_string())?;
            any.map_err(|error| in_words(client, error))
        }
    }
}

fn in_words(client: &Client, error: SnapshotError) -> String {
    match error {
        SnapshotError::Store(error @ StoreError::Interrupted) => error.to_string(),
        SnapshotError::Store(error) => {
            client.relay.service.read_errors.store_unread("a COUNT", &error);
            "the store could not be read".to_owned()
        }
        error => error.to_string(),
    }
}
