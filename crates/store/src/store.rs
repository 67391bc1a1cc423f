//! The store on one SQLite file: a writer, readers beside it, and the lock that keeps other
//! processes out.

use crate::apply::RuleMemory;
use crate::checkpoint::{Checkpointer, LogLength};
use crate::commits::Commits;
use crate::doubt::{Doubt, Mender, log_path};
use crate::lock::Lock;
use crate::presence::Presence;
use crate::read_gate::ReadGate;
use crate::retention::Retaining;
use crate::vanish::Vanishing;
use crate::writer::{Writer, WriterContext};
use crate::{
    Deadline, Filter, MarkName, OnCommit, Origin, Outcome, PeerTraits, Reader, RefusedId, Reply,
    Retention, Selected, Selection, StoreError, StoreMetrics, StoreOptions, SyncMark, Undelete,
    UndeleteError, VerifiedEvent, unix_now,
};
use crate::{
    doubt, flush, index_mark, lock, operator, presence, private_times, refused, schema, sync_mark,
    writer,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use tokio::sync::oneshot;

/// An open store. Clones share it; it closes with [`Store::close`] or with the last clone.
///
/// All calls block: inside async code they belong on a blocking thread.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
    // With the deadline of this clone.
    reader: Reader,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").finish_non_exhaustive()
    }
}

struct Inner {
    path: PathBuf,
    reader: Reader,
    writer: Writer,
    doubt: Doubt,
    metrics: StoreMetrics,
    // One process writes: the index in its memory is the whole truth about the file.
    lock: Lock,
}

impl Inner {
    fn close(&self) {
        // The writer last: SQLite removes the write-ahead log when the last connection closes that
        // may write.
        self.reader.close();
        self.writer.stop();
        self.lock.release();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.close();
    }
}

impl Store {
    /// Opens the store in `path`, making it when it is not there. `on_commit` hears of every
    /// change, one after the other, before the outcome of its events is told.
    ///
    /// # Errors
    /// When the file cannot be opened or is not a store of this version or an older one.
    pub fn open(
        path: &Path,
        options: StoreOptions,
        on_commit: OnCommit,
    ) -> Result<Self, StoreError> {
        let lock = lock::take(path)?;
        let real = lock.store.clone();
        presence::refuse_orphaned_log(path)?;
        let is_left_over = doubt::has_log(&real);
        lock::prepare_files(&lock);
        let unopened = |error: StoreError| error.while_opening(path);
        let mut connection = schema::open_writer(path).map_err(unopened)?;
        schema::limit_cache(&connection, options.cache_mb).map_err(StoreError::sqlite)?;
        let checkpointer = schema::open_checkpointer(path).map_err(unopened)?;
        let log = doubt::open_log(&real)?;
        let presence = Presence::of(path, &log, &lock)?;
        let mut mender = Mender::new(&real, Arc::clone(&log), is_left_over, presence.clone());
        let doubt = mender.doubt.clone();
        let length = LogLength::from_mb(options.wal_mb);
        mender.mend(&connection)?;
        if let Some(private) = &options.private_times {
            private_times::keep_apart(&mut connection, private).map_err(StoreError::sqlite)?;
        }
        let (commits, gate) = (Commits::default(), ReadGate::default());
        let checkpointer =
            Checkpointer::start(&mut connection, checkpointer, length, mender, gate.clone())?;
        let (metrics, expired_until) = (StoreMetrics::default(), Arc::new(AtomicU64::new(0)));
        let vanishing = Vanishing::load(&connection, options.relay_url.map(|url| url.name()))
            .map_err(StoreError::sqlite)?;
        let retaining =
            Retaining::load(&connection, options.retention).map_err(StoreError::sqlite)?;
        let rules = RuleMemory { vanishing, retaining };
        let flush = flush::log_flush(log, presence.clone(), options.synchronous);
        let beside = WriterContext {
            checkpointer,
            commits: commits.clone(),
            expired_until: Arc::clone(&expired_until),
            metrics: metrics.clone(),
            batches: options.batches,
        };
        let writer = Writer::start(path, connection, beside, rules, flush, on_commit)?;
        let (readers, presence) = (options.readers, Some(presence));
        let reader = Reader::beside_writer(path, readers, commits, gate, expired_until, presence)?;
        let inner = Inner { path: real, reader: reader.clone(), writer, doubt, metrics, lock };
        Ok(Self { inner: Arc::new(inner), reader })
    }

    /// Stores events together with whatever else is waiting, in as many commits as it takes; each
    /// origin has its turn. `reply` gets one outcome an event, in order, once all are durable. Does not
    /// wait: whoever submits bounds what it has under way.
    pub fn submit(&self, origin: &Origin, events: Vec<VerifiedEvent>, reply: Reply) {
        self.inner.writer.submit(origin, events, reply);
    }

    /// As [`Store::submit`], and returns the outcomes.
    pub async fn put(&self, origin: &Origin, events: Vec<VerifiedEvent>) -> Vec<Outcome> {
        let count = events.len();
        let (done, outcomes) = oneshot::channel();
        self.submit(origin, events, Box::new(move |outcomes| drop(done.send(outcomes))));
        let lost = |_| vec![Outcome::Failed("the store gave no answer".into()); count];
        outcomes.await.unwrap_or_else(lost)
    }

    /// Stores events and waits for their outcomes.
    ///
    /// # Errors
    /// [`StoreError::Closed`] when the writer has gone.
    pub fn publish(&self, events: Vec<VerifiedEvent>) -> Result<Vec<Outcome>, StoreError> {
        let (send, outcomes) = std::sync::mpsc::sync_channel(1);
        self.submit(&Origin::Local, events, Box::new(move |done| drop(send.send(done))));
        outcomes.recv().map_err(|_| StoreError::Closed)
    }

    /// NIP-40: removes what has expired by now, and waits until all who hear of commits know.
    ///
    /// # Errors
    /// When SQLite refuses or the writer has gone: something is due and still there.
    pub fn expire(&self) -> Result<(), StoreError> {
        let now = unix_now();
        if !self.inner.writer.has_expired(now) {
            return Ok(());
        }
        self.inner.writer.expire()?;
        if self.inner.writer.has_expired(now) { Err(StoreError::NotExpired) } else { Ok(()) }
    }

    /// Removes every event that matches, `limit` aside. Nothing keeps them from coming back.
    ///
    /// # Errors
    /// When SQLite refuses or the writer has gone.
    pub fn remove(&self, filter: &Filter) -> Result<(), StoreError> {
        let mut ids = Vec::new();
        self.reader().items(filter, |item| {
            ids.push(item.id);
            std::ops::ControlFlow::Continue(())
        })?;
        ids.sort_unstable();
        ids.dedup();
        self.inner.writer.remove(ids)
    }

    /// Removes what an operator means, and keeps it out until [`Store::undelete`].
    ///
    /// # Errors
    /// When SQLite refuses or the writer has gone; a part may be removed by then.
    pub fn delete(&self, selection: &Selection) -> Result<Selected, StoreError> {
        let selected = self.reader().selected(selection)?;
        self.inner.writer.delete(selected.ids.clone())?;
        Ok(selected)
    }

    /// Takes back what [`Store::delete`] has kept out, and returns how many ids that are. The events
    /// are not brought back: whoever has them may send them again.
    ///
    /// # Errors
    /// When SQLite refuses, the writer has gone, or the filter asks for tags.
    pub fn undelete(&self, undelete: &Undelete) -> Result<u64, UndeleteError> {
        let ids = self.reader().undeleted(undelete)?;
        let count = ids.len() as u64;
        for ids in ids.chunks(writer::STEP_ROWS) {
            let ids = ids.to_vec();
            self.inner.writer.note(move |connection, _| operator::undelete(connection, &ids))?;
        }
        Ok(count)
    }

    /// Puts rules of retention in force, in place of those of [`StoreOptions::retention`].
    ///
    /// # Errors
    /// When SQLite refuses or the writer has gone.
    pub fn retain(&self, rules: Retention) -> Result<(), StoreError> {
        self.inner.writer.retain(rules)
    }

    /// Removes what the rules of retention do not keep, and waits until nothing is left of it.
    ///
    /// # Errors
    /// When the writer has gone.
    pub fn retire(&self) -> Result<(), StoreError> {
        self.inner.writer.retire()
    }

    /// Remembers ids that a sync need not move again, and returns once they are written.
    ///
    /// # Errors
    /// When SQLite refuses or the writer has gone.
    pub fn remember_refused(&self, refused: Vec<RefusedId>) -> Result<(), StoreError> {
        self.inner.writer.note(move |connection, now| refused::remember(connection, &refused, now))
    }

    /// Remembers how far a peer is known for a filter, given as text, and returns once that is
    /// written. What `mark` leaves out stays as it was.
    ///
    /// # Errors
    /// When SQLite refuses or the writer has gone.
    pub fn remember_mark(
        &self,
        peer: String,
        filter: String,
        mark: SyncMark,
    ) -> Result<(), StoreError> {
        self.inner.writer.note(move |connection, now| {
            sync_mark::remember(connection, &peer, &filter, &mark, now)
        })
    }

    /// Remembers how a peer has to be asked, and returns once that is written.
    ///
    /// # Errors
    /// When SQLite refuses or the writer has gone.
    pub fn remember_traits(&self, peer: String, traits: PeerTraits) -> Result<(), StoreError> {
        self.inner.writer.note(move |connection, now| {
            sync_mark::remember_traits(connection, &peer, &traits, now)
        })
    }

    /// Makes a mark for files of the index, and returns its name once it is written and all commits
    /// before it are told. What the sets hold from now on can be written under that name.
    ///
    /// # Errors
    /// When SQLite refuses or the writer has gone.
    pub fn begin_index_mark(&self) -> Result<MarkName, StoreError> {
        let (send, name) = std::sync::mpsc::sync_channel(1);
        self.inner.writer.note(move |connection, _| {
            let _ = send.send(index_mark::begin(connection)?);
            Ok(())
        })?;
        name.recv().map_err(|_| StoreError::Closed)
    }

    /// Drops every mark but this one, and what was logged for others; returns once that is written.
    ///
    /// # Errors
    /// When SQLite refuses or the writer has gone.
    pub fn keep_index_mark(&self, name: Option<MarkName>) -> Result<(), StoreError> {
        self.inner.writer.note(move |connection, _| index_mark::keep_only(connection, name))?;
        loop {
            let (send, there_is_more) = std::sync::mpsc::sync_channel(1);
            self.inner.writer.note(move |connection, _| {
                let _ = send.send(index_mark::trim(connection, writer::STEP_ROWS)?);
                Ok(())
            })?;
            if !there_is_more.recv().map_err(|_| StoreError::Closed)? {
                return Ok(());
            }
        }
    }

    /// Whether something can be written now: writes the store's version anew, through the queue
    /// and as durably as an event.
    ///
    /// # Errors
    /// When SQLite refuses or the writer has gone.
    pub fn check_writable(&self) -> Result<(), StoreError> {
        self.inner.writer.note(|connection, _| schema::rewrite_version(connection))
    }

    /// Whether everything that the sets show is on the disk, where the next start looks for it: not
    /// from a flush that failed, before the listener hears of its commit, until that is made up for;
    /// and not once a file was lost.
    pub fn is_durable(&self) -> bool {
        !self.inner.doubt.is_there() && self.check_in_place().is_ok()
    }

    /// Whether the store's files are where they were when it was opened.
    ///
    /// # Errors
    /// [`StoreError::FileLost`], from then on, when one was moved, removed or replaced.
    pub fn check_in_place(&self) -> Result<(), StoreError> {
        self.inner.doubt.check_in_place()
    }

    /// Returns once those who hear of commits have heard of all that are durable.
    pub(crate) fn wait_until_published(&self) {
        self.inner.writer.wait_until_published();
    }

    /// Where the store's file is, links followed.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// The size of the store's file and of its write-ahead log, in bytes; 0 for what is not there.
    pub fn file_bytes(&self) -> (u64, u64) {
        let bytes = |path: &Path| std::fs::metadata(path).map_or(0, |file| file.len());
        (bytes(&self.inner.path), bytes(&log_path(&self.inner.path)))
    }

    /// What the store measures.
    pub fn metrics(&self) -> &StoreMetrics {
        &self.inner.metrics
    }

    /// The reading side.
    pub fn reader(&self) -> &Reader {
        &self.reader
    }

    /// The same store, whose reads end as those of [`Reader::with_deadline`].
    pub fn with_deadline(&self, deadline: Deadline) -> Self {
        Self { inner: Arc::clone(&self.inner), reader: self.reader.with_deadline(deadline) }
    }

    /// Commits what was submitted, closes the writer and gives the store free for another one.
    /// Later reads and submissions fail.
    pub fn close(&self) {
        self.inner.close();
    }
}
