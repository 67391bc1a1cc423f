//! The store's interface.

use crate::acknowledged::OperatorAction;
use crate::address::Address;
use crate::columns::second;
use crate::connection::{ServerSession, with_connection};
use crate::fault::fault;
use crate::feed::FeedListener;
use crate::index_mark;
use crate::node::StoreNode;
use crate::preview::preview;
use crate::reading::StoreReading;
use crate::transaction::retention;
use crate::writer::{NodeWriter, NodeWriterContext};
use crate::{listening, memory};
use negsync_nostr::{Filter, VerifiedEvent};
use negsync_reconcile::Item;
use negsync_store::{
    Clock, Deadline, EventSource, EventStore, FeedLag, Hit, Listener, MarkName, MarkedStore,
    Origin, PeerTraits, RefusedId, Reply, Retention, RetentionWindow, RuleMatches, Selected,
    Selection, StoreError, StoreMetrics, StoreOptions, StoredPage, SyncMark, Undelete,
    UndeleteError, View, VisitEvent, Work,
};
use std::collections::HashMap;
use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

/// The error for retention by size: the tables of a server do not shrink when events are removed.
const NO_RULE_OF_SIZE: StoreError = StoreError::Unsupported {
    what: "retention by the size of the store (store_mb)",
    instead: "keep less with max_age_s and max_per_author",
};

/// A store on a server. Clones share it; it closes with [`EventStore::close`] or when the last
/// clone is dropped.
#[derive(Clone)]
pub struct PostgresStore {
    inner: Arc<StoreParts>,
    // The deadline for reads of this clone.
    deadline: Deadline,
}

struct StoreParts {
    node: Arc<StoreNode>,
    writer: NodeWriter,
}

impl fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresStore").field("deadline", &self.deadline).finish_non_exhaustive()
    }
}

impl Drop for StoreParts {
    fn drop(&mut self) {
        self.close();
    }
}

impl StoreParts {
    fn close(&self) {
        self.writer.stop();
        self.node.close();
    }
}

impl PostgresStore {
    /// Opens the store at the address, and creates missing tables. `listener` gets all public items
    /// (those of no private kind of `options`), and then every change by this node or another one.
    ///
    /// # Errors
    /// [`StoreError`] when the server cannot be reached or refuses the connection, or when the
    /// tables are of a newer version; [`StoreError::Unsupported`] when `options` contain retention
    /// by size.
    pub fn open(
        address: &Address,
        options: StoreOptions,
        listener: Box<dyn Listener>,
    ) -> Result<Self, StoreError> {
        Self::open_with(address, options, FeedListener::OfAll(listener))
    }

    /// Like [`PostgresStore::open`], for an index that is kept in files: `listener` gets every
    /// change that is committed after this returns, and reads the stored events itself. It gets all
    /// items only if it has to begin again later.
    ///
    /// # Errors
    /// As [`PostgresStore::open`].
    pub fn open_unread(
        address: &Address,
        options: StoreOptions,
        listener: Box<dyn Listener>,
    ) -> Result<Self, StoreError> {
        Self::open_with(address, options, FeedListener::OfChanges(listener))
    }

    /// Like [`PostgresStore::open`], for programs that keep no sets: the stored items are not read.
    ///
    /// # Errors
    /// As [`PostgresStore::open`].
    pub fn open_without_sets(address: &Address, options: StoreOptions) -> Result<Self, StoreError> {
        Self::open_with(address, options, FeedListener::Nobody)
    }

    fn open_with(
        address: &Address,
        options: StoreOptions,
        listener: FeedListener,
    ) -> Result<Self, StoreError> {
        let named = |error| match error {
            StoreError::Database { source, .. } => {
                StoreError::Database { store: address.to_string(), source }
            }
            other => other,
        };
        let rules = options.retention.as_ref();
        if rules.is_some_and(|rules| rules.store_bytes.is_some()) {
            return Err(NO_RULE_OF_SIZE);
        }
        let node = StoreNode::open(address, &options, listener).map_err(named)?;
        if let Some(rules) = rules {
            node.retain(rules)?;
        }
        let for_writer = Arc::downgrade(&node);
        let context = NodeWriterContext {
            engine: Arc::clone(&node.engine),
            address: address.clone(),
            node: node.number(),
            feed: Arc::clone(&node.feed),
            metrics: node.metrics.clone(),
            us: options.relay_url.clone(),
            batches: options.batches,
            clock: options.clock.clone(),
            synchronous: options.synchronous,
            catch_up: Box::new(move || {
                let node = for_writer.upgrade().ok_or(StoreError::Closed)?;
                node.look(&Deadline::default())
            }),
        };
        let writer = NodeWriter::start(context, Arc::clone(&node.queue))?;
        listening::start(&node, address)?;
        let inner = Arc::new(StoreParts { node, writer });
        Ok(Self { inner, deadline: Deadline::default() })
    }

    /// The same store with a deadline for its reads.
    #[must_use]
    pub fn with_deadline(&self, deadline: Deadline) -> Self {
        Self { inner: Arc::clone(&self.inner), deadline }
    }

    /// Runs `work` on one snapshot.
    fn read<T>(
        &self,
        work: impl FnOnce(&StoreReading<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let node = &self.inner.node;
        let reading = node.begin(&node.pool, &self.deadline)?;
        let done = work(&reading)?;
        reading.end()?;
        Ok(done)
    }

    /// Runs a single statement.
    fn run<T>(
        &self,
        work: impl AsyncFn(&ServerSession) -> Result<T, tokio_postgres::Error>,
    ) -> Result<T, StoreError> {
        let node = &self.inner.node;
        with_connection(&node.pool, &node.engine, work)
    }
}

impl EventSource for PostgresStore {
    fn with_deadline(&self, deadline: Deadline) -> Arc<dyn EventSource> {
        Arc::new(self.with_deadline(deadline))
    }

    fn deadline(&self) -> &Deadline {
        &self.deadline
    }

    fn clock(&self) -> &Clock {
        &self.inner.node.clock
    }

    fn catch_up(&self) -> Result<(), StoreError> {
        self.wait_until_published()?;
        self.expire()
    }

    fn waits_for_server(&self) -> bool {
        true
    }

    fn wait_until_published(&self) -> Result<(), StoreError> {
        self.inner.node.look(&self.deadline)
    }

    fn read_snapshot(&self, work: &mut Work<'_>) -> Result<(), StoreError> {
        self.read_at_commit(&mut || {}, work)
    }

    fn read_at_commit(
        &self,
        beside: &mut dyn FnMut(),
        work: &mut Work<'_>,
    ) -> Result<(), StoreError> {
        let node = &self.inner.node;
        let reading = node.begin_at_known(&node.pool, &self.deadline, beside)?;
        work(&reading)?;
        reading.end()
    }

    fn retention_window(&self, filter: &Filter) -> Result<Option<RetentionWindow>, StoreError> {
        let rules = self.run(async |connection| retention::rules(connection).await)?;
        Ok(rules.window(filter, 0, self.clock().now()))
    }

    fn events(
        &self,
        ids: &[[u8; 32]],
        visit: &mut dyn FnMut(&Item, &str),
    ) -> Result<(), StoreError> {
        let filter = Filter::of_ids(ids);
        self.read(|reading| {
            let now = self.clock().now();
            let (hits, _) = reading.newest(&[View::whole(filter)], usize::MAX, now)?;
            let mut all = |item: &Item, json: &str| {
                visit(item, json);
                ControlFlow::Continue(())
            };
            reading.fetch(&hits, now, &mut all).map(|_| ())
        })
    }
}

/// Every commit can serve as a mark.
impl MarkedStore for PostgresStore {
    fn standing_marks(&self, of: &[MarkName]) -> Result<Vec<MarkName>, StoreError> {
        self.run(async |connection| index_mark::standing(connection, of).await)
    }

    fn since_index_mark(
        &self,
        name: &MarkName,
        most: usize,
        removed: &mut dyn FnMut(Item),
        added: &mut dyn FnMut(Item, u16),
    ) -> Result<bool, StoreError> {
        // The commit that the listener has, so that a later loss of it is detected.
        let node = &self.inner.node;
        let reading = node.begin_at_known(&node.pool, &self.deadline, &mut || {})?;
        let is_known = index_mark::since(&reading, name, most, removed, added)?;
        reading.end()?;
        Ok(is_known)
    }

    fn begin_index_mark(&self, take: &mut dyn FnMut()) -> Result<MarkName, StoreError> {
        // No later commit is published meanwhile: a replica that has the commit has all of the sets.
        let held = self.inner.node.feed.hold(&self.deadline)?;
        let known = held.last().ok_or(StoreError::Closed)?;
        take();
        Ok(index_mark::name(known))
    }

    fn keep_index_mark(&self, _: Option<MarkName>) -> Result<(), StoreError> {
        Ok(())
    }

    fn commits_since_index_mark(&self, name: &MarkName) -> u64 {
        let at = index_mark::place(name).seq.max(0) as u64;
        self.inner.node.feed.known().saturating_sub(at)
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
        self.read(|reading| Ok(reading.newest(&views, most, self.clock().now())?.0))
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
        self.read(|reading| reading.fetch(hits, self.clock().now(), visit))
    }

    fn oldest_first(&self, filter: &Filter, visit: &mut VisitEvent<'_>) -> Result<(), StoreError> {
        self.read(|reading| {
            let (now, views) = (self.clock().now(), [View::whole(filter.clone())]);
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
        let (feed, now) = (&self.inner.node.feed, self.clock().now());
        if feed.next_expiry() > now {
            return Ok(());
        }
        self.inner.writer.expire(&self.deadline)?;
        // The node's own removals do not determine what is due next.
        self.inner.node.look(&self.deadline)?;
        if feed.next_expiry() <= now { Err(StoreError::NotExpired) } else { Ok(()) }
    }

    fn remove(&self, filter: &Filter) -> Result<(), StoreError> {
        let (filter, now) = (Filter { limit: None, ..filter.clone() }, self.clock().now());
        let ids = self.read(|reading| reading.ids(&filter, now))?;
        self.inner.writer.operate(ids, OperatorAction::Remove)
    }

    fn selected(&self, selection: &Selection) -> Result<Selected, StoreError> {
        let now = self.clock().now();
        self.read(|reading| selection.among_found(&|filter| reading.ids(filter, now)))
    }

    fn delete(&self, selection: &Selection) -> Result<Selected, StoreError> {
        let selected = self.selected(selection)?;
        self.inner.writer.operate(selected.ids.clone(), OperatorAction::Bury)?;
        Ok(selected)
    }

    fn undeleted(&self, undelete: &Undelete) -> Result<Vec<[u8; 32]>, UndeleteError> {
        undelete.check()?;
        Ok(self.run(async |connection| memory::undeleted(connection, undelete).await)?)
    }

    fn undelete(&self, undelete: &Undelete) -> Result<u64, UndeleteError> {
        let ids = self.undeleted(undelete)?;
        let count = ids.len() as u64;
        if count > 0 {
            self.inner.writer.operate(ids, OperatorAction::Undelete)?;
        }
        Ok(count)
    }

    fn retain(&self, rules: Retention) -> Result<(), StoreError> {
        if rules.store_bytes.is_some() {
            return Err(NO_RULE_OF_SIZE);
        }
        self.inner.node.retain(&rules)?;
        self.inner.writer.look_at_retention()
    }

    fn retire(&self) -> Result<(), StoreError> {
        self.inner.writer.retire()
    }

    fn preview(&self, retention: &Retention) -> Result<(Vec<RuleMatches>, u64), StoreError> {
        if retention.store_bytes.is_some() {
            return Err(NO_RULE_OF_SIZE);
        }
        self.read(|reading| Ok((preview(reading, retention, self.clock().now())?, 0)))
    }

    fn refused(
        &self,
        peer: &str,
        ids: &[[u8; 32]],
    ) -> Result<HashMap<[u8; 32], String>, StoreError> {
        let now = self.clock().now();
        self.run(async |connection| memory::refused(connection, peer, ids, now).await)
    }

    fn remember_refused(&self, refused: Vec<RefusedId>) -> Result<(), StoreError> {
        let now = self.clock().now();
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
        let now = self.clock().now();
        self.run(async |connection| {
            memory::remember_mark(connection, &peer, &filter, &mark, now).await
        })
    }

    fn peer_traits(&self, peer: &str) -> Result<PeerTraits, StoreError> {
        self.run(async |connection| memory::traits(connection, peer).await)
    }

    fn remember_traits(&self, peer: String, traits: PeerTraits) -> Result<(), StoreError> {
        let now = self.clock().now();
        self.run(async |connection| memory::remember_traits(connection, &peer, &traits, now).await)
    }

    fn follow_others(&self) -> Result<(), StoreError> {
        self.wait_until_published()
    }

    fn take_lease(&self, term: Duration) -> Result<bool, StoreError> {
        self.inner.node.take_lease(term)
    }

    fn check_writable(&self) -> Result<(), StoreError> {
        self.run(async |connection| {
            connection.execute("UPDATE store SET version = version", &[]).await.map(|_| ())
        })
    }

    fn is_durable(&self) -> bool {
        // What is in the feed is committed, and so as durable as the server's configuration makes
        // it.
        self.inner.node.feed.is_current()
    }

    fn check_in_place(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn size(&self) -> (u64, u64) {
        // The log belongs to the server, for all its databases.
        (self.inner.node.size.bytes(), 0)
    }

    fn feed_lag(&self) -> Option<FeedLag> {
        Some(self.inner.node.feed.lag())
    }

    fn metrics(&self) -> &StoreMetrics {
        &self.inner.node.metrics
    }

    fn close(&self) {
        self.inner.close();
    }
}
