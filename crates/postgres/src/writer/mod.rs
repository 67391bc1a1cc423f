//! The writer thread of a node. It takes waiting jobs, from each origin in turn, into transactions
//! of bounded weight. Long work (expiration, vanishing, removal) is done in steps between them.

mod batches;
mod lost_tail;
mod retention;
mod steps;
mod transacting;
mod vacuum;

use crate::acknowledged::{OperatorAction, RecentAcknowledgements, RecentEntry};
use crate::address::Address;
use crate::batch::Bytes;
use crate::connection::{Engine, ServerSession};
use crate::feed::Feed;
use crate::transaction::{FeedAdvance, StoredRequests};
use negsync_nostr::{Event, RelayUrl, VerifiedEvent};
use negsync_store::submission::{EventSlot, Submission};
use negsync_store::{
    Batches, Clock, Deadline, NextJob, Origin, Outcome, Reply, SourceQueue, Step, StoreError,
    StoreMetrics, Synchronous,
};
use retention::RetentionWork;
use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Maximum sleep of the writer before it checks the clock for expirations.
const TICK: Duration = Duration::from_millis(250);

/// Interval at which waiting callers check their deadline.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// The channel on which a caller waits for its result.
type Answer = SyncSender<Result<(), StoreError>>;

pub(crate) enum NodeJob {
    Publish {
        event: Box<VerifiedEvent>,
        slot: EventSlot,
    },
    Expire(Answer),
    /// Apply changed rules of retention, or run retention now.
    Retire(Answer),
    Operate {
        ids: Vec<Bytes>,
        action: OperatorAction,
        answer: Answer,
    },
    /// The database has lost commits after this number.
    SendAgain {
        common: i64,
    },
}

/// The writer's queue.
pub(crate) type NodeQueue = SourceQueue<NodeJob>;

/// The writer's context, apart from its connection.
pub(crate) struct NodeWriterContext {
    pub(crate) engine: Arc<Engine>,
    pub(crate) address: Address,
    /// The node's number.
    pub(crate) node: i64,
    pub(crate) feed: Arc<Feed>,
    pub(crate) metrics: StoreMetrics,
    /// The URL in requests to vanish.
    pub(crate) us: Option<RelayUrl>,
    pub(crate) batches: Batches,
    pub(crate) synchronous: Synchronous,
    pub(crate) clock: Clock,
    /// Reads the feed, if this node's own commit did not directly follow the last known one.
    pub(crate) catch_up: Box<dyn Fn() -> Result<(), StoreError> + Send>,
}

/// The handle of the writer thread.
pub(crate) struct NodeWriter {
    queue: Arc<NodeQueue>,
    // Taken by the first caller that stops the writer.
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
            operations: VecDeque::new(),
            acknowledged: RecentAcknowledgements::default(),
            send_again: VecDeque::new(),
            wait_for_expiry: Vec::new(),
            retaining: RetentionWork::default(),
            deletions: VecDeque::new(),
            wait_for_vanishing: Vec::new(),
            may_vanish: true,
            stored_requests: StoredRequests::Unknown,
            steps_again: Instant::now(),
            ephemeral_age_out: Instant::now(),
            passes_on: false,
            added: 0,
        };
        let thread = std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || thread.run())
            .map_err(StoreError::Thread)?;
        Ok(Self { queue, thread: Mutex::new(Some(thread)) })
    }

    /// Queues events. Does not wait: the caller must bound its pending events.
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

    /// Removes events that are due, and waits until that succeeded or failed, or until the
    /// deadline.
    pub(crate) fn expire(&self, deadline: &Deadline) -> Result<(), StoreError> {
        let done = self.ask(NodeJob::Expire)?;
        if deadline.is_none() {
            return done.recv().map_err(|_| StoreError::Closed)?;
        }
        loop {
            match done.recv_timeout(LOOK_INTERVAL) {
                Ok(done) => return done,
                Err(RecvTimeoutError::Timeout) => deadline.check()?,
                Err(RecvTimeoutError::Disconnected) => return Err(StoreError::Closed),
            }
        }
    }

    /// Starts retention, without waiting for it.
    pub(crate) fn look_at_retention(&self) -> Result<(), StoreError> {
        self.ask(NodeJob::Retire).map(drop)
    }

    /// Like [`NodeWriter::look_at_retention`], but waits until nothing is left to remove.
    pub(crate) fn retire(&self) -> Result<(), StoreError> {
        self.ask(NodeJob::Retire)?.recv().map_err(|_| StoreError::Closed)?
    }

    /// Performs an operator's action, and waits for it.
    pub(crate) fn operate(
        &self,
        ids: Vec<Bytes>,
        action: OperatorAction,
    ) -> Result<(), StoreError> {
        let done = self.ask(|answer| NodeJob::Operate { ids, action, answer })?;
        done.recv().map_err(|_| StoreError::Closed)?
    }

    /// Queues a job. Returns the channel for its result.
    fn ask(
        &self,
        job: impl FnOnce(Answer) -> NodeJob,
    ) -> Result<Receiver<Result<(), StoreError>>, StoreError> {
        let (answer, done) = sync_channel(1);
        self.queue.push(&Origin::Local, [(1, job(answer))]).map_err(|_| StoreError::Closed)?;
        Ok(done)
    }

    /// Commits pending submissions, then ends the thread.
    pub(crate) fn stop(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(thread) = thread else { return };
        self.queue.close();
        if thread.thread().id() != std::thread::current().id() && thread.join().is_err() {
            tracing::error!("the store's writer thread panicked");
        }
    }
}

/// The state of the writer thread.
struct NodeWriterThread {
    context: NodeWriterContext,
    queue: Arc<NodeQueue>,
    connection: Option<ServerSession>,
    operations: VecDeque<(Vec<Bytes>, OperatorAction, Answer)>,
    acknowledged: RecentAcknowledgements,
    // Acknowledged operations that may be lost, in order, until they are written again.
    send_again: VecDeque<RecentEntry>,
    wait_for_expiry: Vec<Answer>,
    retaining: RetentionWork,
    // Deletion requests with many targets, answered once nothing is left to remove.
    deletions: VecDeque<(Arc<Event>, EventSlot)>,
    // Requests to vanish, answered once nothing is left to remove.
    wait_for_vanishing: Vec<EventSlot>,
    // Whether events of vanished keys may still be stored, before the feed shows it.
    may_vanish: bool,
    // Reset with each connection: another server may have lost commits.
    stored_requests: StoredRequests,
    steps_again: Instant,
    // The time of the next removal of old ephemeral events.
    ephemeral_age_out: Instant,
    // Whether this node has written ephemeral events since their last removal.
    passes_on: bool,
    // The number of added events.
    added: usize,
}

impl NodeWriterThread {
    fn run(mut self) {
        let mut patience = Duration::ZERO;
        loop {
            match self.queue.pop_within(patience) {
                NextJob::Item((_, NodeJob::Publish { event, slot })) => self.publish(*event, slot),
                NextJob::Item((_, NodeJob::Expire(answer))) => self.wait_for_expiry.push(answer),
                NextJob::Item((_, NodeJob::Retire(answer))) => self.retaining.look_now(answer),
                NextJob::Item((_, NodeJob::Operate { ids, action, answer })) => {
                    self.operations.push_back((ids, action, answer));
                }
                NextJob::Item((_, NodeJob::SendAgain { common })) => {
                    self.take_lost(common);
                }
                NextJob::TimedOut => {}
                NextJob::Closed => break,
            }
            if self.ephemeral_age_out <= Instant::now() && self.passes_on {
                self.age_out();
            }
            // One step of each kind of work between two batches.
            let is_busy = self.send_again_step()
                | self.delete_step()
                | self.expire_step()
                | self.retire_step()
                | self.operate_step()
                | self.follow_stored_step()
                | self.vanish_step();
            patience = if is_busy { Duration::ZERO } else { TICK };
        }
        while self.delete_step() {}
        self.vacuum_after_much();
    }

    /// Passes a commit to the listener, before any reply.
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
            // The commit is done: reads of sets wait until the feed can be read.
            tracing::warn!(%error, "feed not read after a commit; it is read before the next set");
        }
    }
}
