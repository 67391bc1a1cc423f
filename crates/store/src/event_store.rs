//! What the program needs of the store that it owns, whichever engine keeps the events. On SQLite it is a
//! [`Store`](crate::Store).

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

/// Who is given events one by one: the item, the JSON, and whether the next one is wanted.
pub type VisitEvent<'visit> = dyn FnMut(&Item, &str) -> ControlFlow<()> + 'visit;

/// How far a node is behind the commits of all nodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FeedLag {
    /// Commits that this node was told of and has not read.
    pub commits: u64,
    /// The seconds since it could last read which commits there are: the feed is looked at every second.
    pub seconds: u64,
}

/// Events that are read and written. Calls block unless they say otherwise: inside async code they
/// belong on a blocking thread.
///
/// All reads of one call are of one moment. Each method fails when the engine cannot read or write,
/// and with [`StoreError::Closed`] once the store is closed.
pub trait EventStore: EventSource {
    /// The same store, whose reads end at the deadline with [`StoreError::Interrupted`]; before it,
    /// that error means that the read is to be tried again.
    fn until(&self, deadline: Deadline) -> Arc<dyn EventStore>;

    /// Stores events together with whatever else is waiting; each origin has its turn. `reply` gets
    /// one outcome an event, in order, once all are durable. Does not wait: whoever submits bounds
    /// what it has under way.
    fn submit(&self, origin: &Origin, events: Vec<VerifiedEvent>, reply: Reply);

    /// Stores events and waits for their outcomes.
    ///
    /// # Errors
    /// [`StoreError::Closed`] when the writer has gone.
    fn publish(&self, events: Vec<VerifiedEvent>) -> Result<Vec<Outcome>, StoreError> {
        let (send, outcomes) = std::sync::mpsc::sync_channel(1);
        self.submit(&Origin::Local, events, Box::new(move |done| drop(send.send(done))));
        outcomes.recv().map_err(|_| StoreError::Closed)
    }

    /// The newest events that match any of the filters, each filter with its own limit and with no
    /// more than `most`; newest first, of one second the lowest id first, each once. What has
    /// expired is left out.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn newest(&self, filters: &[Filter], most: usize) -> Result<Vec<Hit>, StoreError>;

    /// As [`EventStore::newest`], of what somebody may see, and calls `visit` with the first of them,
    /// read at the same moment, until it breaks off. Only what expired by the second `now` is left
    /// out.
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

    /// Calls `visit` with each event, in the order of `hits`, until it breaks off. Events that went in
    /// the meantime or that have expired are left out. Returns how many of the hits were looked at.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn fetch(&self, hits: &[Hit], visit: &mut VisitEvent<'_>) -> Result<usize, StoreError>;

    /// Calls `visit` with every event that matches, or the newest of the filter's limit, until it
    /// breaks off: oldest first, of one second the highest id first. All are of one moment.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn oldest_first(&self, filter: &Filter, visit: &mut VisitEvent<'_>) -> Result<(), StoreError>;

    /// How many events of each kind are stored, by kind.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn kinds(&self) -> Result<Vec<(u16, u64)>, StoreError>;

    /// NIP-40: removes what has expired by now, and waits until all who hear of commits know.
    ///
    /// # Errors
    /// When something is due and still there.
    fn expire(&self) -> Result<(), StoreError>;

    /// Removes every event that matches, `limit` aside. Nothing keeps them from coming back.
    ///
    /// # Errors
    /// When the store cannot be written.
    fn remove(&self, filter: &Filter) -> Result<(), StoreError>;

    /// The stored events that an operator means.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn selected(&self, selection: &Selection) -> Result<Selected, StoreError>;

    /// Removes what an operator means, and keeps it out until [`EventStore::undelete`].
    ///
    /// # Errors
    /// When the store cannot be written; a part may be removed by then.
    fn delete(&self, selection: &Selection) -> Result<Selected, StoreError>;

    /// The ids that the operator has removed and means to take back.
    ///
    /// # Errors
    /// When the store cannot be read, or the filter asks for tags.
    fn undeleted(&self, undelete: &Undelete) -> Result<Vec<[u8; 32]>, UndeleteError>;

    /// Takes back what [`EventStore::delete`] has kept out, and returns how many ids that are. The
    /// events are not brought back: whoever has them may send them again.
    ///
    /// # Errors
    /// When the store cannot be written, or the filter asks for tags.
    fn undelete(&self, undelete: &Undelete) -> Result<u64, UndeleteError>;

    /// Puts rules of retention in force, in place of those that the store was opened with.
    ///
    /// # Errors
    /// When the store cannot be written, and [`StoreError::Unsupported`] where the engine has no
    /// retention and the rules are not empty.
    fn retain(&self, rules: Retention) -> Result<(), StoreError>;

    /// Removes what the rules of retention do not keep, and waits until nothing is left of it.
    ///
    /// # Errors
    /// As [`EventStore::retain`].
    fn retire(&self) -> Result<(), StoreError>;

    /// What each rule would remove now, in their order, and about how many of the oldest events for
    /// the size of the store.
    ///
    /// # Errors
    /// When the store cannot be read, and as [`EventStore::retain`].
    fn preview(&self, retention: &Retention) -> Result<(Vec<RuleMatches>, u64), StoreError>;

    /// Which of `ids` a sync with `peer` need not move, each with its reason.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn refused(
        &self,
        peer: &str,
        ids: &[[u8; 32]],
    ) -> Result<HashMap<[u8; 32], String>, StoreError>;

    /// Remembers ids that a sync need not move again, and returns once they are written.
    ///
    /// # Errors
    /// When the store cannot be written.
    fn remember_refused(&self, refused: Vec<RefusedId>) -> Result<(), StoreError>;

    /// How far `peer` is known for a filter, given as the text it was remembered under.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn sync_mark(&self, peer: &str, filter: &str) -> Result<SyncMark, StoreError>;

    /// Remembers how far a peer is known for a filter, given as text, and returns once that is
    /// written. What `mark` leaves out stays as it was.
    ///
    /// # Errors
    /// When the store cannot be written.
    fn remember_mark(&self, peer: String, filter: String, mark: SyncMark)
    -> Result<(), StoreError>;

    /// How `peer` has to be asked.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn peer_traits(&self, peer: &str) -> Result<PeerTraits, StoreError>;

    /// Remembers how a peer has to be asked, and returns once that is written.
    ///
    /// # Errors
    /// When the store cannot be written.
    fn remember_traits(&self, peer: String, traits: PeerTraits) -> Result<(), StoreError>;

    /// Tells the listener of what other processes had acknowledged before the call. Nothing is to be
    /// done where no other process can write.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn follow_others(&self) -> Result<(), StoreError> {
        Ok(())
    }

    /// Takes the lease on what one of several nodes over the same events does, or renews it, for `term` from
    /// now on. Returns whether this node has it: always where no other process can write.
    ///
    /// # Errors
    /// When the store cannot be written. A node that had the lease has it until its term ends.
    fn take_lease(&self, _term: Duration) -> Result<bool, StoreError> {
        Ok(true)
    }

    /// Whether something can be written now, as durably as an event.
    ///
    /// # Errors
    /// When the store cannot be written.
    fn check_writable(&self) -> Result<(), StoreError>;

    /// Whether everything that the sets show is safe, as far as is known. Does not block.
    fn is_durable(&self) -> bool;

    /// Whether the store is still the one that was opened, as far as is known. Does not block.
    ///
    /// # Errors
    /// From then on, when it is not.
    fn check_in_place(&self) -> Result<(), StoreError>;

    /// What the events take, and what a log of writes beside them takes, in bytes; 0 where that is
    /// not known. Does not block.
    fn size(&self) -> (u64, u64);

    /// How far this node is behind what others have committed; `None` where no other process can write.
    /// Does not block.
    fn feed_lag(&self) -> Option<FeedLag> {
        None
    }

    /// What the store measures.
    fn metrics(&self) -> &StoreMetrics;

    /// Commits what was submitted and closes the store. Later reads and submissions fail.
    fn close(&self);
}

impl dyn EventStore {
    /// As [`EventStore::submit`], and returns the outcomes. For async code.
    pub async fn put(&self, origin: &Origin, events: Vec<VerifiedEvent>) -> Vec<Outcome> {
        let count = events.len();
        let (done, outcomes) = oneshot::channel();
        self.submit(origin, events, Box::new(move |outcomes| drop(done.send(outcomes))));
        let lost = |_| vec![Outcome::Failed("the store gave no answer".into()); count];
        outcomes.await.unwrap_or_else(lost)
    }
}
