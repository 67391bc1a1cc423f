//! The one thread that writes. It takes what waits, from each origin in turn, into transactions of a
//! bounded weight, so that many events share the price of one commit and nobody waits long for what
//! others bring. What takes long (expiration, vanishing, removal) is done in steps between them.

use super::StoreError;
use super::apply::{self, RuleMemory};
use super::change::{Change, Step, Written};
use super::checkpoint::Checkpointer;
use super::commits::{Commits, Unpublished};
use super::deletion;
use super::flush::{Committed, FlushError, Flusher, OnCommit, Tell};
use super::operator;
use super::retention::{self, Retention};
use super::rules::Outcome;
use super::source_queue::{NextJob, Origin, SourceQueue};
use super::sqlite_error::{self, Trouble};
use super::submission::{EventSlot, Submission};
use super::vanish;
use crate::metrics::StoreMetrics;
use negsync_nostr::VerifiedEvent;
use negsync_nostr::kinds::VANISH;
use rusqlite::{Connection, TransactionBehavior};
use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

pub use super::submission::Reply;

/// The most rows that a step of an expiration, a vanishing or a removal writes, or those of one event.
pub(super) const STEP_ROWS: usize = 2_048;
/// How long the writer sleeps at most before it looks at the clock for expirations.
const TICK: Duration = Duration::from_millis(250);
/// How often the writer looks for the store's files, when it has no other reason to.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long after a failure what has expired is tried to be removed again.
const EXPIRE_AGAIN: Duration = Duration::from_secs(5);

/// How much shares a commit: what comes first ends the batch. A single event may be more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Batches {
    /// As much as can be written in some tens of milliseconds: whoever comes meanwhile waits for it.
    Short,
    /// For whoever writes alone: the longer a batch, the fewer times each page is written.
    Long {
        /// The most memory that the events of a batch take, in bytes. Three batches are in memory.
        bytes: usize,
    },
}

/// What a batch may hold.
#[derive(Clone, Copy)]
struct BatchLimits {
    rows: usize,
    bytes: usize,
    time: Duration,
}

impl BatchLimits {
    fn of(batches: Batches) -> Self {
        match batches {
            Batches::Short => Self { rows: 4_096, bytes: 4 << 20, time: Duration::from_millis(40) },
            Batches::Long { bytes } => Self { rows: usize::MAX, bytes, time: Duration::MAX },
        }
    }
}

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

/// Outcomes that wait until all is gone that they are about.
type PutOff = Arc<Mutex<Vec<(EventSlot, Outcome, WaitsFor)>>>;

/// What an outcome is put off for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WaitsFor {
    /// Nobody's events are vanishing any more.
    Vanishing,
    /// What deletion requests name is gone, up to this place in the table `removal`.
    Removal(i64),
}

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
        let due = apply::next_expiry(&connection, 0)?;
        let next_expiry = Arc::new(AtomicU64::new(due));
        let doubt = beside.checkpointer.doubt().clone();
        let flusher = Flusher::start(flush, on_commit, Arc::clone(&next_expiry), doubt)?;
        let commits = beside.commits.clone();
        beside.metrics.set_tombstones(deletion::tombstones(&connection)?);
        let state = WriterThread {
            limits: BatchLimits::of(beside.batches),
            beside,
            queue: Arc::clone(&queue),
            rules,
            put_off: PutOff::default(),
            removals: VecDeque::new(),
            deletes: deletion::first_postponed(&connection)?.is_some(),
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

    /// Writes something beside the events, in a transaction of its own, and waits for it.
    pub(super) fn note(
        &self,
        write: impl FnOnce(&Connection, u64) -> rusqlite::Result<()> + Send + 'static,
    ) -> Result<(), StoreError> {
        let (reply, written) = sync_channel(1);
        self.push(Job::Note(Note { write: Box::new(write), reply }))?;
        written.recv().map_err(|_| StoreError::Closed)?
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

/// What a transaction has become.
struct Transacted<T> {
    done: Result<(T, Unpublished), StoreError>,
    change: Change,
}

impl WriterThread {
    fn run(mut self) {
        let mut patience = Duration::ZERO;
        loop {
            let job = match self.queue.pop_within(patience) {
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
        let mut batch = CommitBatch { slots: vec![slot], ..CommitBatch::default() };
        let (queue, limits) = (Arc::clone(&self.queue), self.limits);
        let mut next = Some(event);
        let apply = |connection: &Connection, now, rules: &mut RuleMemory, written: &mut _| {
            while let Some(event) = next.take() {
                batch.apply(connection, *event, now, rules, written)?;
                if began.elapsed() < limits.time {
                    let fits = |weight, job: &Job| batch.has_room(weight, job, written, &limits);
                    if let Some((_, Job::Publish { event, slot })) = queue.pop_if(fits) {
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

    /// Removes a part of what is to be removed. Returns whether there is more.
    fn remove_step(&mut self) -> bool {
        let Some(Removal { mut ids, by, reply }) = self.removals.pop_front() else { return false };
        let removed = self.transact(|connection, now, _, written| match by {
            RemovedBy::Program => apply::remove(connection, &mut ids, STEP_ROWS, written),
            RemovedBy::Operator => operator::delete(connection, &mut ids, STEP_ROWS, now, written),
        });
        let is_done = removed.done.is_ok();
        if is_done && !ids.is_empty() {
            self.hand_over(removed, |_| {});
            self.removals.push_front(Removal { ids, by, reply });
        } else {
            self.hand_over(removed, move |removed| answer(&reply, removed));
        }
        !self.removals.is_empty()
    }

    /// NIP-40: removes a part of what is due. Returns whether there may be more.
    fn expire_step(&mut self) -> bool {
        let is_due = self.next_expiry <= unix_now()
            || self.expire_again.is_some_and(|at| at <= Instant::now());
        if !is_due && self.wait_for_expiry.is_empty() {
            return false;
        }
        if is_due {
            self.expire_again = None;
        }
        let expired = self.transact(|connection, now, _, written| {
            if is_due { apply::expire(connection, now, STEP_ROWS, written) } else { Ok(false) }
        });
        let there_is_more = matches!(expired.done, Ok((true, _)));
        if there_is_more {
            self.hand_over(expired, |_| {});
            return true;
        }
        let has_failed = expired.done.is_err();
        let waiting = std::mem::take(&mut self.wait_for_expiry);
        if has_failed {
            self.hand_over(expired, |_| {});
            self.expire_again = Some(Instant::now() + EXPIRE_AGAIN);
            self.hide_due(waiting);
        } else {
            self.hand_over(expired, move |_| waiting.into_iter().for_each(|reply| reply()));
        }
        false
    }

    /// NIP-09: removes a part of what deletion requests name, and replies to those of which nothing is
    /// left. Returns whether there is more to remove now.
    fn delete_step(&mut self) -> bool {
        if !self.deletes {
            return false;
        }
        let put_off = Arc::clone(&self.put_off);
        let deleted = self.transact(|connection, _, _, written| {
            deletion::remove_some(connection, STEP_ROWS, written)
        });
        let (is_done, there_is_more) = match &deleted.done {
            Ok((left, _)) => (true, left.is_some()),
            Err(_) => (false, true),
        };
        self.hand_over(deleted, move |removed| {
            let first_left = removed.map_or(0, |left| left.unwrap_or(i64::MAX));
            let is_about = |waits_for| match waits_for {
                WaitsFor::Removal(last) => removed.is_err() || last < first_left,
                WaitsFor::Vanishing => false,
            };
            answer_put_off(&put_off, is_about, removed.map(|_| ()));
        });
        // What failed is tried again, though not at once.
        self.deletes = there_is_more;
        is_done && there_is_more
    }

    fn retain(&mut self, rules: Retention, reply: &Answer) {
        let changed = self.rules.retaining.change(&self.connection, rules);
        let _ = reply.send(changed.map_err(StoreError::from));
    }

    /// Removes a part of what is not kept any longer. Returns whether there is more to look at now.
    fn retire_step(&mut self) -> bool {
        let now = unix_now();
        if !self.rules.retaining.is_due(now) {
            std::mem::take(&mut self.wait_for_retention).into_iter().for_each(|reply| reply());
            return false;
        }
        let doomed = match self.rules.retaining.find(&self.connection, now) {
            Ok(doomed) => doomed,
            Err(error) => {
                self.trouble.failed("retention could not look for what is to go", &error.into());
                self.rules.retaining.failed(now);
                return false;
            }
        };
        if doomed.is_empty() {
            return self.rules.retaining.is_due(now);
        }
        let retired = self.transact(|connection, _, _, written| {
            retention::retire(connection, &doomed, STEP_ROWS, written)
        });
        let is_done = retired.done.is_ok();
        self.hand_over(retired, |_| {});
        match is_done {
            true => self.rules.retaining.removed(&doomed),
            false => self.rules.retaining.failed(now),
        }
        is_done
    }

    /// NIP-62: removes a part of what is to vanish, and replies once nothing is left of it.
    /// Returns whether there is more to remove now.
    fn vanish_step(&mut self) -> bool {
        if !self.rules.vanishing.is_pending {
            return false;
        }
        let put_off = Arc::clone(&self.put_off);
        let vanished = self.transact(|connection, _, rules, written| {
            let vanishing = &mut rules.vanishing;
            vanishing.is_pending = vanish::remove_some(connection, STEP_ROWS, written)?;
            Ok(vanishing.is_pending)
        });
        let is_done = vanished.done.is_ok();
        let is_about = |waits_for| waits_for == WaitsFor::Vanishing;
        self.hand_over(vanished, move |removed| match removed {
            Ok(true) => {}
            Ok(false) => answer_put_off(&put_off, is_about, Ok(())),
            Err(error) => answer_put_off(&put_off, is_about, Err(error)),
        });
        // What failed is tried again, though not at once.
        self.rules.vanishing.is_pending |= !is_done;
        is_done && self.rules.vanishing.is_pending
    }

    /// What is due and cannot be removed leaves all sets and answers nevertheless, for good: the
    /// clock may go back, what was said to be gone does not return. Then replies to those who wait.
    fn hide_due(&mut self, waiting: Vec<OnDone>) {
        let (steps, unpublished) = match self.make_hidden() {
            Ok((steps, unpublished)) => (steps, Some(unpublished)),
            Err(error) => {
                self.trouble.failed("what has expired could not be read", &error.into());
                (Vec::new(), None)
            }
        };
        self.flusher.committed(Committed {
            unpublished,
            change: Change { steps },
            next_expiry: self.next_expiry,
            tell: Box::new(|_| waiting.into_iter().for_each(|reply| reply())),
        });
    }

    fn make_hidden(&mut self) -> rusqlite::Result<(Vec<Step>, Unpublished)> {
        let (hidden, now) = (self.beside.expired_until.load(Ordering::Acquire), self.now());
        let due = apply::due(&self.connection, hidden, now)?;
        let next_expiry = apply::next_expiry(&self.connection, now)?;
        // As good as a commit: from here on no reading shows them.
        let unpublished = self.beside.commits.commit(|| {
            self.beside.expired_until.store(now, Ordering::Release);
            Ok::<_, rusqlite::Error>(())
        })?;
        self.next_expiry = next_expiry;
        Ok((due.into_iter().map(Step::Removed).collect(), unpublished))
    }

    /// The second that decides what has expired.
    fn now(&self) -> u64 {
        unix_now().max(self.beside.expired_until.load(Ordering::Acquire))
    }

    /// Runs `work` in a transaction and commits it.
    fn transact<T>(
        &mut self,
        work: impl FnOnce(&Connection, u64, &mut RuleMemory, &mut Written) -> rusqlite::Result<T>,
    ) -> Transacted<T> {
        let mut written = Written::default();
        match self.write(&mut written, work) {
            Ok(done) => {
                self.beside.metrics.add_tombstones(written.tombstones);
                Transacted { done: Ok(done), change: written.into() }
            }
            Err(error) => Transacted { done: Err(error), change: Change::default() },
        }
    }

    /// Has a transaction flushed; `tell` hears when what it did is durable and known to all, or why
    /// it is not.
    fn hand_over<T: Send + 'static>(
        &mut self,
        Transacted { done, change }: Transacted<T>,
        tell: impl FnOnce(Result<T, &str>) + Send + 'static,
    ) {
        let (tell, unpublished): (Tell, _) = match done {
            Ok((done, unpublished)) => {
                if !change.steps.is_empty() {
                    self.trouble.worked();
                }
                self.beside.checkpointer.committed(&self.connection);
                (Box::new(|flushed| tell(flushed.map(|()| done))), Some(unpublished))
            }
            Err(error) => {
                self.trouble.failed("the store could not be written", &error);
                if let StoreError::Sqlite(error) = &error {
                    self.beside.checkpointer.doubt().note(&error.0);
                }
                if sqlite_error::is_full(&error) {
                    // What the log holds can often be moved to where there is room already.
                    self.beside.checkpointer.relieve(&self.connection);
                }
                let words = sqlite_error::in_words(&error);
                (Box::new(move |_| tell(Err(&words))), None)
            }
        };
        // A failure as well: whoever hears of it has heard of all that came before.
        let next_expiry = self.next_expiry;
        self.flusher.committed(Committed { unpublished, change, next_expiry, tell });
    }

    fn write<T>(
        &mut self,
        written: &mut Written,
        work: impl FnOnce(&Connection, u64, &mut RuleMemory, &mut Written) -> rusqlite::Result<T>,
    ) -> Result<(T, Unpublished), StoreError> {
        if !self.connection.is_autocommit() {
            // A failure so bad that even its transaction could not be undone at the time.
            self.connection.execute_batch("ROLLBACK")?;
        }
        self.beside.checkpointer.doubt().check_in_place()?;
        self.beside.checkpointer.mend(&self.connection)?;
        let (now, hidden) = (self.now(), self.beside.expired_until.load(Ordering::Acquire));
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let done = work(&transaction, now, &mut self.rules, written)?;
        written.tags.write(&transaction)?;
        let next_expiry = apply::next_expiry(&transaction, hidden)?;
        let unpublished = self.beside.commits.commit(|| {
            if self.beside.checkpointer.doubt().is_there() {
                return Err(StoreError::NotWritten("the disk failed a moment ago".into()));
            }
            Ok(transaction.commit()?)
        })?;
        self.next_expiry = next_expiry;
        Ok((done, unpublished))
    }
}

/// Events of one transaction.
#[derive(Default)]
struct CommitBatch {
    slots: Vec<EventSlot>,
    // Of those that were applied, in order.
    outcomes: Vec<(Outcome, Option<WaitsFor>)>,
    bytes: usize,
    vanishes: bool,
    deletes: bool,
}

impl CommitBatch {
    fn apply(
        &mut self,
        connection: &Connection,
        event: VerifiedEvent,
        now: u64,
        rules: &mut RuleMemory,
        written: &mut Written,
    ) -> rusqlite::Result<()> {
        let vanishes = event.kind() == VANISH;
        self.vanishes |= vanishes;
        self.bytes += event.memory_bytes();
        written.rows += event.weight();
        let outcome = apply::apply(connection, event, now, rules, written)?;
        let removal = written.put_off_to.take().map(WaitsFor::Removal);
        self.deletes |= removal.is_some();
        let waits_for = if vanishes { Some(WaitsFor::Vanishing) } else { removal };
        self.outcomes.push((outcome, waits_for));
        Ok(())
    }

    /// Whether another event belongs into the batch.
    fn has_room(&self, weight: usize, job: &Job, written: &Written, limits: &BatchLimits) -> bool {
        let Job::Publish { event, .. } = job else { return false };
        written.rows.saturating_add(weight) <= limits.rows
            && self.bytes.saturating_add(event.memory_bytes()) <= limits.bytes
    }

    /// Gives the outcomes, but for those that wait until something is gone.
    fn settle(self, put_off: &PutOff) {
        for (slot, (outcome, waits_for)) in self.slots.into_iter().zip(self.outcomes) {
            match waits_for {
                Some(waits_for) => lock(put_off).push((slot, outcome, waits_for)),
                None => slot.settle(outcome),
            }
        }
    }
}

/// Gives the outcomes that were put off for what `is_about` names, or says what kept the rest from being
/// removed.
fn answer_put_off(
    put_off: &PutOff,
    is_about: impl Fn(WaitsFor) -> bool,
    removed: Result<(), &str>,
) {
    let ready: Vec<_> = lock(put_off).extract_if(.., |waiting| is_about(waiting.2)).collect();
    for (slot, outcome, _) in ready {
        slot.settle(removed.map_or_else(|error| Outcome::Failed(error.to_owned()), |()| outcome));
    }
}

fn lock(put_off: &PutOff) -> MutexGuard<'_, Vec<(EventSlot, Outcome, WaitsFor)>> {
    put_off.lock().unwrap_or_else(PoisonError::into_inner)
}

fn answer(reply: &Answer, done: Result<(), &str>) {
    // Fails only where nobody waits any more.
    let _ = reply.send(done.map_err(|error| StoreError::NotWritten(error.to_owned())));
}

/// Seconds since the Unix epoch by the system's clock; 0 before it.
pub fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
