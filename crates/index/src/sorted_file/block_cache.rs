//! A cache of recently used blocks. A session reads the same few blocks repeatedly.

use super::layout::{BLOCK_ITEMS, ITEM_BYTES, ItemBytes};
use std::sync::{Arc, Mutex, PoisonError};

/// Maximum number of cached blocks: 2.1 MB.
pub(super) const SLOTS: usize = 512;

/// The items of a block.
pub(super) type Block = Arc<Vec<ItemBytes>>;

/// Each block has one slot, shared with other blocks.
#[derive(Debug)]
pub(super) struct BlockCache(Box<[Slot]>);

/// A block and its number.
type Slot = Mutex<Option<(usize, Block)>>;

impl BlockCache {
    /// A cache of `slots` blocks, at least one.
    pub(super) fn new(slots: usize) -> Self {
        Self((0..slots.max(1)).map(|_| Slot::default()).collect())
    }

    /// The block with this number; calls `read` if it is not cached.
    pub(super) fn get_or_read(
        &self,
        number: usize,
        read: impl FnOnce() -> Vec<ItemBytes>,
    ) -> Block {
        let Some(slot) = self.0.get(number % self.0.len()) else { return Block::default() };
        let kept = || slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, block)) = kept().as_ref()
            && *of == number
        {
            return Arc::clone(block);
        }
        // Outside the lock, so that others do not wait for the disk.
        let block = Block::new(read());
        *kept() = Some((number, Arc::clone(&block)));
        block
    }

    /// The heap memory with every slot in use, in bytes.
    pub(super) fn most_bytes(&self) -> usize {
        self.0.len() * (BLOCK_ITEMS * ITEM_BYTES + 64)
    }
}
