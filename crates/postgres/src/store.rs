//! The store: what the program calls.

use crate::address::Address;
use crate::columns::second;
use crate::connection::{Engine, ServerSession, SessionPool, with_connection};
use crate::ephemeral::{self, EphemeralCursor};
use crate::fault::fault;
use crate::feed::Feed;
use crate::history::CommitHistory;
use crate::listening::{self, Follow};
use crate::reading::{BEGIN, StoreReading};
use crate::replica::log_replica;
use crate::size::{self, StoreSize};
use crate::transaction::FeedPlace;
use crate::writer::{NodeJob, NodeQueue, NodeWriter, NodeWriterContext};
use crate::{lease, memory, schema};
use negsync_nostr::{Filter, VerifiedEvent};
use negsync_reconcile::Item;
use negsync_store::{
    Deadline, EventSource, EventStore, FeedLag, Hit, Listener, Origin, PeerTraits, RefusedId,
    Reply, Retention, RuleMatches, Selected, Selection, Step, StoreError, StoreMetrics,
    StoreOptions, StoredPage, SyncMark, Undelete, UndeleteError, View, VisitEvent, Work, unix_now,
};
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

/// So many connections look at the feed.
const LOOKS_AT_ONCE: usize = 2;

/// What retention is told.
const NO_RETENTION: StoreError =
    StoreError::Unsupported { what: "retention", instead: "remove events with `negsync delete`" };

/// A store on a server. Clones share it; it closes with [`EventStore::close`] or with the last clone.
#[derive(Clone)]
pub struct PostgresStore {
    inner: Arc<StoreParts>,
    // Of the reads of this clone.
    deadline: Deadline,
}

struct StoreParts {
    shared: Arc<Shared>,
    writer: NodeWriter,
    metrics: StoreMetrics,
}

/// What the store, its writer and the thread that follows the feed have in common.
struct Shared {
    engine: Arc<Engine>,
    pool: SessionPool,
    // For looks at the feed, which wait for no query.
    looks: SessionPool,
    feed: Arc<Feed>,
    // What other nodes pass on.
    ephemeral: EphemeralCursor,
    size: StoreSize,
    // Whether this node has asked for the lease.
    asks_for_lease: AtomicBool,
    // The writer's, who sends again what was lost.
    queue: Arc<NodeQueue>,
}

impl Drop for StoreParts {
    fn drop(&mut self) {
        self.close();
    }
}

impl StoreParts {
    fn close(&self) {
        self.writer.stop();
        self.shared.give_up_lease();
        self.shared.looks.close();
        self.shared.pool.close();
    }
}

impl PostgresStore {
    /// Opens the store at the address, making its tables when they are not there. `listener` hears of all
    /// items that are for everybody (none of a private kind of `options`), and then of every change, by
    /// this node or another one.
    ///
    /// # Errors
    /// When the server cannot be reached or refuses, when the tables are of a later version, and
    /// [`StoreError::Unsupported`] where `options` ask for retention.
    pub fn open(
        address: &Address,
        options: StoreOptions,
        listener: Box<dyn Listener>,
    ) -> Result<Self, StoreError> {
        Self::open_with(address, options, Some(listener))
    }

    /// As [`PostgresStore::open`], for whoever keeps no set: what is stored is not read.
    ///
    /// # Errors
    /// As [`PostgresStore::open`].
    pub fn open_without_sets(address: &Address, options: StoreOptions) -> Result<Self, StoreError> {
        Self::open_with(address, options, None)
    }

    fn open_with(
        address: &Address,
        options: StoreOptions,
        listener: Option<Box<dyn Listener>>,
    ) -> Result<Self, StoreError> {
        let named = |error| match error {
            StoreError::Database { source, .. } => {
                StoreError::Database { store: address.to_string(), source }
            }
            other => other,
        };
        if options.retention.as_ref().is_some_and(|rules| !rules.is_empty()) {
            return Err(NO_RETENTION);
        }
        let engine = Arc::new(Engine::start()?);
        let passed_by = engine
            .wait(async {
                let connection = ServerSession::open(address).await?;
                log_replica(&connection).await?;
                schema::migrate(&connection).await?;
                let newest = connection.query("SELECT max(number) FROM ephemeral", &[]).await;
                let newest = newest.map_err(fault)?;
                let newest: Option<Option<i64>> =
                    newest.first().map(|row| row.try_get(0)).transpose().map_err(fault)?;
                Ok(newest.flatten())
            })
            .map_err(named)?;
        tracing::info!(store = %address, "store on PostgreSQL open");
        let feed = Arc::new(Feed::new(listener, options.private_kinds.clone()));
        let shared = Arc::new(Shared {
            engine: Arc::clone(&engine),
            pool: SessionPool::new(address.clone(), options.readers),
            looks: SessionPool::new(address.clone(), LOOKS_AT_ONCE),
            feed: Arc::clone(&feed),
            ephemeral: EphemeralCursor::new(rand::random(), passed_by),
            size: StoreSize::default(),
            asks_for_lease: AtomicBool::new(false),
            queue: Arc::default(),
        });
        shared.look().map_err(named)?;
        shared.measure_now_and_then();
        let metrics = StoreMetrics::default();
        let for_writer = Arc::downgrade(&shared);
        let context = NodeWriterContext {
            engine: Arc::clone(&engine),
            address: address.clone(),
            node: shared.ephemeral.node(),
            feed,
            metrics: metrics.clone(),
            us: options.relay_url.as_ref().map(negsync_nostr::RelayUrl::name),
            batches: options.batches,
            synchronous: options.synchronous,
            catch_up: Box::new(move || {
                for_writer.upgrade().map_or(Err(StoreError::Closed), |shared| shared.look())
            }),
        };
        let writer = NodeWriter::start(context, Arc::clone(&shared.queue))?;
        let own = ephemeral::wake_up(shared.ephemeral.node());
        listening::start(&engine, address, own, FeedFollower(Arc::downgrade(&shared)))?;
        let inner = Arc::new(StoreParts { shared, writer, metrics });
        Ok(Self { inner, deadline: Deadline::default() })
    }

    /// The same store, whose reads end at the deadline.
    pub fn with_deadline(&self, deadline: Deadline) -> Self {
        Self { inner: Arc::clone(&self.inner), deadline }
    }

    /// Runs `work` in a reading of one moment.
    fn read<T>(
        &self,
        work: impl FnOnce(&StoreReading<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let shared = &self.inner.shared;
        let reading = shared.begin(&shared.pool, &self.deadline)?;
        let done = work(&reading)?;
        reading.end()?;
        Ok(done)
    }

    /// Runs a statement of its own.
    fn run<T>(
        &self,
        work: impl AsyncFn(&ServerSession) -> Result<T, tokio_postgres::Error>,
    ) -> Result<T, StoreError> {
        let shared = &self.inner.shared;
        with_connection(&shared.pool, &shared.engine, work)
    }
}

impl Shared {
    /// Begins a reading, over another connection where the first was lost.
    fn begin<'store>(
        &'store self,
        pool: &'store SessionPool,
        deadline: &'store Deadline,
    ) -> Result<StoreReading<'store>, StoreError> {
        let mut is_second = false;
        loop {
            let checkout = pool.take(&self.engine, deadline)?;
            let reading = StoreReading { engine: &self.engine, deadline, checkout };
            let connection = reading.connection()?;
            let begin = async { connection.client().batch_execute(BEGIN).await.map_err(fault) };
            match reading.wait_shortly(begin) {
                Ok(()) => return Ok(reading),
                Err(StoreError::Interrupted) => return Err(StoreError::Interrupted),
                Err(error) if is_second => return Err(error),
                Err(_) => is_second = true,
            }
        }
    }

    /// Begins a reading of what the listener knows then, and nothing more; calls `beside` before it knows
    /// of anything else.
    fn begin_at_known<'store>(
        &'store self,
        pool: &'store SessionPool,
        deadline: &'store Deadline,
        beside: &mut dyn FnMut(),
    ) -> Result<StoreReading<'store>, StoreError> {
        // It sees what is there when its first query comes: what is known cannot be ahead of it.
        let reading = self.begin(pool, deadline).inspect_err(|error| {
            if !matches!(error, StoreError::Interrupted | StoreError::Closed) {
                self.feed.lost();
            }
        })?;
        let mut known = self.feed.hold(deadline)?;
        self.look_in(&reading, &mut known)?;
        beside();
        Ok(reading)
    }

    fn look_in(
        &self,
        reading: &StoreReading<'_>,
        known: &mut CommitHistory,
    ) -> Result<(), StoreError> {
        let patience = reading.checkout.patience();
        let news = self.feed.read(reading.connection()?, known, patience);
        match reading.wait_for_parts(news) {
            Ok(news) => {
                if let Some(lost) = self.feed.tell(known, news) {
                    let common = lost.common.map_or(-1, |common| common.seq);
                    // Fails only where the store is being closed.
                    let _ = self.queue.push(&Origin::Local, [(1, NodeJob::SendAgain { common })]);
                }
                Ok(())
            }
            Err(error) => {
                self.feed.lost();
                Err(error)
            }
        }
    }

    /// Looks at the feed where there is something new, and returns whether there was.
    fn follow(&self) -> Result<bool, StoreError> {
        const HEAD: &str = "SELECT seq, mark, (SELECT max(number) FROM ephemeral) FROM head";
        let head = with_connection(&self.looks, &self.engine, async |connection| {
            let rows = connection.query(HEAD, &[]).await?;
            let Some(row) = rows.first() else { return Ok((None, None)) };
            Ok((Some(FeedPlace::read(row)?), row.try_get::<_, Option<i64>>(2)?))
        });
        let (head, newest) = head.inspect_err(|_| self.feed.lost())?;
        let is_behind =
            !self.feed.is_current() || head != self.feed.hold(&Deadline::default())?.last();
        if is_behind {
            self.look()?;
        } else {
            self.feed.note_current();
        }
        self.measure_now_and_then();
        let passes_by = self.ephemeral.is_behind(newest);
        if let Some(newest) = newest {
            self.pass_on(newest)?;
        }
        Ok(is_behind || passes_by)
    }

    /// Passes on the ephemeral events that other nodes have handed over, up to a number.
    fn pass_on(&self, newest: i64) -> Result<(), StoreError> {
        while self.ephemeral.is_behind(Some(newest)) {
            let read =
                async |connection: &ServerSession| self.ephemeral.read(connection, newest).await;
            let events = with_connection(&self.looks, &self.engine, read)?;
            if !events.is_empty() {
                self.feed.pass_on(events.into_iter().map(Step::Passed).collect())?;
            }
        }
        Ok(())
    }

    /// Looks at the size of the tables where that was long ago.
    fn measure_now_and_then(&self) {
        if self.size.is_due() {
            let measured = with_connection(&self.looks, &self.engine, size::read);
            match measured {
                Ok(bytes) => self.size.note(bytes),
                Err(error) => tracing::debug!(%error, "size of the store not known"),
            }
        }
    }

    /// Gives the lease up, so that another node takes it before its term ends.
    fn give_up_lease(&self) {
        if !self.asks_for_lease.swap(false, Ordering::AcqRel) {
            return;
        }
        let node = self.ephemeral.node();
        let given_up = with_connection(&self.looks, &self.engine, async |connection| {
            lease::give_up(connection, node).await
        });
        if let Err(error) = given_up {
            tracing::debug!(%error, "lease not given up; its term ends by itself");
        }
    }

    /// Looks at the feed.
    fn look(&self) -> Result<(), StoreError> {
        let none = Deadline::default();
        self.begin_at_known(&self.looks, &none, &mut || {})?.end()
    }
}

/// Follows the feed for as long as the store is open.
struct FeedFollower(Weak<Shared>);

impl Follow for FeedFollower {
    fn knows(&self, seq: u64) -> bool {
        self.0.upgrade().is_some_and(|shared| shared.feed.hear_of(seq))
    }

    fn look(&self) -> Option<Result<bool, StoreError>> {
        match self.0.upgrade()?.follow() {
            Err(StoreError::Closed) => None,
            looked => Some(looked),
        }
    }
}

impl EventSource for PostgresStore {
    fn with_deadline(&self, deadline: Deadline) -> Arc<dyn EventSource> {
        Arc::new(self.with_deadline(deadline))
    }

    fn deadline(&self) -> &Deadline {
        &self.deadline
    }

    fn catch_up(&self) -> Result<(), StoreError> {
        self.wait_until_published()?;
        self.expire()
    }

    fn waits_for_server(&self) -> bool {
        true
    }

    fn wait_until_published(&self) -> Result<(), StoreError> {
        let shared = &self.inner.shared;
        shared.begin_at_known(&shared.looks, &self.deadline, &mut || {})?.end()
    }

    fn read_snapshot(&self, work: &mut Work<'_>) -> Result<(), StoreError> {
        self.read_at_commit(&mut || {}, work)
    }

    fn read_at_commit(
        &self,
        beside: &mut dyn FnMut(),
        work: &mut Work<'_>,
    ) -> Result<(), StoreError> {
        let shared = &self.inner.shared;
        let reading = shared.begin_at_known(&shared.pool, &self.deadline, beside)?;
        work(&reading)?;
        reading.end()
    }

    fn events(
        &self,
        ids: &[[u8; 32]],
        visit: &mut dyn FnMut(&Item, &str),
    ) -> Result<(), StoreError> {
        let mut ids = ids.to_vec();
        ids.sort_unstable();
        ids.dedup();
        let filter = Filter { ids: Some(ids), ..Filter::default() };
        self.read(|reading| {
            let now = unix_now();
            let (hits, _) = reading.newest(&[View::whole(filter)], usize::MAX, now)?;
            let mut all = |item: &Item, json: &str| {
                visit(item, json);
                ControlFlow::Continue(())
            };
            reading.fetch(&hits, now, &mut all).map(|_| ())
        })
    }
}

impl EventStore for PostgresStore {
    fn until(&self, deadline: Deadline) -> Arc<dyn EventStore> {
        Arc::new(self.with_deadline(deadline))
    }

    fn submit(&self, origin: &Origin, events: Vec<VerifiedEvent>, reply: Reply) {
        self.inner.writer.submit(origin, events, reply);
    }

    fn newest(&self, filters: &[Filter], most: usize) -> Result<Vec<Hit>, StoreError> {
        let views: Vec<View> = filters.iter().cloned().map(View::whole).collect();
        self.read(|reading| Ok(reading.newest(&views, most, unix_now())?.0))
    }

    fn newest_and_first(
        &self,
        views: &[View],
        most: usize,
        now: u64,
        visit: &mut VisitEvent<'_>,
    ) -> Result<StoredPage, StoreError> {
        self.read(|reading| {
            let (hits, left_out) = reading.newest(views, most, now)?;
            let read = reading.fetch(&hits, now, visit)?;
            Ok(StoredPage { hits, read, left_out })
        })
    }

    fn fetch(&self, hits: &[Hit], visit: &mut VisitEvent<'_>) -> Result<usize, StoreError> {
        self.read(|reading| reading.fetch(hits, unix_now(), visit))
    }

    fn oldest_first(&self, filter: &Filter, visit: &mut VisitEvent<'_>) -> Result<(), StoreError> {
        self.read(|reading| {
            let (now, views) = (unix_now(), [View::whole(filter.clone())]);
            let (mut hits, _) = reading.newest(&views, usize::MAX, now)?;
            hits.reverse();
            reading.fetch(&hits, now, visit).map(|_| ())
        })
    }

    fn kinds(&self) -> Result<Vec<(u16, u64)>, StoreError> {
        const KINDS: &str = "SELECT kind, count(*) FROM event GROUP BY kind ORDER BY kind";
        self.read(|reading| {
            let connection = reading.connection()?;
            let rows = reading.wait(connection.query(KINDS, &[]))?;
            let pair =
                |row: &tokio_postgres::Row| Ok((row.try_get::<_, i32>(0)? as u16, second(row, 1)?));
            rows.iter().map(pair).collect::<Result<_, _>>().map_err(fault)
        })
    }

    fn expire(&self) -> Result<(), StoreError> {
        let (feed, now) = (&self.inner.shared.feed, unix_now());
        if feed.next_expiry() > now {
            return Ok(());
        }
        self.inner.writer.expire()?;
        // The node's own removals do not say what is due next.
        self.inner.shared.look()?;
        if feed.next_expiry() <= now { Err(StoreError::NotExpired) } else { Ok(()) }
    }

    fn remove(&self, filter: &Filter) -> Result<(), StoreError> {
        let filter = Filter { limit: None, ..filter.clone() };
        let ids = self.read(|reading| reading.ids(&filter))?;
        self.inner.writer.remove(ids, false)
    }

    fn selected(&self, selection: &Selection) -> Result<Selected, StoreError> {
        self.read(|reading| selection.among_found(&|filter| reading.ids(filter)))
    }

    fn delete(&self, selection: &Selection) -> Result<Selected, StoreError> {
        let selected = self.selected(selection)?;
        self.inner.writer.remove(selected.ids.clone(), true)?;
        Ok(selected)
    }

    fn undeleted(&self, undelete: &Undelete) -> Result<Vec<[u8; 32]>, UndeleteError> {
        undelete.check()?;
        Ok(self.run(async |connection| memory::undeleted(connection, undelete).await)?)
    }

    fn undelete(&self, undelete: &Undelete) -> Result<u64, UndeleteError> {
        let ids = self.undeleted(undelete)?;
        self.run(async |connection| memory::undelete(connection, &ids).await)?;
        Ok(ids.len() as u64)
    }

    fn retain(&self, rules: Retention) -> Result<(), StoreError> {
        if rules.is_empty() { Ok(()) } else { Err(NO_RETENTION) }
    }

    fn retire(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn preview(&self, retention: &Retention) -> Result<(Vec<RuleMatches>, u64), StoreError> {
        if retention.is_empty() { Ok((Vec::new(), 0)) } else { Err(NO_RETENTION) }
    }

    fn refused(
        &self,
        peer: &str,
        ids: &[[u8; 32]],
    ) -> Result<HashMap<[u8; 32], String>, StoreError> {
        let now = unix_now();
        self.run(async |connection| memory::refused(connection, peer, ids, now).await)
    }

    fn remember_refused(&self, refused: Vec<RefusedId>) -> Result<(), StoreError> {
        let now = unix_now();
        self.run(async |connection| memory::remember_refused(connection, &refused, now).await)
    }

    fn sync_mark(&self, peer: &str, filter: &str) -> Result<SyncMark, StoreError> {
        self.run(async |connection| memory::mark(connection, peer, filter).await)
    }

    fn remember_mark(
        &self,
        peer: String,
        filter: String,
        mark: SyncMark,
    ) -> Result<(), StoreError> {
        let now = unix_now();
        self.run(async |connection| {
            memory::remember_mark(connection, &peer, &filter, &mark, now).await
        })
    }

    fn peer_traits(&self, peer: &str) -> Result<PeerTraits, StoreError> {
        self.run(async |connection| memory::traits(connection, peer).await)
    }

    fn remember_traits(&self, peer: String, traits: PeerTraits) -> Result<(), StoreError> {
        let now = unix_now();
        self.run(async |connection| memory::remember_traits(connection, &peer, &traits, now).await)
    }

    fn follow_others(&self) -> Result<(), StoreError> {
        self.wait_until_published()
    }

    fn take_lease(&self, term: Duration) -> Result<bool, StoreError> {
        let shared = &self.inner.shared;
        shared.asks_for_lease.store(true, Ordering::Release);
        let node = shared.ephemeral.node();
        self.run(async |connection| lease::take(connection, node, term).await)
    }

    fn check_writable(&self) -> Result<(), StoreError> {
        self.run(async |connection| {
            connection.execute("UPDATE store SET version = version", &[]).await.map(|_| ())
        })
    }

    fn is_durable(&self) -> bool {
        // What is in the feed is committed, and by that as safe as the server makes it.
        self.inner.shared.feed.is_current()
    }

    fn check_in_place(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn size(&self) -> (u64, u64) {
        // The log is the server's, of all its databases.
        (self.inner.shared.size.bytes(), 0)
    }

    fn feed_lag(&self) -> Option<FeedLag> {
        Some(self.inner.shared.feed.lag())
    }

    fn metrics(&self) -> &StoreMetrics {
        &self.inner.metrics
    }

    fn close(&self) {
        self.inner.close();
    }
}
