//! Writes a file item by item. The file gets its name only when it is complete.

use super::layout::{
    BLOCK_BYTES, BLOCK_ITEMS, ENTRY_BYTES, FileIdentity, IndexEntry, Trailer, to_bytes,
};
use super::{BlockStart, SortedFile};
use crate::disk_share::DiskShare;
use negsync_reconcile::Item;
use negsync_reconcile::Sum;
use sha2::{Digest, Sha256};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Blocks between two flushes (8 MiB), so that a flush of the store never waits for much of this
/// file.
const FLUSH_BLOCKS: usize = 2_048;

/// Why a file was not written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The system's error.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// An item was not greater than the one before it.
    #[error("the items do not ascend")]
    Order,
}

/// A file that is being written under a temporary name. If it is dropped before it is finished, it
/// is removed.
pub struct FileWriter {
    file: File,
    // The temporary path; `None` once the file is finished, or if it has no name.
    partial: Option<PathBuf>,
    path: PathBuf,
    block: Vec<u8>,
    first: Option<Item>,
    last: Option<Item>,
    /// The sum of the ids before the current block, and the sum including it.
    sum_below: Sum,
    sum: Sum,
    count: usize,
    index: Vec<u8>,
}

impl std::fmt::Debug for FileWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileWriter").finish_non_exhaustive()
    }
}

impl FileWriter {
    /// Begins a file that will be at `path`. An existing file stays until this one is finished.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn begin(path: &Path) -> io::Result<Self> {
        let mut partial = path.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        // Left behind by a process that was killed.
        match std::fs::remove_file(&partial) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut options = OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o600).open(&partial)?;
        let mut writer = Self::unnamed(file);
        (writer.partial, writer.path) = (Some(partial), path.to_owned());
        Ok(writer)
    }

    /// Begins a file that has no name and is read by this process alone.
    pub(crate) fn unnamed(file: File) -> Self {
        Self {
            file,
            partial: None,
            path: PathBuf::new(),
            block: Vec::with_capacity(BLOCK_BYTES),
            first: None,
            last: None,
            sum_below: Sum::ZERO,
            sum: Sum::ZERO,
            count: 0,
            index: Vec::new(),
        }
    }

    /// Writes the next item, which must be greater than the one before.
    ///
    /// # Errors
    /// When it is not greater, or writing fails.
    pub fn push(&mut self, item: Item) -> Result<(), WriteError> {
        if self.last.is_some_and(|last| item <= last) {
            return Err(WriteError::Order);
        }
        self.first.get_or_insert(item);
        self.last = Some(item);
        self.block.extend_from_slice(&to_bytes(&item));
        self.sum.add(&Sum::of(&item.id));
        self.count += 1;
        if self.count.is_multiple_of(BLOCK_ITEMS) {
            self.block.resize(BLOCK_BYTES, 0);
            self.end_block()?;
        }
        Ok(())
    }

    fn end_block(&mut self) -> io::Result<()> {
        let Some(first) = self.first.take() else { return Ok(()) };
        let start = BlockStart { first, sum_below: self.sum_below };
        let digest = Sha256::digest(&self.block).into();
        IndexEntry { start, digest }.write(&mut self.index);
        self.file.write_all(&self.block)?;
        self.block.clear();
        self.sum_below = self.sum;
        if (self.index.len() / ENTRY_BYTES).is_multiple_of(FLUSH_BLOCKS) {
            self.file.sync_data()?;
        }
        Ok(())
    }

    /// The set of an unnamed file, with its share of the disk.
    ///
    /// # Errors
    /// When the system fails to write.
    pub(crate) fn finish_unnamed(mut self, share: DiskShare) -> io::Result<SortedFile> {
        self.end_block()?;
        let file = self.file.try_clone()?;
        let blocks =
            self.index.chunks_exact(ENTRY_BYTES).map(|entry| IndexEntry::read(entry).start);
        Ok(SortedFile::of(file, self.count, self.sum, blocks.collect(), Some(share)))
    }

    /// Makes the file durable and gives it its name.
    ///
    /// # Errors
    /// When the system fails to write, flush or rename it.
    pub fn finish(mut self, identity: FileIdentity) -> io::Result<()> {
        self.end_block()?;
        let trailer = Trailer { count: self.count, identity, sum: self.sum };
        self.file.write_all(&self.index)?;
        self.file.write_all(&trailer.to_bytes(&self.index))?;
        self.file.sync_all()?;
        if let Some(partial) = &self.partial {
            std::fs::rename(partial, &self.path)?;
        }
        self.partial = None;
        // A new file name is durable once its folder is flushed.
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
    }
}

impl Drop for FileWriter {
    fn drop(&mut self) {
        if let Some(partial) = &self.partial {
            // A remaining partial file does no harm but takes room.
            let _ = std::fs::remove_file(partial);
        }
    }
}
