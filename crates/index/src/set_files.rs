//! Kept sets that are too large for memory, each in a file without a name: the system frees it with
//! the last set that uses it, and with the process.

use super::disk_share::{DiskShare, DiskShares};
use super::scan::{Parts, scan_in_parts};
use super::sorted_file::{FileWriter, SortedFile, WriteError};
use negsync_reconcile::Item;
use negsync_store::{EventSource, Filter, StoreError};
use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::path::PathBuf;

/// Bytes that an item takes in a file, rounded up.
const BYTES_AN_ITEM: u64 = 41;
/// Part of the disk that is free without it that a file may take: one in this many.
const FREE_PARTS: u64 = 2;

/// The folder of the files, and the bound for all of them together.
pub(super) struct SetFiles {
    folder: PathBuf,
    shares: DiskShares,
}

/// Why a set was not written.
#[derive(Debug, thiserror::Error)]
enum SetFileError {
    /// The files would take more than their bound, or too much of the free disk.
    #[error("no room")]
    NoRoom,
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl From<io::Error> for SetFileError {
    fn from(error: io::Error) -> Self {
        Self::Write(error.into())
    }
}

/// A set that is being written.
struct SetFileWriter {
    writer: FileWriter,
    // The same file, to ask for the free disk.
    disk: File,
    share: DiskShare,
}

impl SetFiles {
    /// Files in `folder` of at most `most_bytes` together; `None` if that is nothing.
    pub(super) fn new(folder: PathBuf, most_bytes: u64) -> Option<Self> {
        (most_bytes > 0).then(|| Self { folder, shares: DiskShares::new(most_bytes) })
    }

    /// The bytes of all files that are in use.
    pub(super) fn bytes(&self) -> u64 {
        self.shares.bytes()
    }

    /// The set of a filter without times, scanned in parts into a file; `None` if there is no room
    /// for it, or a part has too many items. `make_room` is called while the other files take the
    /// room; it returns whether it freed any.
    ///
    /// # Errors
    /// When the source cannot be read. What is wrong with the file is logged.
    pub(super) fn scan(
        &self,
        source: &dyn EventSource,
        content: &Filter,
        parts: &Parts,
        make_room: &dyn Fn() -> bool,
    ) -> Result<Option<SortedFile>, StoreError> {
        let Some(mut file) = noted(self.begin()) else { return Ok(None) };
        let mut write = |items: Vec<Item>| match noted(file.write(&items, make_room)) {
            Some(()) => ControlFlow::Continue(()),
            None => ControlFlow::Break(()),
        };
        let is_whole = scan_in_parts(source, content, parts, &mut write)?;
        Ok(if is_whole { noted(file.finish()) } else { None })
    }

    fn begin(&self) -> Result<SetFileWriter, SetFileError> {
        let file = tempfile::tempfile_in(&self.folder)?;
        let disk = file.try_clone()?;
        let writer = FileWriter::unnamed(file);
        Ok(SetFileWriter { writer, disk, share: self.shares.nothing() })
    }
}

impl SetFileWriter {
    /// Writes items, which ascend and follow those before.
    fn write(&mut self, items: &[Item], make_room: &dyn Fn() -> bool) -> Result<(), SetFileError> {
        let bytes = (items.len() as u64).saturating_mul(BYTES_AN_ITEM);
        let disk = rustix::fs::fstatvfs(&self.disk).map_err(io::Error::from)?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize).saturating_add(self.share.bytes());
        if self.share.bytes().saturating_add(bytes) > free / FREE_PARTS {
            return Err(SetFileError::NoRoom);
        }
        while !self.share.grow(bytes) {
            if !self.share.could_grow(bytes) || !make_room() {
                return Err(SetFileError::NoRoom);
            }
        }
        items.iter().try_for_each(|item| self.writer.push(*item))?;
        Ok(())
    }

    fn finish(self) -> Result<SortedFile, SetFileError> {
        Ok(self.writer.finish_unnamed(self.share)?)
    }
}

/// The result, or `None` after a log line.
fn noted<T>(written: Result<T, SetFileError>) -> Option<T> {
    let log = |error: &SetFileError| match error {
        SetFileError::NoRoom => tracing::debug!("a large set is not kept: no room for its file"),
        SetFileError::Write(error) => tracing::warn!(
            %error,
            "a large set is not kept: its file could not be written. Hint: its folder is that of the index \
             files; index.set_files_mb = 0 does without such files"
        ),
    };
    written.inspect_err(log).ok()
}

#[cfg(test)]
mod tests {
    use super::super::item_set::ItemSet;
    use super::super::set_cache::SetCache;
    use super::*;
    use negsync_reconcile::RangeSet;
    use std::sync::Arc;

    #[test]
    fn a_kept_set_whose_file_can_no_longer_be_read_is_dropped_with_its_share() {
        let folder = tempfile::tempdir().unwrap();
        let files = SetFiles::new(folder.path().to_owned(), 1 << 20).unwrap();
        let mut file = files.begin().unwrap();
        let items: Vec<Item> = (0..1_000).map(|at| Item::new(at, [7; 32])).collect();
        file.write(&items, &|| false).unwrap();
        let disk = file.disk.try_clone().unwrap();
        let set = ItemSet::from(file.finish().unwrap());
        let cache = SetCache::new(1 << 20, Vec::new(), Arc::default());
        let filter = Filter::parse(r#"{"kinds":[1]}"#).unwrap();
        cache.claim(&filter).unwrap().settle(Some(set));
        assert_eq!(files.bytes(), 41_000);
        assert_eq!(cache.used(&filter).unwrap().item(1).unwrap().created_at, 1);
        disk.set_len(0).unwrap();
        // The first block is cached.
        assert_eq!(cache.used(&filter).unwrap().item(999), None);
        assert!(cache.used(&filter).is_none());
        assert_eq!(files.bytes(), 0);
    }

    #[test]
    fn files_take_no_more_than_their_bound_together() {
        let folder = tempfile::tempdir().unwrap();
        let files = SetFiles::new(folder.path().to_owned(), 50_000).unwrap();
        let items: Vec<Item> = (0..1_000).map(|at| Item::new(at, [7; 32])).collect();
        let mut first = files.begin().unwrap();
        first.write(&items, &|| false).unwrap();
        let first = std::cell::Cell::new(Some(first.finish().unwrap()));
        let mut second = files.begin().unwrap();
        let refused = second.write(&items, &|| false);
        assert!(matches!(refused, Err(SetFileError::NoRoom)), "{refused:?}");
        second.write(&items, &|| first.take().is_some()).unwrap();
        assert_eq!(files.bytes(), 41_000);
        // No other file has to go for one that is too large by itself.
        let refused = second.write(&items, &|| panic!("nothing is to be freed"));
        assert!(matches!(refused, Err(SetFileError::NoRoom)), "{refused:?}");
    }
}
