//! REQ and CLOSE (NIP-01): stored events, EOSE, and then what comes in.

use super::connection::Client;
use super::message;
use super::outbox::{Outbox, Outgoing};
use crate::index::Index;
use crate::item::Item;
use crate::store::{Event, Filter, StoreError, unix_now};
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
    let mut batch = Batch { id_json: message::json_string(id), ..Batch::default() };
    // What has expired would take a living event's place within a limit. What is due between this
    // second and the read still counts as living.
    let now = unix_now();
    index.store().expire()?;
    let reader = index.reader();
    let most = events_per_filter;
    let hits = reader
        .newest_and_first(filters, most, READ_EVENTS, now, |item, json| batch.add(item, json))?;
    let mut listening = batch.send(outbox);
    for hits in hits.get(READ_EVENTS..).unwrap_or_default().chunks(READ_EVENTS) {
        if !listening {
            break;
        }
        reader.fetch(hits, |item, json| batch.add(item, json))?;
        listening = batch.send(outbox);
    }
    Ok(batch.sent)
}

/// Stored events on their way to the outbox.
#[derive(Default)]
struct Batch {
    id_json: String,
    chunks: Vec<Vec<String>>,
    // Of the last chunk.
    chunk_bytes: usize,
    // The ids of all, those handed on included.
    sent: Vec<[u8; 32]>,
}

impl Batch {
    fn add(&mut self, item: &Item, json: &str) {
        let text = message::event(&self.id_json, json);
        let bytes = text.len();
        match self.chunks.last_mut() {
            Some(chunk) if self.chunk_bytes < CHUNK_BYTES => chunk.push(text),
            _ => {
                self.chunks.push(vec![text]);
                self.chunk_bytes = 0;
            }
        }
        self.chunk_bytes += bytes;
        self.sent.push(item.id);
    }

    /// Hands everything on. Returns whether the socket is still there.
    fn send(&mut self, outbox: &Outbox) -> bool {
        self.chunk_bytes = 0;
        self.chunks.drain(..).all(|chunk| outbox.send_blocking(Outgoing::Events(chunk)))
    }
}
