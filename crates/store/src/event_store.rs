//! The interface of the store that the program owns, independent of the engine. The SQLite engine
//! is [`Store`](crate::Store).

use super::{
    Deadline, EventSource, Filter, Hit, Origin, Outcome, PeerTraits, RefusedId, Reply, Retention,
    RuleMatches, Selected, Selection, StoreError, StoreMetrics, StoredPage, SyncMark, Undelete,
    UndeleteError, VerifiedEvent, View,
};
use negsync_reconcile::Item;
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// Visitor of events: gets the item and the JSON, and returns whether to continue.
pub type VisitEvent<'visit> = dyn FnMut(&Item, &str) -> ControlFlow<()> + 'visit;

/// How far a node lags behind the commits of all nodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FeedLag {
    /// Commits that were announced to this node and that it has not read yet.
    pub commits: u64,
    /// Seconds since this node could last read the feed; the feed is polled every second.
    pub seconds: u64,
}

/// A store of events. Calls block unless documented otherwise: from async code use a blocking
/// thread.
///
/// All reads of one call use one snapshot. Each method fails when the engine cannot read or write,
/// and with [`StoreError::Closed`] once the store is closed.
pub trait EventStore: EventSource {
    /// The same store with a deadline for its reads. At the deadline they fail with
    /// [`StoreError::Interrupted`]; before it, that error means that the caller should retry.
    fn until(&self, deadline: Deadline) -> Arc<dyn EventStore>;

    /// Queues events to be stored; the queue is fair between origins. `reply` gets one outcome for
    /// each event, in order, once all are durable. Does not wait: the caller must bound its pending
    /// events.
    fn submit(&self, origin: &Origin, events: Vec<VerifiedEvent>, reply: Reply);

    /// Stores events and waits for their outcomes.
    ///
    /// # Errors
    /// [`StoreError::Closed`] when the writer has stopped.
    fn publish(&self, events: Vec<VerifiedEvent>) -> Result<Vec<Outcome>, StoreError> {
        let (send, outcomes) = std::sync::mpsc::sync_channel(1);
        self.submit(&Origin::Local, events, Box::new(move |done| drop(send.send(done))));
        outcomes.recv().map_err(|_| StoreError::Closed)
    }

    /// The newest events that match any of the filters, at most `most` for each filter and at most
    /// its own limit. Newest first; within a second the lowest id first; each event once. Expired
    /// events are left out.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn newest(&self, filters: &[Filter], most: usize) -> Result<Vec<Hit>, StoreError>;

    /// Like [`EventStore::newest`], restricted to what a viewer may see. Calls `visit` with the
    /// first events, read from the same snapshot, until it breaks off. Only events that expired by
    /// the second `now` are left out.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn newest_and_first(
        &self,
        views: &[View],
        most: usize,
        now: u64,
        visit: &mut VisitEvent<'_>,
    ) -> Result<StoredPage, StoreError>;

    /// Calls `visit` with each event, in the order of `hits`, until it breaks off. Events that were
    /// removed since or that have expired are left out. Returns the number of hits that were
    /// processed.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn fetch(&self, hits: &[Hit], visit: &mut VisitEvent<'_>) -> Result<usize, StoreError>;

    /// Calls `visit` with every matching event, or the newest ones within the filter's limit, until
    /// it breaks off. Oldest first; within a second the highest id first. All events are from one
    /// snapshot.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn oldest_first(&self, filter: &Filter, visit: &mut VisitEvent<'_>) -> Result<(), StoreError>;

    /// The number of stored events of each kind, by kind.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn kinds(&self) -> Result<Vec<(u16, u64)>, StoreError>;

    /// NIP-40: removes expired events, and waits until the listener has the removals.
    ///
    /// # Errors
    /// When an event is due and still stored.
    fn expire(&self) -> Result<(), StoreError>;

    /// Removes every event that matches. Ignores `limit`. The events may come back.
    ///
    /// # Errors
    /// When the store cannot be written.
    fn remove(&self, filter: &Filter) -> Result<(), StoreError>;

    /// The stored events that an operator's selection covers.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn selected(&self, selection: &Selection) -> Result<Selected, StoreError>;

    /// Removes the events of an operator's selection, and keeps them out until
    /// [`EventStore::undelete`].
    ///
    /// # Errors
    /// When the store cannot be written; a part may be removed by then.
    fn delete(&self, selection: &Selection) -> Result<Selected, StoreError>;

    /// The ids that the operator removed and that `undelete` selects.
    ///
    /// # Errors
    /// When the store cannot be read, or the filter asks for tags.
    fn undeleted(&self, undelete: &Undelete) -> Result<Vec<[u8; 32]>, UndeleteError>;

    /// Lifts the bans of [`EventStore::delete`], and returns the number of ids. The events are not
    /// restored; relays and clients may send them again.
    ///
    /// # Errors
    /// When the store cannot be written, or the filter asks for tags.
    fn undelete(&self, undelete: &Undelete) -> Result<u64, UndeleteError>;

    /// Replaces the rules of retention.
    ///
    /// # Errors
    /// When the store cannot be written; [`StoreError::Unsupported`] if the engine has no retention
    /// and the rules are not empty.
    fn retain(&self, rules: Retention) -> Result<(), StoreError>;

    /// Removes the events that the rules of retention do not keep, and waits until none is left.
    ///
    /// # Errors
    /// As [`EventStore::retain`].
    fn retire(&self) -> Result<(), StoreError>;

    /// The number of events that each rule would remove now, in rule order, and the estimated
    /// number of the oldest events to remove for the size of the store.
    ///
    /// # Errors
    /// When the store cannot be read, and as [`EventStore::retain`].
    fn preview(&self, retention: &Retention) -> Result<(Vec<RuleMatches>, u64), StoreError>;

    /// The ids of `ids` that a sync with `peer` need not move, each with its reason.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn refused(
        &self,
        peer: &str,
        ids: &[[u8; 32]],
    ) -> Result<HashMap<[u8; 32], String>, StoreError>;

    /// Records ids that a sync need not move again, and returns once they are written.
    ///
    /// # Errors
    /// When the store cannot be written.
    fn remember_refused(&self, refused: Vec<RefusedId>) -> Result<(), StoreError>;

    /// How far `peer` is known for a filter. `filter` is the text under which the mark was
    /// recorded.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn sync_mark(&self, peer: &str, filter: &str) -> Result<SyncMark, StoreError>;

    /// Records how far a peer is known for a filter, given as text, and returns once it is written.
    /// Fields that `mark` leaves out stay unchanged.
    ///
    /// # Errors
    /// When the store cannot be written.
    fn remember_mark(&self, peer: String, filter: String, mark: SyncMark)
    -> Result<(), StoreError>;

    /// How to query `peer`.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn peer_traits(&self, peer: &str) -> Result<PeerTraits, StoreError>;

    /// Records how to query a peer, and returns once it is written.
    ///
    /// # Errors
    /// When the store cannot be written.
    fn remember_traits(&self, peer: String, traits: PeerTraits) -> Result<(), StoreError>;

    /// Publishes what other processes had acknowledged before the call. Does nothing if no other
    /// process can write.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn follow_others(&self) -> Result<(), StoreError> {
        Ok(())
    }

    /// Takes or renews, for `term` from now, the lease on work that only one of several nodes over
    /// the same events does. Returns whether this node holds it: always, if no other process can
    /// write.
    ///
    /// # Errors
    /// When the store cannot be written. A node keeps the lease until its term ends.
    fn take_lease(&self, _term: Duration) -> Result<bool, StoreError> {
        Ok(true)
    }

    /// Checks that the store can be written now, as durably as an event.
    ///
    /// # Errors
    /// When the store cannot be written.
    fn check_writable(&self) -> Result<(), StoreError>;

    /// Whether everything in the sets is durable, as far as is known. Does not block.
    fn is_durable(&self) -> bool;

    /// Checks that the store's files are still those that were opened, as far as is known. Does not
    /// block.
    ///
    /// # Errors
    /// When they are not, from then on.
    fn check_in_place(&self) -> Result<(), StoreError>;

    /// The size of the events and of the write-ahead log, in bytes; 0 if unknown. Does not block.
    fn size(&self) -> (u64, u64);

    /// How far this node lags behind the commits of other nodes; `None` if no other process can
    /// write. Does not block.
    fn feed_lag(&self) -> Option<FeedLag> {
        None
    }

    /// The metrics of the store.
    fn metrics(&self) -> &StoreMetrics;

    /// Commits pending submissions and closes the store. Later reads and submissions fail.
    fn close(&self);
}

impl dyn EventStore {
    /// Like [`EventStore::submit`], but returns the outcomes. For async code.
    pub async fn put(&self, origin: &Origin, events: Vec<VerifiedEvent>) -> Vec<Outcome> {
        let count = events.len();
        let (done, outcomes) = oneshot::channel();
        self.submit(origin, events, Box::new(move |outcomes| drop(done.send(outcomes))));
        let lost = |_| vec![Outcome::Failed("the store gave no answer".into()); count];
        outcomes.await.unwrap_or_else(lost)
    }
}
