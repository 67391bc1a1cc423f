//! The one thread that writes. It takes what waits, from each origin in turn, into transactions of a
//! bounded weight, so that many events share the price of one commit and nobody waits long for what
//! others bring. What takes long (expiration, vanishing, removal) is done in steps between them.

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

/// The most rows that a step of an expiration, a vanishing or a removal writes, or those of one event.
pub(super) const STEP_ROWS: usize = 2_048;
/// How often the writer looks, while pages are moved out of the write-ahead log, whether that is done.
const MOVING_TICK: Duration = Duration::from_millis(5);
/// How long the writer sleeps at most before it looks at the clock for expirations.
const TICK: Duration = Duration::from_millis(250);
/// How often the writer looks for the store's files, when it has no other reason to.
const LOOK_EVERY: Duration = Duration::from_secs(1);

enum Job {
    Publish { event: Box<VerifiedEvent>, slot: EventSlot },
    Expire { reply: OnDone },
    Remove(Removal),
    Note(Note),
    Retain { rules: Box<Retention>, reply: Answer },
    Retire { reply: OnDone },
}

/// Called once something is durable and known to all.
type OnDone = Box<dyn FnOnce() + Send>;

/// Events to remove, and who waits for it.
struct Removal {
    ids: Vec<[u8; 32]>,
    by: RemovedBy,
    reply: Answer,
}

/// For whom events are removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RemovedBy {
    /// A program that uses the store: they may come back.
    Program,
    /// The operator: they are kept out.
    Operator,
}

/// Something beside the events to write, which nobody hears of but its caller.
struct Note {
    write: Write,
    reply: Answer,
}

/// Called in a transaction, with the second that it is.
type Write = Box<dyn FnOnce(&Connection, u64) -> rusqlite::Result<()> + Send>;

/// Where a caller waits to hear that what it asked for is durable.
type Answer = SyncSender<Result<(), StoreError>>;

/// The way to the writer thread.
pub(super) struct Writer {
    queue: Arc<SourceQueue<Job>>,
    // The second at which the next stored event expires; `u64::MAX` when none does.
    next_expiry: Arc<AtomicU64>,
    commits: Commits,
    // Taken by whoever stops the writer first.
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Writer {
    /// Starts the thread on the store of `path`.
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

    /// Hands events over. Does not wait: whoever submits bounds what it has under way.
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

    /// Whether something stored was due to be removed by `now`.
    pub(super) fn has_expired(&self, now: u64) -> bool {
        self.next_expiry.load(Ordering::Acquire) <= now
    }

    /// As [`Commits::wait_until_published`].
    pub(super) fn wait_until_published(&self) {
        self.commits.wait_until_published();
    }

    /// Removes what is due now, and waits until that is done or has failed.
    pub(super) fn expire(&self) -> Result<(), StoreError> {
        let (send, done) = sync_channel(1);
        let reply = Box::new(move || {
            let _ = send.send(());
        });
        self.push(Job::Expire { reply })?;
        done.recv().map_err(|_| StoreError::Closed)
    }

    /// Removes events, and waits until none of them is left.
    pub(super) fn remove(&self, ids: Vec<[u8; 32]>) -> Result<(), StoreError> {
        self.remove_by(RemovedBy::Program, ids)
    }

    /// As [`Writer::remove`], and keeps them out.
    pub(super) fn delete(&self, ids: Vec<[u8; 32]>) -> Result<(), StoreError> {
        self.remove_by(RemovedBy::Operator, ids)
    }

    fn remove_by(&self, by: RemovedBy, ids: Vec<[u8; 32]>) -> Result<(), StoreError> {
        let (reply, removed) = sync_channel(1);
        self.push(Job::Remove(Removal { ids, by, reply }))?;
        removed.recv().map_err(|_| StoreError::Closed)?
    }

    /// Puts rules of retention in force.
    pub(super) fn retain(&self, rules: Retention) -> Result<(), StoreError> {
        let (reply, changed) = sync_channel(1);
        self.push(Job::Retain { rules: Box::new(rules), reply })?;
        changed.recv().map_err(|_| StoreError::Closed)?
    }

    /// Has retention look for what is to go, and waits until nothing is left of it.
    pub(super) fn retire(&self) -> Result<(), StoreError> {
        let (send, done) = sync_channel(1);
        let reply = Box::new(move || {
            let _ = send.send(());
        });
        self.push(Job::Retire { reply })?;
        done.recv().map_err(|_| StoreError::Closed)
    }

    /// Writes something beside the events, in a transaction of its own, waits for it and returns what
    /// `write` did.
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

    /// Commits what was submitted before, then ends the thread.
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

/// Who else has to do with each commit.
pub(super) struct WriterContext {
    pub(super) checkpointer: Checkpointer,
    pub(super) commits: Commits,
    /// The second up to which events have left all sets and answers though they could not be
    /// removed; readers go by it.
    pub(super) expired_until: Arc<AtomicU64>,
    pub(super) metrics: StoreMetrics,
    pub(super) batches: Batches,
}

/// What the writer thread owns.
struct WriterThread {
    connection: Connection,
    limits: BatchLimits,
    beside: WriterContext,
    queue: Arc<SourceQueue<Job>>,
    rules: RuleMemory,
    put_off: PutOff,
    removals: VecDeque<Removal>,
    // Whether something that deletion requests name may still be there.
    deletes: bool,
    flusher: Flusher,
    // As of the last commit; others hear of it once that is durable.
    next_expiry: u64,
    // When to try again to remove what has expired and could not be removed.
    expire_again: Option<Instant>,
    // When the writer last looked for the store's files.
    files_seen: Instant,
    // Those who wait until nothing is due.
    wait_for_expiry: Vec<OnDone>,
    // Those who wait until retention finds nothing to remove.
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
            // One step of each between two batches.
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
        // It goes on at the next start.
        let closed = "the store was closed before all was removed";
        answer_put_off(&self.put_off, |_| true, Err(closed));
        self.beside.checkpointer.finish(&self.connection);
    }

    /// The next in turn. While pages are moved out of a long log that is nothing heavy: all of it has to be
    /// moved, too, and the last of it while everybody waits.
    fn next_job(&self, patience: Duration) -> NextJob<(usize, Job)> {
        // Looked at first: the log that the thread is done with is begun anew here.
        let is_moving = self.beside.checkpointer.is_moving();
        self.beside.checkpointer.begin_anew(&self.connection);
        if is_moving {
            self.queue.pop_light_within(patience.min(MOVING_TICK), self.limits.light_rows)
        } else {
            self.queue.pop_within(patience)
        }
    }

    /// Looks whether the files are where they were, and makes them whole after a flush that failed:
    /// at once, while the system still has in memory what it could not write.
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

    /// Writes an event and those that wait behind it, as many as a batch may hold.
    fn publish(&mut self, event: Box<VerifiedEvent>, slot: EventSlot) {
        let began = Instant::now();
        // What does not come to be applied is answered all the same.
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
        // Whoever asked to vanish is answered after a step that finds nothing left.
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
    // Fails only where nobody waits any more.
    let _ = reply.send(done.map_err(|error| StoreError::NotWritten(error.to_owned())));
}
