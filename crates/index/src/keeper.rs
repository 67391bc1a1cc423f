//! Keeps the sets of all events on files: loads them at the start, and writes them anew when much
//! has changed. One thread does both, so that neither a commit nor a session waits for it.

use super::catalog::Catalog;
use super::files::{FilesError, IndexFiles};
use super::item_set::ItemSet;
use negsync_reconcile::RangeSet;
use negsync_store::{Store, StoreError};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How much has to have changed before files are written anew.
#[derive(Clone, Copy, Debug)]
pub(super) struct WriteRule {
    /// The fewest items: below it a scan is as fast.
    pub(super) least: usize,
    /// One of so many items.
    pub(super) part: usize,
}

impl WriteRule {
    /// While the store is open: what changes take of memory, and what is written for them, stays in
    /// proportion.
    pub(super) const OPEN: Self = Self { least: 131_072, part: 16 };
    /// At a clean stop: what the next start has to read takes a tenth of a second for each million
    /// items.
    pub(super) const STOP: Self = Self { least: 16_384, part: 128 };

    pub(super) fn is_met(self, sets: &[ItemSet]) -> bool {
        let changes: usize = sets.iter().map(ItemSet::changes).sum();
        let items: usize = sets.iter().map(ItemSet::len).sum();
        changes >= self.least.max(items / self.part)
    }
}

/// After a failure files are not written again for so long: a full disk stays full for a while.
const AFTER_FAILURE: Duration = Duration::from_secs(60);

/// The thread. Clones of the index share it.
pub(super) struct Keeper {
    signal: Arc<Signal>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What wakes the thread.
#[derive(Default)]
pub(super) struct Signal {
    is_loading: AtomicBool,
    wish: Mutex<Wish>,
    changed: Condvar,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Wish {
    #[default]
    Nothing,
    /// Something is due, or a file cannot be read any more.
    Look,
    /// To end; `true` where files may be written before.
    End(bool),
}

impl Signal {
    /// Has the thread look what is due.
    pub(super) fn look(&self) {
        let mut wish = self.lock();
        if *wish == Wish::Nothing {
            *wish = Wish::Look;
            self.changed.notify_one();
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
        store: Store,
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

    /// Has the thread look whether a set has to be made anew.
    pub(super) fn look(&self) {
        self.signal.look();
    }

    /// Ends the thread. If `may_write`, files are written before, where enough has changed. One that
    /// still loads is left to itself: it ends when it finds the store closed.
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

/// What the thread owns.
struct KeeperThread {
    catalog: Arc<Catalog>,
    store: Store,
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
            }
            let has_to_wait = not_before.is_some_and(|at| Instant::now() < at);
            let is_due = self.catalog.resident_sets().is_some_and(|sets| rule.is_met(&sets));
            if is_due && (!has_to_wait || wish == Wish::End(true)) {
                not_before = (!self.write()).then(|| Instant::now() + AFTER_FAILURE);
            }
            if wish == Wish::End(true) {
                return;
            }
        }
    }

    /// Loads the sets: from files and what came since, or else from a scan of all events.
    fn load(&mut self) {
        let began = Instant::now();
        self.signal.is_loading.store(true, Ordering::Release);
        let (store, files) = (&self.store, &mut self.files);
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

    /// Writes the sets to new files, which take the place of the old ones. Returns whether it could.
    fn write(&mut self) -> bool {
        let began = Instant::now();
        let signal = Arc::clone(&self.signal);
        // A clean stop waits for the files; any other breaks off.
        let may_go_on = move || *signal.lock() != Wish::End(false);
        let written = self.files.write(&self.store, &self.catalog, &may_go_on);
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
