//! The layout of a file: items, an index of their blocks, and a trailer. Numbers are big-endian, so
//! that the bytes of items sort like the items.

use super::{BlockStart, IndexFileError};
use negsync_reconcile::Item;
use negsync_reconcile::Sum;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// An item: `created_at` and id.
pub(super) const ITEM_BYTES: usize = 40;
pub(super) type ItemBytes = [u8; ITEM_BYTES];

/// Bytes that one lookup reads: a page of the system's cache.
pub(super) const BLOCK_BYTES: usize = 4_096;

/// Items of a block, which has one entry in the index. A block is padded with zeros.
pub(super) const BLOCK_ITEMS: usize = BLOCK_BYTES / ITEM_BYTES;

/// The first item of a block, the sum below it, and the SHA-256 of the block.
pub(super) const ENTRY_BYTES: usize = ITEM_BYTES + 32 + 32;

/// Identifies the file type and the version of the layout.
const MAGIC: [u8; 16] = *b"negsync items 2\n";

/// Magic, count, identity and sum, then the SHA-256 of the index and of these fields.
const SIGNED_BYTES: usize = 16 + 8 + 32 + 16 + 32;
pub(super) const TRAILER_BYTES: usize = SIGNED_BYTES + 32;

/// The set that a file holds, and its mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileIdentity {
    /// A digest of the set's filter.
    pub set: [u8; 32],
    /// The random name of the store's index mark from which the file was written.
    pub mark: [u8; 16],
}

/// The trailer of a file.
pub(super) struct Trailer {
    pub count: usize,
    pub identity: FileIdentity,
    /// The sum of all ids.
    pub sum: Sum,
}

/// The index entry of a block.
pub(super) struct IndexEntry {
    pub start: BlockStart,
    pub digest: [u8; 32],
}

/// Length of the blocks of `count` items; the last block is not padded.
pub(super) fn items_bytes(count: u64) -> Option<u64> {
    let (full, rest) = (count / BLOCK_ITEMS as u64, count % BLOCK_ITEMS as u64);
    full.checked_mul(BLOCK_BYTES as u64)?.checked_add(rest * ITEM_BYTES as u64)
}

pub(super) fn to_bytes(item: &Item) -> ItemBytes {
    let mut bytes = [0; ITEM_BYTES];
    let (time, id) = bytes.split_at_mut(8);
    time.copy_from_slice(&item.created_at.to_be_bytes());
    id.copy_from_slice(&item.id);
    bytes
}

pub(super) fn from_bytes(bytes: &ItemBytes) -> Item {
    let mut fields = Fields(bytes);
    Item::new(u64::from_be_bytes(fields.take()), fields.take())
}

impl IndexEntry {
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&to_bytes(&self.start.first));
        out.extend_from_slice(&self.start.sum_below.to_bytes());
        out.extend_from_slice(&self.digest);
    }

    pub(super) fn read(bytes: &[u8]) -> Self {
        let mut fields = Fields(bytes);
        let first = from_bytes(&fields.take());
        let sum_below = Sum::of(&fields.take());
        Self { start: BlockStart { first, sum_below }, digest: fields.take() }
    }
}

impl Trailer {
    /// The trailer's bytes, which follow `index` in the file.
    pub(super) fn to_bytes(&self, index: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(TRAILER_BYTES);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&(self.count as u64).to_be_bytes());
        bytes.extend_from_slice(&self.identity.set);
        bytes.extend_from_slice(&self.identity.mark);
        bytes.extend_from_slice(&self.sum.to_bytes());
        let digest = digest(index, &bytes);
        bytes.extend_from_slice(&digest);
        bytes
    }
}

/// Reads and checks the trailer and the index. Does not check the blocks.
pub(super) fn read_index(file: &File) -> Result<(Trailer, Vec<IndexEntry>), IndexFileError> {
    let file_bytes = file.metadata()?.len();
    let trailer_at = file_bytes.checked_sub(TRAILER_BYTES as u64);
    let trailer_at = trailer_at.ok_or(IndexFileError::Damaged("it is cut off"))?;
    let mut bytes = [0; TRAILER_BYTES];
    file.read_exact_at(&mut bytes, trailer_at)?;
    let (signed, _) = bytes.split_at(SIGNED_BYTES);
    let mut fields = Fields(&bytes);
    if fields.take() != MAGIC {
        return Err(IndexFileError::Damaged("it does not end as an index file does"));
    }
    let count = u64::from_be_bytes(fields.take());
    let identity = FileIdentity { set: fields.take(), mark: fields.take() };
    let sum = Sum::of(&fields.take());
    let index_bytes = count.div_ceil(BLOCK_ITEMS as u64).checked_mul(ENTRY_BYTES as u64);
    let index_at = items_bytes(count);
    // Reads no more than the length of the file, whatever the trailer claims.
    let (Some(index_at), Some(index_bytes)) = (index_at, index_bytes) else {
        return Err(IndexFileError::Damaged("its length is wrong"));
    };
    if index_at.checked_add(index_bytes) != Some(trailer_at) {
        return Err(IndexFileError::Damaged("its length is wrong"));
    }
    let mut index = vec![0; index_bytes as usize];
    file.read_exact_at(&mut index, index_at)?;
    if fields.take() != digest(&index, signed) {
        return Err(IndexFileError::Damaged("its index has a wrong checksum"));
    }
    let entries = index.chunks_exact(ENTRY_BYTES).map(IndexEntry::read).collect();
    Ok((Trailer { count: count as usize, identity, sum }, entries))
}

fn digest(index: &[u8], signed: &[u8]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(index);
    hash.update(signed);
    hash.finalize().into()
}

/// Reads fields of fixed lengths from the front. Past the end it returns zeros.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        match self.0.split_first_chunk() {
            Some((field, rest)) => {
                self.0 = rest;
                *field
            }
            None => [0; N],
        }
    }
}
