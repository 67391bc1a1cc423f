//! Checks that the store's files are still those that were opened. Writes to a file that was moved,
//! removed, replaced or unmounted still succeed, but the next start finds another file.

use super::StoreError;
use super::doubt::log_path;
use super::lock::Lock;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::UNIX_EPOCH;

/// Identifies a file independently of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    device: u64,
    pub(super) inode: u64,
    /// Birth time in nanoseconds since the Unix epoch; 0 if the file system has none. Needed
    /// because inode numbers are reused.
    pub(super) born: u128,
}

impl From<&Metadata> for Identity {
    fn from(file: &Metadata) -> Self {
        let born = file.created().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        Self {
            device: file.dev(),
            inode: file.ino(),
            born: born.map_or(0, |since| since.as_nanos()),
        }
    }
}

/// One of the files of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StoreFile {
    Store,
    Log,
    Lock,
}

impl StoreFile {
    /// The hint for the operator when it is lost.
    fn hint(self) -> &'static str {
        match self {
            Self::Store => {
                "stop negsync, then put the store back where it was, or move its log (its name ends \
                 in -wal) beside it under the store's new name: what was stored lately is in the log"
            }
            Self::Log => {
                "end all readers of the store: what the log held is moved into it; then start negsync \
                 again"
            }
            Self::Lock => {
                "start negsync again: another one may have written to the store meanwhile"
            }
        }
    }
}

/// A file that must stay in its place.
struct WatchedFile {
    part: StoreFile,
    path: PathBuf,
    identity: Identity,
}

/// The state of the file at an expected path.
enum FileState {
    Same,
    /// The expected file, which has other names too.
    Linked(u64),
    Nothing,
    Another,
}

impl WatchedFile {
    fn look(&self) -> io::Result<FileState> {
        let found = match self.path.metadata() {
            Ok(found) => found,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                return Ok(FileState::Nothing);
            }
            Err(error) => return Err(error),
        };
        Ok(match found.nlink() {
            _ if Identity::from(&found) != self.identity => FileState::Another,
            0 | 1 => FileState::Same,
            names => FileState::Linked(names),
        })
    }
}

/// The files of an open store. Clones share the state.
#[derive(Clone)]
pub(super) struct Presence(Arc<PresenceState>);

struct PresenceState {
    watched: Vec<WatchedFile>,
    // The first file that was lost. This is permanent: another program may have written to the file
    // meanwhile.
    lost: OnceLock<StoreFile>,
    // A file has more than one name, and this was logged.
    is_linked: AtomicBool,
    // SQLite removes the log when the store closes.
    is_closed: AtomicBool,
}

impl Presence {
    /// Records the current files. `path` is the configured path of the store, and `log` its
    /// write-ahead log.
    pub(super) fn of(path: &Path, log: &File, lock: &Lock) -> Result<Self, StoreError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| StoreError::NotFound { path, source }
        };
        let real = &lock.store;
        let store = Identity::from(&real.metadata().map_err(failed(real))?);
        let log_path = log_path(real);
        let log = Identity::from(&log.metadata().map_err(failed(&log_path))?);
        lock.record(store, log);
        let held = Identity::from(&lock.file.metadata().map_err(failed(&lock.path))?);
        let watch =
            |part, path: &Path, identity| WatchedFile { part, path: path.to_owned(), identity };
        let watched = vec![
            // Both the resolved path and the configured one: the next start uses the configured
            // one.
            watch(StoreFile::Store, real, store),
            watch(StoreFile::Store, path, store),
            watch(StoreFile::Log, &log_path, log),
            watch(StoreFile::Lock, &lock.path, held),
        ];
        let presence = Self(Arc::new(PresenceState {
            watched,
            lost: OnceLock::new(),
            is_linked: AtomicBool::new(false),
            is_closed: AtomicBool::new(false),
        }));
        // Detects a change between SQLite's open and the recording.
        presence.check()?;
        Ok(presence)
    }

    /// Checks that each file is in its place. A file that was lost once stays lost.
    ///
    /// # Errors
    /// When the store is closed, or a file is lost, has a second name, or cannot be checked.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        if self.is_closed() {
            return Err(StoreError::Closed);
        }
        if self.0.lost.get().is_some() {
            return Err(StoreError::FileLost);
        }
        let mut is_linked = false;
        for watched in &self.0.watched {
            let (path, part) = (watched.path.display(), watched.part);
            let found = match watched.look() {
                Ok(FileState::Same) => continue,
                Ok(FileState::Nothing) => "nothing",
                Ok(FileState::Another) => "another file",
                Ok(FileState::Linked(names)) => {
                    is_linked = true;
                    if !self.0.is_linked.swap(true, Ordering::AcqRel) {
                        tracing::error!(file = %path, names, "store file has other names: writing stops; remove its other hard links");
                    }
                    continue;
                }
                Err(error) => {
                    return Err(StoreError::NotWritten(format!(
                        "its file cannot be looked for: {}",
                        error.kind()
                    )));
                }
            };
            if self.is_closed() {
                return Err(StoreError::Closed);
            }
            if self.0.lost.set(part).is_ok() {
                let hint = part.hint();
                tracing::error!(file = %path, found, "store file lost: writing stops; {hint}");
            }
            return Err(StoreError::FileLost);
        }
        if is_linked {
            return Err(StoreError::NotWritten("its file has more than one name".into()));
        }
        self.0.is_linked.store(false, Ordering::Release);
        Ok(())
    }

    /// Stops the checks, before the store closes.
    pub(super) fn close(&self) {
        self.0.is_closed.store(true, Ordering::Release);
    }

    fn is_closed(&self) -> bool {
        self.0.is_closed.load(Ordering::Acquire)
    }

    /// Whether only the log is lost: its contents can still be moved into the store.
    pub(super) fn has_lost_log(&self) -> bool {
        let is_there = |it: &WatchedFile| {
            it.part == StoreFile::Log
                || matches!(it.look(), Ok(FileState::Same | FileState::Linked(_)))
        };
        self.0.lost.get() == Some(&StoreFile::Log) && self.0.watched.iter().all(is_there)
    }
}

/// Refuses a log without a store: SQLite would remove it.
pub(super) fn refuse_orphaned_log(path: &Path) -> Result<(), StoreError> {
    let real = super::lock::real_path(path);
    let log = log_path(&real);
    let bytes = |path: &Path| match path.metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Some(0),
        file => file.ok().map(|file| file.len()),
    };
    if bytes(&real) == Some(0) && bytes(&log).is_some_and(|bytes| bytes > 0) {
        return Err(StoreError::OrphanedLog { log, path: path.to_owned() });
    }
    Ok(())
}

/// Refuses a rollback journal beside a store: SQLite would write another database's pages to the
/// store, or remove the journal if there is no store. The store's own journal exists only until its
/// first page is written, and has no pages.
pub(super) fn refuse_foreign_journal(path: &Path) -> Result<(), StoreError> {
    let real = super::lock::real_path(path);
    let mut name = real.clone().into_os_string();
    name.push("-journal");
    let journal = PathBuf::from(name);
    let bytes = |path: &Path| path.metadata().map_or(0, |file| file.len());
    let page = super::schema::PAGE_BYTES as u64;
    if bytes(&journal) > 2 * page || bytes(&journal) > 0 && bytes(&real) > page {
        return Err(StoreError::ForeignJournal { journal, path: path.to_owned() });
    }
    Ok(())
}

/// Refuses a log that belongs to another store file that was here before: SQLite would mix the
/// pages of both.
pub(super) fn refuse_foreign_log(path: &Path) -> Result<(), StoreError> {
    let real = super::lock::real_path(path);
    let log = log_path(&real);
    let (Ok(store), Ok(found), Some((its_store, its_log))) =
        (real.metadata(), log.metadata(), super::lock::recorded(&real))
    else {
        return Ok(());
    };
    let is = |file: &Metadata, (inode, born): (u64, u128)| {
        let file = Identity::from(file);
        file.inode == inode && file.born == born
    };
    // If both differ from the record, they were copied here together.
    if found.len() > 0 && is(&found, its_log) && !is(&store, its_store) {
        return Err(StoreError::ForeignLog { log, path: path.to_owned() });
    }
    Ok(())
}
