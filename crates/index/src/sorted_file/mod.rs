//! An immutable, ordered set of items in a file. The first item and the sum of each block are in
//! memory; the items themselves are read on demand through the system's page cache.
//!
//! A file is written once ([`FileWriter`]) and checked completely when it is opened, so a set never
//! comes from a file that is damaged, truncated, or of another store.
//! docs/design/0010-sorted-file.md shows the layout.

mod block_cache;
mod layout;
mod verify;
mod write;

#[cfg(test)]
mod tests;

pub use layout::FileIdentity;
pub use write::{FileWriter, WriteError};

use crate::disk_share::DiskShare;
use block_cache::{Block, BlockCache, SLOTS};
use layout::{BLOCK_BYTES, BLOCK_ITEMS, ITEM_BYTES, ItemBytes, from_bytes, to_bytes};
use negsync_reconcile::Item;
use negsync_reconcile::{Bound, RangePosition, RangeSet, Sum};
use std::fs::File;
use std::io;
use std::ops::{ControlFlow, Range};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// Blocks of a kept set's file for each that it may cache.
const SLOT_BLOCKS: usize = 8;

/// Why a file is not used. The set is then rebuilt from the store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IndexFileError {
    /// The file does not exist.
    #[error("the file is missing")]
    Missing,
    /// The system cannot read the file.
    #[error("the file cannot be read: {0}")]
    Io(io::Error),
    /// The contents differ from what was written.
    #[error("the file is damaged: {0}")]
    Damaged(&'static str),
    /// The file is intact, but of another set, store or mark.
    #[error("the file belongs to another set or store")]
    Foreign,
}

impl From<io::Error> for IndexFileError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::Missing,
            // The file is shorter than its trailer says.
            io::ErrorKind::UnexpectedEof => Self::Damaged("it is cut off"),
            _ => Self::Io(error),
        }
    }
}

/// A set of items in a file. Its answers are valid as long as [`SortedFile::is_readable`].
#[derive(Debug)]
pub struct SortedFile {
    file: File,
    count: usize,
    /// The sum of all ids.
    sum: Sum,
    last: Option<Item>,
    blocks: Vec<BlockStart>,
    cache: BlockCache,
    has_failed: AtomicBool,
    /// Its share of the disk for the files of kept sets, if it is one of them.
    share: Option<DiskShare>,
}

/// The facts about a block that are in memory.
#[derive(Clone, Copy, Debug)]
struct BlockStart {
    first: Item,
    /// The sum of the ids of all items before the block.
    sum_below: Sum,
}

impl SortedFile {
    /// Opens the file at `path` and checks every byte of it.
    ///
    /// # Errors
    /// When it is missing, has another identity, or is damaged.
    pub fn open(path: &Path, identity: &FileIdentity) -> Result<Self, IndexFileError> {
        // Opening a named pipe would block until it has a writer.
        if !std::fs::metadata(path)?.is_file() {
            return Err(IndexFileError::Damaged("it is no regular file"));
        }
        let file = File::open(path)?;
        let (trailer, index) = layout::read_index(&file)?;
        if trailer.identity != *identity {
            return Err(IndexFileError::Foreign);
        }
        verify::blocks(&file, trailer.count, &index)?;
        let blocks = index.iter().map(|entry| entry.start).collect();
        let set = Self::of(file, trailer.count, trailer.sum, blocks, None);
        if set.is_readable() { Ok(set) } else { Err(IndexFileError::Damaged("it changes")) }
    }

    /// The set in `file`, whose blocks are known.
    fn of(
        file: File,
        count: usize,
        sum: Sum,
        blocks: Vec<BlockStart>,
        share: Option<DiskShare>,
    ) -> Self {
        // A kept set counts with the memory that it may take.
        let slots = if share.is_some() { SLOTS.min(blocks.len() / SLOT_BLOCKS) } else { SLOTS };
        let (cache, has_failed) = (BlockCache::new(slots), AtomicBool::new(false));
        let mut set = Self { file, count, sum, last: None, blocks, cache, has_failed, share };
        set.last = count.checked_sub(1).and_then(|last| set.item(last));
        set
    }

    /// Whether it is one of the bounded files of kept sets.
    pub(super) fn has_share(&self) -> bool {
        self.share.is_some()
    }

    /// Whether all reads since the file was opened succeeded. After a failed read answers may be
    /// wrong, so check this after each answer.
    pub fn is_readable(&self) -> bool {
        !self.has_failed.load(Ordering::Relaxed)
    }

    /// Whether `item` is in the set.
    pub fn contains(&self, item: &Item) -> bool {
        let Some(number) = self.block_of(item) else { return false };
        self.block(number).binary_search(&to_bytes(item)).is_ok()
    }

    /// The heap memory, in bytes.
    pub fn memory_bytes(&self) -> usize {
        self.blocks.capacity() * size_of::<BlockStart>() + self.cache.most_bytes()
    }

    /// Calls `visit` with the items at `ranks`, in order, until it breaks off.
    pub fn try_for_each(
        &self,
        ranks: Range<usize>,
        visit: &mut dyn FnMut(Item) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let end = ranks.end.min(self.count);
        let mut at = ranks.start;
        while at < end {
            let number = at / BLOCK_ITEMS;
            let start = number * BLOCK_ITEMS;
            let block = if end <= start + BLOCK_ITEMS {
                self.block(number)
            } else {
                // A walk reads each block once, so it bypasses the cache.
                Block::new(self.read(number))
            };
            let items = block.get(at - start..(end - start).min(block.len())).unwrap_or_default();
            if items.is_empty() {
                // Only if the file could not be read.
                return ControlFlow::Break(());
            }
            items.iter().try_for_each(|bytes| visit(from_bytes(bytes)))?;
            at += items.len();
        }
        ControlFlow::Continue(())
    }

    /// The block that contains `item` or its position; `None` if the item comes before all others
    /// or after them.
    fn block_of(&self, item: &Item) -> Option<usize> {
        if self.last.is_none_or(|last| *item > last) {
            return None;
        }
        self.blocks.partition_point(|block| block.first <= *item).checked_sub(1)
    }

    fn block(&self, number: usize) -> Block {
        self.cache.get_or_read(number, || self.read(number))
    }

    /// Reads a block. If that fails the block is empty, and [`SortedFile::is_readable`] is false
    /// from then on.
    fn read(&self, number: usize) -> Vec<ItemBytes> {
        let count = self.count.saturating_sub(number * BLOCK_ITEMS).min(BLOCK_ITEMS);
        let mut items = vec![[0; ITEM_BYTES]; count];
        let offset = (number * BLOCK_BYTES) as u64;
        if let Err(error) = self.file.read_exact_at(items.as_flattened_mut(), offset) {
            if !self.has_failed.swap(true, Ordering::Relaxed) {
                tracing::error!(%error, offset, "the index file can no longer be read");
            }
            items.clear();
        }
        items
    }

    /// The sum of the ids before position `within` of a loaded block.
    fn sum_in(&self, number: usize, block: &[ItemBytes], within: usize) -> Sum {
        let next = self.blocks.get(number + 1).map_or(self.sum, |block| block.sum_below);
        if within > block.len() / 2 {
            let mut sum = next;
            let after = block.get(within..).unwrap_or_default();
            after.iter().for_each(|bytes| sum.subtract(&id_sum(bytes)));
            return sum;
        }
        let mut sum = self.blocks.get(number).map_or(self.sum, |block| block.sum_below);
        let before = block.get(..within).unwrap_or_default();
        before.iter().for_each(|bytes| sum.add(&id_sum(bytes)));
        sum
    }

    /// The position of an item in the block that [`SortedFile::block_of`] returned.
    fn place_in(&self, number: Option<usize>, block: &[ItemBytes], item: &Item) -> RangePosition {
        let Some(number) = number else {
            return match self.last {
                Some(last) if *item > last => RangePosition { rank: self.count, sum: self.sum },
                _ => RangePosition::default(),
            };
        };
        let key = to_bytes(item);
        let within = block.partition_point(|bytes| *bytes < key);
        let rank = number * BLOCK_ITEMS + within;
        RangePosition { rank, sum: self.sum_in(number, block, within) }
    }
}

fn id_sum(bytes: &ItemBytes) -> Sum {
    Sum::of(&from_bytes(bytes).id)
}

impl RangeSet for SortedFile {
    fn len(&self) -> usize {
        self.count
    }

    fn item(&self, rank: usize) -> Option<Item> {
        let (number, within) = (rank / BLOCK_ITEMS, rank % BLOCK_ITEMS);
        match within {
            0 => self.blocks.get(number).map(|block| block.first),
            _ if rank < self.count => self.block(number).get(within).map(from_bytes),
            _ => None,
        }
    }

    fn lower_bound(&self, item: &Item) -> usize {
        match self.block_of(item) {
            Some(number) => {
                let key = to_bytes(item);
                number * BLOCK_ITEMS + self.block(number).partition_point(|bytes| *bytes < key)
            }
            None => self.place_in(None, &[], item).rank,
        }
    }

    fn sum_below(&self, rank: usize) -> Sum {
        let (number, within) = (rank / BLOCK_ITEMS, rank % BLOCK_ITEMS);
        if rank >= self.count {
            return self.sum;
        }
        match within {
            0 => self.blocks.get(number).map_or(self.sum, |block| block.sum_below),
            _ => self.sum_in(number, &self.block(number), within),
        }
    }

    fn for_each(&self, ranks: Range<usize>, visit: &mut dyn FnMut(Item)) {
        let _ = self.try_for_each(ranks, &mut |item| {
            visit(item);
            ControlFlow::Continue(())
        });
    }

    fn place(&self, item: &Item) -> RangePosition {
        let number = self.block_of(item);
        let block = number.map(|number| self.block(number));
        let items = block.as_ref().map_or(&[][..], |block| block.as_slice());
        self.place_in(number, items, item)
    }

    // Bounds mostly ascend: the next one is often in the same block.
    fn places(&self, items: &[Item]) -> Vec<RangePosition> {
        let mut last: Option<(usize, Block)> = None;
        let place = |item: &Item| {
            let number = self.block_of(item);
            if let Some(number) = number
                && last.as_ref().is_none_or(|(held, _)| *held != number)
            {
                last = Some((number, self.block(number)));
            }
            let block = last.as_ref().map_or(&[][..], |(_, block)| block.as_slice());
            self.place_in(number, block, item)
        };
        items.iter().map(place).collect()
    }

    fn cut(&self, rank: usize) -> (Bound, Sum) {
        let (number, within) = (rank / BLOCK_ITEMS, rank % BLOCK_ITEMS);
        if within == 0 || rank >= self.count {
            return (self.bound_at(rank), self.sum_below(rank));
        }
        let block = self.block(number);
        let bound = match block.get(within - 1..=within) {
            Some([left, right]) => Bound::between(&from_bytes(left), &from_bytes(right)),
            _ => Bound::INFINITY,
        };
        (bound, self.sum_in(number, &block, within))
    }
}
