//! REQ and CLOSE (NIP-01): stored events, EOSE, then live events.

use super::client::Client;
use super::message;
use super::message_chunk::MessageChunk;
use super::outbox::{Outbox, Outgoing};
use super::subscriptions::Subscriptions;
use crate::item::Item;
use crate::prefix::Prefix;
use crate::store::{Deadline, EventStore, Filter, LeftOut, StoreError, StoredPage, View};
use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::Arc;
use tokio::task::JoinError;

/// Maximum number of stored events read in one turn; no read of the database waits for a client.
const TURN_EVENTS: usize = 1_024;
/// Size at which a chunk of stored events is queued.
const CHUNK_BYTES: usize = 64 << 10;

/// REQ
pub(super) async fn req(client: &Client, id: String, filters: Vec<Filter>) {
    let config = client.relay.config();
    let viewer = client.auth.viewer();
    if let Err(reason) = client.relay.admission.may_read(&viewer, &filters) {
        // A REQ replaces an earlier one with the same id, even if it is refused.
        close(client, &id);
        return client.closed(&id, &reason).await;
    }
    let first = client.relay.index.commits_published();
    let begun = client.subscriptions.begin(&id, filters.clone(), first, &config.limits);
    let generation = match begun {
        Ok(generation) => generation,
        Err(text) => return client.closed(&id, &text).await,
    };
    let views = filters.iter().map(|filter| viewer.view(filter)).collect();
    match send_stored(client, &id, generation, views).await {
        Ok(None) => {}
        Ok(Some((sent, left_out))) => {
            let end = Outgoing::EndOfStored { id, generation, sent, left_out };
            client.outbox.send(end).await;
        }
        Err(error) => {
            if !matches!(error, ReqError::Timeout) {
                client.relay.service.read_errors.store_unread("a REQ", &error);
            }
            client.subscriptions.end(&id);
            let text = match error {
                ReqError::Timeout => Prefix::Error.before("query timeout"),
                ReqError::Unread(_) | ReqError::Failed(_) => {
                    Prefix::Error.before("the store could not be read")
                }
            };
            client.closed(&id, &text).await;
        }
    }
}

/// CLOSE
pub(super) fn close(client: &Client, id: &str) {
    client.subscriptions.end(id);
}

/// Sends the matching stored events. Returns their ids and whether a limit left events out, or
/// `None` if the client closed the subscription before all were sent. No thread waits for the
/// client: events are read on a thread, and those without room are sent without one.
async fn send_stored(
    client: &Client,
    id: &str,
    generation: u64,
    views: Vec<View>,
) -> Result<Option<(Vec<[u8; 32]>, LeftOut)>, ReqError> {
    let mut batch = StoredBatch::new(client, id, generation);
    let store = client.relay.index.store().clone();
    let now = client.relay.service.now();
    let most = client.relay.config().limits.events_per_filter;
    let (page, mut batch) = on_a_thread(client, move |deadline| {
        let store = store.until(deadline);
        let page = retry(&*store, &mut batch, |batch| {
            let mut add = |item: &Item, json: &str| batch.add(item, json);
            store.newest_and_first(&views, most, now, &mut add)
        })?;
        // Before EOSE, so that events read here are not sent again as live ones.
        store.follow_others()?;
        Ok((page, batch))
    })
    .await?;
    let StoredPage { mut hits, mut read, left_out } = page;
    while batch.send().await && read < hits.len() {
        if !batch.is_wanted() {
            return Ok(None);
        }
        let store = client.relay.index.store().clone();
        (hits, read, batch) = on_a_thread(client, move |deadline| {
            let store = store.until(deadline);
            let rest = hits.get(read..).unwrap_or_default();
            read += retry(&*store, &mut batch, |batch| {
                store.fetch(rest, &mut |item, json| batch.add(item, json))
            })?;
            Ok((hits, read, batch))
        })
        .await?;
    }
    Ok(Some((batch.sent, left_out)))
}

/// Why the stored events could not be sent.
#[derive(Debug, thiserror::Error)]
enum ReqError {
    #[error("query timeout")]
    Timeout,
    #[error(transparent)]
    Unread(StoreError),
    #[error("{0}")]
    Failed(JoinError),
}

impl From<StoreError> for ReqError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Interrupted => Self::Timeout,
            error => Self::Unread(error),
        }
    }
}

/// Reads the store, in a turn of the client's.
async fn on_a_thread<T: Send + 'static>(
    client: &Client,
    read: impl FnOnce(Deadline) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, ReqError> {
    let read = client.query(&client.relay.service.counts.queries, read).await;
    Ok(read.map_err(ReqError::Failed)??)
}

/// Reads into the batch, and retries if the read broke off so that the write-ahead log could be
/// restarted.
fn retry<T>(
    store: &dyn EventStore,
    batch: &mut StoredBatch,
    mut read: impl FnMut(&mut StoredBatch) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    loop {
        match read(batch) {
            Err(StoreError::Interrupted) if !store.deadline().is_over() => batch.skip_sent(),
            done => {
                batch.skipped = HashSet::new();
                return done;
            }
        }
    }
}

/// Stored events on their way to the outbox.
struct StoredBatch {
    subscriptions: Arc<Subscriptions>,
    id: String,
    generation: u64,
    id_json: String,
    outbox: Outbox,
    // The chunk being filled.
    chunk: MessageChunk,
    // Chunks for which the outbox had no room: at most one, and those that followed it in the turn.
    waiting: Vec<MessageChunk>,
    // Events that come again because a read was repeated.
    skipped: HashSet<[u8; 32]>,
    // The number of events in this turn.
    turn: usize,
    // The ids of all events, including those queued.
    sent: Vec<[u8; 32]>,
}

impl StoredBatch {
    fn new(client: &Client, id: &str, generation: u64) -> Self {
        Self {
            subscriptions: Arc::clone(&client.subscriptions),
            id: id.to_owned(),
            generation,
            id_json: message::json_string(id),
            outbox: client.outbox.clone(),
            chunk: MessageChunk::default(),
            waiting: Vec::new(),
            skipped: HashSet::new(),
            turn: 0,
            sent: Vec::new(),
        }
    }

    /// Adds an event. Breaks off when the outbox has no room, the turn is over, or the client has
    /// closed the subscription.
    fn add(&mut self, item: &Item, json: &str) -> ControlFlow<()> {
        if self.skipped.contains(&item.id) {
            return ControlFlow::Continue(());
        }
        self.chunk.add(|text| message::write_event(text, &self.id_json, json));
        self.sent.push(item.id);
        self.turn += 1;
        if self.chunk.bytes() >= CHUNK_BYTES {
            // Probably not the last.
            self.end_chunk(MessageChunk::with_capacity(CHUNK_BYTES + CHUNK_BYTES / 8));
            if !self.is_wanted() {
                return ControlFlow::Break(());
            }
        }
        if self.waiting.is_empty() && self.turn < TURN_EVENTS {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    }

    /// Whether the subscription is still open.
    fn is_wanted(&self) -> bool {
        self.subscriptions.is_open(&self.id, self.generation)
    }

    /// Skips the events so far when they come again.
    fn skip_sent(&mut self) {
        self.skipped = self.sent.iter().copied().collect();
    }

    /// Queues the chunk if that needs no waiting, and begins the next.
    fn end_chunk(&mut self, next: MessageChunk) {
        let chunk = Outgoing::Events(std::mem::replace(&mut self.chunk, next));
        let refused =
            if self.waiting.is_empty() { self.outbox.try_send(chunk) } else { Err(chunk) };
        if let Err(Outgoing::Events(chunk)) = refused {
            self.waiting.push(chunk);
        }
    }

    /// Queues all chunks. Returns whether the socket is still there.
    async fn send(&mut self) -> bool {
        if self.chunk.count() > 0 {
            self.end_chunk(MessageChunk::default());
        }
        self.turn = 0;
        let mut listening = true;
        for chunk in self.waiting.drain(..) {
            listening = listening && self.outbox.send(Outgoing::Events(chunk)).await;
        }
        listening
    }
}
