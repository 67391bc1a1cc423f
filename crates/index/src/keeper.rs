//! Keeps the sets of all events in files: loads them at the start, and rewrites them after many
//! changes. One thread does both, so that no commit or session waits for it.

use super::catalog::Catalog;
use super::files::{FilesError, IndexFiles};
use super::item_set::ItemSet;
use negsync_reconcile::RangeSet;
use negsync_store::{MarkedStore, StoreError};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The number of changes after which files are rewritten.
#[derive(Clone, Copy, Debug)]
pub(super) struct WriteRule {
    /// Minimum number of changed items; below it a scan is as fast.
    pub(super) least: usize,
    /// Minimum share of changed items, as one part in this many.
    pub(super) part: usize,
    /// Number of commits since the files were written, however many items they changed: the store
    /// may soon drop its record of these commits.
    pub(super) commits: u64,
}

/// Changes between two checks whether files are due by their age. A commit changes at least one
/// item.
const LOOK_CHANGES: usize = 10_000;

impl WriteRule {
    /// While the store is open: keeps the memory of changes, and the bytes written for them, in
    /// proportion to the set.
    pub(super) const OPEN: Self = Self { least: 131_072, part: 16, commits: 50_000 };
    /// At a clean stop: the changes that the next start has to read take a tenth of a second for
    /// each million items.
    pub(super) const STOP: Self = Self { least: 16_384, part: 128, commits: 25_000 };

    pub(super) fn is_met(self, sets: &[ItemSet]) -> bool {
        let changes: usize = sets.iter().map(ItemSet::changes).sum();
        let items: usize = sets.iter().map(ItemSet::len).sum();
        changes >= self.least.max(items / self.part)
    }
}

/// Delay after a failed write: a full disk usually stays full for a while.
const AFTER_FAILURE: Duration = Duration::from_secs(60);

/// The handle of the thread. Clones of the index share it.
pub(super) struct Keeper {
    signal: Arc<Signal>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Wakes the thread.
#[derive(Default)]
pub(super) struct Signal {
    is_loading: AtomicBool,
    // Changes since the last check.
    heard: AtomicUsize,
    wish: Mutex<Wish>,
    changed: Condvar,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Wish {
    #[default]
    Nothing,
    /// Files may be due, or one can no longer be read.
    Look,
    /// The thread should end; `true` if it may write files first.
    End(bool),
}

impl Signal {
    /// Makes the thread check what is due.
    pub(super) fn look(&self) {
        let mut wish = self.lock();
        if *wish == Wish::Nothing {
            *wish = Wish::Look;
            self.changed.notify_one();
        }
    }

    /// Counts changes, and triggers a check after many of them.
    pub(super) fn hear(&self, changes: usize) {
        if self.heard.fetch_add(changes, Ordering::Relaxed) + changes >= LOOK_CHANGES {
            self.heard.store(0, Ordering::Relaxed);
            self.look();
        }
    }

    fn end(&self, may_write: bool) {
        *self.lock() = Wish::End(may_write);
        self.changed.notify_one();
    }

    fn wait(&self) -> Wish {
        let nothing = |wish: &mut Wish| *wish == Wish::Nothing;
        let waited = self.changed.wait_while(self.lock(), nothing);
        let mut wish = waited.unwrap_or_else(PoisonError::into_inner);
        match *wish {
            Wish::Look => std::mem::take(&mut *wish),
            wish => wish,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Wish> {
        self.wish.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Keeper {
    /// Begins to load the sets, and keeps them from then on.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub(super) fn start(
        catalog: Arc<Catalog>,
        store: Arc<dyn MarkedStore>,
        files: IndexFiles,
        signal: Arc<Signal>,
        open_rule: WriteRule,
    ) -> Result<Self, StoreError> {
        let work = KeeperThread { catalog, store, files, signal: Arc::clone(&signal), open_rule };
        let thread = std::thread::Builder::new()
            .name("index".into())
            .spawn(move || work.run())
            .map_err(StoreError::Thread)?;
        Ok(Self { signal, thread: Mutex::new(Some(thread)) })
    }

    /// Makes the thread check whether a set has to be rebuilt.
    pub(super) fn look(&self) {
        self.signal.look();
    }

    /// Ends the thread. With `may_write`, it writes files first if enough has changed. A thread
    /// that is still loading is not waited for: it ends when it finds the store closed.
    pub(super) fn end(&self, may_write: bool) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            self.signal.end(may_write);
            if !self.signal.is_loading.load(Ordering::Acquire) && thread.join().is_err() {
                tracing::error!("index thread panicked");
            }
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.end(false);
    }
}

/// The state of the thread.
struct KeeperThread {
    catalog: Arc<Catalog>,
    store: Arc<dyn MarkedStore>,
    files: IndexFiles,
    signal: Arc<Signal>,
    open_rule: WriteRule,
}

impl KeeperThread {
    fn run(mut self) {
        self.load();
        let mut not_before = None;
        loop {
            let wish = self.signal.wait();
            let rule = match wish {
                Wish::End(false) => return,
                Wish::End(true) => WriteRule::STOP,
                _ => self.open_rule,
            };
            if self.catalog.forget_unreadable() && wish == Wish::Look {
                self.files.forget();
                self.load();
            } else if wish == Wish::Look {
                self.load_missing();
            }
            let has_to_wait = not_before.is_some_and(|at| Instant::now() < at);
            if self.is_due(rule) && (!has_to_wait || wish == Wish::End(true)) {
                not_before = (!self.write()).then(|| Instant::now() + AFTER_FAILURE);
            }
            if wish == Wish::End(true) {
                return;
            }
        }
    }

    fn is_due(&self, rule: WriteRule) -> bool {
        let is_met = || self.catalog.resident_sets().is_some_and(|sets| rule.is_met(&sets));
        self.files.may_write()
            && (self.files.commits_since(&*self.store) >= rule.commits || is_met())
    }

    /// Loads the sets: from files and later changes, or else by a scan of all events.
    fn load(&mut self) {
        let began = Instant::now();
        self.signal.is_loading.store(true, Ordering::Release);
        let (store, files) = (&*self.store, &mut self.files);
        let loaded = self.catalog.load_from(store, |contents| files.load(store, contents));
        self.signal.is_loading.store(false, Ordering::Release);
        let elapsed_s = began.elapsed().as_secs_f64();
        let items = self.catalog.statistics().items;
        match loaded {
            Ok(from_files) => tracing::debug!(items, elapsed_s, from_files, "index loaded"),
            Err(error) => tracing::error!(%error, "index not loaded"),
        }
        self.signal.look();
    }

    /// Builds missing sets: a store that was read again publishes only its public events.
    fn load_missing(&self) {
        self.signal.is_loading.store(true, Ordering::Release);
        let loaded = self.catalog.load_missing(&*self.store);
        self.signal.is_loading.store(false, Ordering::Release);
        if let Err(error) = loaded {
            tracing::debug!(%error, "index not loaded; it is made when somebody asks for it");
        }
    }

    /// Replaces the files by new ones with the current sets. Returns whether that succeeded.
    fn write(&mut self) -> bool {
        let began = Instant::now();
        let signal = Arc::clone(&self.signal);
        // A clean stop waits for the files; any other breaks off.
        let may_go_on = move || *signal.lock() != Wish::End(false);
        let written = self.files.write(&*self.store, &self.catalog, &may_go_on);
        let elapsed_s = began.elapsed().as_secs_f64();
        match written {
            Ok(items) => tracing::debug!(items, elapsed_s, "index files written"),
            Err(FilesError::BrokenOff) => {}
            Err(error) => {
                tracing::warn!(
                    %error,
                    "index files not written. Hint: they take 41 bytes an event beside the store; \
                     without them a start reads all events"
                );
                return false;
            }
        }
        true
    }
}
