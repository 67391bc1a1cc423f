//! The read interface of a store.

use crate::apply;
use crate::clock::Clock;
use crate::commits::Commits;
use crate::newest::{self, Newest};
use crate::page::{self, LeftOut, StoredPage};
use crate::presence::Presence;
use crate::query::{self, Expired, Hit};
use crate::read_gate::ReadGate;
use crate::read_pool::{Pool, ReadTransaction};
use crate::source::{EventSource, SourceSnapshot, Work};
use crate::viewer::View;
use crate::{
    Deadline, MarkName, PeerTraits, Retention, RetentionWindow, RuleMatches, Selected, Selection,
    StoreError, SyncMark, Undelete, UndeleteError, index_mark, operator, refused, retention,
    schema, sync_mark,
};
use negsync_nostr::Filter;
use negsync_reconcile::Item;
use rusqlite::Connection;
use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

/// The read interface of a store; clones share its connections. It needs no writer: a store can be
/// read while another process has it open for writing.
///
/// All calls block: from async code use a blocking thread.
#[derive(Clone)]
pub struct Reader {
    pool: Arc<Pool>,
    commits: Commits,
    deadline: Deadline,
    clock: Clock,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").finish_non_exhaustive()
    }
}

impl Reader {
    /// Opens the store in `path` for reading, with at most `most` connections and the system's clock.
    ///
    /// # Errors
    /// When the file is missing or is not a store of this version.
    pub fn open(path: &Path, most: usize) -> Result<Self, StoreError> {
        let (commits, gate) = (Commits::default(), ReadGate::default());
        Self::beside_writer(path, most, Clock::system(), commits, gate, Arc::default(), None)
    }

    /// The same reader with a deadline for its reads. At the deadline they fail with
    /// [`StoreError::Interrupted`]. A read with a deadline also breaks off when the write-ahead log
    /// has to be restarted: if the error comes before the deadline, the caller should retry.
    #[must_use]
    pub fn with_deadline(&self, deadline: Deadline) -> Self {
        Self { deadline, ..self.clone() }
    }

    /// The deadline of reads.
    #[must_use]
    pub fn deadline(&self) -> &Deadline {
        &self.deadline
    }

    /// Like [`Reader::open`], beside a writer that counts its commits. Events that expire up to the
    /// second `expired_until` count as expired, whatever the clock says.
    pub(crate) fn beside_writer(
        path: &Path,
        most: usize,
        clock: Clock,
        commits: Commits,
        gate: ReadGate,
        expired_until: Arc<AtomicU64>,
        presence: Option<Presence>,
    ) -> Result<Self, StoreError> {
        let opened = path.to_owned();
        let open = Box::new(move || {
            let check = || presence.as_ref().map_or(Ok(()), Presence::check);
            // Also checked before: opening a replaced store may write files beside it.
            check()?;
            let connection = schema::open_reader(&opened)?;
            check().map(|()| connection)
        });
        let pool = Pool::new(open, most, gate, expired_until);
        let reader = Self { pool: Arc::new(pool), commits, deadline: Deadline::default(), clock };
        let checked = reader.read(|read| schema::check_version(read, path));
        checked.map_err(|error| error.while_opening(path))?;
        Ok(reader)
    }

    /// Ends all reading, and waits a while for running reads.
    pub(crate) fn close(&self) {
        self.pool.close();
    }

    /// Runs `work` in a read transaction.
    fn read<T, E: From<StoreError>>(
        &self,
        work: impl FnOnce(&ReadTransaction<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        self.pool.with(&self.deadline, work)
    }

    /// The newest events that match any of the filters, at most `most` for each filter and at most
    /// its own limit. Newest first; within a second the lowest id first; each event once. Expired
    /// events are left out.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`], or [`StoreError::Interrupted`] at the deadline.
    pub fn newest(&self, filters: &[Filter], most: usize) -> Result<Vec<Hit>, StoreError> {
        self.read_snapshot(|moment| moment.newest(filters, most))
    }

    /// Like [`Reader::newest`], restricted to what a viewer may see. Calls `visit` with the JSON of
    /// the first events, read from the same snapshot, until it breaks off: none of them can be
    /// removed in between. Only events that expired by the second `now` are left out.
    ///
    /// # Errors
    /// As [`Reader::newest`].
    pub fn newest_and_first(
        &self,
        views: &[View],
        most: usize,
        now: u64,
        mut visit: impl FnMut(&Item, &str) -> ControlFlow<()>,
    ) -> Result<StoredPage, StoreError> {
        let now = now.max(self.pool.expired_until());
        self.read(|read| {
            if let Some(only) = page::only_part(views) {
                let expired = Expired::by(read, now).map_err(StoreError::sqlite)?;
                let (Newest { hits, rest }, looked_at) =
                    newest::and_first(read, only, most, &expired, now, &mut visit)?;
                let left_out = LeftOut::of(&hits, &[rest]);
                return Ok(StoredPage { hits, read: looked_at, left_out });
            }
            let (hits, left_out) = page::newest(read, views, most, now)?;
            let looked_at = query::fetch(read, &hits, now, &mut visit)?;
            Ok(StoredPage { hits, read: looked_at, left_out })
        })
    }

    /// Calls `visit` with the JSON of each event, in the order of `hits`, until it breaks off.
    /// Events that were removed since or that have expired are left out. Returns the number of hits
    /// that were processed.
    ///
    /// # Errors
    /// As [`Reader::newest`].
    pub fn fetch(
        &self,
        hits: &[Hit],
        visit: impl FnMut(&Item, &str) -> ControlFlow<()>,
    ) -> Result<usize, StoreError> {
        self.read_snapshot(|moment| moment.fetch(hits, visit))
    }

    /// Calls `visit` with every item that matches the filter, until it breaks off. Ignores `limit`.
    /// The order is undefined, and an item may come twice. Expired events that could not be removed
    /// are left out.
    ///
    /// # Errors
    /// As [`Reader::newest`].
    pub fn items(
        &self,
        filter: &Filter,
        visit: impl FnMut(Item) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        self.read_snapshot(|moment| moment.items(filter, visit))
    }

    /// The number of stored events of each kind. Walks one index from end to end.
    ///
    /// # Errors
    /// As [`Reader::newest`].
    pub fn kinds(&self) -> Result<Vec<(u16, u64)>, StoreError> {
        self.read(|read| query::kinds(read).map_err(StoreError::sqlite))
    }

    /// Runs `work` on one snapshot of the store. Meanwhile the write-ahead log cannot shrink.
    ///
    /// # Errors
    /// As [`Reader::newest`], and those of `work`.
    pub fn read_snapshot<T, E: From<StoreError>>(
        &self,
        work: impl FnOnce(&ReadSnapshot<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let expired_until = self.pool.expired_until();
        self.read(|read| work(&ReadSnapshot { read: *read, clock: &self.clock, expired_until }))
    }

    /// Like [`Reader::read_snapshot`]. `beside` is called while the last commit that `work` sees is
    /// the last one published; it must not block. If that commit is not published within seconds,
    /// `beside` is not called.
    ///
    /// # Errors
    /// As [`Reader::read_snapshot`].
    pub fn read_at_commit<T>(
        &self,
        beside: impl FnOnce(),
        work: impl FnOnce(&ReadSnapshot<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.read(|read| {
            let moment = self.commits.between_commits(|is_published| {
                query::begin(read).map_err(StoreError::sqlite)?;
                if is_published {
                    beside();
                }
                let expired_until = self.pool.expired_until();
                Ok::<_, StoreError>(ReadSnapshot { read: *read, clock: &self.clock, expired_until })
            })?;
            work(&moment)
        })
    }

    /// A second with about as many events before it as after it, if the events were stored in order
    /// of time; `None` in an empty store.
    ///
    /// # Errors
    /// As [`Reader::newest`].
    pub fn middle_second(&self) -> Result<Option<u64>, StoreError> {
        self.read(|read| query::middle_second(read).map_err(StoreError::sqlite))
    }

    /// The names of the index's marks, latest first.
    pub(crate) fn index_marks(&self) -> Result<Vec<MarkName>, StoreError> {
        self.read(|read| index_mark::names(read).map_err(StoreError::sqlite))
    }

    /// See [`MarkedStore::since_index_mark`](crate::MarkedStore::since_index_mark).
    pub(crate) fn since_index_mark(
        &self,
        name: &MarkName,
        most_added: usize,
        removed: &mut dyn FnMut(Item),
        added: &mut dyn FnMut(Item, u16),
    ) -> Result<bool, StoreError> {
        self.read(|read| {
            index_mark::since(read, name, most_added, removed, added).map_err(StoreError::sqlite)
        })
    }

    /// The ids of `ids` that a sync with `peer` need not move, each with its reason.
    ///
    /// # Errors
    /// As [`Reader::newest`].
    pub fn refused(
        &self,
        peer: &str,
        ids: &[[u8; 32]],
    ) -> Result<HashMap<[u8; 32], String>, StoreError> {
        let now = self.clock.now();
        self.read(|read| {
            let mut found = refused::find(read, peer, ids, now).map_err(StoreError::sqlite)?;
            operator::find(read, ids, &mut found).map_err(StoreError::sqlite)?;
            retention::find(read, ids, &mut found).map_err(StoreError::sqlite)?;
            Ok(found)
        })
    }

    /// The number of events that each rule would remove now, in rule order, and the estimated
    /// number of the oldest events to remove for the size of the store.
    ///
    /// # Errors
    /// As [`Reader::newest`].
    pub fn preview(&self, retention: &Retention) -> Result<(Vec<RuleMatches>, u64), StoreError> {
        let now = self.clock.now();
        self.read(|read| retention::preview(read, retention, now).map_err(StoreError::sqlite))
    }

    /// The window of a filter that the store's rules of retention keep now.
    ///
    /// # Errors
    /// As [`Reader::newest`].
    pub fn retention_window(&self, filter: &Filter) -> Result<Option<RetentionWindow>, StoreError> {
        let now = self.clock.now();
        self.read(|read| retention::window(read, filter, now).map_err(StoreError::sqlite))
    }

    /// The stored events that an operator's selection covers.
    ///
    /// # Errors
    /// As [`Reader::newest`].
    pub fn selected(&self, selection: &Selection) -> Result<Selected, StoreError> {
        self.read_snapshot(|moment| selection.among(moment))
    }

    /// The ids that the operator removed and that `undelete` selects.
    ///
    /// # Errors
    /// As [`Reader::newest`], or when the filter uses tags.
    pub fn undeleted(&self, undelete: &Undelete) -> Result<Vec<[u8; 32]>, UndeleteError> {
        self.read(|read| operator::undeleted(read, undelete))
    }

    /// How far `peer` is known for a filter. `filter` is the text under which the mark was
    /// recorded.
    ///
    /// # Errors
    /// As [`Reader::newest`].
    pub fn sync_mark(&self, peer: &str, filter: &str) -> Result<SyncMark, StoreError> {
        self.read(|read| sync_mark::mark(read, peer, filter).map_err(StoreError::sqlite))
    }

    /// How to query `peer`.
    ///
    /// # Errors
    /// As [`Reader::newest`].
    pub fn peer_traits(&self, peer: &str) -> Result<PeerTraits, StoreError> {
        self.read(|read| sync_mark::traits(read, peer).map_err(StoreError::sqlite))
    }
}

/// Without a listener: a reader beside another process scans for each set.
impl EventSource for Reader {
    fn with_deadline(&self, deadline: Deadline) -> Arc<dyn EventSource> {
        Arc::new(self.with_deadline(deadline))
    }

    fn deadline(&self) -> &Deadline {
        self.deadline()
    }

    fn clock(&self) -> &Clock {
        &self.clock
    }

    fn catch_up(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn read_snapshot(&self, work: &mut Work<'_>) -> Result<(), StoreError> {
        self.read_snapshot(|moment| work(moment))
    }

    fn read_at_commit(
        &self,
        beside: &mut dyn FnMut(),
        work: &mut Work<'_>,
    ) -> Result<(), StoreError> {
        self.read_at_commit(beside, |moment| work(moment))
    }

    fn middle_second(&self) -> Result<Option<u64>, StoreError> {
        self.middle_second()
    }

    fn retention_window(&self, filter: &Filter) -> Result<Option<RetentionWindow>, StoreError> {
        self.retention_window(filter)
    }

    fn events(
        &self,
        ids: &[[u8; 32]],
        visit: &mut dyn FnMut(&Item, &str),
    ) -> Result<(), StoreError> {
        self.read_snapshot(|moment| {
            let hits = moment.newest(&[Filter::of_ids(ids)], usize::MAX)?;
            let all = |item: &Item, json: &str| {
                visit(item, json);
                ControlFlow::Continue(())
            };
            moment.fetch(&hits, all).map(|_| ())
        })
    }
}

/// One snapshot of the store.
pub struct ReadSnapshot<'read> {
    read: ReadTransaction<'read>,
    clock: &'read Clock,
    expired_until: u64,
}

impl std::fmt::Debug for ReadSnapshot<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReadSnapshot").finish_non_exhaustive()
    }
}

impl ReadSnapshot<'_> {
    /// The connection, in its transaction.
    pub(crate) fn connection(&self) -> &Connection {
        &self.read
    }

    /// See [`Reader::items`].
    ///
    /// # Errors
    /// As [`Reader::newest`].
    pub fn items(
        &self,
        filter: &Filter,
        mut visit: impl FnMut(Item) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        if self.expired_until == 0 {
            return query::items(&self.read, filter, &mut visit);
        }
        let expired: HashSet<Item> = apply::due(&self.read, 0, self.expired_until)
            .map_err(StoreError::sqlite)?
            .into_iter()
            .collect();
        query::items(&self.read, filter, &mut |item| {
            if expired.contains(&item) { ControlFlow::Continue(()) } else { visit(item) }
        })
    }

    /// See [`Reader::newest`].
    ///
    /// # Errors
    /// As [`Reader::newest`].
    pub fn newest(&self, filters: &[Filter], most: usize) -> Result<Vec<Hit>, StoreError> {
        let views: Vec<View> = filters.iter().cloned().map(View::whole).collect();
        Ok(page::newest(&self.read, &views, most, self.now())?.0)
    }

    /// See [`Reader::fetch`].
    ///
    /// # Errors
    /// As [`Reader::newest`].
    pub fn fetch(
        &self,
        hits: &[Hit],
        mut visit: impl FnMut(&Item, &str) -> ControlFlow<()>,
    ) -> Result<usize, StoreError> {
        query::fetch(&self.read, hits, self.now(), &mut visit)
    }

    pub(crate) fn now(&self) -> u64 {
        self.clock.now().max(self.expired_until)
    }
}

impl SourceSnapshot for ReadSnapshot<'_> {
    fn items(
        &self,
        filter: &Filter,
        visit: &mut dyn FnMut(Item) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        self.items(filter, visit)
    }
}
