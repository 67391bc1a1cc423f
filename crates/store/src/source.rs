//! What the index and a sync need of a store, and no more: this program's own store and those of
//! other relays stand behind it.

use crate::{Clock, Deadline, Filter, RetentionWindow, StoreError};
use negsync_reconcile::Item;
use std::ops::ControlFlow;
use std::sync::Arc;

/// A store as it is at one moment.
pub trait SourceSnapshot {
    /// Calls `visit` with every item that matches the filter, `limit` aside, in no order and
    /// perhaps twice, until it breaks off.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn items(
        &self,
        filter: &Filter,
        visit: &mut dyn FnMut(Item) -> ControlFlow<()>,
    ) -> Result<(), StoreError>;
}

/// What is done at one moment.
pub type Work<'work> = dyn FnMut(&dyn SourceSnapshot) -> Result<(), StoreError> + 'work;

/// Events on a disk. All calls block: inside async code they belong on a blocking thread.
///
/// Changes are published to the listener that a store is opened with, commit by commit.
pub trait EventSource: Send + Sync {
    /// The same events, whose reads end at the deadline with [`StoreError::Interrupted`]; before it,
    /// that error means that the read is to be tried again.
    fn with_deadline(&self, deadline: Deadline) -> Arc<dyn EventSource>;

    /// Until when a read may go on.
    fn deadline(&self) -> &Deadline;

    /// What the store was opened to tell the time by.
    fn clock(&self) -> &Clock;

    /// Brings the listener up to date: once this returns, it knows of every event
    /// that was acknowledged, deleted or has expired before the call.
    ///
    /// # Errors
    /// When the store cannot be read, or something is due to be removed and still there.
    fn catch_up(&self) -> Result<(), StoreError>;

    /// Whether [`EventSource::catch_up`] waits for a server: then no async task may call it, not even
    /// for a set that is in memory.
    fn waits_for_server(&self) -> bool {
        false
    }

    /// Waits until the listener knows of every commit that a scan before the call can have seen.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn wait_until_published(&self) -> Result<(), StoreError> {
        self.catch_up()
    }

    /// Runs `work` on the store as it is at one moment, whatever is written meanwhile.
    ///
    /// # Errors
    /// When the store cannot be read, and those of `work`.
    fn read_snapshot(&self, work: &mut Work<'_>) -> Result<(), StoreError>;

    /// As [`EventSource::read_snapshot`]; `beside` is called while the last commit that `work` will
    /// see is the last that the listener knows, and must not wait. Where the listener does not come
    /// to know of that commit for seconds, it is not called.
    ///
    /// # Errors
    /// As [`EventSource::read_snapshot`].
    fn read_at_commit(
        &self,
        beside: &mut dyn FnMut(),
        work: &mut Work<'_>,
    ) -> Result<(), StoreError>;

    /// Calls `visit` with every item that matches, `limit` aside, and the place of the filter that
    /// it matches, until it breaks off. One filter follows the other, all at one moment; within a
    /// filter there is no order, and an item may come twice.
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

    /// A second with about as many events before it as after it, where a scan gains from being
    /// cut in two; `None` where it does not, or where the halves would be of two moments that the
    /// listener cannot tell apart.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn middle_second(&self) -> Result<Option<u64>, StoreError> {
        Ok(None)
    }

    /// What rules of retention keep of a filter now: older events are refused whoever brings them. `None`
    /// where there are no rules, or where they keep no window of time.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn retention_window(&self, _filter: &Filter) -> Result<Option<RetentionWindow>, StoreError> {
        Ok(None)
    }

    /// Calls `visit` with the JSON of each of the events that is there, in no order. What has
    /// expired is left out.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn events(
        &self,
        ids: &[[u8; 32]],
        visit: &mut dyn FnMut(&Item, &str),
    ) -> Result<(), StoreError>;
}
