//! The files of the sets of all events: found by the name of the store's mark, opened, updated and
//! rewritten.

use super::catalog::Catalog;
use super::item_set::ItemSet;
use super::sorted_file::{FileIdentity, FileWriter, IndexFileError, SortedFile, WriteError};
use negsync_reconcile::Item;
use negsync_reconcile::RangeSet;
use negsync_store::{Filter, MarkName, MarkedStore, StoreError};
use sha2::{Digest, Sha256};
use std::ffi::{OsStr, OsString};
use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

/// Separates the name of the store from that of the mark.
const INFIX: &str = "-index-";
/// Stands for the name of the store in a folder of its own.
const STORE_NAME: &str = "negsync";
/// The lock file in such a folder: it is locked while a process writes there.
const LOCK_NAME: &str = "negsync-index.lock";
/// Items that can be scanned in the time of reading one row of the store.
const ROW_COST: usize = 8;
/// Rows that can be read in a few milliseconds.
const FEW_ROWS: usize = 10_000;
/// Items that are written between two checks whether to continue.
const ASK_ITEMS: usize = 4_096;

/// Why the files were not written.
#[derive(Debug, thiserror::Error)]
pub(super) enum FilesError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{path}: {source}", path = path.display())]
    Write { path: PathBuf, source: WriteError },
    #[error("{path}: {source}", path = path.display())]
    Open { path: PathBuf, source: IndexFileError },
    /// The program is ending, or the sets were replaced.
    #[error("broken off")]
    BrokenOff,
}

/// The files of one store's index.
pub(super) struct IndexFiles {
    /// Path and beginning of the name, without the mark and what follows it.
    folder: PathBuf,
    prefix: OsString,
    /// The mark of the files in use.
    mark: Option<MarkName>,
    writes: Writes,
}

/// The process that may write the files.
enum Writes {
    /// The process that has the store open.
    WithStore,
    /// This process: it holds the lock of the folder until this is dropped.
    WithLock(#[expect(dead_code, reason = "held for its lock")] File),
    /// Another process: the files are only read here.
    Elsewhere,
}

impl IndexFiles {
    /// The files beside the store in `path`.
    pub(super) fn beside(path: &Path) -> Self {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let mut prefix = path.file_name().unwrap_or_default().to_owned();
        prefix.push(INFIX);
        let folder = folder.unwrap_or(Path::new(".")).to_owned();
        Self { folder, prefix, mark: None, writes: Writes::WithStore }
    }

    /// The files of a store that several processes have open, in a folder that one of them writes
    /// to. If the folder cannot be used there are no files, and the error is logged.
    pub(super) fn in_folder(folder: &Path) -> Self {
        let writes = lock_folder(folder).unwrap_or_else(|error| {
            let folder = folder.display();
            tracing::warn!(
                %folder, %error,
                "index folder not usable; each start reads all events. Hint: give it to the user that runs \
                 negsync"
            );
            Writes::Elsewhere
        });
        let prefix = [STORE_NAME, INFIX].concat().into();
        Self { folder: folder.to_owned(), prefix, mark: None, writes }
    }

    /// Whether this process may write the files.
    pub(super) fn may_write(&self) -> bool {
        !matches!(self.writes, Writes::Elsewhere)
    }

    /// The number of commits since the files in use, if the store counts them.
    pub(super) fn commits_since(&self, store: &dyn MarkedStore) -> u64 {
        self.mark.as_ref().map_or(0, |mark| store.commits_since_index_mark(mark))
    }

    /// The sets of these filters, from files and the changes since; `None` if there are no usable
    /// files. Unusable files are removed.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub(super) fn load(
        &mut self,
        store: &dyn MarkedStore,
        contents: &[Filter],
    ) -> Result<Option<Vec<ItemSet>>, StoreError> {
        let mut loaded = None;
        let found = self.marks();
        let standing = store.standing_marks(&found)?;
        if standing.is_empty() && !found.is_empty() {
            tracing::info!(
                folder = %self.folder.display(),
                "index files ignored: they are of another store, or too old; the index is made anew from \
                 the store"
            );
        }
        for mark in standing {
            if loaded.is_none() {
                loaded = self.load_from(store, &mark, contents)?.map(|sets| (mark, sets));
            }
        }
        self.mark = loaded.as_ref().map(|(mark, _)| *mark);
        self.remove_others();
        Ok(loaded.map(|(_, sets)| sets))
    }

    /// Like [`IndexFiles::load`], for this mark.
    fn load_from(
        &self,
        store: &dyn MarkedStore,
        mark: &MarkName,
        contents: &[Filter],
    ) -> Result<Option<Vec<ItemSet>>, StoreError> {
        let mut sets: Vec<ItemSet> = Vec::new();
        for (number, content) in contents.iter().enumerate() {
            let path = self.path(mark, number);
            match SortedFile::open(&path, &identity(content, mark)) {
                Ok(file) => sets.push(file.into()),
                // The usual case after a process was killed while it wrote them.
                Err(reason @ IndexFileError::Missing) => {
                    tracing::debug!(path = %path.display(), %reason, "index file ignored");
                    return Ok(None);
                }
                Err(reason) => {
                    tracing::warn!(
                        path = %path.display(), %reason,
                        "index file ignored; the index is made anew from the store"
                    );
                    return Ok(None);
                }
            }
        }
        let items: usize = sets.iter().map(RangeSet::len).sum();
        let most = (items / ROW_COST).max(FEW_ROWS);
        let mut removed: Vec<Item> = Vec::new();
        let mut added: Vec<Vec<Item>> = contents.iter().map(|_| Vec::new()).collect();
        let is_whole = store.since_index_mark(
            mark,
            most,
            &mut |item| removed.push(item),
            &mut |item, kind| {
                let of = contents.iter().zip(&mut added);
                of.filter(|(content, _)| content.takes_kind(kind))
                    .for_each(|(_, added)| added.push(item));
            },
        )?;
        if !is_whole {
            tracing::debug!("index files are too old: too much has changed since");
            return Ok(None);
        }
        removed.sort_unstable();
        for (set, mut added) in sets.iter_mut().zip(added) {
            set.remove_batch(&removed);
            added.sort_unstable();
            set.insert_batch(&added);
        }
        Ok(sets.iter().all(ItemSet::is_readable).then_some(sets))
    }

    /// Writes the catalog's sets to new files, and switches the catalog to them. Returns the number
    /// of items. `may_go_on` is called at intervals.
    ///
    /// # Errors
    /// When the writing fails. The old files then stay in use.
    pub(super) fn write(
        &mut self,
        store: &dyn MarkedStore,
        catalog: &Catalog,
        may_go_on: &dyn Fn() -> bool,
    ) -> Result<usize, FilesError> {
        let mut sets = Vec::new();
        let mark = store.begin_index_mark(&mut || sets = catalog.begin_rewrite())?;
        let written = self.write_all(&mark, &sets, may_go_on).and_then(|fresh| {
            store.keep_index_mark(Some(mark))?;
            Ok(fresh)
        });
        match written {
            Ok(fresh) => {
                let items = fresh.iter().map(|(_, set)| set.len()).sum();
                catalog.finish_rewrite(fresh);
                self.mark = Some(mark);
                self.remove_others();
                Ok(items)
            }
            Err(error) => {
                catalog.finish_rewrite(Vec::new());
                self.remove_others();
                if let Err(error) = store.keep_index_mark(self.mark) {
                    tracing::debug!(%error, "index mark not dropped");
                }
                Err(error)
            }
        }
    }

    fn write_all(
        &self,
        mark: &MarkName,
        sets: &[(Filter, ItemSet)],
        may_go_on: &dyn Fn() -> bool,
    ) -> Result<Vec<(Filter, ItemSet)>, FilesError> {
        let fresh = sets.iter().enumerate().map(|(number, (content, set))| {
            let path = self.path(mark, number);
            let identity = identity(content, mark);
            write_one(&path, identity, set, may_go_on)?;
            let file = SortedFile::open(&path, &identity)
                .map_err(|source| FilesError::Open { path, source })?;
            Ok((content.clone(), file.into()))
        });
        let fresh: Vec<_> = fresh.collect::<Result<_, FilesError>>()?;
        if fresh.is_empty() { Err(FilesError::BrokenOff) } else { Ok(fresh) }
    }

    /// Stops using the current files.
    pub(super) fn forget(&mut self) {
        self.mark = None;
    }

    fn path(&self, mark: &MarkName, number: usize) -> PathBuf {
        let mut name = self.prefix.clone();
        name.push(hex(mark));
        name.push(format!(".{number}"));
        self.folder.join(name)
    }

    /// The marks of the existing files.
    fn marks(&self) -> Vec<MarkName> {
        let mut marks: Vec<MarkName> =
            self.names().iter().filter_map(|name| Some(self.parts(name)?.0)).collect();
        marks.sort_unstable();
        marks.dedup();
        marks
    }

    /// Removes files of other marks than the one in use: earlier files, and those of a killed
    /// process.
    fn remove_others(&self) {
        if !self.may_write() {
            return;
        }
        for name in self.names() {
            if let Some((mark, rest)) = self.parts(&name)
                && (self.mark != Some(mark) || rest.ends_with(b".partial"))
            {
                let _ = std::fs::remove_file(self.folder.join(name));
            }
        }
    }

    fn names(&self) -> Vec<OsString> {
        let entries = std::fs::read_dir(&self.folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name()).collect()
    }

    /// The mark in the name of an index file, and the rest of the name. Files of other programs may
    /// have the same prefix.
    fn parts<'name>(&self, name: &'name OsStr) -> Option<(MarkName, &'name [u8])> {
        let name = name.as_encoded_bytes().strip_prefix(self.prefix.as_encoded_bytes())?;
        let (digits, rest) = name.split_at_checked(2 * size_of::<MarkName>())?;
        let mark = unhex(digits)?;
        rest.starts_with(b".").then_some((mark, rest))
    }
}

/// Takes the lock of a folder; creates the folder if it is missing.
fn lock_folder(folder: &Path) -> io::Result<Writes> {
    std::fs::create_dir_all(folder)?;
    // What a link of that name leads to is not emptied.
    let lock =
        File::options().write(true).create(true).truncate(false).open(folder.join(LOCK_NAME))?;
    match lock.try_lock() {
        Ok(()) => Ok(Writes::WithLock(lock)),
        Err(TryLockError::WouldBlock) => {
            let folder = folder.display();
            tracing::info!(%folder, "index files are another process's; they are only read here");
            Ok(Writes::Elsewhere)
        }
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Writes one set.
fn write_one(
    path: &Path,
    identity: FileIdentity,
    set: &ItemSet,
    may_go_on: &dyn Fn() -> bool,
) -> Result<(), FilesError> {
    let failed = |source: WriteError| FilesError::Write { path: path.to_owned(), source };
    let io_failed = |error: io::Error| failed(error.into());
    let mut writer = FileWriter::begin(path).map_err(io_failed)?;
    let mut written = 0_usize;
    set.try_for_each(0..set.len(), |item| {
        written += 1;
        if written.is_multiple_of(ASK_ITEMS) && !may_go_on() {
            return Err(FilesError::BrokenOff);
        }
        writer.push(item).map_err(failed)
    })?;
    if !set.is_readable() || written != set.len() {
        return Err(StoreError::IndexLost.into());
    }
    writer.finish(identity).map_err(io_failed)
}

/// The identity of a file with the set of `content`.
fn identity(content: &Filter, mark: &MarkName) -> FileIdentity {
    let mut hash = Sha256::new();
    // The sets of all events differ only in their kinds.
    for kinds in [content.kinds.as_deref(), Some(content.without_kinds.as_slice())] {
        hash.update([u8::from(kinds.is_some())]);
        let kinds = kinds.unwrap_or_default();
        hash.update((kinds.len() as u64).to_be_bytes());
        kinds.iter().for_each(|kind| hash.update(kind.to_be_bytes()));
    }
    FileIdentity { set: hash.finalize().into(), mark: *mark }
}

fn hex(mark: &MarkName) -> String {
    mark.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(digits: &[u8]) -> Option<MarkName> {
    let mut mark = MarkName::default();
    for (byte, pair) in mark.iter_mut().zip(digits.chunks(2)) {
        // The parser would accept a sign as a part of the number.
        let pair = std::str::from_utf8(pair).ok().filter(|pair| !pair.starts_with('+'))?;
        *byte = u8::from_str_radix(pair, 16).ok()?;
    }
    Some(mark)
}
