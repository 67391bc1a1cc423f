//! A node: the state shared by the store, its writer and the following thread, and the reading of
//! other nodes' commits.

use crate::address::Address;
use crate::connection::{Engine, ServerSession, SessionPool, with_connection};
use crate::ephemeral::{self, EphemeralCursor};
use crate::fault::{fault, within};
use crate::feed::{Feed, FeedListener};
use crate::history::CommitHistory;
use crate::reading::{BEGIN, StoreReading};
use crate::replica::log_replica;
use crate::size::{self, StoreSize};
use crate::transaction::{FeedPlace, head_row, retention};
use crate::writer::{NodeJob, NodeQueue};
use crate::{lease, schema};
use negsync_store::{
    Clock, Deadline, Origin, Retention, Step, StoreError, StoreMetrics, StoreOptions,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Maximum number of connections that read the feed.
const LOOKS_AT_ONCE: usize = 2;

/// The state shared by the store, its writer and the following thread.
pub(crate) struct StoreNode {
    pub(crate) engine: Arc<Engine>,
    pub(crate) pool: SessionPool,
    // For reads of the feed and for the lease, which do not wait for queries.
    pub(crate) looks: SessionPool,
    pub(crate) feed: Arc<Feed>,
    // Ephemeral events of other nodes.
    ephemeral: EphemeralCursor,
    pub(crate) size: StoreSize,
    pub(crate) metrics: StoreMetrics,
    pub(crate) clock: Clock,
    // Whether this node has requested the lease.
    asks_for_lease: AtomicBool,
    // The writer's queue; the writer repeats lost operations.
    pub(crate) queue: Arc<NodeQueue>,
}

impl StoreNode {
    /// Creates missing tables, and reads the stored items for the listener.
    pub(crate) fn open(
        address: &Address,
        options: &StoreOptions,
        listener: FeedListener,
    ) -> Result<Arc<Self>, StoreError> {
        let engine = Arc::new(Engine::start()?);
        let passed_by = engine.wait(async {
            let connection = ServerSession::open(address).await?;
            within(address.patience() * 2, log_replica(&connection)).await?;
            schema::migrate(&connection).await?;
            let newest = async { ephemeral::newest(&connection).await.map_err(fault) };
            within(address.patience() * 2, newest).await
        })?;
        tracing::info!(store = %address, "store on PostgreSQL open");
        let node = Self {
            engine,
            pool: SessionPool::new(address.clone(), options.readers),
            looks: SessionPool::new(address.clone(), LOOKS_AT_ONCE),
            feed: Arc::new(Feed::new(listener, options.private_kinds.clone())),
            ephemeral: EphemeralCursor::new(rand::random(), passed_by),
            size: StoreSize::default(),
            metrics: StoreMetrics::default(),
            clock: options.clock.clone(),
            asks_for_lease: AtomicBool::new(false),
            queue: Arc::default(),
        };
        node.look(&Deadline::default())?;
        node.measure_now_and_then();
        Ok(Arc::new(node))
    }

    /// The number that identifies this node.
    pub(crate) fn number(&self) -> i64 {
        self.ephemeral.node()
    }

    /// Releases the lease, and ends all reading.
    pub(crate) fn close(&self) {
        self.give_up_lease();
        self.looks.close();
        self.pool.close();
    }

    /// Begins a read, over another connection if the first was lost.
    pub(crate) fn begin<'store>(
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

    /// Begins a read of exactly the state that the listener has, and calls `beside` before the
    /// listener gets another change.
    pub(crate) fn begin_at_known<'store>(
        &'store self,
        pool: &'store SessionPool,
        deadline: &'store Deadline,
        beside: &mut dyn FnMut(),
    ) -> Result<StoreReading<'store>, StoreError> {
        // Its snapshot is taken at the first query, so the listener cannot be ahead of it.
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
                    // Fails only if the store is being closed.
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

    /// Reads the feed if there are new commits, and returns whether other nodes had any.
    pub(crate) fn follow(&self) -> Result<bool, StoreError> {
        const HEAD: &str = "SELECT seq, mark, (SELECT max(number) FROM ephemeral) FROM head";
        let head = with_connection(&self.looks, &self.engine, async |connection| {
            let rows = connection.query(HEAD, &[]).await?;
            let row = head_row(connection, &rows).await?;
            Ok((FeedPlace::read(row)?, row.try_get::<_, Option<i64>>(2)?))
        });
        let (head, newest) = head.inspect_err(|_| self.feed.lost())?;
        let is_behind =
            !self.feed.is_current() || Some(head) != self.feed.hold(&Deadline::default())?.last();
        if is_behind {
            self.look(&Deadline::default())?;
        } else {
            self.feed.note_current();
        }
        self.measure_now_and_then();
        let passes_by = newest.map_or(Ok(false), |newest| self.pass_on(newest))?;
        Ok(is_behind || passes_by)
    }

    /// Passes on ephemeral events of other nodes, up to a number. Returns whether there were any.
    fn pass_on(&self, newest: i64) -> Result<bool, StoreError> {
        let mut passes_by = false;
        while self.ephemeral.is_behind(Some(newest)) {
            let read =
                async |connection: &ServerSession| self.ephemeral.read(connection, newest).await;
            let events = with_connection(&self.looks, &self.engine, read)?;
            if !events.is_empty() {
                passes_by = true;
                self.feed.pass_on(events.into_iter().map(Step::Passed).collect())?;
            }
        }
        Ok(passes_by)
    }

    /// Updates the size of the tables and the number of tombstones, if the last update is old.
    pub(crate) fn measure_now_and_then(&self) {
        if self.size.is_due() {
            let measured = with_connection(&self.looks, &self.engine, async |connection| {
                Ok((size::bytes(connection).await?, size::tombstones(connection).await?))
            });
            match measured {
                Ok((bytes, tombstones)) => {
                    self.size.note(bytes);
                    self.metrics.set_tombstones(tombstones);
                }
                Err(error) => tracing::debug!(%error, "size of the store not known"),
            }
        }
    }

    /// Replaces the rules of retention, for all nodes.
    pub(crate) fn retain(&self, rules: &Retention) -> Result<(), StoreError> {
        with_connection(&self.pool, &self.engine, async |connection| {
            retention::change(connection, rules).await
        })
    }

    /// Takes or renews the lease. Returns whether this node holds it.
    pub(crate) fn take_lease(&self, term: Duration) -> Result<bool, StoreError> {
        self.asks_for_lease.store(true, Ordering::Release);
        with_connection(&self.looks, &self.engine, async |connection| {
            lease::take(connection, self.number(), term).await
        })
    }

    /// Releases the lease, so that another node can take it before its term ends.
    fn give_up_lease(&self) {
        if !self.asks_for_lease.swap(false, Ordering::AcqRel) {
            return;
        }
        let given_up = with_connection(&self.looks, &self.engine, async |connection| {
            lease::give_up(connection, self.number()).await
        });
        if let Err(error) = given_up {
            tracing::debug!(%error, "lease not given up; its term ends by itself");
        }
    }

    /// Reads the feed, until the deadline. The writer may wait for one of these connections, so
    /// none is held while other work goes first.
    pub(crate) fn look(&self, deadline: &Deadline) -> Result<(), StoreError> {
        let deadline = deadline.without_giving_way();
        self.begin_at_known(&self.looks, &deadline, &mut || {})?.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use negsync_nostr::Event;
    use negsync_testserver::TestServer;

    #[test]
    fn own_ephemeral_events_are_no_news() {
        let Some(server) = TestServer::start() else { return };
        let address = Address::parse(server.url()).unwrap();
        let node =
            StoreNode::open(&address, &StoreOptions::default(), FeedListener::Nobody).unwrap();
        let send = |by: i64| {
            let json = format!(
                r#"{{"id":"{:064x}","pubkey":"{}","created_at":1,"kind":20001,"tags":[],"content":"","sig":"{}"}}"#,
                by as u64,
                "1".repeat(64),
                "0".repeat(128)
            );
            let event = Event::parse(&json).unwrap();
            let sent =
                async |connection: &ServerSession| ephemeral::send(connection, by, &[&event]).await;
            with_connection(&node.pool, &node.engine, sent).unwrap();
        };
        assert!(!node.follow().unwrap());
        send(node.number());
        assert!(!node.follow().unwrap());
        send(node.number().wrapping_add(1));
        assert!(node.follow().unwrap());
        assert!(!node.follow().unwrap());
        node.close();
    }
}
