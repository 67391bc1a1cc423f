//! The writer thread. It takes waiting events, from each origin in turn, into transactions of
//! bounded weight: many events share the cost of one commit, and no origin waits long for another.
//! Long work (expiration, vanishing, removal) is done in steps between them.

mod batch;
mod commit;
mod steps;
#[cfg(test)]
mod tests;

pub use crate::submission::Reply;
pub use batch::Batches;

use crate::StoreError;
use crate::apply::{self, RuleMemory};
use crate::checkpoint::Checkpointer;
use crate::clock::Clock;
use crate::commits::Commits;
use crate::deletion;
use crate::flush::{FlushError, Flusher, OnCommit};
use crate::metrics::StoreMetrics;
use crate::retention::Retention;
use crate::rules::Outcome;
use crate::source_queue::{NextJob, Origin, SourceQueue};
use crate::sqlite_error::Trouble;
use crate::submission::{EventSlot, Submission};
use batch::{BatchLimits, CommitBatch, PutOff, answer_put_off};
use negsync_nostr::VerifiedEvent;
use rusqlite::Connection;
use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Maximum number of rows that a step of an expiration, a vanishing or a removal writes, unless a
/// single event has more.
pub(super) const STEP_ROWS: usize = 2_048;
/// Interval at which the writer checks whether the write-ahead log has been moved, while heavy events wait
/// for that.
const MOVING_TICK: Duration = Duration::from_millis(5);
/// Maximum sleep of the writer before it checks the clock for expirations.
const TICK: Duration = Duration::from_millis(250);
/// Interval of the check of the store's files while nothing else triggers it.
const LOOK_EVERY: Duration = Duration::from_secs(1);

enum Job {
    Publish { event: Box<VerifiedEvent>, slot: EventSlot },
    Expire { reply: OnDone },
    Remove(Removal),
    Note(Note),
    Retain { rules: Box<Retention>, reply: Answer },
    Retire { reply: OnDone },
}

/// Called once the work is durable and published.
type OnDone = Box<dyn FnOnce() + Send>;

/// Events to remove, and the waiting caller.
struct Removal {
    ids: Vec<[u8; 32]>,
    by: RemovedBy,
    reply: Answer,
}

/// The origin of a removal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RemovedBy {
    /// A program that uses the store: the events may come back.
    Program,
    /// The operator: the events are kept out.
    Operator,
}

/// A write other than of events; only its caller gets the result.
struct Note {
    write: Write,
    reply: Answer,
}

/// Runs in a transaction; gets the current second.
type Write = Box<dyn FnOnce(&Connection, u64) -> rusqlite::Result<()> + Send>;

/// The channel on which a caller waits until its request is durable.
type Answer = SyncSender<Result<(), StoreError>>;

/// The handle of the writer thread.
pub(super) struct Writer {
    queue: Arc<SourceQueue<Job>>,
    // The second at which the next stored event expires; `u64::MAX` if none does.
    next_expiry: Arc<AtomicU64>,
    commits: Commits,
    // Taken by the first caller that stops the writer.
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Writer {
    /// Starts the thread on the store in `path`.
    pub(super) fn start(
        path: &Path,
        connection: Connection,
        beside: WriterContext,
        rules: RuleMemory,
        flush: impl FnMut() -> Result<(), FlushError> + Send + 'static,
        on_commit: OnCommit,
    ) -> Result<Self, StoreError> {
        let queue = Arc::new(SourceQueue::default());
        let due = apply::next_expiry(&connection, 0).map_err(StoreError::sqlite)?;
        let next_expiry = Arc::new(AtomicU64::new(due));
        let doubt = beside.checkpointer.doubt().clone();
        let flusher = Flusher::start(flush, on_commit, Arc::clone(&next_expiry), doubt)?;
        let commits = beside.commits.clone();
        beside
            .metrics
            .set_tombstones(deletion::tombstones(&connection).map_err(StoreError::sqlite)?);
        let state = WriterThread {
            limits: BatchLimits::of(beside.batches),
            beside,
            queue: Arc::clone(&queue),
            rules,
            put_off: PutOff::default(),
            removals: VecDeque::new(),
            deletes: deletion::first_postponed(&connection).map_err(StoreError::sqlite)?.is_some(),
            flusher,
            next_expiry: due,
            expire_again: None,
            files_seen: Instant::now(),
            wait_for_expiry: Vec::new(),
            wait_for_retention: Vec::new(),
            trouble: Trouble::new(path),
            connection,
        };
        let thread = std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || state.run())
            .map_err(StoreError::Thread)?;
        Ok(Self { queue, next_expiry, commits, thread: Mutex::new(Some(thread)) })
    }

    /// Queues events. Does not wait: the caller must bound its pending events.
    pub(super) fn submit(&self, origin: &Origin, events: Vec<VerifiedEvent>, reply: Reply) {
        let Some(slots) = Submission::begin(events.len(), reply) else { return };
        let jobs = events.into_iter().zip(slots).map(|(event, slot)| {
            let weight = event.weight();
            (weight, Job::Publish { event: Box::new(event), slot })
        });
        if let Err(refused) = self.queue.push(origin, jobs) {
            for (_, job) in refused {
                if let Job::Publish { slot, .. } = job {
                    slot.settle(Outcome::Failed("the store is closed".into()));
                }
            }
        }
    }

    /// Whether a stored event was due to be removed by `now`.
    pub(super) fn has_expired(&self, now: u64) -> bool {
        self.next_expiry.load(Ordering::Acquire) <= now
    }

    /// See [`Commits::wait_until_published`].
    pub(super) fn wait_until_published(&self) {
        self.commits.wait_until_published();
    }

    /// Removes events that are due, and waits until that succeeded or failed.
    pub(super) fn expire(&self) -> Result<(), StoreError> {
        let (send, done) = sync_channel(1);
        let reply = Box::new(move || {
            let _ = send.send(());
        });
        self.push(Job::Expire { reply })?;
        done.recv().map_err(|_| StoreError::Closed)
    }

    /// Removes events, and waits until all are gone.
    pub(super) fn remove(&self, ids: Vec<[u8; 32]>) -> Result<(), StoreError> {
        self.remove_by(RemovedBy::Program, ids)
    }

    /// Like [`Writer::remove`], and keeps the events out.
    pub(super) fn delete(&self, ids: Vec<[u8; 32]>) -> Result<(), StoreError> {
        self.remove_by(RemovedBy::Operator, ids)
    }

    fn remove_by(&self, by: RemovedBy, ids: Vec<[u8; 32]>) -> Result<(), StoreError> {
        let (reply, removed) = sync_channel(1);
        self.push(Job::Remove(Removal { ids, by, reply }))?;
        removed.recv().map_err(|_| StoreError::Closed)?
    }

    /// Replaces the rules of retention.
    pub(super) fn retain(&self, rules: Retention) -> Result<(), StoreError> {
        let (reply, changed) = sync_channel(1);
        self.push(Job::Retain { rules: Box::new(rules), reply })?;
        changed.recv().map_err(|_| StoreError::Closed)?
    }

    /// Runs retention, and waits until nothing is left to remove.
    pub(super) fn retire(&self) -> Result<(), StoreError> {
        let (send, done) = sync_channel(1);
        let reply = Box::new(move || {
            let _ = send.send(());
        });
        self.push(Job::Retire { reply })?;
        done.recv().map_err(|_| StoreError::Closed)
    }

    /// Runs `write` in a transaction of its own, waits until it is durable, and returns its result.
    pub(super) fn note<T: Send + 'static>(
        &self,
        write: impl FnOnce(&Connection, u64) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (reply, written) = sync_channel(1);
        let (send, result) = sync_channel(1);
        let write = move |connection: &Connection, now| {
            let _ = send.send(write(connection, now)?);
            Ok(())
        };
        self.push(Job::Note(Note { write: Box::new(write), reply }))?;
        written.recv().map_err(|_| StoreError::Closed)??;
        result.recv().map_err(|_| StoreError::Closed)
    }

    /// Commits pending submissions, then ends the thread.
    pub(super) fn stop(&self) {
        let thread = self.thread.lock().map_or_else(|e| e.into_inner().take(), |mut t| t.take());
        if let Some(thread) = thread {
            self.queue.close();
            if thread.join().is_err() {
                tracing::error!("the store's writer thread panicked");
            }
        }
    }

    fn push(&self, job: Job) -> Result<(), StoreError> {
        self.queue.push(&Origin::Local, [(1, job)]).map_err(|_| StoreError::Closed)
    }
}

/// Shared state that the writer updates with each commit.
pub(super) struct WriterContext {
    pub(super) checkpointer: Checkpointer,
    pub(super) commits: Commits,
    /// The second up to which expired events are hidden although they could not be removed; readers
    /// use it.
    pub(super) expired_until: Arc<AtomicU64>,
    pub(super) metrics: StoreMetrics,
    pub(super) batches: Batches,
    pub(super) clock: Clock,
}

/// The state of the writer thread.
struct WriterThread {
    connection: Connection,
    limits: BatchLimits,
    beside: WriterContext,
    queue: Arc<SourceQueue<Job>>,
    rules: RuleMemory,
    put_off: PutOff,
    removals: VecDeque<Removal>,
    // Whether targets of deletion requests may still be stored.
    deletes: bool,
    flusher: Flusher,
    // As of the last commit; readers get it once that commit is durable.
    next_expiry: u64,
    // The time of the next attempt to remove expired events after a failure.
    expire_again: Option<Instant>,
    // The time of the last check of the store's files.
    files_seen: Instant,
    // Callers that wait until no event is due.
    wait_for_expiry: Vec<OnDone>,
    // Callers that wait until retention has nothing to remove.
    wait_for_retention: Vec<OnDone>,
    trouble: Trouble,
}

impl WriterThread {
    fn run(mut self) {
        let mut patience = Duration::ZERO;
        loop {
            let job = match self.next_job(patience) {
                NextJob::Item((_, job)) => Some(job),
                NextJob::TimedOut => None,
                NextJob::Closed => break,
            };
            self.look_after_files();
            // One step of each kind of work between two batches.
            let is_due = self.expire_step();
            match job {
                Some(Job::Publish { event, slot }) => self.publish(event, slot),
                Some(Job::Expire { reply }) => self.wait_for_expiry.push(reply),
                Some(Job::Remove(removal)) => self.removals.push_back(removal),
                Some(Job::Note(note)) => self.note(note),
                Some(Job::Retain { rules, reply }) => self.retain(*rules, &reply),
                Some(Job::Retire { reply }) => {
                    self.rules.retaining.look_now();
                    self.wait_for_retention.push(reply);
                }
                None => {}
            }
            let is_busy = self.remove_step() | self.delete_step() | self.vanish_step();
            let is_busy = is_busy | self.retire_step();
            let is_busy = is_busy || is_due || !self.wait_for_expiry.is_empty();
            patience = if is_busy { Duration::ZERO } else { TICK };
        }
        self.flusher.finish();
        // The removal continues at the next start.
        let closed = "the store was closed before all was removed";
        answer_put_off(&self.put_off, |_| true, Err(closed));
        self.beside.checkpointer.finish(&self.connection);
    }

    /// The next job in turn. Heavy events wait while a long log is moved: their pages would have to be moved
    /// as well, the last of them while everybody waits.
    fn next_job(&self, patience: Duration) -> NextJob<(usize, Job)> {
        // Read first: a log that the thread is done with is restarted before the next heavy event.
        let is_moving = self.beside.checkpointer.is_moving();
        self.beside.checkpointer.restart_moved(&self.connection);
        if is_moving {
            self.queue.pop_light_within(patience.min(MOVING_TICK), self.limits.light_rows)
        } else {
            self.queue.pop_within(patience)
        }
    }

    /// Checks that the files are in their place, and repairs them after a failed flush: at once,
    /// while the system still has the unwritten pages in memory.
    fn look_after_files(&mut self) {
        if self.files_seen.elapsed() >= LOOK_EVERY {
            self.files_seen = Instant::now();
            if self.beside.checkpointer.doubt().check_in_place().is_err() {
                self.beside.checkpointer.rescue(&self.connection);
            }
        }
        if let Err(error) = self.beside.checkpointer.mend(&self.connection) {
            self.trouble.failed("write-ahead log in doubt", &error);
        }
    }

    /// Writes an event and those queued behind it, up to the limits of a batch.
    fn publish(&mut self, event: Box<VerifiedEvent>, slot: EventSlot) {
        let began = Instant::now();
        // Slots of events that are not applied are answered by their drop.
        let mut batch = CommitBatch::begin(slot);
        let (queue, limits) = (Arc::clone(&self.queue), self.limits);
        let mut next = Some(event);
        let apply = |connection: &Connection, now, rules: &mut RuleMemory, written: &mut _| {
            while let Some(event) = next.take() {
                batch.apply(connection, *event, now, rules, written)?;
                if began.elapsed() < limits.time {
                    let fits = |weight, job: &Job| batch.has_room(weight, job, written, &limits);
                    if let Some((_, Job::Publish { event, slot })) = queue.pop_first(fits) {
                        batch.slots.push(slot);
                        next = Some(event);
                    }
                }
            }
            Ok(())
        };
        let transacted = self.transact(apply);
        // A request to vanish is answered after a step that finds nothing left to remove.
        self.rules.vanishing.is_pending |= batch.vanishes;
        self.deletes |= batch.deletes;
        let (metrics, put_off) = (self.beside.metrics.clone(), Arc::clone(&self.put_off));
        self.hand_over(transacted, move |stored| match stored {
            Ok(()) => {
                metrics.commit_s.observe(began.elapsed().as_secs_f64());
                metrics.commit_events.observe(batch.slots.len() as f64);
                batch.settle(&put_off);
            }
            Err(error) => {
                let failed = Outcome::Failed(error.to_owned());
                batch.slots.into_iter().for_each(|slot| slot.settle(failed.clone()));
            }
        });
    }

    fn note(&mut self, Note { write, reply }: Note) {
        let written = self.transact(|connection, now, _, _| write(connection, now));
        self.hand_over(written, move |written| answer(&reply, written));
    }
}

fn answer(reply: &Answer, done: Result<(), &str>) {
    // Fails only if the caller no longer waits.
    let _ = reply.send(done.map_err(|error| StoreError::NotWritten(error.to_owned())));
}
