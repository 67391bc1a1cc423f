//! Checks the blocks of a file against the checksums in its index, on several threads.

use super::IndexFileError;
use super::layout::{BLOCK_BYTES, IndexEntry, items_bytes};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Maximum number of threads; more would not help, because the file is on one disk.
const MOST_THREADS: usize = 4;
/// Blocks that one read takes: 512 KiB.
const READ_BLOCKS: usize = 128;

/// Checks every block of a file of `count` items.
///
/// # Errors
/// When a block cannot be read or is damaged.
pub(super) fn blocks(
    file: &File,
    count: usize,
    index: &[IndexEntry],
) -> Result<(), IndexFileError> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = cores.min(MOST_THREADS);
    // Each part begins at a multiple of the read size.
    let part = index.len().div_ceil(threads * READ_BLOCKS).max(1) * READ_BLOCKS;
    std::thread::scope(|scope| {
        let parts = index.chunks(part).enumerate();
        let checks: Vec<_> = parts
            .map(|(number, entries)| {
                scope.spawn(move || check_part(file, count, number * part, entries))
            })
            .collect();
        checks.into_iter().try_for_each(|check| {
            check.join().unwrap_or(Err(IndexFileError::Damaged("checking it failed")))
        })
    })
}

/// Checks the blocks from `first` on, one for each entry.
fn check_part(
    file: &File,
    count: usize,
    first: usize,
    entries: &[IndexEntry],
) -> Result<(), IndexFileError> {
    let end = items_bytes(count as u64).map_or(usize::MAX, |bytes| bytes as usize);
    let mut buffer = vec![0; READ_BLOCKS * BLOCK_BYTES];
    let mut at = first * BLOCK_BYTES;
    for entries in entries.chunks(READ_BLOCKS) {
        let wanted = (entries.len() * BLOCK_BYTES).min(end.saturating_sub(at));
        let read = buffer.get_mut(..wanted).unwrap_or_default();
        file.read_exact_at(read, at as u64)?;
        let blocks = read.chunks(BLOCK_BYTES);
        if !blocks.zip(entries).all(|(block, entry)| Sha256::digest(block)[..] == entry.digest) {
            return Err(IndexFileError::Damaged("a block has a wrong checksum"));
        }
        at += wanted;
    }
    Ok(())
}
