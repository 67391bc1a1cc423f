//! A store with the sets over it.

use super::catalog::{Catalog, SnapshotError};
use super::commit_feed::{CommitFeed, Subscriber};
use super::files::IndexFiles;
use super::keeper::{Keeper, Signal, WriteRule};
use super::listener::{Heard, KeptOnFiles};
use super::set_cache::SetCacheSize;
use super::set_files::SetFiles;
use super::sets::Sets;
use super::slice::Slice;
use negsync_reconcile::Item;
use negsync_store::{
    Change, EventSource, EventStore, Filter, Listener, MarkedStore, PrivateKinds, Store,
    StoreError, StoreOptions, Viewer,
};
use std::path::Path;
use std::sync::Arc;

/// This program's own store, of any engine, with the sets over it; the relay works on it. Clones
/// share it.
#[derive(Clone)]
pub struct Index {
    store: Arc<dyn EventStore>,
    pub(super) sets: Sets,
}

impl std::fmt::Debug for Index {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Index").finish_non_exhaustive()
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
    pub(super) fn open_with(
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
