//! Reading the store, through a bounded pool of connections that only read. SQLite lets all of
//! them work beside the writer.

use super::apply;
use super::clock::unix_now;
use super::commits::Commits;
use super::newest::{self, Newest, Rest};
use super::presence::Presence;
use super::query::{self, Expired, Hit};
use super::read_gate::ReadGate;
use super::viewer::View;
use super::{
    Deadline, MarkName, PeerTraits, Retention, RetentionWindow, RuleMatches, Selected, Selection,
    StoreError, SyncMark, Undelete, UndeleteError, index_mark, operator, refused, retention,
    schema, sync_mark,
};
use negsync_nostr::Filter;
use negsync_reconcile::Item;
use rusqlite::Connection;
use std::collections::{HashMap, HashSet};
use std::ops::{ControlFlow, Deref};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long closing waits for reads that are under way.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// After so many steps of SQLite's machine, a fraction of a millisecond, a query's deadline is
/// looked at.
const DEADLINE_STEPS: i32 = 2_000;

/// The reading side of a store; clones share its connections. It needs no writer: a store can be
/// read while another process holds it.
///
/// All calls block: inside async code they belong on a blocking thread.
#[derive(Clone)]
pub struct Reader {
    pool: Arc<Pool>,
    commits: Commits,
    deadline: Deadline,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").finish_non_exhaustive()
    }
}

impl Reader {
    /// Reads the store in `path` with at most `most` connections at a time.
    ///
    /// # Errors
    /// When the file is not there or is not a store of this version.
    pub fn open(path: &Path, most: usize) -> Result<Self, StoreError> {
        let (commits, gate) = (Commits::default(), ReadGate::default());
        Self::beside_writer(path, most, commits, gate, Arc::default(), None)
    }

    /// The same reader, whose reads end at the deadline with [`StoreError::Interrupted`]. A read
    /// with a deadline also breaks off when the write-ahead log has to be begun anew: where the
    /// deadline is not over, it is to be tried again.
    pub fn with_deadline(&self, deadline: Deadline) -> Self {
        Self { deadline, ..self.clone() }
    }

    /// Until when a read may go on.
    pub fn deadline(&self) -> &Deadline {
        &self.deadline
    }

    /// As [`Reader::open`], beside a writer that counts its commits. `expired_until` is the second
    /// up to which events have expired whatever the clock says.
    pub(super) fn beside_writer(
        path: &Path,
        most: usize,
        commits: Commits,
        gate: ReadGate,
        expired_until: Arc<AtomicU64>,
        presence: Option<Presence>,
    ) -> Result<Self, StoreError> {
        let opened = path.to_owned();
        let open = Box::new(move || {
            let check = || presence.as_ref().map_or(Ok(()), Presence::check);
            // Before, too: opening a store that is another one may write beside it.
            check()?;
            let connection = schema::open_reader(&opened)?;
            check().map(|()| connection)
        });
        let pool = Pool::new(open, most, gate, expired_until);
        let reader = Self { pool: Arc::new(pool), commits, deadline: Deadline::default() };
        let checked = reader.read(|read| schema::check_version(read, path));
        checked.map_err(|error| error.while_opening(path))?;
        Ok(reader)
    }

    /// Ends all reading, and waits a while for what is under way.
    pub(super) fn close(&self) {
        self.pool.close();
    }

    /// Runs `work` in a read transaction.
    fn read<T, E: From<StoreError>>(
        &self,
        work: impl FnOnce(&ReadTransaction<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        self.pool.with(&self.deadline, work)
    }

    /// The newest events that match any of the filters, each filter with its own limit and with
    /// no more than `most`; newest first, of one second the lowest id first, each once. What has
    /// expired is left out.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn newest(&self, filters: &[Filter], most: usize) -> Result<Vec<Hit>, StoreError> {
        self.read_snapshot(|moment| moment.newest(filters, most))
    }

    /// As [`Reader::newest`], of what somebody may see, and calls `visit` with the JSON of the
    /// first of them, read at the same moment, until it breaks off: none of these can have gone in
    /// the meantime. Only what expired by the second `now` is left out.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn newest_and_first(
        &self,
        views: &[View],
        most: usize,
        now: u64,
        mut visit: impl FnMut(&Item, &str) -> ControlFlow<()>,
    ) -> Result<StoredPage, StoreError> {
        let now = now.max(self.pool.expired_until());
        self.read(|read| {
            if let Some(only) = only_part(views) {
                let expired = Expired::by(read, now)?;
                let (Newest { hits, rest }, looked_at) =
                    newest::and_first(read, only, most, &expired, now, &mut visit)?;
                let left_out = LeftOut::of(&hits, &[rest]);
                return Ok(StoredPage { hits, read: looked_at, left_out });
            }
            let (hits, left_out) = newest(read, views, most, now)?;
            let looked_at = query::fetch(read, &hits, now, &mut visit)?;
            Ok(StoredPage { hits, read: looked_at, left_out })
        })
    }

    /// Calls `visit` with the JSON of each event, in the order of `hits`, until it breaks off.
    /// Events that went in the meantime or that have expired are left out. Returns how many of the
    /// hits were looked at.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn fetch(
        &self,
        hits: &[Hit],
        visit: impl FnMut(&Item, &str) -> ControlFlow<()>,
    ) -> Result<usize, StoreError> {
        self.read_snapshot(|moment| moment.fetch(hits, visit))
    }

    /// Calls `visit` with every item that matches the filter, `limit` aside, in no order and now
    /// and then twice, until it breaks off. What has expired and could not be removed is left out.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn items(
        &self,
        filter: &Filter,
        visit: impl FnMut(Item) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        self.read_snapshot(|moment| moment.items(filter, visit))
    }

    /// How many events of each kind are stored. Walks one index from end to end.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn kinds(&self) -> Result<Vec<(u16, u64)>, StoreError> {
        self.read(|read| query::kinds(read))
    }

    /// Runs `work` on the store as it is at one moment, whatever is written meanwhile. While it
    /// lasts the write-ahead log only grows.
    ///
    /// # Errors
    /// When SQLite refuses, and those of `work`.
    pub fn read_snapshot<T, E: From<StoreError>>(
        &self,
        work: impl FnOnce(&ReadSnapshot<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let expired_until = self.pool.expired_until();
        self.read(|read| work(&ReadSnapshot { read: *read, expired_until }))
    }

    /// As [`Reader::read_snapshot`]; `beside` is called while the last commit that `work` will see
    /// is the last that the listener knows, and must not wait. Where the listener does not come to
    /// know of that commit for seconds, it is not called.
    ///
    /// # Errors
    /// Those of `work`.
    pub fn read_at_commit<T>(
        &self,
        beside: impl FnOnce(),
        work: impl FnOnce(&ReadSnapshot<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.read(|read| {
            let moment = self.commits.between_commits(|is_published| {
                query::begin(read)?;
                if is_published {
                    beside();
                }
                let expired_until = self.pool.expired_until();
                Ok::<_, StoreError>(ReadSnapshot { read: *read, expired_until })
            })?;
            work(&moment)
        })
    }

    /// A second with about as many events before it as after it, where they were stored in order
    /// of time; `None` in an empty store.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn middle_second(&self) -> Result<Option<u64>, StoreError> {
        self.read(|read| query::middle_second(read))
    }

    /// The names of the marks that the index has made, the latest first.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn index_marks(&self) -> Result<Vec<MarkName>, StoreError> {
        self.read(|read| index_mark::names(read))
    }

    /// Calls `removed` with what was removed since a mark, and then `added` with what is there of
    /// what was added since, and its kind. `false` when the mark does not stand, or more than
    /// `most_added` may have been added: then neither is called.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn since_index_mark(
        &self,
        name: &MarkName,
        most_added: usize,
        removed: &mut dyn FnMut(Item),
        added: &mut dyn FnMut(Item, u16),
    ) -> Result<bool, StoreError> {
        self.read(|read| index_mark::since(read, name, most_added, removed, added))
    }

    /// Which of `ids` a sync with `peer` need not move, each with its reason.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn refused(
        &self,
        peer: &str,
        ids: &[[u8; 32]],
    ) -> Result<HashMap<[u8; 32], String>, StoreError> {
        let now = unix_now();
        self.read(|read| {
            let mut found = refused::find(read, peer, ids, now).map_err(StoreError::sqlite)?;
            operator::find(read, ids, &mut found).map_err(StoreError::sqlite)?;
            retention::find(read, ids, &mut found).map_err(StoreError::sqlite)?;
            Ok(found)
        })
    }

    /// What each rule would remove now, in their order, and about how many of the oldest events for the
    /// size of the store.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn preview(&self, retention: &Retention) -> Result<(Vec<RuleMatches>, u64), StoreError> {
        let now = unix_now();
        self.read(|read| retention::preview(read, retention, now).map_err(StoreError::sqlite))
    }

    /// What the rules of retention that the store goes by keep of a filter now.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn retention_window(&self, filter: &Filter) -> Result<Option<RetentionWindow>, StoreError> {
        let now = unix_now();
        self.read(|read| retention::window(read, filter, now).map_err(StoreError::sqlite))
    }

    /// The stored events that an operator means.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn selected(&self, selection: &Selection) -> Result<Selected, StoreError> {
        self.read_snapshot(|moment| selection.among(moment))
    }

    /// The ids that the operator has removed and means to take back.
    ///
    /// # Errors
    /// When SQLite refuses, or the filter asks for tags.
    pub fn undeleted(&self, undelete: &Undelete) -> Result<Vec<[u8; 32]>, UndeleteError> {
        self.read(|read| operator::undeleted(read, undelete))
    }

    /// How far `peer` is known for a filter, given as the text it was remembered under.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn sync_mark(&self, peer: &str, filter: &str) -> Result<SyncMark, StoreError> {
        self.read(|read| sync_mark::mark(read, peer, filter).map_err(StoreError::sqlite))
    }

    /// How `peer` has to be asked.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn peer_traits(&self, peer: &str) -> Result<PeerTraits, StoreError> {
        self.read(|read| sync_mark::traits(read, peer).map_err(StoreError::sqlite))
    }
}

/// The newest events of a REQ.
#[derive(Debug)]
pub struct StoredPage {
    /// Newest first, of one second the lowest id first, each once.
    pub hits: Vec<Hit>,
    /// How many of the hits were looked at.
    pub read: usize,
    /// Whether a limit left some out.
    pub left_out: LeftOut,
}

/// Whether limits left out events that match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeftOut {
    /// None: every event that matches is there.
    Nothing,
    /// At least one.
    Some,
    /// Nobody looked: a limit of 0, or what one filter's limit left out came with another one.
    Unknown,
}

impl LeftOut {
    /// Of the union of several filters' hits, in order, each filter with its rest.
    pub fn of(hits: &[Hit], rests: &[Rest]) -> Self {
        let is_missing = |rest: &Rest| match rest {
            Rest::Event(item) => !newest::contains(hits, item),
            Rest::Nothing | Rest::Unknown => false,
        };
        if rests.iter().all(|rest| *rest == Rest::Nothing) {
            Self::Nothing
        } else if rests.iter().any(is_missing) {
            Self::Some
        } else {
            Self::Unknown
        }
    }
}

/// The store as it is at one moment.
pub struct ReadSnapshot<'read> {
    read: ReadTransaction<'read>,
    expired_until: u64,
}

impl std::fmt::Debug for ReadSnapshot<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReadSnapshot").finish_non_exhaustive()
    }
}

impl ReadSnapshot<'_> {
    /// The connection, in its transaction.
    pub(super) fn connection(&self) -> &Connection {
        &self.read
    }

    /// As [`Reader::items`].
    ///
    /// # Errors
    /// When SQLite refuses.
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

    /// As [`Reader::newest`].
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn newest(&self, filters: &[Filter], most: usize) -> Result<Vec<Hit>, StoreError> {
        let views: Vec<View> = filters.iter().cloned().map(View::whole).collect();
        Ok(newest(&self.read, &views, most, self.now())?.0)
    }

    /// As [`Reader::fetch`].
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn fetch(
        &self,
        hits: &[Hit],
        mut visit: impl FnMut(&Item, &str) -> ControlFlow<()>,
    ) -> Result<usize, StoreError> {
        query::fetch(&self.read, hits, self.now(), &mut visit)
    }

    fn now(&self) -> u64 {
        unix_now().max(self.expired_until)
    }
}

/// The one filter that answers the views, if there is such a one.
fn only_part(views: &[View]) -> Option<&Filter> {
    let [view] = views else { return None };
    view.own.is_empty().then_some(&view.public)
}

fn newest(
    read: &ReadTransaction<'_>,
    views: &[View],
    most: usize,
    now: u64,
) -> Result<(Vec<Hit>, LeftOut), StoreError> {
    // Without a writer nobody has removed them: they would take living events' places in a limit.
    let expired = Expired::by(read, now)?;
    let (mut hits, mut rests) = (Vec::new(), Vec::new());
    for view in views {
        let mut visible = Vec::new();
        for part in view.parts() {
            let mut newest = newest::newest(read, part, most, &expired)?;
            visible.append(&mut newest.hits);
            rests.push(newest.rest);
        }
        if !view.own.is_empty() {
            let mut rest = Rest::Nothing;
            let most = view.limit().map_or(most, |limit| limit.min(most));
            newest::cut(&mut visible, most, &mut rest);
            rests.push(rest);
        }
        hits.append(&mut visible);
    }
    newest::order(&mut hits);
    let left_out = LeftOut::of(&hits, &rests);
    Ok((hits, left_out))
}

/// A connection with an open read transaction: all that is read is of one moment, however many
/// statements it takes.
#[derive(Clone, Copy)]
pub(super) struct ReadTransaction<'read> {
    connection: &'read Connection,
    deadline: &'read Deadline,
}

impl<'read> ReadTransaction<'read> {
    /// On this connection. SQLite itself looks at the deadline only where the connection has been
    /// told of it.
    pub(super) fn new(connection: &'read Connection, deadline: &'read Deadline) -> Self {
        Self { connection, deadline }
    }

    /// Until when the query may go on.
    pub(super) fn deadline(&self) -> &Deadline {
        self.deadline
    }
}

impl Deref for ReadTransaction<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.connection
    }
}

/// How a connection is opened.
type Open = Box<dyn Fn() -> Result<Connection, StoreError> + Send + Sync>;

/// Connections are opened when first needed and kept.
pub(super) struct Pool {
    open: Open,
    // The most connections that may be open.
    most: usize,
    gate: ReadGate,
    expired_until: Arc<AtomicU64>,
    state: Mutex<PoolState>,
    returned: Condvar,
}

#[derive(Default)]
struct PoolState {
    idle: Vec<Connection>,
    // Idle and in use.
    open: usize,
    closed: bool,
}

impl Pool {
    /// A pool of at most `most` connections, which read while the gate is open.
    pub(super) fn new(
        open: Open,
        most: usize,
        gate: ReadGate,
        expired_until: Arc<AtomicU64>,
    ) -> Self {
        let (state, returned) = (Mutex::default(), Condvar::new());
        Self { open, most: most.max(1), gate, expired_until, state, returned }
    }

    fn expired_until(&self) -> u64 {
        self.expired_until.load(Ordering::Acquire)
    }

    /// Runs `work` in a read transaction on a connection, waiting for one while all are in use.
    pub(super) fn with<T, E: From<StoreError>>(
        &self,
        deadline: &Deadline,
        work: impl FnOnce(&ReadTransaction<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut checkout = Checkout { connection: Some(self.take(deadline)?), pool: self };
        let Some(connection) = &mut checkout.connection else {
            return Err(StoreError::Closed.into());
        };
        let reading = self.gate.enter(deadline)?;
        if !deadline.is_none() {
            let (deadline, is_to_break_off) = (deadline.clone(), reading.is_to_break_off());
            let has_to_end = move || is_to_break_off() || deadline.give_way() || is_to_break_off();
            connection
                .progress_handler(DEADLINE_STEPS, Some(has_to_end))
                .map_err(StoreError::sqlite)?;
        }
        // Ends where it is dropped; there is nothing to commit.
        let transaction = connection.unchecked_transaction().map_err(StoreError::sqlite)?;
        work(&ReadTransaction::new(&transaction, deadline))
    }

    fn take(&self, deadline: &Deadline) -> Result<Connection, StoreError> {
        let mut state = self.lock();
        loop {
            if state.closed {
                return Err(StoreError::Closed);
            }
            if let Some(connection) = state.idle.pop() {
                return Ok(connection);
            }
            if state.open < self.most {
                state.open += 1;
                drop(state);
                let error = match (self.open)() {
                    Ok(connection) => return Ok(connection),
                    Err(error) => error,
                };
                state = self.lock();
                state.open -= 1;
                if state.open == 0 {
                    self.returned.notify_all();
                    return Err(error);
                }
                // Out of descriptors, say: those that are open serve all, one after the other.
                if !state.idle.is_empty() {
                    continue;
                }
            }
            state = deadline.wait(&self.state, &self.returned, state)?;
        }
    }

    fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.open -= state.idle.len();
        state.idle.clear();
        self.returned.notify_all();
        let in_use = |state: &mut PoolState| state.open > 0;
        drop(self.returned.wait_timeout_while(state, CLOSE_TIMEOUT, in_use));
    }

    fn lock(&self) -> MutexGuard<'_, PoolState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Gives the connection back even when the work on it panics.
struct Checkout<'pool> {
    connection: Option<Connection>,
    pool: &'pool Pool,
}

impl Drop for Checkout<'_> {
    fn drop(&mut self) {
        let Some(mut connection) = self.connection.take() else { return };
        // The next query has a deadline of its own, or none.
        let ended = connection.progress_handler(0, None::<fn() -> bool>);
        let mut state = self.pool.lock();
        if !state.closed && ended.is_ok() {
            state.idle.push(connection);
            return self.pool.returned.notify_one();
        }
        // Closed before anybody hears of it: the store's last connection tidies up.
        drop(connection);
        state.open -= 1;
        self.pool.returned.notify_all();
    }
}
