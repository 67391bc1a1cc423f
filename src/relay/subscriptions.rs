//! REQ and CLOSE (NIP-01): stored events, EOSE, and then what comes in.

use super::auth::Auth;
use super::client::Client;
use super::outbox::{Outbox, Outgoing};
use super::{message, permission};
use crate::config::Limits;
use crate::item::Item;
use crate::metrics::{Labelled, Metrics, Share};
use crate::store::{Event, Filter, StoreError, View, unix_now};
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How many stored events are read at a time; no read of the database waits for a client.
const READ_EVENTS: usize = 256;
/// A chunk of stored events is handed on at this size.
const CHUNK_BYTES: usize = 64 << 10;
/// The most live events that wait for a subscription's EOSE; with more it ends there.
const WAITING_EVENTS: usize = 10_000;
/// The most bytes of events that wait for the EOSEs of a connection, or a single event.
const WAITING_BYTES: usize = 8 << 20;

/// The subscriptions of one connection.
pub(super) struct Subscriptions {
    auth: Arc<Auth>,
    open: Mutex<Open>,
    generations: AtomicU64,
}

struct Open {
    by_id: HashMap<String, Subscription>,
    counted: Share,
    refusals: Labelled,
}

impl Open {
    fn remove(&mut self, id: &str) {
        self.by_id.remove(id);
        self.counted.set(self.by_id.len());
    }
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
    Stored { waiting: Vec<Arc<Event>>, bytes: usize },
    /// More live events came than can wait for EOSE.
    Overrun,
    /// For so many commits more an event may be one of those sent as stored: a commit can be read
    /// before it is announced.
    Live { sent: HashSet<[u8; 32]>, commits: usize },
}

impl Subscription {
    fn waiting_bytes(&self) -> usize {
        if let Stage::Stored { bytes, .. } = self.stage { bytes } else { 0 }
    }
}

impl Subscriptions {
    pub(super) fn new(auth: Arc<Auth>, metrics: &Metrics) -> Self {
        let counted = Share::of(&metrics.subscriptions);
        let refusals = metrics.query_refusals.clone();
        let open = Mutex::new(Open { by_id: HashMap::new(), counted, refusals });
        Self { auth, open, generations: AtomicU64::new(0) }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lock().by_id.is_empty()
    }

    /// Begins a subscription in place of one with the same id. Says why where it cannot.
    fn begin(&self, id: &str, filters: Vec<Filter>, limits: &Limits) -> Result<u64, String> {
        let generation = self.generations.fetch_add(1, Ordering::Relaxed);
        let mut open = self.lock();
        let most = limits.subscriptions.size();
        if open.by_id.len() >= most && !open.by_id.contains_key(id) {
            return Err(format!("rate-limited: {most} subscriptions are open; close one first"));
        }
        let values = values_of(&filters);
        let others = open.by_id.iter().filter(|(other, _)| *other != id);
        let held: usize = others.map(|(_, it)| values_of(&it.filters)).sum();
        let most = limits.subscription_values.size();
        if values.saturating_add(held) > most {
            let text = "values in the filters of open subscriptions";
            return Err(format!("rate-limited: {most} {text} are the most; close one first"));
        }
        let id_json = message::json_string(id);
        let stage = Stage::Stored { waiting: Vec::new(), bytes: 0 };
        let begun = Subscription { filters, id_json, generation, stage };
        open.by_id.insert(id.to_owned(), begun);
        let number = open.by_id.len();
        open.counted.set(number);
        Ok(generation)
    }

    fn end(&self, id: &str) {
        self.lock().remove(id);
    }

    /// The messages that carry the event to the subscriptions that are live; for the others it
    /// is kept until they are.
    pub(super) fn matching(&self, event: &Arc<Event>) -> Vec<String> {
        let mut messages = Vec::new();
        if !self.auth.sees(event) {
            return messages;
        }
        let mut open = self.lock();
        let waiting = open.by_id.values().map(Subscription::waiting_bytes);
        let mut waiting_bytes: usize = waiting.sum();
        for subscription in open.by_id.values_mut() {
            if !subscription.filters.iter().any(|filter| filter.matches(event)) {
                continue;
            }
            match &mut subscription.stage {
                Stage::Stored { waiting, bytes }
                    if waiting.len() < WAITING_EVENTS && waiting_bytes < WAITING_BYTES =>
                {
                    waiting.push(event.clone());
                    *bytes += event.json().len();
                    waiting_bytes += event.json().len();
                }
                Stage::Stored { .. } => subscription.stage = Stage::Overrun,
                Stage::Overrun => {}
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
        for subscription in self.lock().by_id.values_mut() {
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
        let mut open = self.lock();
        let Some(subscription) = open.by_id.get_mut(id).filter(|it| it.generation == generation)
        else {
            return Vec::new();
        };
        let sent: HashSet<[u8; 32]> = sent.into_iter().collect();
        let messages = match &subscription.stage {
            Stage::Overrun => {
                open.remove(id);
                open.refusals.count("error");
                let text = "error: too many events came before EOSE; ask again";
                return vec![message::closed(id, text)];
            }
            Stage::Stored { waiting, .. } => waiting
                .iter()
                .filter(|event| !sent.contains(&event.item().id))
                .map(|event| message::event(&subscription.id_json, event.json()))
                .collect(),
            Stage::Live { .. } => Vec::new(),
        };
        subscription.stage = Stage::Live { sent, commits: commits.saturating_add(1) };
        messages
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn values_of(filters: &[Filter]) -> usize {
    filters.iter().map(Filter::value_count).sum()
}

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{IndexMetrics, StoreMetrics};

    fn event(number: usize) -> Arc<Event> {
        let (id, zeros) = (format!("{number:064x}"), "0".repeat(128));
        let json = format!(
            r#"{{"id":"{id}","pubkey":"{}","created_at":1,"kind":1,"tags":[],"content":"","sig":"{zeros}"}}"#,
            &zeros[..64]
        );
        Arc::new(Event::parse(&json).unwrap())
    }

    /// A stream with a gap that nobody is told of is worse than one that ends.
    #[test]
    fn a_subscription_that_cannot_keep_what_waits_for_eose_ends_and_says_so() {
        let metrics = Metrics::new(&StoreMetrics::default(), &IndexMetrics::default());
        let subscriptions = Subscriptions::new(Arc::new(Auth::stranger()), &metrics);
        for (count, is_whole) in [(WAITING_EVENTS, true), (WAITING_EVENTS + 1, false)] {
            let generation =
                subscriptions.begin("s", vec![Filter::default()], &Limits::default()).unwrap();
            for number in 0..count {
                assert!(subscriptions.matching(&event(number)).is_empty());
            }
            let messages = subscriptions.go_live("s", generation, Vec::new(), 0);
            if is_whole {
                assert_eq!(messages.len(), count);
                assert_eq!(subscriptions.matching(&event(count)).len(), 1);
            } else {
                assert_eq!(messages.len(), 1);
                assert!(messages[0].starts_with(r#"["CLOSED","s","error: "#), "{}", messages[0]);
                assert!(subscriptions.is_empty());
            }
        }
    }
}
