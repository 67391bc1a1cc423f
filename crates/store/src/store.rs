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
use crate::source::Work;
use crate::vanish::Vanishing;
use crate::writer::{Writer, WriterContext};
use crate::{
    Clock, Deadline, EventSource, EventStore, Filter, Hit, MarkName, MarkedStore, OnCommit, Origin,
    PeerTraits, Reader, RefusedId, Reply, Retention, RetentionWindow, RuleMatches, Selected,
    Selection, StoreError, StoreMetrics, StoreOptions, StoredPage, SyncMark, Undelete,
    UndeleteError, VerifiedEvent, View, VisitEvent,
};
use crate::{
    doubt, flush, index_mark, lock, operator, presence, private_times, refused, schema, sync_mark,
    writer,
};
use negsync_reconcile::Item;
use rusqlite::Connection;
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

/// An open store, used as an [`EventStore`]. Clones share it; it closes with [`EventStore::close`]
/// or when the last clone is dropped.
///
/// All calls block: from async code use a blocking thread.
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
    // Only one process may write, because the index in its memory has to agree with the file.
    lock: Lock,
}

impl Inner {
    fn close(&self) {
        // The writer closes last: SQLite removes the write-ahead log when the last connection that
        // can write closes.
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
    /// Opens the store in `path`, and creates it if it is missing. `on_commit` is called with every
    /// change, one after the other, before the replies to its events.
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
            clock: options.clock.clone(),
        };
        let writer = Writer::start(path, connection, beside, rules, flush, on_commit)?;
        let reader = Reader::beside_writer(
            path,
            options.readers,
            options.clock,
            commits,
            gate,
            expired_until,
            Some(presence),
        )?;
        let inner = Inner { path: real, reader: reader.clone(), writer, doubt, metrics, lock };
        Ok(Self { inner: Arc::new(inner), reader })
    }

    /// The path of the store's file, with links resolved.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// The read interface.
    #[must_use]
    pub fn reader(&self) -> &Reader {
        &self.reader
    }

    /// The same store with a deadline for its reads; see [`Reader::with_deadline`].
    #[must_use]
    pub fn with_deadline(&self, deadline: Deadline) -> Self {
        Self { inner: Arc::clone(&self.inner), reader: self.reader.with_deadline(deadline) }
    }
}

impl EventStore for Store {
    fn until(&self, deadline: Deadline) -> Arc<dyn EventStore> {
        Arc::new(self.with_deadline(deadline))
    }

    fn submit(&self, origin: &Origin, events: Vec<VerifiedEvent>, reply: Reply) {
        self.inner.writer.submit(origin, events, reply);
    }

    fn newest(&self, filters: &[Filter], most: usize) -> Result<Vec<Hit>, StoreError> {
        self.reader().newest(filters, most)
    }

    fn newest_and_first(
        &self,
        views: &[View],
        most: usize,
        now: u64,
        visit: &mut VisitEvent<'_>,
    ) -> Result<StoredPage, StoreError> {
        self.reader().newest_and_first(views, most, now, visit)
    }

    fn fetch(&self, hits: &[Hit], visit: &mut VisitEvent<'_>) -> Result<usize, StoreError> {
        self.reader().fetch(hits, visit)
    }

    fn oldest_first(&self, filter: &Filter, visit: &mut VisitEvent<'_>) -> Result<(), StoreError> {
        self.reader().read_snapshot(|moment| {
            let mut hits = moment.newest(std::slice::from_ref(filter), usize::MAX)?;
            hits.reverse();
            moment.fetch(&hits, visit).map(|_| ())
        })
    }

    fn kinds(&self) -> Result<Vec<(u16, u64)>, StoreError> {
        self.reader().kinds()
    }

    fn expire(&self) -> Result<(), StoreError> {
        let now = self.reader.clock().now();
        if !self.inner.writer.has_expired(now) {
            return Ok(());
        }
        self.inner.writer.expire()?;
        if self.inner.writer.has_expired(now) { Err(StoreError::NotExpired) } else { Ok(()) }
    }

    fn remove(&self, filter: &Filter) -> Result<(), StoreError> {
        let mut ids = Vec::new();
        self.reader().items(filter, |item| {
            ids.push(item.id);
            ControlFlow::Continue(())
        })?;
        ids.sort_unstable();
        ids.dedup();
        self.inner.writer.remove(ids)
    }

    fn selected(&self, selection: &Selection) -> Result<Selected, StoreError> {
        self.reader().selected(selection)
    }

    fn delete(&self, selection: &Selection) -> Result<Selected, StoreError> {
        let selected = self.reader().selected(selection)?;
        self.inner.writer.delete(selected.ids.clone())?;
        Ok(selected)
    }

    fn undeleted(&self, undelete: &Undelete) -> Result<Vec<[u8; 32]>, UndeleteError> {
        self.reader().undeleted(undelete)
    }

    fn undelete(&self, undelete: &Undelete) -> Result<u64, UndeleteError> {
        let ids = self.reader().undeleted(undelete)?;
        let count = ids.len() as u64;
        for ids in ids.chunks(writer::STEP_ROWS) {
            let ids = ids.to_vec();
            self.inner.writer.note(move |connection, _| operator::undelete(connection, &ids))?;
        }
        Ok(count)
    }

    fn retain(&self, rules: Retention) -> Result<(), StoreError> {
        self.inner.writer.retain(rules)
    }

    fn retire(&self) -> Result<(), StoreError> {
        self.inner.writer.retire()
    }

    fn preview(&self, retention: &Retention) -> Result<(Vec<RuleMatches>, u64), StoreError> {
        self.reader().preview(retention)
    }

    fn refused(
        &self,
        peer: &str,
        ids: &[[u8; 32]],
    ) -> Result<HashMap<[u8; 32], String>, StoreError> {
        self.reader().refused(peer, ids)
    }

    fn remember_refused(&self, refused: Vec<RefusedId>) -> Result<(), StoreError> {
        self.inner.writer.note(move |connection, now| refused::remember(connection, &refused, now))
    }

    fn sync_mark(&self, peer: &str, filter: &str) -> Result<SyncMark, StoreError> {
        self.reader().sync_mark(peer, filter)
    }

    fn remember_mark(
        &self,
        peer: String,
        filter: String,
        mark: SyncMark,
    ) -> Result<(), StoreError> {
        self.inner.writer.note(move |connection, now| {
            sync_mark::remember(connection, &peer, &filter, &mark, now)
        })
    }

    fn peer_traits(&self, peer: &str) -> Result<PeerTraits, StoreError> {
        self.reader().peer_traits(peer)
    }

    fn remember_traits(&self, peer: String, traits: PeerTraits) -> Result<(), StoreError> {
        self.inner.writer.note(move |connection, now| {
            sync_mark::remember_traits(connection, &peer, &traits, now)
        })
    }

    fn check_writable(&self) -> Result<(), StoreError> {
        self.inner.writer.note(|connection, _| schema::rewrite_version(connection))
    }

    /// False from a failed flush until its repair, and after a file was lost.
    fn is_durable(&self) -> bool {
        !self.inner.doubt.is_there() && self.check_in_place().is_ok()
    }

    fn check_in_place(&self) -> Result<(), StoreError> {
        self.inner.doubt.check_in_place()
    }

    fn size(&self) -> (u64, u64) {
        let bytes = |path: &Path| std::fs::metadata(path).map_or(0, |file| file.len());
        (bytes(&self.inner.path), bytes(&log_path(&self.inner.path)))
    }

    fn metrics(&self) -> &StoreMetrics {
        &self.inner.metrics
    }

    fn close(&self) {
        self.inner.close();
    }
}

impl MarkedStore for Store {
    fn standing_marks(&self, of: &[MarkName]) -> Result<Vec<MarkName>, StoreError> {
        let mut marks = self.reader().index_marks()?;
        marks.retain(|mark| of.contains(mark));
        Ok(marks)
    }

    fn since_index_mark(
        &self,
        name: &MarkName,
        most: usize,
        removed: &mut dyn FnMut(Item),
        added: &mut dyn FnMut(Item, u16),
    ) -> Result<bool, StoreError> {
        self.reader().since_index_mark(name, most, removed, added)
    }

    fn begin_index_mark(&self, take: &mut dyn FnMut()) -> Result<MarkName, StoreError> {
        let mark = self.inner.writer.note(|connection, _| index_mark::begin(connection))?;
        take();
        Ok(mark)
    }

    fn keep_index_mark(&self, name: Option<MarkName>) -> Result<(), StoreError> {
        self.inner.writer.note(move |connection, _| index_mark::keep(connection, name))?;
        let trim = |connection: &Connection, _| index_mark::trim(connection, writer::STEP_ROWS);
        while self.inner.writer.note(trim)? {}
        Ok(())
    }

    fn commits_since_index_mark(&self, _: &MarkName) -> u64 {
        0
    }
}

impl EventSource for Store {
    fn with_deadline(&self, deadline: Deadline) -> Arc<dyn EventSource> {
        Arc::new(self.with_deadline(deadline))
    }

    fn deadline(&self) -> &Deadline {
        self.reader().deadline()
    }

    fn clock(&self) -> &Clock {
        self.reader.clock()
    }

    fn catch_up(&self) -> Result<(), StoreError> {
        // Commits are published before they are acknowledged.
        self.expire()
    }

    fn wait_until_published(&self) -> Result<(), StoreError> {
        self.inner.writer.wait_until_published();
        Ok(())
    }

    fn read_snapshot(&self, work: &mut Work<'_>) -> Result<(), StoreError> {
        self.reader().read_snapshot(|moment| work(moment))
    }

    fn read_at_commit(
        &self,
        beside: &mut dyn FnMut(),
        work: &mut Work<'_>,
    ) -> Result<(), StoreError> {
        self.reader().read_at_commit(beside, |moment| work(moment))
    }

    fn middle_second(&self) -> Result<Option<u64>, StoreError> {
        self.reader().middle_second()
    }

    fn retention_window(&self, filter: &Filter) -> Result<Option<RetentionWindow>, StoreError> {
        self.reader().retention_window(filter)
    }

    fn events(
        &self,
        ids: &[[u8; 32]],
        visit: &mut dyn FnMut(&Item, &str),
    ) -> Result<(), StoreError> {
        EventSource::events(self.reader(), ids, visit)
    }
}
