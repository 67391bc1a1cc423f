//! The sets over a store, and the snapshots that sessions reconcile.

use super::catalog::{Catalog, SnapshotError};
use super::commit_feed::{CommitFeed, Subscriber};
use super::keeper::Keeper;
use super::listener::Heard;
use super::metrics::IndexMetrics;
use super::set_cache::Statistics;
use super::slice::Slice;
use negsync_reconcile::Item;
use negsync_store::{
    Attached, AttachedOptions, Clock, Deadline, EventSource, Filter, Listener, PrivateKinds,
    Reader, RelayKind, StoreError, Viewer,
};
use std::path::Path;
use std::sync::Arc;

/// The sets over a store, our own or another relay's; sessions reconcile them. Clones share them.
#[derive(Clone)]
pub struct Sets {
    pub(super) source: Arc<dyn EventSource>,
    pub(super) catalog: Arc<Catalog>,
    // Kinds that no set contains, except in the parts for a viewer.
    pub(super) hidden: PrivateKinds,
    pub(super) changes: CommitFeed,
    // Present if the sets are kept in files.
    pub(super) keeper: Option<Arc<Keeper>>,
}

impl std::fmt::Debug for Sets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sets").finish_non_exhaustive()
    }
}

impl Sets {
    /// The sets over another relay's database (see [`Attached::open`]), completely read. Only
    /// [`Sets::snapshot_for`] returns events of the options' private kinds.
    ///
    /// # Errors
    /// When the file cannot be read or is not a database of a supported version of the relay.
    pub fn attach(
        kind: RelayKind,
        path: &Path,
        options: AttachedOptions,
        memory_bytes: usize,
    ) -> Result<Self, StoreError> {
        Self::attach_with(memory_bytes, options.private_kinds.clone(), |heard| {
            Ok(Arc::new(Attached::open(kind, path, options, heard)?))
        })
    }

    /// Like [`Sets::attach`], over any source that `open` begins to follow. `open` gets the
    /// listener for public events.
    ///
    /// # Errors
    /// Those of `open`.
    pub fn attach_with(
        memory_bytes: usize,
        private: PrivateKinds,
        open: impl FnOnce(Box<dyn Listener>) -> Result<Arc<dyn EventSource>, StoreError>,
    ) -> Result<Self, StoreError> {
        let catalog = Arc::new(Catalog::of_public(memory_bytes, &private));
        let changes = CommitFeed::new();
        let heard = Heard { catalog: Arc::clone(&catalog), changes: changes.clone() };
        let source = open(Box::new(heard))?;
        Ok(Self { source, catalog, hidden: private, changes, keeper: None })
    }

    /// The clock of the underlying store.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        self.source.clock()
    }

    /// The same sets with a deadline for their reads, which fail with [`StoreError::Interrupted`]
    /// after it.
    #[must_use]
    pub fn with_deadline(&self, deadline: Deadline) -> Self {
        Self { source: self.source.with_deadline(deadline), ..self.clone() }
    }

    /// The sets over a store that another process writes. Each is built by a scan and shows the
    /// store at that time; changes are not published.
    #[must_use]
    pub fn reading(reader: Reader) -> Self {
        let (catalog, changes) = (Arc::new(Catalog::scanning()), CommitFeed::new());
        let hidden = PrivateKinds::default();
        Self { source: Arc::new(reader), catalog, hidden, changes, keeper: None }
    }

    /// The underlying store, as the interface that sets need.
    #[must_use]
    pub fn source(&self) -> &dyn EventSource {
        self.source.as_ref()
    }

    /// Subscribes to every commit from now on.
    #[must_use]
    pub fn subscribe(&self) -> Subscriber {
        self.changes.subscribe()
    }

    /// Whether the sets in memory have the item. Always `false` while the index is being loaded.
    #[must_use]
    pub fn contains(&self, item: &Item) -> bool {
        self.catalog.contains(item)
    }

    /// Like [`Sets::contains`], for public events only: the answer reveals nothing private.
    #[must_use]
    pub fn shows(&self, item: &Item) -> bool {
        self.catalog.shows(item)
    }

    /// Like [`Sets::snapshot_for`], if that needs no read of the store. `None` if it does, or if
    /// the store has to ask a server for the writes of other processes.
    ///
    /// # Errors
    /// As [`Sets::snapshot`].
    pub fn kept_for(
        &self,
        viewer: &Viewer,
        filters: &[Filter],
        limit: usize,
    ) -> Result<Option<Slice>, SnapshotError> {
        if self.source.waits_for_server() {
            return Ok(None);
        }
        self.kept_after_waiting(viewer, filters, limit)
    }

    /// Like [`Sets::kept_for`], but waits for a server's answer if the store needs it.
    ///
    /// # Errors
    /// As [`Sets::snapshot`].
    pub fn kept_after_waiting(
        &self,
        viewer: &Viewer,
        filters: &[Filter],
        limit: usize,
    ) -> Result<Option<Slice>, SnapshotError> {
        self.source.catch_up()?;
        self.made_anew_if_lost(self.catalog.kept_for(viewer, filters, limit))
    }

    /// The memory of sets that are not kept but still in use, in bytes.
    #[must_use]
    pub fn session_bytes(&self) -> usize {
        self.catalog.session_bytes()
    }

    /// The current contents of the index.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        self.catalog.statistics()
    }

    /// The metrics of the index.
    #[must_use]
    pub fn metrics(&self) -> &IndexMetrics {
        self.catalog.metrics()
    }

    /// The complete set of the items that match any of the filters. Blocks while it is built.
    ///
    /// # Errors
    /// When the set has more than `limit` items or cannot be read; it is never truncated.
    pub fn snapshot(&self, filters: &[Filter], limit: usize) -> Result<Slice, SnapshotError> {
        self.source.catch_up()?;
        let shown: Vec<Filter> =
            filters.iter().map(|filter| self.hidden.public_part(filter)).collect();
        self.made_anew_if_lost(self.catalog.snapshot(self.source(), &shown, limit))
    }

    /// Like [`Sets::snapshot`], restricted to events that the viewer may see.
    ///
    /// # Errors
    /// As [`Sets::snapshot`].
    pub fn snapshot_for(
        &self,
        viewer: &Viewer,
        filters: &[Filter],
        limit: usize,
    ) -> Result<Slice, SnapshotError> {
        self.source.catch_up()?;
        loop {
            match self.catalog.snapshot_for(self.source(), viewer, filters, limit) {
                // The read broke off so that the write-ahead log could be restarted.
                Err(SnapshotError::Store(StoreError::Interrupted))
                    if !self.source.deadline().is_over() => {}
                set => return self.made_anew_if_lost(set),
            }
        }
    }

    /// Writes the sets to files if enough has changed, and stops writing files: for a clean stop,
    /// before the store is closed.
    pub fn write_files(&self) {
        if let Some(keeper) = &self.keeper {
            keeper.end(true);
        }
    }

    /// Like [`Slice::check`], for a slice of these sets. Also triggers the rebuild of sets that
    /// cannot be read.
    ///
    /// # Errors
    /// As [`Slice::check`].
    pub fn check(&self, slice: &Slice) -> Result<(), StoreError> {
        let checked = slice.check();
        if let (Err(_), Some(keeper)) = (&checked, &self.keeper) {
            keeper.look();
        }
        checked
    }

    fn made_anew_if_lost<T>(&self, found: Result<T, SnapshotError>) -> Result<T, SnapshotError> {
        if let (Err(SnapshotError::Store(StoreError::IndexLost)), Some(keeper)) =
            (&found, &self.keeper)
        {
            keeper.look();
        }
        found
    }
}
