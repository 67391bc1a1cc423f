//! COUNT (NIP-45): exact, from the same sets that reconcile.

use super::connection::Client;
use super::message;
use crate::index::SnapshotError;
use crate::reconcile::RangeSet;
use crate::store::Filter;
use std::sync::Arc;

/// COUNT
pub(super) async fn count(client: &Client, id: String, filters: Vec<Filter>) {
    let answer = match events(client, filters).await {
        Ok(events) => message::count(&id, events),
        Err(error) => message::closed(&id, &format!("error: {error}")),
    };
    client.outbox.text(answer).await;
}

/// How many events match: at once where their set is in memory.
async fn events(client: &Client, filters: Vec<Filter>) -> Result<usize, String> {
    let limit = client.relay.config().negentropy.max_sync_events.size();
    let (index, filters) = (client.relay.index.clone(), Arc::new(filters));
    let (kept_index, kept_filters) = (index.clone(), Arc::clone(&filters));
    let kept = move || Ok(kept_index.sets().kept(&kept_filters, limit)?.map(|set| set.len()));
    let any = move || Ok(index.snapshot(&filters, limit)?.len());
    let counts = &client.relay.counts;
    let kept = client.work(&counts.short, kept).await.map_err(|panic| panic.to_string())?;
    match kept.map_err(|error| in_words(client, error))? {
        Some(events) => Ok(events),
        None => {
            let any = client.work(&counts.long, any).await.map_err(|panic| panic.to_string())?;
            any.map_err(|error| in_words(client, error))
        }
    }
}

fn in_words(client: &Client, error: SnapshotError) -> String {
    match error {
        SnapshotError::Store(error) => {
            client.relay.read_trouble.failed("a COUNT", &error);
            "the store could not be read".to_owned()
        }
        error => error.to_string(),
    }
}
