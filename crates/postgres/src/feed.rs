//! What this node knows of the commits of all nodes, and how it comes to know more: read in the same
//! transaction as a set, so that a set is never older than what any node has acknowledged before.

use crate::columns::{bytes, second};
use crate::connection::{Parameter, ServerSession};
use crate::fault::fault;
use crate::history::{CommitHistory, KnownCommit};
use crate::repair::{self, LostTail, Repair};
use crate::transaction::{FeedAdvance, FeedPlace};
use futures_util::TryStreamExt;
use futures_util::future::try_join3;
use negsync_nostr::Event;
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

/// With more new or removed events than that, commits, or bytes of events, everything is read anew: items
/// alone, without the events.
const MOST_NEW_EVENTS: i64 = 50_000;
const MOST_NEW_COMMITS: i64 = 20_000;
const MOST_NEW_BYTES: i64 = 64 << 20;
/// So too after so many readings of them that had no answer in time.
const MOST_LATE: usize = 2;
/// So many rows have to come within the patience of a reading.
const ROWS_AT_ONCE: usize = 4_096;

/// Who hears of the commits.
pub(crate) enum FeedListener {
    /// Nobody keeps a set: only the place and what is due are followed.
    Nobody,
    /// Of all items at the start, and then of each commit.
    OfAll(Box<dyn Listener>),
    /// Of each commit from the start on: what is stored then it reads by itself.
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

/// What the listener knows.
pub(crate) struct Feed {
    listener: FeedListener,
    private: PrivateKinds,
    // The commits that the listener knows; `None` while somebody holds them.
    history: Mutex<Option<CommitHistory>>,
    returned: Condvar,
    // The second at which the next stored event expires; `u64::MAX` when none does.
    next_expiry: AtomicU64,
    // Whether somebody has asked to vanish of whom there may still be something.
    is_vanishing: AtomicBool,
    // The number of the last commit that is known, for those who are woken up.
    known: AtomicU64,
    // The highest number of a commit that this node was told of.
    told: AtomicU64,
    // How many readings of commits one by one had no answer in time, since one had.
    late: AtomicUsize,
    // Whether the last reading of the feed succeeded, and when one did.
    is_current: AtomicBool,
    opened: Instant,
    read_after_ms: AtomicU64,
}

/// What the listener knows, held as it is. Others wait until this is dropped.
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
        // All: the one that is woken may be a query whose time is over.
        self.feed.returned.notify_all();
    }
}

/// What one reading of the feed has found, as of one moment.
pub(crate) struct News {
    next_expiry: u64,
    is_vanishing: bool,
    found: Found,
}

enum Found {
    /// Nothing has been committed.
    Nothing,
    /// The commit at which this node begins; what is stored is read elsewhere.
    Begin(FeedPlace),
    /// These commits.
    Change(Vec<KnownCommit>, Vec<Step>),
    /// Commits that were known are not there, and others in their place.
    Repaired(LostTail, Vec<KnownCommit>, Vec<Step>),
    /// The commits since the last reading cannot be had: all items that are for everybody.
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

    /// Holds what the listener knows as it is, once nobody else does.
    pub(crate) fn hold(&self, deadline: &Deadline) -> Result<HeldFeed<'_>, StoreError> {
        let mut history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(history) = history.take() {
                return Ok(HeldFeed { feed: self, history });
            }
            history = deadline.wait(&self.history, &self.returned, history)?;
        }
    }

    /// Reads what is new since the last commit of `history`, in the open transaction of the connection.
    /// Each answer, and each part of a long one, may take `patience`.
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
        let Some(head) = head.first() else {
            return Ok(News { next_expiry: u64::MAX, is_vanishing: false, found: Found::Nothing });
        };
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

    /// What to do where the last known commit is not in the feed: commits were lost, or this node was
    /// away for longer than the feed reaches.
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
                "feed of commits does not reach back to what this node knows; all items were read"
            );
            return Ok(Found::All(now, items, None));
        }
        Ok(Found::All(now, items, Some(lost)))
    }

    /// Waits for a reading of commits one by one; `None` where it finds too much, or where it was late too
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

    /// All items that are for everybody.
    async fn all(
        &self,
        connection: &ServerSession,
        patience: Duration,
    ) -> Result<Vec<Item>, StoreError> {
        if self.listener.get().is_none() {
            return Ok(Vec::new());
        }
        // A COPY takes no parameters.
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

    /// Tells the listener of what was read while `history` was held. Returns what the database has lost
    /// of what was known.
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

    /// Tells the listener of this node's own commit, where it is the next after the last that is known.
    /// Otherwise the commits before have to be read first, and with them this one.
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

    /// Passes on what is not stored.
    pub(crate) fn pass_on(&self, steps: Vec<Step>) -> Result<(), StoreError> {
        // Not while a commit is being told: the listener hears one thing after the other.
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

    /// Notes that there is nothing that the listener does not know.
    pub(crate) fn note_current(&self) {
        let after = self.opened.elapsed().as_millis();
        self.read_after_ms.store(u64::try_from(after).unwrap_or(u64::MAX), Ordering::Release);
        self.is_current.store(true, Ordering::Release);
    }

    /// Notes that the feed could not be read.
    pub(crate) fn lost(&self) {
        self.is_current.store(false, Ordering::Release);
    }

    /// Whether the feed could be read when it was last tried.
    pub(crate) fn is_current(&self) -> bool {
        self.is_current.load(Ordering::Acquire)
    }

    /// Notes that somebody told of a commit, and returns whether the listener knows it.
    pub(crate) fn hear_of(&self, seq: u64) -> bool {
        self.told.fetch_max(seq, Ordering::AcqRel);
        self.known() >= seq
    }

    /// How far the listener is behind what this node was told of.
    pub(crate) fn lag(&self) -> FeedLag {
        let read = Duration::from_millis(self.read_after_ms.load(Ordering::Acquire));
        FeedLag {
            commits: self.told.load(Ordering::Acquire).saturating_sub(self.known()),
            seconds: self.opened.elapsed().saturating_sub(read).as_secs(),
        }
    }

    /// The number of the last commit that the listener knows.
    pub(crate) fn known(&self) -> u64 {
        self.known.load(Ordering::Acquire)
    }

    /// The second at which the next stored event expires.
    pub(crate) fn next_expiry(&self) -> u64 {
        self.next_expiry.load(Ordering::Acquire)
    }

    /// Whether somebody has asked to vanish, by any node, of whom there may still be something.
    pub(crate) fn is_vanishing(&self) -> bool {
        self.is_vanishing.load(Ordering::Acquire)
    }

    /// Notes that nobody's request to vanish is pending.
    pub(crate) fn has_vanished(&self) {
        self.is_vanishing.store(false, Ordering::Release);
    }
}

/// The item that a step adds to the store or removes from it.
fn item_of(step: &Step) -> Option<Item> {
    match step {
        Step::Added(event) => Some(event.item()),
        Step::Removed(item) => Some(*item),
        Step::Passed(_) => None,
    }
}

/// The commits of a part of the feed: those after one, up to another. Both ends are in each statement: the server
/// takes what is open at one end for a third of the table, and reads all of it.
#[derive(Clone, Copy)]
pub(crate) struct Backlog {
    pub(crate) after: i64,
    pub(crate) to: i64,
}

impl Backlog {
    /// As [`Backlog::read`]; `None` where it is more than is read one by one.
    async fn read_few(
        self,
        connection: &ServerSession,
    ) -> Result<Option<(Vec<KnownCommit>, Vec<Step>)>, Error> {
        match self.events(connection).await? {
            Some(_) => self.read(connection).await.map(Some),
            None => Ok(None),
        }
    }

    /// How many events the commits added and removed; `None` where that, or what they hold, is more than is
    /// read one by one.
    pub(crate) async fn events(self, connection: &ServerSession) -> Result<Option<usize>, Error> {
        const COMMITS: &str = "SELECT coalesce(sum(added::bigint + removed), 0)::bigint, count(*)
            FROM feed_commit WHERE seq > $1 AND seq <= $2";
        // The length of a value that is stored elsewhere is known without reading it.
        const BYTES: &str = "SELECT coalesce(sum(octet_length(json)), 0)::bigint
            FROM event WHERE seq > $1 AND seq <= $2";
        let part: [Parameter<'_>; 2] = [&self.after, &self.to];
        let Some(row) = connection.query(COMMITS, &part).await?.pop() else { return Ok(Some(0)) };
        let (events, commits): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
        if events > MOST_NEW_EVENTS || commits > MOST_NEW_COMMITS {
            return Ok(None);
        }
        let bytes = connection.query(BYTES, &part).await?;
        let bytes: i64 = bytes.first().map_or(Ok(0), |row| row.try_get(0))?;
        Ok((bytes <= MOST_NEW_BYTES).then_some(events.max(0) as usize))
    }

    /// The commits and what they did, in their order; of one commit, what left comes first.
    pub(crate) async fn read(
        self,
        connection: &ServerSession,
    ) -> Result<(Vec<KnownCommit>, Vec<Step>), Error> {
        const COMMITS: &str =
            "SELECT seq, mark FROM feed_commit WHERE seq > $1 AND seq <= $2 ORDER BY seq";
        const GONE: &str = "SELECT seq, created_at, id FROM gone WHERE seq > $1 AND seq <= $2";
        const ADDED: &str = "SELECT seq, json FROM event WHERE seq > $1 AND seq <= $2";
        let part: [Parameter<'_>; 2] = [&self.after, &self.to];
        let (commits, gone, added) = try_join3(
            connection.query(COMMITS, &part),
            connection.query(GONE, &part),
            connection.query(ADDED, &part),
        )
        .await?;
        let mut steps = Vec::new();
        for row in gone {
            let item = Item::new(second(&row, 1)?, bytes(&row, 2)?);
            steps.push((row.try_get::<_, i64>(0)?, false, Step::Removed(item)));
        }
        for row in added {
            // One that is no event any more is for `check`.
            if let Ok(event) = Event::parse(row.try_get(1)?) {
                steps.push((row.try_get::<_, i64>(0)?, true, Step::Added(Arc::new(event))));
            }
        }
        steps.sort_by_key(|(seq, is_added, _)| (*seq, *is_added));
        let mut rest = steps.as_slice();
        let mut known = Vec::new();
        for row in &commits {
            let place = FeedPlace::read(row)?;
            let own = rest.partition_point(|(seq, ..)| *seq <= place.seq);
            let (own, later) = rest.split_at(own);
            rest = later;
            let items = own.iter().filter_map(|(_, _, step)| item_of(step)).collect();
            known.push(KnownCommit { place, items });
        }
        Ok((known, steps.into_iter().map(|(_, _, step)| step).collect()))
    }
}
