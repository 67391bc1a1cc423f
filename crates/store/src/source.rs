//! The interface of a store for the index and for syncs. This program's own store and those of
//! other relays implement it.

use crate::{Clock, Deadline, Filter, RetentionWindow, StoreError};
use negsync_reconcile::Item;
use std::ops::ControlFlow;
use std::sync::Arc;

/// One snapshot of a store.
pub trait SourceSnapshot {
    /// Calls `visit` with every item that matches the filter, until it breaks off. Ignores `limit`.
    /// The order is undefined, and an item may come twice.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn items(
        &self,
        filter: &Filter,
        visit: &mut dyn FnMut(Item) -> ControlFlow<()>,
    ) -> Result<(), StoreError>;
}

/// Work on one snapshot.
pub type Work<'work> = dyn FnMut(&dyn SourceSnapshot) -> Result<(), StoreError> + 'work;

/// A store of events. All calls block: from async code use a blocking thread.
///
/// Changes are published commit by commit to the listener that the store was opened with.
pub trait EventSource: Send + Sync {
    /// The same source with a deadline for its reads. At the deadline they fail with
    /// [`StoreError::Interrupted`]; before it, that error means that the caller should retry.
    fn with_deadline(&self, deadline: Deadline) -> Arc<dyn EventSource>;

    /// The deadline of reads.
    fn deadline(&self) -> &Deadline;

    /// What the store was opened to tell the time by.
    fn clock(&self) -> &Clock;

    /// Brings the listener up to date. After the call it has every event that was acknowledged,
    /// deleted or had expired before the call.
    ///
    /// # Errors
    /// When the store cannot be read, or an event is due to be removed and still stored.
    fn catch_up(&self) -> Result<(), StoreError>;

    /// Whether [`EventSource::catch_up`] waits for a server. Async tasks must not call it then, not
    /// even for a set in memory.
    fn waits_for_server(&self) -> bool {
        false
    }

    /// Waits until every commit is published that a scan before the call may have seen.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn wait_until_published(&self) -> Result<(), StoreError> {
        self.catch_up()
    }

    /// Runs `work` on one snapshot of the store.
    ///
    /// # Errors
    /// When the store cannot be read, and those of `work`.
    fn read_snapshot(&self, work: &mut Work<'_>) -> Result<(), StoreError>;

    /// Like [`EventSource::read_snapshot`]. `beside` is called while the last commit that `work`
    /// sees is the last one published; it must not block. If that commit is not published within
    /// seconds, `beside` is not called.
    ///
    /// # Errors
    /// As [`EventSource::read_snapshot`].
    fn read_at_commit(
        &self,
        beside: &mut dyn FnMut(),
        work: &mut Work<'_>,
    ) -> Result<(), StoreError>;

    /// Calls `visit` with every item that matches a filter and the index of that filter, until it
    /// breaks off. Ignores `limit`. The filters are scanned one after the other in one snapshot;
    /// within a filter the order is undefined, and an item may come twice.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn items(
        &self,
        filters: &[Filter],
        visit: &mut dyn FnMut(usize, Item) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        self.read_snapshot(&mut |moment| {
            let mut flow = ControlFlow::Continue(());
            for (place, filter) in filters.iter().enumerate() {
                moment.items(filter, &mut |item| {
                    flow = visit(place, item);
                    flow
                })?;
                if flow.is_break() {
                    break;
                }
            }
            Ok(())
        })
    }

    /// A second with about as many events before it as after it, if a scan in two halves is faster;
    /// `None` if it is not, or if the halves would be of two snapshots that the listener cannot
    /// tell apart.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn middle_second(&self) -> Result<Option<u64>, StoreError> {
        Ok(None)
    }

    /// The window of a filter that the rules of retention keep now; older events are refused.
    /// `None` if there are no rules, or if they keep no window of time.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn retention_window(&self, _filter: &Filter) -> Result<Option<RetentionWindow>, StoreError> {
        Ok(None)
    }

    /// Calls `visit` with the JSON of each of the events that is stored, in no order. Expired
    /// events are left out.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn events(
        &self,
        ids: &[[u8; 32]],
        visit: &mut dyn FnMut(&Item, &str),
    ) -> Result<(), StoreError>;
}
