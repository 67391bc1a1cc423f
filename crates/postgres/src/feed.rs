//! This node's knowledge of the commits of all nodes. The feed is read in the same transaction as a
//! set, so a set is never older than what any node has acknowledged before.

use crate::backlog::{Backlog, item_of};
use crate::connection::{Parameter, ServerSession};
use crate::fault::fault;
use crate::history::{CommitHistory, KnownCommit};
use crate::repair::{self, LostTail, Repair};
use crate::transaction::{FeedAdvance, FeedPlace, head_row};
use futures_util::TryStreamExt;
use negsync_reconcile::Item;
use negsync_store::{Change, Deadline, FeedLag, Listener, PrivateKinds, Step, StoreError};
use std::ops::{Deref, DerefMut};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio_postgres::Error;
use tokio_postgres::binary_copy::BinaryCopyOutStream;
use tokio_postgres::types::Type;

/// Late reads of commits after which all items are read again.
const MOST_LATE: usize = 2;
/// Rows that must arrive within the timeout of a read.
const ROWS_AT_ONCE: usize = 4_096;

/// The receiver of commits.
pub(crate) enum FeedListener {
    /// No receiver: only the position and expirations are tracked.
    Nobody,
    /// Gets all items at the start, and then each commit.
    OfAll(Box<dyn Listener>),
    /// Gets each commit from the start on, and reads the stored events itself.
    OfChanges(Box<dyn Listener>),
}

impl FeedListener {
    fn get(&self) -> Option<&dyn Listener> {
        match self {
            Self::Nobody => None,
            Self::OfAll(listener) | Self::OfChanges(listener) => Some(&**listener),
        }
    }
}

/// The state that the listener has.
pub(crate) struct Feed {
    listener: FeedListener,
    private: PrivateKinds,
    // The commits that the listener has; `None` while a thread holds them.
    history: Mutex<Option<CommitHistory>>,
    returned: Condvar,
    // The second at which the next stored event expires; `u64::MAX` if none does.
    next_expiry: AtomicU64,
    // Whether events of a vanished key may still be stored.
    is_vanishing: AtomicBool,
    // The number of the last known commit, for notifications.
    known: AtomicU64,
    // The highest commit number that was announced to this node.
    told: AtomicU64,
    // Late reads of commits since the last one in time.
    late: AtomicUsize,
    // Whether the last read of the feed succeeded, and the time of the last success.
    is_current: AtomicBool,
    opened: Instant,
    read_after_ms: AtomicU64,
}

/// Exclusive access to the listener's state; released when this is dropped.
pub(crate) struct HeldFeed<'feed> {
    feed: &'feed Feed,
    history: CommitHistory,
}

impl Deref for HeldFeed<'_> {
    type Target = CommitHistory;

    fn deref(&self) -> &CommitHistory {
        &self.history
    }
}

impl DerefMut for HeldFeed<'_> {
    fn deref_mut(&mut self) -> &mut CommitHistory {
        &mut self.history
    }
}

impl Drop for HeldFeed<'_> {
    fn drop(&mut self) {
        let history = std::mem::take(&mut self.history);
        *self.feed.history.lock().unwrap_or_else(PoisonError::into_inner) = Some(history);
        // Wakes all waiters: a single one might be a query whose deadline has passed.
        self.feed.returned.notify_all();
    }
}

/// The result of one read of the feed, of one snapshot.
pub(crate) struct News {
    next_expiry: u64,
    is_vanishing: bool,
    found: Found,
}

enum Found {
    /// There is no new commit.
    Nothing,
    /// The commit at which this node begins; the stored events are read elsewhere.
    Begin(FeedPlace),
    /// New commits and their steps.
    Change(Vec<KnownCommit>, Vec<Step>),
    /// Known commits are missing, and others have replaced them.
    Repaired(LostTail, Vec<KnownCommit>, Vec<Step>),
    /// The commits since the last read are not available: all public items.
    All(FeedPlace, Vec<Item>, Option<LostTail>),
}

impl Feed {
    pub(crate) fn new(listener: FeedListener, private: PrivateKinds) -> Self {
        Self {
            listener,
            private,
            history: Mutex::new(Some(CommitHistory::default())),
            returned: Condvar::new(),
            next_expiry: AtomicU64::new(0),
            is_vanishing: AtomicBool::new(false),
            known: AtomicU64::new(0),
            told: AtomicU64::new(0),
            late: AtomicUsize::new(0),
            is_current: AtomicBool::new(false),
            opened: Instant::now(),
            read_after_ms: AtomicU64::new(0),
        }
    }

    /// Takes exclusive access to the listener's state.
    pub(crate) fn hold(&self, deadline: &Deadline) -> Result<HeldFeed<'_>, StoreError> {
        let mut history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(history) = history.take() {
                return Ok(HeldFeed { feed: self, history });
            }
            history = deadline.wait(&self.history, &self.returned, history)?;
        }
    }

    /// Reads the commits after the last one of `history`, in the connection's open transaction.
    /// `patience` is the timeout of each answer, and of each part of a long one.
    pub(crate) async fn read(
        &self,
        connection: &ServerSession,
        history: &CommitHistory,
        patience: Duration,
    ) -> Result<News, StoreError> {
        const HEAD: &str = "SELECT h.seq, h.mark,
                (SELECT mark FROM feed_commit c WHERE c.seq = $1),
                (SELECT min(expires_at) FROM event WHERE expires_at IS NOT NULL),
                EXISTS (SELECT 1 FROM vanished WHERE pending)
            FROM head h";
        let last = history.last();
        let known: [Parameter<'_>; 1] = [&last.map_or(-1, |last| last.seq)];
        let head = connection.query(HEAD, &known);
        let head = connection.within(patience, async { head.await.map_err(fault) }).await?;
        let row = head_row(connection, &head);
        let head = connection.within(patience, async { row.await.map_err(fault) }).await?;
        let now = FeedPlace::read(head).map_err(fault)?;
        let is_there: Option<i64> = head.try_get(2).map_err(fault)?;
        let next_expiry: Option<i64> = head.try_get(3).map_err(fault)?;
        let is_vanishing = head.try_get(4).map_err(fault)?;
        let found = match last {
            None if matches!(self.listener, FeedListener::OfAll(_)) => {
                Found::All(now, self.all(connection, patience).await?, None)
            }
            None => Found::Begin(now),
            Some(last) if last == now => Found::Nothing,
            Some(last) if is_there != Some(last.mark) || last.seq >= now.seq => {
                self.recover(connection, history, (last, now), patience).await?
            }
            Some(_) if self.listener.get().is_none() => {
                Found::Change(vec![KnownCommit { place: now, items: Box::default() }], Vec::new())
            }
            Some(last) => {
                let since = Backlog { after: last.seq, to: now.seq };
                match self.one_by_one(connection, patience * 2, since.read_few(connection)).await? {
                    Some((commits, steps)) => Found::Change(commits, steps),
                    None => Found::All(now, self.all(connection, patience).await?, None),
                }
            }
        };
        let next_expiry = next_expiry.map_or(u64::MAX, |second| second.max(0) as u64);
        Ok(News { next_expiry, is_vanishing, found })
    }

    /// Handles a last known commit that is missing in the feed: either commits were lost, or this
    /// node was away for longer than the feed covers.
    async fn recover(
        &self,
        connection: &ServerSession,
        history: &CommitHistory,
        (last, now): (FeedPlace, FeedPlace),
        patience: Duration,
    ) -> Result<Found, StoreError> {
        let holds = |item: &Item| self.listener.get().is_some_and(|it| it.holds(item));
        let compared = async { repair::compare(connection, history, now, &holds).await.map(Some) };
        let (common, repair) = match self.one_by_one(connection, patience * 2, compared).await? {
            Some(compared) => compared,
            None => {
                let common = repair::last_common(connection, history);
                (connection.within(patience, async { common.await.map_err(fault) }).await?, None)
            }
        };
        let lost = LostTail { common, last, now, items: Vec::new() };
        if let Some(Repair { commits, steps, lost: items }) = repair {
            return Ok(Found::Repaired(LostTail { items, ..lost }, commits, steps));
        }
        let items = self.all(connection, patience).await?;
        let is_pruned = async { repair::is_pruned(connection, last).await.map_err(fault) };
        if common.is_none() && connection.within(patience, is_pruned).await? {
            tracing::info!(
                known = last.seq,
                head = now.seq,
                "feed too short: this node was away for longer than the feed covers; all items were read again"
            );
            return Ok(Found::All(now, items, None));
        }
        Ok(Found::All(now, items, Some(lost)))
    }

    /// Waits for a read of single commits; `None` if there are too many, or if reads were late too
    /// often.
    async fn one_by_one<T>(
        &self,
        connection: &ServerSession,
        timeout: Duration,
        reading: impl Future<Output = Result<Option<T>, Error>>,
    ) -> Result<Option<T>, StoreError> {
        if self.late.load(Ordering::Acquire) >= MOST_LATE {
            return Ok(None);
        }
        let reading = async { Ok(reading.await) };
        let read = connection.within(timeout, reading).await.inspect_err(|_| {
            self.late.fetch_add(1, Ordering::AcqRel);
        })?;
        self.late.store(0, Ordering::Release);
        read.map_err(fault)
    }

    /// All public items.
    async fn all(
        &self,
        connection: &ServerSession,
        patience: Duration,
    ) -> Result<Vec<Item>, StoreError> {
        if self.listener.get().is_none() {
            return Ok(Vec::new());
        }
        // A COPY accepts no parameters.
        let private: Vec<String> = self.private.as_slice().iter().map(u16::to_string).collect();
        let all = format!(
            "COPY (SELECT created_at, id FROM event WHERE kind <> ALL ('{{{}}}'::integer[]))
             TO STDOUT (FORMAT binary)",
            private.join(",")
        );
        let begin = async { connection.client().copy_out(&all).await.map_err(fault) };
        let copied = connection.within(patience, begin).await?;
        let mut rows = pin!(BinaryCopyOutStream::new(copied, &[Type::INT8, Type::BYTEA]));
        let (mut items, mut is_over) = (Vec::new(), false);
        while !is_over {
            let some = async {
                for _ in 0..ROWS_AT_ONCE {
                    let Some(row) = rows.try_next().await? else { return Ok(true) };
                    let second: i64 = row.try_get(0)?;
                    let id: &[u8] = row.try_get(1)?;
                    items.push(Item::new(second as u64, id.try_into().unwrap_or_default()));
                }
                Ok(false)
            };
            is_over = connection.within(patience, async { some.await.map_err(fault) }).await?;
        }
        Ok(items)
    }

    /// Passes the result of a read to the listener; `history` was held during the read. Returns
    /// known commits that the database has lost.
    pub(crate) fn tell(&self, history: &mut CommitHistory, news: News) -> Option<LostTail> {
        let mut lost_tail = None;
        match news.found {
            Found::Nothing => {}
            Found::Begin(now) => *history = CommitHistory::begin(now),
            Found::Change(commits, steps) => {
                self.changed(steps);
                commits.into_iter().for_each(|commit| history.push(commit));
            }
            Found::Repaired(lost, commits, steps) => {
                lost.report();
                self.changed(steps);
                self.told.store(0, Ordering::Release);
                history.cut(lost.common.map_or(-1, |common| common.seq));
                commits.into_iter().for_each(|commit| history.push(commit));
                lost_tail = Some(lost);
            }
            Found::All(now, items, lost) => {
                if let Some(lost) = &lost {
                    lost.report_unknown(items.len());
                }
                if let Some(listener) = self.listener.get() {
                    listener.begun(items);
                }
                self.told.store(0, Ordering::Release);
                self.late.store(0, Ordering::Release);
                *history = CommitHistory::begin(now);
                lost_tail = lost;
            }
        }
        self.is_vanishing.store(news.is_vanishing, Ordering::Release);
        self.moved(history, news.next_expiry);
        lost_tail
    }

    /// Passes this node's own commit to the listener, if it directly follows the last known one.
    /// Otherwise the commits before it have to be read first, and this one with them.
    pub(crate) fn tell_own(
        &self,
        feed: FeedAdvance,
        steps: Vec<Step>,
        expires_at: u64,
    ) -> Result<bool, StoreError> {
        let Some(place) = feed.own else { return Ok(true) };
        let mut history = self.hold(&Deadline::default())?;
        if history.last() != feed.before {
            return Ok(history.last() == Some(place));
        }
        let items = steps.iter().filter_map(item_of).collect();
        self.changed(steps);
        history.push(KnownCommit { place, items });
        self.moved(&history, self.next_expiry().min(expires_at));
        Ok(true)
    }

    /// Passes on events that are not stored.
    pub(crate) fn pass_on(&self, steps: Vec<Step>) -> Result<(), StoreError> {
        // Waits for a running call of the listener, which handles one change at a time.
        let _held = self.hold(&Deadline::default())?;
        self.changed(steps);
        Ok(())
    }

    fn changed(&self, steps: Vec<Step>) {
        if let Some(listener) = self.listener.get() {
            listener.changed(Arc::new(Change { steps }));
        }
    }

    fn moved(&self, history: &CommitHistory, next_expiry: u64) {
        let seq = history.last().map_or(0, |place| place.seq.max(0) as u64);
        self.known.store(seq, Ordering::Release);
        self.next_expiry.store(next_expiry, Ordering::Release);
        self.note_current();
    }

    /// Records that the listener is up to date.
    pub(crate) fn note_current(&self) {
        let after = self.opened.elapsed().as_millis();
        self.read_after_ms.store(u64::try_from(after).unwrap_or(u64::MAX), Ordering::Release);
        self.is_current.store(true, Ordering::Release);
    }

    /// Records that the feed could not be read.
    pub(crate) fn lost(&self) {
        self.is_current.store(false, Ordering::Release);
    }

    /// Whether the last read of the feed succeeded.
    pub(crate) fn is_current(&self) -> bool {
        self.is_current.load(Ordering::Acquire)
    }

    /// Records the announcement of a commit, and returns whether the listener has it.
    pub(crate) fn hear_of(&self, seq: u64) -> bool {
        self.told.fetch_max(seq, Ordering::AcqRel);
        self.known() >= seq
    }

    /// How far the listener lags behind the announced commits.
    pub(crate) fn lag(&self) -> FeedLag {
        let read = Duration::from_millis(self.read_after_ms.load(Ordering::Acquire));
        FeedLag {
            commits: self.told.load(Ordering::Acquire).saturating_sub(self.known()),
            seconds: self.opened.elapsed().saturating_sub(read).as_secs(),
        }
    }

    /// The number of the last commit that the listener has.
    pub(crate) fn known(&self) -> u64 {
        self.known.load(Ordering::Acquire)
    }

    /// The second at which the next stored event expires.
    pub(crate) fn next_expiry(&self) -> u64 {
        self.next_expiry.load(Ordering::Acquire)
    }

    /// Whether events of a key that vanished, on any node, may still be stored.
    pub(crate) fn is_vanishing(&self) -> bool {
        self.is_vanishing.load(Ordering::Acquire)
    }

    /// Records that no request to vanish is pending.
    pub(crate) fn has_vanished(&self) {
        self.is_vanishing.store(false, Ordering::Release);
    }
}
