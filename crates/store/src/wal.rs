//! SQLite's write-ahead log as a file (<https://sqlite.org/fileformat2.html#walformat>), rewritten
//! after a failed flush.
//!
//! Linux marks pages that it could not write as clean: programs still read them, but no later flush
//! writes them, and after a power cut they are gone. So the contents of the log are written again.
//! The checksum of each frame is verified: a page that the system has evicted meanwhile is read
//! from the disk in its old state.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

const HEADER_BYTES: usize = 32;
const FRAME_HEADER_BYTES: usize = 24;
/// The first four bytes; if the last bit is set, checksums use big-endian words.
const MAGIC: u32 = 0x377f_0682;
/// Valid page sizes of a database.
const PAGE_BYTES: std::ops::RangeInclusive<usize> = 512..=65_536;

/// Why a log could not be rewritten.
#[derive(Debug, thiserror::Error)]
pub(super) enum LogError {
    /// The contents of a frame do not match its checksum.
    #[error("the write-ahead log is damaged from frame {frame} of {frames} on")]
    Damaged { frame: usize, frames: usize },
    /// Reading or writing the disk failed.
    #[error("the disk cannot be read or written: {0}")]
    Disk(#[from] io::Error),
}

/// Rewrites the first frames of the log in place, and flushes them.
pub(super) fn rewrite(log: &File, frames: usize) -> Result<(), LogError> {
    if frames > 0 {
        let mut reader = FrameReader::open(log, frames)?;
        log.write_all_at(&reader.header, 0)?;
        while let Some(frame) = reader.next()? {
            let offset = frame.offset;
            log.write_all_at(&reader.bytes, offset)?;
        }
    }
    Ok(log.sync_data()?)
}

/// Rewrites the database pages that a checkpoint has moved, which are those in the log's first
/// `moved` frames, and flushes them. `frames` is the number of frames in the log.
pub(super) fn rewrite_moved(
    log: &File,
    moved: usize,
    frames: usize,
    database: &File,
) -> Result<(), LogError> {
    let (mut newest, mut pages, mut page_bytes) = (HashMap::new(), u32::MAX, 0);
    if moved > 0 {
        let mut reader = FrameReader::open(log, frames)?;
        page_bytes = reader.page_bytes;
        while let Some(frame) = reader.next()? {
            if frame.number <= moved {
                newest.insert(frame.page, frame.offset + FRAME_HEADER_BYTES as u64);
            }
            if frame.database_pages > 0 {
                pages = frame.database_pages;
            }
        }
    }
    let mut bytes = vec![0; page_bytes];
    for (page, offset) in newest {
        // The database has become shorter since.
        if page <= pages {
            log.read_exact_at(&mut bytes, offset)?;
            database.write_all_at(&bytes, u64::from(page - 1) * page_bytes as u64)?;
        }
    }
    Ok(database.sync_data()?)
}

/// One frame: a page as written by a transaction.
struct WalFrame {
    /// Counts from 1.
    number: usize,
    offset: u64,
    /// The page number in the database; counts from 1.
    page: u32,
    /// In the last frame of a transaction: the number of pages of the database. In others: 0.
    database_pages: u32,
}

/// Reads and verifies frames in order.
struct FrameReader<'log> {
    log: &'log File,
    header: [u8; HEADER_BYTES],
    page_bytes: usize,
    is_big_endian: bool,
    sums: (u32, u32),
    read: usize,
    frames: usize,
    /// The frame read last, with its header.
    bytes: Vec<u8>,
}

impl<'log> FrameReader<'log> {
    fn open(log: &'log File, frames: usize) -> Result<Self, LogError> {
        let damaged = || LogError::Damaged { frame: 1, frames };
        let mut header = [0; HEADER_BYTES];
        if !read_whole(log, &mut header, 0)? {
            return Err(damaged());
        }
        let (magic, page_bytes) = (word(&header, 0), word(&header, 8) as usize);
        let is_big_endian = magic & 1 == 1;
        let sums = checksum((0, 0), header.get(..24).unwrap_or_default(), is_big_endian);
        let is_sound = magic & !1 == MAGIC && sums == (word(&header, 24), word(&header, 28));
        if !is_sound || !PAGE_BYTES.contains(&page_bytes) {
            return Err(damaged());
        }
        let bytes = vec![0; FRAME_HEADER_BYTES + page_bytes];
        Ok(Self { log, header, page_bytes, is_big_endian, sums, read: 0, frames, bytes })
    }

    /// The next frame, whose bytes are in `bytes`; `None` after the last.
    fn next(&mut self) -> Result<Option<WalFrame>, LogError> {
        if self.read == self.frames {
            return Ok(None);
        }
        let number = self.read + 1;
        let damaged = LogError::Damaged { frame: number, frames: self.frames };
        let offset = HEADER_BYTES as u64 + self.read as u64 * self.bytes.len() as u64;
        if !read_whole(self.log, &mut self.bytes, offset)? {
            return Err(damaged);
        }
        let (header, page) = self.bytes.split_at(FRAME_HEADER_BYTES);
        let sums = checksum(self.sums, header.get(..8).unwrap_or_default(), self.is_big_endian);
        let sums = checksum(sums, page, self.is_big_endian);
        let is_of_this_log = header.get(8..16) == self.header.get(16..24);
        if !is_of_this_log || sums != (word(header, 16), word(header, 20)) {
            return Err(damaged);
        }
        (self.sums, self.read) = (sums, number);
        let (page, database_pages) = (word(header, 0), word(header, 4));
        Ok(Some(WalFrame { number, offset, page, database_pages }))
    }
}

/// Reads `bytes` at `offset`. Returns false if the file ends before.
fn read_whole(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<bool> {
    match file.read_exact_at(bytes, offset) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        read => read.map(|()| true),
    }
}

/// A big-endian word at `at`; 0 if the bytes end before.
fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |four| u32::from_be_bytes(*four))
}

/// Continues a checksum over more bytes, a multiple of eight.
fn checksum(mut sums: (u32, u32), bytes: &[u8], is_big_endian: bool) -> (u32, u32) {
    let number = if is_big_endian { u32::from_be_bytes } else { u32::from_le_bytes };
    let (pairs, _) = bytes.as_chunks::<8>();
    for [a, b, c, d, e, f, g, h] in pairs {
        sums.0 = sums.0.wrapping_add(number([*a, *b, *c, *d])).wrapping_add(sums.1);
        sums.1 = sums.1.wrapping_add(number([*e, *f, *g, *h])).wrapping_add(sums.0);
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;
    use rusqlite::Connection;
    use std::path::{Path, PathBuf};

    /// A database with a log of many frames, and how many these are.
    fn database(folder: &Path) -> (Connection, PathBuf, usize) {
        let path = folder.join("some.sqlite");
        let connection = Connection::open(&path).unwrap();
        let tables = "PRAGMA page_size = 4096; PRAGMA journal_mode = WAL;
            PRAGMA wal_autocheckpoint = 0; CREATE TABLE t (number INTEGER PRIMARY KEY, filled BLOB)";
        connection.execute_batch(tables).unwrap();
        for number in 0..50 {
            let fill = "INSERT OR REPLACE INTO t VALUES (?1, randomblob(9000))";
            connection.execute(fill, [number % 20]).unwrap();
        }
        let frames = "PRAGMA wal_checkpoint(NOOP)";
        let frames: i64 = connection.query_row(frames, [], |row| row.get(1)).unwrap();
        (connection, path, frames as usize)
    }

    fn open(path: &Path) -> File {
        File::options().read(true).write(true).open(path).unwrap()
    }

    #[test]
    fn a_log_is_written_back_as_it_is_and_a_damaged_one_is_refused_at_its_frame() {
        let folder = tempfile::tempdir().unwrap();
        let (_connection, path, frames) = database(folder.path());
        let log_path = folder.path().join("some.sqlite-wal");
        let before = std::fs::read(&log_path).unwrap();
        assert!(frames > 100 && path.exists(), "{frames}");
        let log = open(&log_path);
        rewrite(&log, frames).unwrap();
        assert_eq!(std::fs::read(&log_path).unwrap(), before);
        for damaged in [1, 57, frames] {
            let at = HEADER_BYTES + (damaged - 1) * (FRAME_HEADER_BYTES + 4_096) + 1_000;
            log.write_all_at(&[!before[at]], at as u64).unwrap();
            let refused = rewrite(&log, frames).unwrap_err();
            assert!(
                matches!(refused, LogError::Damaged { frame, .. } if frame == damaged),
                "{refused}"
            );
            rewrite(&log, damaged - 1).unwrap();
            log.write_all_at(&before[at..=at], at as u64).unwrap();
        }
        let longer = rewrite(&log, frames + 1).unwrap_err();
        assert!(matches!(longer, LogError::Damaged { .. }), "{longer}");
    }

    /// The database with none of what was moved, as if none of it had reached the disk.
    #[test]
    fn what_a_checkpoint_has_moved_is_moved_again() {
        let folder = tempfile::tempdir().unwrap();
        let (connection, path, frames) = database(folder.path());
        let unmoved = std::fs::read(&path).unwrap();
        connection.query_row("PRAGMA wal_checkpoint(FULL)", [], |_| Ok(())).unwrap();
        let moved = std::fs::read(&path).unwrap();
        assert_ne!(unmoved, moved);
        std::fs::write(&path, &unmoved).unwrap();
        let log = open(&folder.path().join("some.sqlite-wal"));
        rewrite_moved(&log, frames, frames, &open(&path)).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), moved);
    }
}
