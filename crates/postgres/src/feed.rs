//! What this node knows of the commits of all nodes, and how it comes to know more: read in the same
//! transaction as a set, so that a set is never older than what any node has acknowledged before.

use crate::connection::{Parameter, ServerSession};
use crate::fault::fault;
use crate::transaction::{FeedPlace, bytes, second};
use futures_util::TryStreamExt;
use negsync_nostr::Event;
use negsync_reconcile::Item;
use negsync_store::{Change, Listener, PrivateKinds, Step, StoreError};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio_postgres::Error;

/// With more new events than that, or commits, everything is read anew: items alone, without the events.
const MOST_NEW_EVENTS: i64 = 50_000;
const MOST_NEW_COMMITS: i64 = 20_000;

/// What the listener knows.
pub(crate) struct Feed {
    // None where nobody keeps a set: then only the place and the next expiry are followed.
    listener: Option<Box<dyn Listener>>,
    private: PrivateKinds,
    // The last commit that the listener knows; `None` while it knows nothing.
    place: Mutex<Option<FeedPlace>>,
    // The second at which the next stored event expires; `u64::MAX` when none does.
    next_expiry: AtomicU64,
    // The highest number of a commit that is known, for those who are woken up.
    known: AtomicU64,
    // Whether the last reading of the feed succeeded.
    is_current: AtomicBool,
}

/// What one reading of the feed has found, as of one moment.
pub(crate) struct News {
    next_expiry: u64,
    found: Found,
}

enum Found {
    /// Nothing has been committed.
    Nothing,
    /// Commits up to this place.
    Change(FeedPlace, Vec<Step>),
    /// The commits since the last reading cannot be had: all items that are for everybody.
    All(FeedPlace, Vec<Item>),
}

impl Feed {
    pub(crate) fn new(listener: Option<Box<dyn Listener>>, private: PrivateKinds) -> Self {
        Self {
            listener,
            private,
            place: Mutex::new(None),
            next_expiry: AtomicU64::new(0),
            known: AtomicU64::new(0),
            is_current: AtomicBool::new(false),
        }
    }

    /// Holds what the listener knows as it is.
    pub(crate) fn hold(&self) -> MutexGuard<'_, Option<FeedPlace>> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads what is new since `place`, in the open transaction of the connection.
    pub(crate) async fn read(
        &self,
        connection: &ServerSession,
        place: Option<FeedPlace>,
    ) -> Result<News, StoreError> {
        self.look(connection, place).await.map_err(fault)
    }

    async fn look(
        &self,
        connection: &ServerSession,
        place: Option<FeedPlace>,
    ) -> Result<News, Error> {
        const HEAD: &str = "SELECT h.seq, (SELECT mark FROM feed_commit c WHERE c.seq = h.seq),
                (SELECT mark FROM feed_commit c WHERE c.seq = $1),
                (SELECT min(expires_at) FROM event WHERE expires_at IS NOT NULL)
            FROM head h";
        const ADDED: &str =
            "SELECT coalesce(sum(added), 0)::bigint, count(*) FROM feed_commit WHERE seq > $1";
        let last = place.map_or(-1, |place| place.seq);
        let head = connection.query(HEAD, &[&last]).await?;
        let Some(head) = head.first() else {
            return Ok(News { next_expiry: u64::MAX, found: Found::Nothing });
        };
        let next_expiry =
            head.try_get::<_, Option<i64>>(3)?.map_or(u64::MAX, |second| second.max(0) as u64);
        let mark: Option<i64> = head.try_get(1)?;
        let now = FeedPlace { seq: head.try_get(0)?, mark: mark.unwrap_or_default() };
        if self.listener.is_none() {
            return Ok(News { next_expiry, found: Found::Change(now, Vec::new()) });
        }
        let is_known: Option<i64> = head.try_get(2)?;
        let Some(place) =
            place.filter(|place| is_known == Some(place.mark) && place.seq <= now.seq)
        else {
            if let Some(place) = place {
                tracing::warn!(
                    known = place.seq,
                    head = now.seq,
                    "commits that were known are not in the database; reading everything anew"
                );
            }
            return Ok(News { next_expiry, found: Found::All(now, self.all(connection).await?) });
        };
        if place.seq == now.seq {
            return Ok(News { next_expiry, found: Found::Nothing });
        }
        let news = connection.query(ADDED, &[&place.seq]).await?;
        let (added, commits): (i64, i64) = match news.first() {
            Some(row) => (row.try_get(0)?, row.try_get(1)?),
            None => (0, 0),
        };
        if added > MOST_NEW_EVENTS || commits > MOST_NEW_COMMITS {
            return Ok(News { next_expiry, found: Found::All(now, self.all(connection).await?) });
        }
        let steps = steps_since(connection, place.seq).await?;
        Ok(News { next_expiry, found: Found::Change(now, steps) })
    }

    /// All items that are for everybody.
    async fn all(&self, connection: &ServerSession) -> Result<Vec<Item>, Error> {
        const ALL: &str = "SELECT created_at, id FROM event WHERE kind <> ALL($1)";
        let private: Vec<i32> =
            self.private.as_slice().iter().map(|kind| i32::from(*kind)).collect();
        let statement = connection.prepared(ALL).await?;
        let parameters: [Parameter<'_>; 1] = [&private];
        let mut rows = pin!(connection.client().query_raw(&statement, parameters).await?);
        let mut items = Vec::new();
        while let Some(row) = rows.try_next().await? {
            items.push(Item::new(second(&row, 0)?, bytes(&row, 1)?));
        }
        Ok(items)
    }

    /// Tells the listener of what was read while `place` was held.
    pub(crate) fn tell(&self, place: &mut Option<FeedPlace>, news: News) {
        let now = match news.found {
            Found::Nothing => *place,
            Found::Change(now, steps) => {
                self.changed(steps);
                Some(now)
            }
            Found::All(now, items) => {
                if let Some(listener) = &self.listener {
                    listener.begun(items);
                }
                Some(now)
            }
        };
        self.moved(place, now, news.next_expiry);
    }

    /// Tells the listener of this node's own commit, where it is the next after the last that is known.
    /// Otherwise the commits before have to be read first, and with them this one.
    pub(crate) fn tell_own(&self, own: FeedPlace, steps: Vec<Step>, expires_at: u64) -> bool {
        let mut place = self.hold();
        let is_next = place.is_some_and(|place| place.seq.saturating_add(1) == own.seq);
        if is_next {
            self.changed(steps);
            let next_expiry = self.next_expiry().min(expires_at);
            self.moved(&mut place, Some(own), next_expiry);
        }
        is_next || place.is_some_and(|place| place.seq >= own.seq)
    }

    /// Passes on what is not stored.
    pub(crate) fn pass_on(&self, steps: Vec<Step>) {
        // Not while a commit is being told: the listener hears one thing after the other.
        let _held = self.hold();
        self.changed(steps);
    }

    fn changed(&self, steps: Vec<Step>) {
        if let Some(listener) = &self.listener {
            listener.changed(Arc::new(Change { steps }));
        }
    }

    fn moved(&self, place: &mut Option<FeedPlace>, now: Option<FeedPlace>, next_expiry: u64) {
        *place = now;
        let seq = now.map_or(0, |place| place.seq.max(0) as u64);
        self.known.store(seq, Ordering::Release);
        self.next_expiry.store(next_expiry, Ordering::Release);
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

    /// The highest number of a commit that the listener knows.
    pub(crate) fn known(&self) -> u64 {
        self.known.load(Ordering::Acquire)
    }

    /// The second at which the next stored event expires.
    pub(crate) fn next_expiry(&self) -> u64 {
        self.next_expiry.load(Ordering::Acquire)
    }
}

/// What the commits behind a number did, in their order; of one commit, what left comes first.
async fn steps_since(connection: &ServerSession, seq: i64) -> Result<Vec<Step>, Error> {
    const GONE: &str = "SELECT seq, created_at, id FROM gone WHERE seq > $1";
    const ADDED: &str = "SELECT seq, json FROM event WHERE seq > $1";
    let mut steps = Vec::new();
    for row in connection.query(GONE, &[&seq]).await? {
        let item = Item::new(second(&row, 1)?, bytes(&row, 2)?);
        steps.push((row.try_get::<_, i64>(0)?, false, Step::Removed(item)));
    }
    for row in connection.query(ADDED, &[&seq]).await? {
        // One that is no event any more is for `check`.
        if let Ok(event) = Event::parse(row.try_get(1)?) {
            steps.push((row.try_get::<_, i64>(0)?, true, Step::Added(Arc::new(event))));
        }
    }
    steps.sort_by_key(|(seq, is_added, _)| (*seq, *is_added));
    Ok(steps.into_iter().map(|(_, _, step)| step).collect())
}
