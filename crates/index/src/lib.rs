//! The sets of items that match filters: always complete, always current.
//!
//! An [`Index`] is a store with sets over it in memory. A snapshot is made without a copy, and is
//! reconciled with `negsync-reconcile`:
//!
//! ```
//! use negsync_index::Index;
//! use negsync_reconcile::{RangeSet, Responder};
//! use negsync_store::{Filter, StoreOptions};
//!
//! # let folder = tempfile::tempdir()?;
//! let path = folder.path().join("events.sqlite");
//! let index = Index::open(&path, StoreOptions::default(), 64 << 20)?;
//! let notes = index.snapshot(&[Filter::parse(r#"{"kinds": [1]}"#)?], 1_000_000)?;
//! assert_eq!(notes.len(), 0);
//! // Answers the messages of a peer from exactly these events.
//! let _responder = Responder::new(&notes, 0)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]
#![warn(missing_debug_implementations, missing_docs)]
#![warn(clippy::must_use_candidate, clippy::return_self_not_must_use)]

mod catalog;
mod commit_feed;
mod disk_share;
mod files;
mod item_set;
mod keeper;
#[cfg(test)]
mod lifecycle_tests;
mod memory_reservation;
mod metrics;
mod oversized;
mod scan;
mod set_cache;
mod set_files;
mod slice;
mod sorted_file;
mod tree;

pub use catalog::{Catalog, SnapshotError};
pub use commit_feed::{Subscriber, SubscriberError};
pub use item_set::ItemSet;
pub use metrics::IndexMetrics;
pub use set_cache::{SetCacheSize, Statistics};
pub use slice::Slice;
pub use sorted_file::{FileIdentity, FileWriter, IndexFileError, SortedFile, WriteError};
pub use tree::Tree;

use commit_feed::CommitFeed;
use files::IndexFiles;
use keeper::{Keeper, Signal, WriteRule};
use negsync_reconcile::Item;
use negsync_reconcile::RangeSet;
use negsync_store::{
    Attached, AttachedOptions, Change, Clock, Deadline, EventSource, EventStore, Filter, Listener,
    MarkedStore, PrivateKinds, Reader, RelayKind, Store, StoreError, StoreOptions, Viewer,
};
use set_files::SetFiles;
use std::path::Path;
use std::sync::Arc;

/// This program's own store, of any engine, with the sets over it; the relay works on it. Clones
/// share it.
#[derive(Clone)]
pub struct Index {
    store: Arc<dyn EventStore>,
    sets: Sets,
}

impl std::fmt::Debug for Index {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Index").finish_non_exhaustive()
    }
}

/// The sets over a store, our own or another relay's; sessions reconcile them. Clones share them.
#[derive(Clone)]
pub struct Sets {
    source: Arc<dyn EventSource>,
    catalog: Arc<Catalog>,
    // Kinds that no set contains, except in the parts for a viewer.
    hidden: PrivateKinds,
    changes: CommitFeed,
    // Present if the sets are kept in files.
    keeper: Option<Arc<Keeper>>,
}

impl std::fmt::Debug for Sets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sets").finish_non_exhaustive()
    }
}

impl Index {
    /// Opens the store in `path` and begins to load the index. Calls that need a set wait until it
    /// is loaded. `size` is the room for kept sets: a number of bytes in memory, or more; files of
    /// sets are in the folder of the store.
    ///
    /// # Errors
    /// When the store cannot be opened.
    pub fn open(
        path: &Path,
        options: StoreOptions,
        size: impl Into<SetCacheSize>,
    ) -> Result<Self, StoreError> {
        Self::open_with(path, options, size.into(), WriteRule::OPEN)
    }

    /// Like [`Index::open`]; `rule` decides when files are written.
    fn open_with(
        path: &Path,
        options: StoreOptions,
        size: SetCacheSize,
        rule: WriteRule,
    ) -> Result<Self, StoreError> {
        let private = options.private_kinds.clone();
        let open = |heard: KeptOnFiles| {
            let publish = move |change: Arc<Change>| heard.changed(change);
            let store = Store::open(path, options, Box::new(publish))?;
            let files = IndexFiles::beside(store.path());
            Ok((Arc::new(store), files))
        };
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new("."));
        Self::on_files((folder, size), &private, rule, open)
    }

    /// The sets over a store, kept in files; those of other filters in the given folder.
    fn on_files<S: EventStore + MarkedStore + 'static>(
        (folder, size): (&Path, SetCacheSize),
        private: &PrivateKinds,
        rule: WriteRule,
        open: impl FnOnce(KeptOnFiles) -> Result<(Arc<S>, IndexFiles), StoreError>,
    ) -> Result<Self, StoreError> {
        let files = SetFiles::new(folder.to_owned(), size.file_bytes);
        let catalog = Catalog::new(size.memory_bytes, private).with_files(files);
        let catalog = Arc::new(catalog);
        let (changes, signal) = (CommitFeed::new(), Arc::<Signal>::default());
        let heard = Heard { catalog: Arc::clone(&catalog), changes: changes.clone() };
        let (store, files) = open(KeptOnFiles { heard, rule, signal: Arc::clone(&signal) })?;
        let (kept, loaded) = (Arc::clone(&catalog), Arc::clone(&store) as Arc<dyn MarkedStore>);
        let keeper = Some(Arc::new(Keeper::start(kept, loaded, files, signal, rule)?));
        let source = Arc::clone(&store) as Arc<dyn EventSource>;
        let hidden = PrivateKinds::default();
        let sets = Sets { source, catalog, hidden, changes, keeper };
        Ok(Self { store, sets })
    }

    /// Like [`Index::over`], for a store with index marks: the sets are kept in files in `folder`,
    /// which one process writes to, and are loaded from there. Calls that need a set wait until it
    /// is loaded. The engine publishes each change to the listener, starting with a commit before
    /// `open` returns. It need not publish all events, unless it begins again later.
    ///
    /// If the folder cannot be used, the error is logged and all events are read.
    ///
    /// # Errors
    /// Those of `open`.
    pub fn over_files<S: EventStore + MarkedStore + 'static>(
        folder: &Path,
        size: impl Into<SetCacheSize>,
        private: &PrivateKinds,
        open: impl FnOnce(Box<dyn Listener>) -> Result<Arc<S>, StoreError>,
    ) -> Result<Self, StoreError> {
        Self::on_files((folder, size.into()), private, WriteRule::OPEN, |heard| {
            Ok((open(Box::new(heard))?, IndexFiles::in_folder(folder)))
        })
    }

    /// The store that `open` opens, of any engine, with the sets over it. The engine publishes all
    /// public events (those of no `private` kind) to the listener before `open` returns, and then
    /// each change, including changes to private events.
    ///
    /// # Errors
    /// Those of `open`, and when the private events cannot be read.
    pub fn over(
        memory_bytes: usize,
        private: &PrivateKinds,
        open: impl FnOnce(Box<dyn Listener>) -> Result<Arc<dyn EventStore>, StoreError>,
    ) -> Result<Self, StoreError> {
        let catalog = Arc::new(Catalog::new(memory_bytes, private));
        let changes = CommitFeed::new();
        let heard = Heard { catalog: Arc::clone(&catalog), changes: changes.clone() };
        let store = open(Box::new(heard))?;
        catalog.load_missing(&*store)?;
        let (source, hidden) =
            (Arc::clone(&store) as Arc<dyn EventSource>, PrivateKinds::default());
        let sets = Sets { source, catalog, hidden, changes, keeper: None };
        Ok(Self { store, sets })
    }

    /// Commits pending submissions, writes the index to files if enough has changed, and closes the
    /// store. Later reads and submissions fail.
    pub fn close(&self) {
        self.sets.write_files();
        self.store.close();
    }

    /// The underlying store.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn EventStore> {
        &self.store
    }

    /// The sets, without the write access of the store.
    #[must_use]
    pub fn sets(&self) -> &Sets {
        &self.sets
    }

    /// Subscribes to every commit from now on.
    #[must_use]
    pub fn subscribe(&self) -> Subscriber {
        self.sets.subscribe()
    }

    /// The number of commits published since the start, which is the number of the next one as
    /// [`Subscriber::next_number`] counts them.
    #[must_use]
    pub fn commits_published(&self) -> u64 {
        self.sets.changes.published()
    }

    /// See [`Sets::contains`].
    #[must_use]
    pub fn contains(&self, item: &Item) -> bool {
        self.sets.contains(item)
    }

    /// See [`Sets::snapshot`].
    ///
    /// # Errors
    /// When the set has more than `limit` items or cannot be read; it is never cut.
    pub fn snapshot(&self, filters: &[Filter], limit: usize) -> Result<Slice, SnapshotError> {
        self.sets.snapshot(filters, limit)
    }

    /// See [`Sets::snapshot_for`].
    ///
    /// # Errors
    /// As [`Index::snapshot`].
    pub fn snapshot_for(
        &self,
        viewer: &Viewer,
        filters: &[Filter],
        limit: usize,
    ) -> Result<Slice, SnapshotError> {
        self.sets.snapshot_for(viewer, filters, limit)
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

/// Passes the changes of a database that others write to the catalog and to the subscribers.
struct Heard {
    catalog: Arc<Catalog>,
    changes: CommitFeed,
}

/// Like [`Heard`], for sets that are kept in files.
struct KeptOnFiles {
    heard: Heard,
    rule: WriteRule,
    signal: Arc<Signal>,
}

impl Listener for KeptOnFiles {
    fn begun(&self, items: Vec<Item>) {
        self.heard.begun(items);
        self.signal.look();
    }

    fn changed(&self, change: Arc<Change>) {
        let changes = change.steps.len();
        self.heard.changed(change);
        self.signal.hear(changes);
        if self.heard.catalog.resident_sets().is_some_and(|sets| self.rule.is_met(&sets)) {
            self.signal.look();
        }
    }

    fn holds(&self, item: &Item) -> bool {
        self.heard.holds(item)
    }

    fn held(&self, from: u64, to: u64, visit: &mut dyn FnMut(Item)) {
        self.heard.held(from, to, visit);
    }
}

impl Listener for Heard {
    fn begun(&self, items: Vec<Item>) {
        self.catalog.replace(items);
        self.changes.skip();
    }

    fn changed(&self, change: Arc<Change>) {
        self.catalog.apply(&change);
        self.changes.send(change);
    }

    fn holds(&self, item: &Item) -> bool {
        self.catalog.contains(item)
    }

    fn held(&self, from: u64, to: u64, visit: &mut dyn FnMut(Item)) {
        if let Some(set) = self.catalog.public() {
            let set = Slice::new(set, Some(from), Some(to), None);
            set.for_each(0..set.len(), visit);
        }
    }
}

// The example in README.md is compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
