//! REQ and CLOSE (NIP-01): stored events, EOSE, and then what comes in.

use super::connection::Client;
use super::message;
use super::outbox::{Outbox, Outgoing};
use crate::index::Index;
use crate::store::{Event, Filter, Hit, StoreError};
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How many stored events are read at a time; no read of the database waits for a client.
const READ_EVENTS: usize = 256;
/// A chunk of stored events is handed on at this size.
const CHUNK_BYTES: usize = 64 << 10;
/// The most live events that wait for a subscription's EOSE; the oldest are then left out of the
/// stream, as they would be found by asking again.
const WAITING_EVENTS: usize = 10_000;

/// The subscriptions of one connection.
pub(super) struct Subscriptions {
    by_id: Mutex<HashMap<String, Subscription>>,
    generations: AtomicU64,
}

struct Subscription {
    filters: Vec<Filter>,
    // The id as it is written into each message.
    id_json: String,
    generation: u64,
    stage: Stage,
}

enum Stage {
    /// EOSE has not been sent: live events wait for it.
    Stored { waiting: Vec<Arc<Event>> },
    /// For so many commits more an event may be one of those sent as stored: a commit can be read
    /// before it is announced.
    Live { sent: HashSet<[u8; 32]>, commits: usize },
}

impl Subscriptions {
    pub(super) fn new() -> Self {
        Self { by_id: Mutex::default(), generations: AtomicU64::new(0) }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Begins a subscription in place of one with the same id. `None` when there are too many.
    fn begin(&self, id: &str, filters: Vec<Filter>, most: usize) -> Option<u64> {
        let generation = self.generations.fetch_add(1, Ordering::Relaxed);
        let mut by_id = self.lock();
        if by_id.len() >= most && !by_id.contains_key(id) {
            return None;
        }
        let id_json = message::json_string(id);
        let stage = Stage::Stored { waiting: Vec::new() };
        by_id.insert(id.to_owned(), Subscription { filters, id_json, generation, stage });
        Some(generation)
    }

    fn end(&self, id: &str) {
        self.lock().remove(id);
    }

    /// The messages that carry the event to the subscriptions that are live; for the others it
    /// is kept until they are.
    pub(super) fn matching(&self, event: &Arc<Event>) -> Vec<String> {
        let mut messages = Vec::new();
        for subscription in self.lock().values_mut() {
            if !subscription.filters.iter().any(|filter| filter.matches(event)) {
                continue;
            }
            match &mut subscription.stage {
                Stage::Stored { waiting } if waiting.len() < WAITING_EVENTS => {
                    waiting.push(event.clone());
                }
                Stage::Stored { .. } => {}
                Stage::Live { sent, .. } if sent.contains(&event.item().id) => {}
                Stage::Live { .. } => {
                    messages.push(message::event(&subscription.id_json, event.json()));
                }
            }
        }
        messages
    }

    /// Called after the events of each commit.
    pub(super) fn end_commit(&self) {
        for subscription in self.lock().values_mut() {
            if let Stage::Live { sent, commits } = &mut subscription.stage {
                *commits = commits.saturating_sub(1);
                if *commits == 0 {
                    *sent = HashSet::new();
                }
            }
        }
    }

    /// After EOSE: the messages that waited for it, without those among the stored events.
    /// `commits` are announced and have not reached the subscriptions yet; beside them the read
    /// can have seen one that is not even announced, and no more: there is one writer.
    pub(super) fn go_live(
        &self,
        id: &str,
        generation: u64,
        sent: Vec<[u8; 32]>,
        commits: usize,
    ) -> Vec<String> {
        let mut by_id = self.lock();
        let Some(subscription) = by_id.get_mut(id).filter(|it| it.generation == generation) else {
            return Vec::new();
        };
        let sent: HashSet<[u8; 32]> = sent.into_iter().collect();
        let messages = match &subscription.stage {
            Stage::Stored { waiting } => waiting
                .iter()
                .filter(|event| !sent.contains(&event.item().id))
                .map(|event| message::event(&subscription.id_json, event.json()))
                .collect(),
            Stage::Live { .. } => Vec::new(),
        };
        subscription.stage = Stage::Live { sent, commits: commits.saturating_add(1) };
        messages
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Subscription>> {
        self.by_id.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// REQ
pub(super) async fn req(client: &Client, id: String, filters: Vec<Filter>) {
    let limits = &client.relay.config.limits;
    let most = limits.subscriptions.size();
    let Some(generation) = client.subscriptions.begin(&id, filters.clone(), most) else {
        let text = format!("rate-limited: {most} subscriptions are open; close one first");
        return client.outbox.text(message::closed(&id, &text)).await;
    };
    let index = client.relay.index.clone();
    let outbox = client.outbox.clone();
    let events_per_filter = limits.events_per_filter.size();
    let stored = {
        let id = id.clone();
        tokio::task::spawn_blocking(move || {
            send_stored(&index, &outbox, &id, &filters, events_per_filter)
        })
    };
    match stored.await {
        Ok(Ok(sent)) => client.outbox.send(Outgoing::EndOfStored { id, generation, sent }).await,
        Ok(Err(error)) => fail(client, &id, error.to_string()).await,
        Err(panic) => fail(client, &id, panic.to_string()).await,
    }
}

/// CLOSE
pub(super) fn close(client: &Client, id: &str) {
    client.subscriptions.end(id);
}

async fn fail(client: &Client, id: &str, error: String) {
    tracing::error!(%error, "a REQ could not be answered");
    client.subscriptions.end(id);
    client.outbox.text(message::closed(id, "error: the store could not be read")).await;
}

/// Sends the stored events that match and returns their ids.
fn send_stored(
    index: &Index,
    outbox: &Outbox,
    id: &str,
    filters: &[Filter],
    events_per_filter: usize,
) -> Result<Vec<[u8; 32]>, StoreError> {
    let id_json = message::json_string(id);
    // What has expired would take a living event's place within a limit.
    index.store().expire()?;
    let reader = index.reader();
    let hits: Vec<Hit> = reader.newest(filters, events_per_filter)?;
    let mut sent = Vec::with_capacity(hits.len());
    for hits in hits.chunks(READ_EVENTS) {
        let mut chunks = vec![Vec::new()];
        let mut chunk_bytes = 0;
        reader.fetch(hits, |item, json| {
            let text = message::event(&id_json, json);
            chunk_bytes += text.len();
            sent.push(item.id);
            if let Some(chunk) = chunks.last_mut() {
                chunk.push(text);
            }
            if chunk_bytes >= CHUNK_BYTES {
                chunks.push(Vec::new());
                chunk_bytes = 0;
            }
        })?;
        for chunk in chunks {
            if !outbox.send_blocking(Outgoing::Events(chunk)) {
                return Ok(sent);
            }
        }
    }
    Ok(sent)
}
