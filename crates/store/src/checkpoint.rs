//! Moves committed pages from the write-ahead log into the database on a thread of its own, so that
//! no commit waits for it.

use super::doubt::{Doubt, Mender};
use super::read_gate::ReadGate;
use super::{StoreError, schema};
use rusqlite::Connection;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Share of a log's checkpoint length that the writer may move itself, as one part in this many.
const RESTART_PART: usize = 32;
/// Passes of the thread over a log that grows while it is moved.
const PASSES: usize = 8;
/// Minimum pause between two moves of a long log by the writer, which take a while.
const OWN_PAUSE: Duration = Duration::from_secs(1);

/// How long the writer waits for reads to break off, so that a long log can be restarted.
const READERS_TIMEOUT: Duration = Duration::from_millis(250);
/// Maximum lengths of the write-ahead log, in pages.
#[derive(Debug, Clone, Copy)]
pub(super) struct LogLength {
    /// Length from which a log is worth moving. In a log with more commits, a page that all of them
    /// changed is written once.
    checkpoint: usize,
}

impl LogLength {
    pub(super) fn from_mb(mb: usize) -> Self {
        Self { checkpoint: mb.saturating_mul((1 << 20) / schema::PAGE_BYTES) }
    }

    /// Length at which the writer waits for the thread and restarts the log, because events arrive
    /// faster than they are moved. Only a read that does not end lets the log grow further.
    fn cap(self) -> usize {
        self.checkpoint.saturating_mul(2)
    }

    /// Length at which old reads break off, so that the thread can move the pages they hold back.
    fn break_off(self) -> usize {
        self.checkpoint.saturating_add(self.checkpoint / 2)
    }

    /// Length that the writer may move itself before it restarts the log: a few milliseconds.
    fn restart(self) -> usize {
        self.checkpoint / RESTART_PART
    }
}

/// The checkpointing thread, and its state as the writer sees it.
pub(super) struct Checkpointer {
    // Holds one request: more than one pending checkpoint is pointless.
    requests: SyncSender<()>,
    // Held by the thread while it moves pages.
    moving: Arc<Mutex<()>>,
    // The log's length after the writer's last commit.
    log_pages: Arc<AtomicUsize>,
    // The thread was asked for the first time to move this log, and is not done.
    is_moving: Arc<AtomicBool>,
    // The thread was asked to move this log.
    is_asked: bool,
    // The thread has moved nearly all of the log.
    can_restart: Arc<AtomicBool>,
    gate: ReadGate,
    length: LogLength,
    mender: Mender,
    // The contents of a removed log are all in the store.
    is_rescued: bool,
    // When the writer last moved the log itself without reaching its end.
    tried: Option<Instant>,
    thread: JoinHandle<()>,
}

impl Checkpointer {
    /// Starts the thread on a connection of its own.
    pub(super) fn start(
        writer: &mut Connection,
        own: Connection,
        length: LogLength,
        mender: Mender,
        gate: ReadGate,
    ) -> Result<Self, StoreError> {
        let log_pages = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&log_pages);
        writer
            .wal_hook(Some(move |_: &mut rusqlite::hooks::Wal, pages: i32| {
                seen.store(usize::try_from(pages).unwrap_or(0), Ordering::Relaxed);
                Ok(())
            }))
            .map_err(StoreError::sqlite)?;
        let can_restart = Arc::new(AtomicBool::new(false));
        let is_moving = Arc::new(AtomicBool::new(false));
        let moves = Arc::clone(&is_moving);
        let (requests, asked) = sync_channel(1);
        let caught_up = Arc::clone(&can_restart);
        let moving = Arc::new(Mutex::new(()));
        let (own_moving, doubt) = (Arc::clone(&moving), mender.doubt.clone());
        let (written, reads) = (Arc::clone(&log_pages), gate.clone());
        let thread = std::thread::Builder::new()
            .name("store-checkpoint".into())
            .spawn(move || {
                let mut broken_off: Option<Instant> = None;
                while asked.recv().is_ok() {
                    let _moving = own_moving.lock().unwrap_or_else(PoisonError::into_inner);
                    let mut near = false;
                    for _ in 0..PASSES {
                        let before = written.load(Ordering::Relaxed);
                        near = checkpoint(&own, "PASSIVE", &doubt)
                            .is_some_and(|left| left <= length.restart());
                        // Only then has SQLite flushed the store. Otherwise the writer has to do it.
                        if near && written.load(Ordering::Relaxed) == before {
                            break;
                        }
                    }
                    // Pages newer than the oldest read cannot be moved.
                    let is_long = written.load(Ordering::Relaxed) >= length.break_off();
                    if !near && is_long && broken_off.is_none_or(|at| at.elapsed() >= OWN_PAUSE) {
                        reads.break_off();
                        broken_off = Some(Instant::now());
                    }
                    caught_up.store(near, Ordering::Release);
                    moves.store(false, Ordering::Release);
                }
            })
            .map_err(StoreError::Thread)?;
        Ok(Self {
            requests,
            moving,
            log_pages,
            is_moving,
            is_asked: false,
            can_restart,
            length,
            mender,
            is_rescued: false,
            gate,
            tried: None,
            thread,
        })
    }

    /// Called by the writer after each commit.
    pub(super) fn committed(&mut self, writer: &Connection) {
        let log_pages = self.log_pages.load(Ordering::Relaxed);
        if log_pages < self.length.checkpoint {
            // The flag refers to a log that was restarted since.
            self.can_restart.store(false, Ordering::Relaxed);
            self.is_asked = false;
            return;
        }
        if log_pages >= self.length.cap() && self.may_try() {
            let moving = Arc::clone(&self.moving);
            let _moving = moving.lock().unwrap_or_else(PoisonError::into_inner);
            if !self.restart(writer) {
                // Reads always overlap: the gate stops them briefly. Reads that begin later see the
                // whole log and do not keep it from being moved.
                drop(self.gate.close(READERS_TIMEOUT));
                checkpoint(writer, "PASSIVE", &self.mender.doubt);
                let _closed = self.gate.close(READERS_TIMEOUT);
                if !self.restart(writer) {
                    self.tried = Some(Instant::now());
                }
            }
        } else if !self.restart_moved(writer) {
            // Once for each log: one that a reader keeps from being moved holds nothing up.
            if !std::mem::replace(&mut self.is_asked, true) {
                self.is_moving.store(true, Ordering::Release);
            }
            let _ = self.requests.try_send(());
        }
    }

    /// Whether the thread moves the pages of a log that has become long. Pages that are written meanwhile
    /// have to be moved as well, the last of them by the writer.
    pub(super) fn is_moving(&self) -> bool {
        // Nothing may wait for a thread that has ended.
        self.is_moving.load(Ordering::Acquire) && !self.thread.is_finished()
    }

    /// Called by the writer between its batches. Restarts a log that the thread has moved, and returns
    /// whether the thread had moved it. A writer without pauses would append to the log forever.
    pub(super) fn restart_moved(&self, writer: &Connection) -> bool {
        let is_long = self.log_pages.load(Ordering::Relaxed) >= self.length.checkpoint;
        let is_moved = self.can_restart.swap(false, Ordering::Acquire) && is_long;
        if is_moved {
            self.restart(writer);
        }
        is_moved
    }

    /// Called by the writer when the disk is full. Once the whole log has been moved, it is written
    /// from its beginning again and takes no more room for a while.
    pub(super) fn relieve(&mut self, writer: &Connection) {
        if self.may_try() {
            checkpoint(writer, "PASSIVE", &self.mender.doubt);
            self.tried = Some(Instant::now());
        }
    }

    fn may_try(&self) -> bool {
        self.tried.is_none_or(|at| at.elapsed() >= OWN_PAUSE)
    }

    /// The thread moves no pages while this lock is held.
    #[cfg(test)]
    pub(super) fn moving(&self) -> Arc<Mutex<()>> {
        Arc::clone(&self.moving)
    }

    /// The files that a failed flush has put in doubt.
    pub(super) fn doubt(&self) -> &Doubt {
        &self.mender.doubt
    }

    /// Called by the writer at intervals. Moves the contents of a removed log into the store while
    /// the log can still be read.
    pub(super) fn rescue(&mut self, writer: &Connection) {
        if !self.is_rescued && self.doubt().has_lost_log() {
            let left = checkpoint(writer, "PASSIVE", &self.mender.doubt);
            self.is_rescued = left == Some(0);
            if self.is_rescued {
                tracing::info!(
                    "write-ahead log removed by another program: what it held is in the store"
                );
            }
        }
    }

    /// Repairs the files after a failed flush.
    ///
    /// # Errors
    /// As [`Mender::mend`].
    pub(super) fn mend(&mut self, writer: &Connection) -> Result<(), StoreError> {
        if !self.mender.doubt.is_there() {
            // Pages may be moved for seconds, and no commit waits for that.
            return Ok(());
        }
        let _moving = self.moving.lock().unwrap_or_else(PoisonError::into_inner);
        self.mender.mend(writer)
    }

    /// Restarts the log with the next commit, if no reader prevents it. Returns whether it did.
    /// Readers are never waited for.
    fn restart(&self, writer: &Connection) -> bool {
        let is_begun = without_waiting(writer, "RESTART", &self.mender.doubt) == Some(0);
        if is_begun {
            self.log_pages.store(0, Ordering::Relaxed);
        }
        is_begun
    }

    /// Ends the thread and leaves the log as short as possible: without readers, and with no file
    /// in doubt, there is none.
    pub(super) fn finish(mut self, writer: &Connection) {
        drop(self.requests);
        if self.thread.join().is_err() {
            tracing::error!("the store's checkpoint thread panicked");
        }
        let mended = self.mender.mend(writer);
        checkpoint(writer, "PASSIVE", &self.mender.doubt);
        if let Err(error) = mended {
            tracing::error!(%error, "write-ahead log not flushed: the next start recovers the part that is on the disk");
        } else if !self.mender.doubt.is_there()
            && self.mender.doubt.check_in_place().is_ok()
            && let Err(error) = schema::move_log_at_close(writer)
        {
            tracing::warn!(%error, "write-ahead log kept");
        }
        self.mender.doubt.close();
    }
}

/// Like [`checkpoint`], but gives up instead of waiting for readers.
fn without_waiting(writer: &Connection, mode: &str, doubt: &Doubt) -> Option<usize> {
    let left = writer
        .busy_timeout(Duration::ZERO)
        .map(|()| checkpoint(writer, mode, doubt))
        .and_then(|left| writer.busy_timeout(schema::BUSY_TIMEOUT).map(|()| left));
    left.unwrap_or_else(|error| {
        tracing::warn!(%error, "the write-ahead log could not be checkpointed");
        None
    })
}

/// Runs a checkpoint and returns the number of pages that are still to be moved. `None` if it
/// failed, is not allowed, would have to wait, or another checkpoint is running.
fn checkpoint(connection: &Connection, mode: &str, doubt: &Doubt) -> Option<usize> {
    if !doubt.may_move() {
        return None;
    }
    let left = connection.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |row| {
        let (is_busy, log, moved): (bool, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let pages = usize::try_from(log).ok().zip(usize::try_from(moved).ok());
        Ok(pages.filter(|_| !is_busy))
    });
    left.map(|pages| pages.map(|(log, moved)| log.saturating_sub(moved))).unwrap_or_else(|error| {
        doubt.note(&error);
        tracing::warn!(%error, "the write-ahead log could not be checkpointed");
        None
    })
}

#[cfg(test)]
mod tests {
    use super::super::doubt::open_log;
    use super::super::lock;
    use super::super::presence::Presence;
    use super::*;
    use tempfile::TempDir;

    const LENGTH: LogLength = LogLength { checkpoint: 512 };

    /// A writer without pauses.
    struct Stand {
        writer: Connection,
        checkpointer: Checkpointer,
        directory: TempDir,
    }

    impl Stand {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let mut writer = open(&directory);
            let tables = "PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0;
                CREATE TABLE page (number INTEGER PRIMARY KEY, filled BLOB)";
            writer.execute_batch(tables).unwrap();
            let checkpointer = {
                let path = directory.path().join("log.sqlite");
                let (log, lock) = (open_log(&path).unwrap(), lock::take(&path).unwrap());
                let presence = Presence::of(&path, &log, &lock).unwrap();
                let mender = Mender::new(&path, log, false, presence);
                let gate = ReadGate::default();
                Checkpointer::start(&mut writer, open(&directory), LENGTH, mender, gate).unwrap()
            };
            Self { writer, checkpointer, directory }
        }

        /// Commits about ten pages each; returns the maximum length of the log.
        fn commit(&mut self, commits: u32) -> usize {
            let change = "INSERT OR REPLACE INTO page VALUES (?1, randomblob(32000))";
            let mut longest = 0;
            for number in 0..commits {
                self.writer.execute(change, [number % 100]).unwrap();
                longest = longest.max(self.checkpointer.log_pages.load(Ordering::Relaxed));
                self.checkpointer.committed(&self.writer);
            }
            longest
        }
    }

    fn open(directory: &TempDir) -> Connection {
        Connection::open(directory.path().join("log.sqlite")).unwrap()
    }

    #[test]
    fn the_log_stays_below_its_cap_under_a_writer_that_never_rests() {
        let longest = Stand::new().commit(2_000);
        assert!((LENGTH.checkpoint..LENGTH.cap() + 20).contains(&longest), "{longest} pages");
    }

    /// The thread may report success after the log was restarted. Nothing of the new log has been
    /// moved then, and the writer would have to move all of it.
    #[test]
    fn the_writer_does_not_take_an_earlier_log_for_moved() {
        let mut stand = Stand::new();
        let moving = Arc::clone(&stand.checkpointer.moving);
        let _moving = moving.lock().unwrap();
        stand.commit(1);
        stand.checkpointer.can_restart.store(true, Ordering::Release);
        let mut longest = 0;
        while longest < LENGTH.checkpoint + 3 * LENGTH.restart() {
            let before = longest;
            longest = longest.max(stand.commit(1));
            assert!(longest > before, "the writer began a log anew that nobody had moved");
        }
    }

    /// Moving pages can take seconds.
    #[test]
    fn where_nothing_is_in_doubt_the_writer_does_not_wait_for_pages_to_be_moved() {
        let mut stand = Stand::new();
        let moving = Arc::clone(&stand.checkpointer.moving);
        let _moving = moving.lock().unwrap();
        let (done, looked) = std::sync::mpsc::channel();
        std::thread::spawn(move || done.send(stand.checkpointer.mend(&stand.writer).is_ok()));
        assert_eq!(looked.recv_timeout(Duration::from_secs(20)), Ok(true));
    }

    #[test]
    fn a_log_that_cannot_be_moved_is_being_moved_once() {
        let mut stand = Stand::new();
        let reader = open(&stand.directory);
        reader.execute_batch("BEGIN; SELECT count(*) FROM page").unwrap();
        let moving = Arc::clone(&stand.checkpointer.moving);
        let held = moving.lock().unwrap();
        assert!((LENGTH.checkpoint..LENGTH.cap()).contains(&stand.commit(60)));
        assert!(stand.checkpointer.is_moving());
        drop(held);
        let began = Instant::now();
        while stand.checkpointer.is_moving() {
            assert!(began.elapsed() < Duration::from_secs(20));
            std::thread::yield_now();
        }
        let _held = moving.lock().unwrap();
        assert!(stand.commit(5) < LENGTH.cap());
        assert!(!stand.checkpointer.is_moving());
    }

    /// Such a reader is not waited for, and delays others only while it reads.
    #[test]
    fn a_reader_that_does_not_end_puts_the_cap_off() {
        let mut stand = Stand::new();
        let reader = open(&stand.directory);
        reader.execute_batch("BEGIN; SELECT count(*) FROM page").unwrap();
        assert!(stand.commit(150) > LENGTH.cap() + 200);
        reader.execute_batch("ROLLBACK").unwrap();
        stand.checkpointer.tried = None;
        stand.commit(1);
        assert!(stand.commit(100) < LENGTH.cap() + 20);
    }
}
