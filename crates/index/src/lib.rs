//! Which items match a filter: always whole, always current.
//!
//! An [`Index`] is a store with the sets over it in memory. A snapshot takes no copy, and is reconciled with
//! `negsync-reconcile`:
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
mod files;
mod item_set;
mod keeper;
#[cfg(test)]
mod lifecycle_tests;
mod memory_reservation;
mod metrics;
mod scan;
mod set_cache;
mod slice;
mod sorted_file;
mod tree;

pub use catalog::{Catalog, SnapshotError};
pub use commit_feed::{Subscriber, SubscriberError};
pub use item_set::ItemSet;
pub use metrics::IndexMetrics;
pub use set_cache::Statistics;
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
use std::path::Path;
use std::sync::Arc;

/// This program's own store, of any engine, with the sets over it: what the relay works on. Clones
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

/// The sets over a store, its own or another relay's: what reconciles. Clones share them.
#[derive(Clone)]
pub struct Sets {
    source: Arc<dyn EventSource>,
    catalog: Arc<Catalog>,
    // Kinds of which no set has any, but for what a viewer is shown.
    hidden: PrivateKinds,
    changes: CommitFeed,
    // Of sets that are kept on files.
    keeper: Option<Arc<Keeper>>,
}

impl std::fmt::Debug for Sets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sets").finish_non_exhaustive()
    }
}

impl Index {
    /// Opens the store in `path` and begins to load the index beside it; whoever asks for a set
    /// in the meantime waits.
    ///
    /// # Errors
    /// When the store cannot be opened.
    pub fn open(
        path: &Path,
        options: StoreOptions,
        memory_bytes: usize,
    ) -> Result<Self, StoreError> {
        Self::open_with(path, options, memory_bytes, WriteRule::OPEN)
    }

    /// As [`Index::open`]; `rule` says when files are written.
    fn open_with(
        path: &Path,
        options: StoreOptions,
        memory_bytes: usize,
        rule: WriteRule,
    ) -> Result<Self, StoreError> {
        let private = options.private_kinds.clone();
        let open = |heard: KeptOnFiles| {
            let publish = move |change: Arc<Change>| heard.changed(change);
            let store = Store::open(path, options, Box::new(publish))?;
            let files = IndexFiles::beside(store.path());
            Ok((Arc::new(store), files))
        };
        Self::on_files(memory_bytes, &private, rule, open)
    }

    /// The sets over a store that keeps itself on files.
    fn on_files<S: EventStore + MarkedStore + 'static>(
        memory_bytes: usize,
        private: &PrivateKinds,
        rule: WriteRule,
        open: impl FnOnce(KeptOnFiles) -> Result<(Arc<S>, IndexFiles), StoreError>,
    ) -> Result<Self, StoreError> {
        let catalog = Arc::new(Catalog::new(memory_bytes, private));
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

    /// As [`Index::over`], of a store that marks moments: the sets are kept on files in `folder`, which one
    /// process writes to, and begin to load from there; whoever asks for a set in the meantime waits.
    /// The engine tells the listener of each change from a commit on that is made before `open` returns, and
    /// need not tell of all events, unless it begins anew later.
    ///
    /// Where the folder cannot be used the log says so, and all events are read.
    ///
    /// # Errors
    /// Those of `open`.
    pub fn over_files<S: EventStore + MarkedStore + 'static>(
        folder: &Path,
        memory_bytes: usize,
        private: &PrivateKinds,
        open: impl FnOnce(Box<dyn Listener>) -> Result<Arc<S>, StoreError>,
    ) -> Result<Self, StoreError> {
        Self::on_files(memory_bytes, private, WriteRule::OPEN, |heard| {
            Ok((open(Box::new(heard))?, IndexFiles::in_folder(folder)))
        })
    }

    /// The store that `open` opens, whatever its engine, with the sets over it. The engine tells the
    /// listener of all events that are for everybody (those of no `private` kind) before `open`
    /// returns, and then of each change, those to private events too.
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

    /// Commits what was submitted, writes the index to files where enough has changed, and closes
    /// the store. Later reads and submissions fail.
    pub fn close(&self) {
        self.sets.write_files();
        self.store.close();
    }

    /// The store underneath.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn EventStore> {
        &self.store
    }

    /// The sets alone.
    #[must_use]
    pub fn sets(&self) -> &Sets {
        &self.sets
    }

    /// Every commit from now on.
    #[must_use]
    pub fn subscribe(&self) -> Subscriber {
        self.sets.subscribe()
    }

    /// How many commits have been published since the start: the number of the next one, as
    /// [`Subscriber::next_number`] counts them.
    #[must_use]
    pub fn commits_published(&self) -> u64 {
        self.sets.changes.published()
    }

    /// As [`Sets::contains`].
    #[must_use]
    pub fn contains(&self, item: &Item) -> bool {
        self.sets.contains(item)
    }

    /// As [`Sets::snapshot`].
    ///
    /// # Errors
    /// When the set has more than `limit` items or cannot be read; it is never cut.
    pub fn snapshot(&self, filters: &[Filter], limit: usize) -> Result<Slice, SnapshotError> {
        self.sets.snapshot(filters, limit)
    }

    /// As [`Sets::snapshot_for`].
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
    /// The sets over another relay's database (see [`Attached::open`]), all of it read. Events of
    /// the options' private kinds are in no set but those of [`Sets::snapshot_for`].
    ///
    /// # Errors
    /// When the file cannot be read or is not a database of a known version of the relay.
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

    /// As [`Sets::attach`], over whatever source `open` begins to follow. It is given who has to
    /// hear of everything that is for everybody.
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

    /// The clock of the store that they are over.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        self.source.clock()
    }

    /// The same sets; what is read for them ends at the deadline with [`StoreError::Interrupted`].
    #[must_use]
    pub fn with_deadline(&self, deadline: Deadline) -> Self {
        Self { source: self.source.with_deadline(deadline), ..self.clone() }
    }

    /// The sets over a store that another process writes to. Each is scanned for and shows the
    /// store as it is then; nothing tells of changes.
    #[must_use]
    pub fn reading(reader: Reader) -> Self {
        let (catalog, changes) = (Arc::new(Catalog::scanning()), CommitFeed::new());
        let hidden = PrivateKinds::default();
        Self { source: Arc::new(reader), catalog, hidden, changes, keeper: None }
    }

    /// The store underneath, as far as sets need it.
    #[must_use]
    pub fn source(&self) -> &dyn EventSource {
        self.source.as_ref()
    }

    /// Every commit from now on.
    #[must_use]
    pub fn subscribe(&self) -> Subscriber {
        self.changes.subscribe()
    }

    /// Whether the event is stored, as far as memory knows; `false` says nothing while the index
    /// is being loaded.
    #[must_use]
    pub fn contains(&self, item: &Item) -> bool {
        self.catalog.contains(item)
    }

    /// As [`Sets::contains`], of events that are for everybody: what is known of them gives
    /// nothing away.
    #[must_use]
    pub fn shows(&self, item: &Item) -> bool {
        self.catalog.shows(item)
    }

    /// As [`Sets::snapshot_for`], if it takes no reading of the store: `None` where it does, and where
    /// the store has to ask a server for what others wrote.
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

    /// As [`Sets::kept_for`], and where the store has to ask a server, waits for its answer.
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

    /// The memory of sets that are not kept and that somebody answers from, in bytes.
    #[must_use]
    pub fn session_bytes(&self) -> usize {
        self.catalog.session_bytes()
    }

    /// What the index holds now.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        self.catalog.statistics()
    }

    /// What the index measures.
    #[must_use]
    pub fn metrics(&self) -> &IndexMetrics {
        self.catalog.metrics()
    }

    /// The complete set of the items that match any of the filters. Blocks while it is built.
    ///
    /// # Errors
    /// When the set has more than `limit` items or cannot be read; it is never cut.
    pub fn snapshot(&self, filters: &[Filter], limit: usize) -> Result<Slice, SnapshotError> {
        self.source.catch_up()?;
        let shown: Vec<Filter> =
            filters.iter().map(|filter| self.hidden.public_part(filter)).collect();
        self.made_anew_if_lost(self.catalog.snapshot(self.source(), &shown, limit))
    }

    /// As [`Sets::snapshot`], of the events that the viewer may see and no others.
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
                // A read broke off so that the write-ahead log could be begun anew.
                Err(SnapshotError::Store(StoreError::Interrupted))
                    if !self.source.deadline().is_over() => {}
                set => return self.made_anew_if_lost(set),
            }
        }
    }

    /// Writes the sets to files where enough has changed, and none from then on: for a clean stop,
    /// before the store is closed.
    pub fn write_files(&self) {
        if let Some(keeper) = &self.keeper {
            keeper.end(true);
        }
    }

    /// As [`Slice::check`], of a slice of these sets; what cannot be read is made anew.
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

/// What is heard of a database that others write to goes to the catalog and to whoever subscribes.
struct Heard {
    catalog: Arc<Catalog>,
    changes: CommitFeed,
}

/// As [`Heard`], of sets that are kept on files.
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
