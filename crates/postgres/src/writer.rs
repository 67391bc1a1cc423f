//! The one thread of a node that writes. It takes what waits, from each origin in turn, into transactions
//! of a bounded weight; what takes long (expiration, vanishing, removal) is done in steps between them.

use crate::acknowledged::{Acknowledged, RecentAcknowledgements};
use crate::address::Address;
use crate::batch::{Bytes, Changes, asks_to_vanish};
use crate::connection::{Engine, ServerSession};
use crate::ephemeral;
use crate::fault::{Fault, fault, is_passing, within};
use crate::feed::Feed;
use crate::transaction::{self, BatchWriter, FeedAdvance, STEP_EVENTS, StepDone};
use negsync_nostr::relay_url::RelayName;
use negsync_nostr::{Event, VerifiedEvent};
use negsync_store::submission::{EventSlot, Submission};
use negsync_store::{
    Batches, NextJob, Origin, Outcome, Reply, SourceQueue, Step, StoreError, StoreMetrics,
    Synchronous, unix_now,
};
use std::collections::VecDeque;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio_postgres::Error;

/// How long the writer sleeps at most before it looks at the clock for expirations.
const TICK: Duration = Duration::from_millis(250);
/// For so long a batch is sent again over a connection that is made anew.
const SEND_AGAIN: Duration = Duration::from_secs(10);
/// How long it waits before it tries again: the first time, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// After a failure, steps that nobody asked for are not tried for so long.
const STEP_AGAIN: Duration = Duration::from_secs(5);
/// How often ephemeral events that have waited long enough are removed.
const EPHEMERAL_AGE_OUT: Duration = Duration::from_secs(10);
/// How much shares a commit of short batches: rows of tables and indexes, and bytes of memory.
const BATCH_ROWS: usize = 4_096;
const BATCH_BYTES: usize = 4 << 20;

/// What the session that writes is set to: no plan but along an index, and a node that died in a transaction,
/// or that waits for one, keeps nobody from writing for longer than this.
const SESSION: &str =
    "SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off;
    SET idle_in_transaction_session_timeout = '10s'; SET lock_timeout = '10s'";

/// Where a caller waits to hear that what it asked for is done.
type Answer = SyncSender<Result<(), StoreError>>;

pub(crate) enum NodeJob {
    Publish {
        event: Box<VerifiedEvent>,
        slot: EventSlot,
    },
    Expire(Answer),
    Remove {
        ids: Vec<Bytes>,
        is_buried: bool,
        answer: Answer,
    },
    /// The database has lost commits behind this number.
    SendAgain {
        common: i64,
    },
}

/// What waits for the writer.
pub(crate) type NodeQueue = SourceQueue<NodeJob>;

/// What the writer needs beside the connection.
pub(crate) struct NodeWriterContext {
    pub(crate) engine: Arc<Engine>,
    pub(crate) address: Address,
    /// The node's number.
    pub(crate) node: i64,
    pub(crate) feed: Arc<Feed>,
    pub(crate) metrics: StoreMetrics,
    pub(crate) us: Option<RelayName>,
    pub(crate) batches: Batches,
    pub(crate) synchronous: Synchronous,
    /// Reads the feed, where this node's own commit was not the next one.
    pub(crate) catch_up: Box<dyn Fn() -> Result<(), StoreError> + Send>,
}

/// The way to the writer thread.
pub(crate) struct NodeWriter {
    queue: Arc<NodeQueue>,
    // Taken by whoever stops the writer first.
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl NodeWriter {
    pub(crate) fn start(
        context: NodeWriterContext,
        queue: Arc<NodeQueue>,
    ) -> Result<Self, StoreError> {
        let thread = NodeWriterThread {
            context,
            queue: Arc::clone(&queue),
            connection: None,
            removals: VecDeque::new(),
            acknowledged: RecentAcknowledgements::default(),
            send_again: VecDeque::new(),
            wait_for_expiry: Vec::new(),
            wait_for_vanishing: Vec::new(),
            may_vanish: true,
            steps_again: Instant::now(),
            ephemeral_age_out: Instant::now(),
            passes_on: false,
        };
        let thread = std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || thread.run())
            .map_err(StoreError::Thread)?;
        Ok(Self { queue, thread: Mutex::new(Some(thread)) })
    }

    /// Hands events over. Does not wait: whoever submits bounds what it has under way.
    pub(crate) fn submit(&self, origin: &Origin, events: Vec<VerifiedEvent>, reply: Reply) {
        let Some(slots) = Submission::begin(events.len(), reply) else { return };
        let jobs = events.into_iter().zip(slots).map(|(event, slot)| {
            (event.weight(), NodeJob::Publish { event: Box::new(event), slot })
        });
        if let Err(refused) = self.queue.push(origin, jobs) {
            for (_, job) in refused {
                if let NodeJob::Publish { slot, .. } = job {
                    slot.settle(Outcome::Failed("the store is closed".into()));
                }
            }
        }
    }

    /// Removes what is due now, and waits until that is done or has failed.
    pub(crate) fn expire(&self) -> Result<(), StoreError> {
        self.ask(NodeJob::Expire)
    }

    /// Removes events by id, and waits for it; keeps them out where `is_buried`.
    pub(crate) fn remove(&self, ids: Vec<Bytes>, is_buried: bool) -> Result<(), StoreError> {
        self.ask(|answer| NodeJob::Remove { ids, is_buried, answer })
    }

    fn ask(&self, job: impl FnOnce(Answer) -> NodeJob) -> Result<(), StoreError> {
        let (answer, done) = sync_channel(1);
        self.queue.push(&Origin::Local, [(1, job(answer))]).map_err(|_| StoreError::Closed)?;
        done.recv().map_err(|_| StoreError::Closed)?
    }

    /// Commits what was submitted before, then ends the thread.
    pub(crate) fn stop(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(thread) = thread else { return };
        self.queue.close();
        if thread.thread().id() != std::thread::current().id() && thread.join().is_err() {
            tracing::error!("the store's writer thread panicked");
        }
    }
}

/// What the writer thread owns.
struct NodeWriterThread {
    context: NodeWriterContext,
    queue: Arc<NodeQueue>,
    connection: Option<ServerSession>,
    removals: VecDeque<(Vec<Bytes>, bool, Answer)>,
    acknowledged: RecentAcknowledgements,
    // What was acknowledged and may be lost, until it is written again.
    send_again: VecDeque<Acknowledged>,
    wait_for_expiry: Vec<Answer>,
    // Requests to vanish, answered once nothing is left of what they ask to remove.
    wait_for_vanishing: Vec<EventSlot>,
    // Whether somebody's events may still have to go, before the feed says so.
    may_vanish: bool,
    steps_again: Instant,
    // When ephemeral events that have waited long enough are removed next.
    ephemeral_age_out: Instant,
    // Whether this node has handed any over since they were removed last.
    passes_on: bool,
}

impl NodeWriterThread {
    fn run(mut self) {
        let mut patience = Duration::ZERO;
        loop {
            match self.queue.pop_within(patience) {
                NextJob::Item((_, NodeJob::Publish { event, slot })) => self.publish(*event, slot),
                NextJob::Item((_, NodeJob::Expire(answer))) => self.wait_for_expiry.push(answer),
                NextJob::Item((_, NodeJob::Remove { ids, is_buried, answer })) => {
                    self.removals.push_back((ids, is_buried, answer));
                }
                NextJob::Item((_, NodeJob::SendAgain { common })) => {
                    self.send_again = self.acknowledged.since(common).into();
                }
                NextJob::TimedOut => {}
                NextJob::Closed => break,
            }
            if self.ephemeral_age_out <= Instant::now() && self.passes_on {
                self.age_out();
            }
            // One step of each between two batches.
            let is_busy = self.send_again_step()
                | self.expire_step()
                | self.remove_step()
                | self.vanish_step();
            patience = if is_busy { Duration::ZERO } else { TICK };
        }
    }

    /// Writes an event and those that wait behind it, as many as a batch may hold.
    fn publish(&mut self, event: VerifiedEvent, slot: EventSlot) {
        let began = Instant::now();
        let (events, slots) = self.gather(event, slot);
        let written = self.write(&events);
        let (mut changes, feed) = match written {
            Ok(written) => written,
            Err(error) => {
                let failed = Outcome::Failed(error.to_string());
                slots.into_iter().for_each(|slot| slot.settle(failed.clone()));
                return;
            }
        };
        let vanishes = !changes.vanished.is_empty();
        self.tell_batch(&mut changes, feed);
        self.note_acknowledged(feed, &events, &changes.outcomes);
        let metrics = &self.context.metrics;
        metrics.commit_s.observe(began.elapsed().as_secs_f64());
        metrics.commit_events.observe(slots.len() as f64);
        for ((slot, outcome), event) in slots.into_iter().zip(changes.outcomes).zip(&events) {
            if vanishes && outcome == Outcome::Stored && asks_to_vanish(event) {
                self.wait_for_vanishing.push(slot);
            } else {
                slot.settle(outcome);
            }
        }
    }

    fn write(&mut self, events: &[Arc<Event>]) -> Result<(Changes, FeedAdvance), StoreError> {
        let (node, us) = (self.context.node, self.context.us.clone());
        self.transact(async |connection| {
            let by = BatchWriter { node, us: us.as_ref(), now: unix_now() };
            transaction::write_batch(connection, events, &by).await
        })
    }

    fn tell_batch(&mut self, changes: &mut Changes, feed: FeedAdvance) {
        self.may_vanish |= !changes.vanished.is_empty();
        let expiries = changes.added.values().filter_map(|event| event.expires_at());
        let expires_at = expiries.min().unwrap_or(u64::MAX);
        self.tell(feed, std::mem::take(&mut changes.steps), expires_at);
    }

    /// Keeps what is acknowledged as stored, a duplicate too: it may be of a commit that gets lost.
    fn note_acknowledged(
        &mut self,
        feed: FeedAdvance,
        events: &[Arc<Event>],
        outcomes: &[Outcome],
    ) {
        let (now, seq) = (Instant::now(), feed.last());
        for (event, outcome) in events.iter().zip(outcomes) {
            if matches!(outcome, Outcome::Stored | Outcome::Duplicate) {
                self.acknowledged.push(now, seq, Acknowledged::Stored(Arc::clone(event)));
            }
        }
    }

    /// Writes a part of what was acknowledged and lost once more. Returns whether there is more to
    /// write now.
    fn send_again_step(&mut self) -> bool {
        if self.send_again.is_empty() || !self.may_step() {
            return false;
        }
        let done = match self.send_again.front() {
            Some(Acknowledged::Removed { ids, is_buried }) => {
                let (ids, bury) = (Arc::clone(ids), is_buried.then(unix_now));
                self.send_removal_again(&ids, bury)
            }
            _ => self.send_events_again(),
        };
        match done {
            Ok(sent) => drop(self.send_again.drain(..sent)),
            Err(error) => {
                tracing::warn!(%error, left = self.send_again.len(), "acknowledged events not sent again yet");
            }
        }
        !self.send_again.is_empty() && self.may_step()
    }

    fn send_removal_again(
        &mut self,
        ids: &[Bytes],
        bury: Option<u64>,
    ) -> Result<usize, StoreError> {
        self.step(async |connection| transaction::remove_by_id(connection, ids, bury).await)?;
        tracing::warn!(ids = ids.len(), "acknowledged removal sent again after commits were lost");
        Ok(1)
    }

    /// Returns how many events were written, or found there.
    fn send_events_again(&mut self) -> Result<usize, StoreError> {
        let (mut rows, mut bytes) = (0, 0);
        let fits = |done: &Acknowledged| {
            let Acknowledged::Stored(event) = done else { return None };
            rows += event.weight();
            bytes += event.memory_bytes();
            let is_first = rows == event.weight();
            (is_first || rows <= BATCH_ROWS && bytes <= BATCH_BYTES).then(|| Arc::clone(event))
        };
        let events: Vec<Arc<Event>> = self.send_again.iter().map_while(fits).collect();
        let written = self.write(&events);
        let (mut changes, feed) = match written {
            Ok(written) => written,
            Err(error) => {
                self.steps_again = Instant::now() + STEP_AGAIN;
                return Err(error);
            }
        };
        self.tell_batch(&mut changes, feed);
        self.note_acknowledged(feed, &events, &changes.outcomes);
        let stored = changes.outcomes.iter().filter(|it| **it == Outcome::Stored).count();
        tracing::warn!(
            events = events.len(),
            stored,
            "acknowledged events sent again after commits were lost"
        );
        Ok(events.len())
    }

    fn gather(&self, event: VerifiedEvent, slot: EventSlot) -> (Vec<Arc<Event>>, Vec<EventSlot>) {
        let (most_rows, most_bytes) = match self.context.batches {
            Batches::Short => (BATCH_ROWS, BATCH_BYTES),
            Batches::Long { bytes } => (BATCH_ROWS * 4, bytes.clamp(BATCH_BYTES, BATCH_BYTES * 4)),
        };
        let (mut rows, mut bytes) = (event.weight(), event.memory_bytes());
        let (mut events, mut slots) = (vec![Arc::new(event.into_inner())], vec![slot]);
        loop {
            let fits = |weight: usize, job: &NodeJob| {
                let NodeJob::Publish { event, .. } = job else { return false };
                rows.saturating_add(weight) <= most_rows
                    && bytes.saturating_add(event.memory_bytes()) <= most_bytes
            };
            let Some((weight, NodeJob::Publish { event, slot })) = self.queue.pop_if(fits) else {
                return (events, slots);
            };
            rows += weight;
            bytes += event.memory_bytes();
            events.push(Arc::new(event.into_inner()));
            slots.push(slot);
        }
    }

    /// NIP-40: removes a part of what is due. Returns whether there may be more.
    fn expire_step(&mut self) -> bool {
        let now = unix_now();
        let is_due = self.context.feed.next_expiry() <= now && self.may_step();
        if !is_due && self.wait_for_expiry.is_empty() {
            return false;
        }
        let done = self.step(async |connection| transaction::expire(connection, now).await);
        let answer = match done {
            Ok(true) => return true,
            // Another node may have been first: what is due next is in the feed.
            Ok(false) if self.context.feed.next_expiry() <= now => (self.context.catch_up)(),
            Ok(false) => Ok(()),
            Err(error) => Err(error),
        };
        let said = answer.map_err(|error| error.to_string());
        for waiting in std::mem::take(&mut self.wait_for_expiry) {
            // Fails only where nobody waits any more.
            let _ = waiting.send(said.clone().map_err(StoreError::NotWritten));
        }
        false
    }

    /// Removes a part of what is to be removed. Returns whether there is more.
    fn remove_step(&mut self) -> bool {
        let Some((mut ids, is_buried, answer)) = self.removals.pop_front() else { return false };
        let rest = ids.split_off(ids.len().min(STEP_EVENTS as usize));
        let bury = is_buried.then(unix_now);
        let done =
            self.step(async |connection| transaction::remove_by_id(connection, &ids, bury).await);
        if done.is_ok() {
            let removed = Acknowledged::Removed { ids: ids.into(), is_buried };
            self.acknowledged.push(Instant::now(), i64::MAX, removed);
        }
        match done {
            Ok(_) if !rest.is_empty() => self.removals.push_front((rest, is_buried, answer)),
            done => {
                let _ = answer.send(done.map(|_| ()));
            }
        }
        !self.removals.is_empty()
    }

    /// NIP-62: removes a part of what is to vanish, and replies once nothing is left of it. Returns
    /// whether there is more to remove now.
    fn vanish_step(&mut self) -> bool {
        let is_vanishing = self.may_vanish || self.context.feed.is_vanishing();
        if !is_vanishing || !self.may_step() && self.wait_for_vanishing.is_empty() {
            return false;
        }
        let outcome = match self.step(async |connection| transaction::vanish(connection).await) {
            Ok(true) => return true,
            Ok(false) => {
                self.may_vanish = false;
                self.context.feed.has_vanished();
                Outcome::Stored
            }
            Err(error) => Outcome::Failed(error.to_string()),
        };
        for slot in std::mem::take(&mut self.wait_for_vanishing) {
            slot.settle(outcome.clone());
        }
        false
    }

    /// Removes ephemeral events that have waited long enough.
    fn age_out(&mut self) {
        self.ephemeral_age_out = Instant::now() + EPHEMERAL_AGE_OUT;
        self.passes_on = false;
        let done = self.transact(async |connection| ephemeral::age_out(connection).await);
        // They are removed with the next ones.
        self.passes_on |= done.is_err();
    }

    /// Whether steps that failed are tried again.
    fn may_step(&self) -> bool {
        self.steps_again <= Instant::now()
    }

    /// Runs a step, and tells of it. Returns whether there may be more.
    fn step(
        &mut self,
        work: impl AsyncFn(&ServerSession) -> Result<StepDone, Error>,
    ) -> Result<bool, StoreError> {
        match self.transact(work) {
            Ok(done) => {
                self.tell(done.feed, done.steps, u64::MAX);
                Ok(done.there_is_more)
            }
            Err(error) => {
                self.steps_again = Instant::now() + STEP_AGAIN;
                Err(error)
            }
        }
    }

    /// Has the listener know what was committed, before anybody is answered.
    fn tell(&mut self, feed: FeedAdvance, mut steps: Vec<Step>, expires_at: u64) {
        let is_passed = |step: &mut Step| matches!(step, Step::Passed(_));
        let passed: Vec<Step> = steps.extract_if(.., is_passed).collect();
        self.passes_on |= !passed.is_empty();
        let context = &self.context;
        let told = if passed.is_empty() { Ok(()) } else { context.feed.pass_on(passed) };
        let told = told.and_then(|()| match context.feed.tell_own(feed, steps, expires_at)? {
            true => Ok(()),
            false => (context.catch_up)(),
        });
        if let Err(error) = told {
            // It is committed: whoever asks for a set waits until the feed can be read.
            tracing::warn!(%error, "feed not read after a commit; it is read before the next set");
        }
    }

    /// Runs `work`, which makes one transaction, and again over another connection when that is lost:
    /// whether the first was committed is not known then, and ids make the second do nothing twice.
    fn transact<T>(
        &mut self,
        work: impl AsyncFn(&ServerSession) -> Result<T, Error>,
    ) -> Result<T, StoreError> {
        let (began, mut pause) = (Instant::now(), FIRST_PAUSE);
        loop {
            let error = match self.try_once(&work) {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            let is_passing = error.as_ref().map_or(true, is_passing);
            // A request to vanish may have been committed before its answer was lost.
            self.may_vanish = true;
            if !is_passing || began.elapsed() + pause > SEND_AGAIN {
                let why = error.map_or_else(|error| error, fault);
                tracing::error!(error = %why, "store not written");
                return Err(why);
            }
            if let Ok(error) = &error {
                tracing::warn!(reason = %Fault::in_words(error), "transaction sent again");
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// The error of the transaction, or the one of connecting.
    fn try_once<T>(
        &mut self,
        work: &impl AsyncFn(&ServerSession) -> Result<T, Error>,
    ) -> Result<T, Result<Error, StoreError>> {
        let connection = match self.connection.take().filter(|it| !it.is_closed()) {
            Some(connection) => connection,
            None => self.connect().map_err(Err)?,
        };
        let patience = self.context.address.patience() * 2;
        let done = self.context.engine.wait(within(patience, async {
            let done = work(&connection).await;
            // What a failure has left open. A connection on which that fails is of no use, and neither
            // is one to a server that cannot write any more.
            let is_usable = match &done {
                Ok(_) => true,
                Err(error) => {
                    !is_passing(error) && transaction::roll_back(&connection).await.is_ok()
                }
            };
            Ok((done, is_usable))
        }));
        let (done, is_usable) = done.map_err(Err)?;
        self.connection = is_usable.then_some(connection);
        done.map_err(Ok)
    }

    fn connect(&self) -> Result<ServerSession, StoreError> {
        let context = &self.context;
        context.engine.wait(async {
            let connection = ServerSession::open(&context.address).await?;
            within(context.address.patience(), self.set_up(&connection)).await?;
            Ok(connection)
        })
    }

    async fn set_up(&self, connection: &ServerSession) -> Result<(), StoreError> {
        let context = &self.context;
        let synchronous = match context.synchronous {
            // What the server is set to may be stricter, and is then kept.
            Synchronous::Full => {
                "SELECT set_config('synchronous_commit', 'on', FALSE)
                    WHERE current_setting('synchronous_commit') IN ('off', 'local')"
            }
            Synchronous::Normal => "SET synchronous_commit = off",
        };
        let client = connection.client();
        client.batch_execute(SESSION).await.map_err(fault)?;
        client.batch_execute(synchronous).await.map_err(fault)?;
        if let Some(us) = &context.us {
            transaction::follow_stored(connection, us).await.map_err(fault)?;
        }
        Ok(())
    }
}
