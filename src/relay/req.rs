//! REQ and CLOSE (NIP-01): stored events, EOSE, and then what comes in.

use super::client::Client;
use super::outbox::{Outbox, Outgoing};
use super::{message, permission};
use crate::item::Item;
use crate::store::{Filter, StoreError, View, unix_now};

/// How many stored events are read at a time; no read of the database waits for a client.
const READ_EVENTS: usize = 256;
/// A chunk of stored events is handed on at this size.
const CHUNK_BYTES: usize = 64 << 10;

/// REQ
pub(super) async fn req(client: &Client, id: String, filters: Vec<Filter>) {
    let config = client.relay.config();
    let viewer = client.auth.viewer();
    if let Err(reason) = permission::may_read(&config.auth, &viewer, &filters) {
        // A REQ replaces the one before it, refused or not.
        close(client, &id);
        return client.closed(&id, reason).await;
    }
    let generation = match client.subscriptions.begin(&id, filters.clone(), &config.limits) {
        Ok(generation) => generation,
        Err(text) => return client.closed(&id, &text).await,
    };
    let views = filters.iter().map(|filter| viewer.view(filter)).collect();
    match send_stored(client, &id, views).await {
        Ok(sent) => {
            client.outbox.send(Outgoing::EndOfStored { id, generation, sent }).await;
        }
        Err(error) => {
            client.relay.service.read_trouble.failed("a REQ", &error);
            client.subscriptions.end(&id);
            client.closed(&id, "error: the store could not be read").await;
        }
    }
}

/// CLOSE
pub(super) fn close(client: &Client, id: &str) {
    client.subscriptions.end(id);
}

/// Sends the stored events that match and returns their ids. No thread waits for the client: the
/// events are read on one, a few at a time, and sent without.
async fn send_stored(client: &Client, id: &str, views: Vec<View>) -> Result<Vec<[u8; 32]>, String> {
    let mut first = Batch { id_json: message::json_string(id), ..Batch::default() };
    let reader = client.relay.index.reader().clone();
    let most = client.relay.config().limits.events_per_filter.size();
    let (hits, mut batch) = on_a_thread(client, move || {
        let add = |item: &Item, json: &str| first.add(item, json);
        let hits = reader.newest_and_first(&views, most, READ_EVENTS, unix_now(), add)?;
        Ok((hits, first))
    })
    .await?;
    let mut listening = batch.send(&client.outbox).await;
    for hits in hits.get(READ_EVENTS..).unwrap_or_default().chunks(READ_EVENTS) {
        if !listening {
            break;
        }
        let (reader, hits) = (client.relay.index.reader().clone(), hits.to_vec());
        batch = on_a_thread(client, move || {
            reader.fetch(&hits, |item, json| batch.add(item, json))?;
            Ok(batch)
        })
        .await?;
        listening = batch.send(&client.outbox).await;
    }
    Ok(batch.sent)
}

/// Reads the store, in a turn of the client's. What went wrong comes back as text.
async fn on_a_thread<T: Send + 'static>(
    client: &Client,
    read: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, String> {
    match client.work(&client.relay.service.counts.queries, read).await {
        Ok(read) => read.map_err(|error| error.to_string()),
        Err(panic) => Err(panic.to_string()),
    }
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
    async fn send(&mut self, outbox: &Outbox) -> bool {
        self.chunk_bytes = 0;
        let mut listening = true;
        for chunk in self.chunks.drain(..) {
            listening = listening && outbox.send(Outgoing::Events(chunk)).await;
        }
        listening
    }
}
