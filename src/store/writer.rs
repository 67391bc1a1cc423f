//! The one thread that writes. It gathers the events that wait into one transaction, so that many
//! share the price of one commit, and hands each commit to be flushed and told of.

use super::StoreError;
use super::change::{Change, Step};
use super::checkpoint::Checkpointer;
use super::commits::{Commits, Untold};
use super::event::{VANISH, VerifiedEvent};
use super::fault::{self, Trouble};
use super::flush::{Committed, Flusher, OnCommit, Tell};
use super::rules::{self, Outcome};
use super::vanish::{self, Vanishing};
use crate::metrics::StoreMetrics;
use rusqlite::{Connection, TransactionBehavior};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Called with the outcome of each event of a submission, in order, once they are durable.
pub type Reply = Box<dyn FnOnce(Vec<Outcome>) + Send>;

/// The most events that share one commit.
const BATCH_EVENTS: usize = 10_000;
/// The most submissions that wait for the writer; then submitting waits.
const QUEUE_SUBMISSIONS: usize = 4_096;
/// The most events that one expiration commit removes.
const EXPIRE_EVENTS: usize = 1_000;
/// The most events of somebody who vanishes that one commit removes; others get their turn between.
const VANISH_EVENTS: usize = 500;
/// How long the writer sleeps at most before it looks at the clock for expirations.
const TICK: Duration = Duration::from_millis(250);
/// How long after a failure what has expired is tried to be removed again.
const EXPIRE_AGAIN: Duration = Duration::from_secs(5);

enum Job {
    Publish { events: Vec<VerifiedEvent>, reply: Reply },
    Expire { reply: Reply },
    Remove(Removal),
    Note(Note),
    Stop,
}

/// Events to remove in one commit, and who waits for it.
struct Removal {
    ids: Vec<[u8; 32]>,
    reply: Answer,
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

/// Replies that wait until all has vanished that they are about.
type PutOff = Arc<Mutex<Vec<(Reply, Vec<Outcome>)>>>;

/// The way to the writer thread.
pub(super) struct Writer {
    jobs: SyncSender<Job>,
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
        beside: Beside,
        vanishing: Vanishing,
        flush: impl FnMut() -> io::Result<()> + Send + 'static,
        on_commit: OnCommit,
    ) -> Result<Self, StoreError> {
        let (jobs, queue) = sync_channel(QUEUE_SUBMISSIONS);
        let due = rules::next_expiry(&connection, 0)?;
        let next_expiry = Arc::new(AtomicU64::new(due));
        let doubt = beside.checkpointer.doubt().clone();
        let flusher = Flusher::start(flush, on_commit, Arc::clone(&next_expiry), doubt)?;
        let commits = beside.commits.clone();
        let state = Thread {
            connection,
            beside,
            vanishing,
            put_off: PutOff::default(),
            flusher,
            next_expiry: due,
            expire_again: None,
            trouble: Trouble::new(path),
        };
        let thread = std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || state.run(&queue))
            .map_err(StoreError::Thread)?;
        Ok(Self { jobs, next_expiry, commits, thread: Mutex::new(Some(thread)) })
    }

    /// Hands events over; waits while the queue is full.
    pub(super) fn submit(&self, events: Vec<VerifiedEvent>, reply: Reply) {
        self.send(Job::Publish { events, reply });
    }

    /// Whether something stored was due to be removed by `now`.
    pub(super) fn has_expired(&self, now: u64) -> bool {
        self.next_expiry.load(Ordering::Acquire) <= now
    }

    /// As [`Commits::wait_until_told`].
    pub(super) fn wait_until_told(&self) {
        self.commits.wait_until_told();
    }

    /// Removes what is due now, then replies.
    pub(super) fn expire(&self, reply: Reply) {
        self.send(Job::Expire { reply });
    }

    /// Removes events in one commit, and waits for it.
    pub(super) fn remove(&self, ids: Vec<[u8; 32]>) -> Result<(), StoreError> {
        let (reply, removed) = sync_channel(1);
        self.send(Job::Remove(Removal { ids, reply }));
        removed.recv().map_err(|_| StoreError::Closed)?
    }

    /// Writes something beside the events, in a transaction of its own, and waits for it.
    pub(super) fn note(
        &self,
        write: impl FnOnce(&Connection, u64) -> rusqlite::Result<()> + Send + 'static,
    ) -> Result<(), StoreError> {
        let (reply, written) = sync_channel(1);
        self.send(Job::Note(Note { write: Box::new(write), reply }));
        written.recv().map_err(|_| StoreError::Closed)?
    }

    /// Commits what was submitted before, then ends the thread.
    pub(super) fn stop(&self) {
        let thread = self.thread.lock().map_or_else(|e| e.into_inner().take(), |mut t| t.take());
        if let Some(thread) = thread {
            self.send(Job::Stop);
            if thread.join().is_err() {
                tracing::error!("the store's writer thread panicked");
            }
        }
    }

    fn send(&self, job: Job) {
        if let Err(refused) = self.jobs.send(job) {
            match refused.0 {
                Job::Publish { events, reply } => {
                    reply(vec![Outcome::Failed("the store is closed".into()); events.len()]);
                }
                Job::Expire { reply } => reply(Vec::new()),
                Job::Remove(_) | Job::Note(_) | Job::Stop => {}
            }
        }
    }
}

/// Who else has to do with each commit.
pub(super) struct Beside {
    pub(super) checkpointer: Checkpointer,
    pub(super) commits: Commits,
    /// The second up to which events have left all sets and answers though they could not be
    /// removed; readers go by it.
    pub(super) expired_until: Arc<AtomicU64>,
    pub(super) metrics: StoreMetrics,
}

/// What the writer thread owns.
struct Thread {
    connection: Connection,
    beside: Beside,
    vanishing: Vanishing,
    put_off: PutOff,
    flusher: Flusher,
    // As of the last commit; others hear of it once that is durable.
    next_expiry: u64,
    // When to try again to remove what has expired and could not be removed.
    expire_again: Option<Instant>,
    trouble: Trouble,
}

impl Thread {
    fn run(mut self, queue: &Receiver<Job>) {
        let mut patience = Duration::ZERO;
        loop {
            let first = match queue.recv_timeout(patience) {
                Ok(job) => Some(job),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            let gathered = gather(first, queue);
            self.mend();
            self.expire_due();
            self.publish(gathered.batch);
            for Removal { ids, reply } in gathered.removals {
                self.transact(
                    |connection, _, _, change| rules::remove(connection, &ids, change),
                    move |removed| answer(&reply, removed),
                );
            }
            for Note { write, reply } in gathered.notes {
                self.transact(
                    |connection, now, _, _| write(connection, now),
                    move |written| answer(&reply, written),
                );
            }
            patience = if self.vanish() { Duration::ZERO } else { TICK };
            if gathered.stop {
                break;
            }
        }
        self.flusher.finish();
        // It goes on at the next start.
        answer_put_off(&self.put_off, Err("the store was closed before all had vanished"));
        self.beside.checkpointer.finish(&self.connection);
    }

    /// After a flush that failed: at once, while the system still has in memory what it could not
    /// write.
    fn mend(&mut self) {
        if let Err(error) = self.beside.checkpointer.mend(&self.connection) {
            self.trouble.failed("write-ahead log in doubt", &error);
        }
    }

    fn publish(&mut self, batch: Vec<(Vec<VerifiedEvent>, Reply)>) {
        if batch.is_empty() {
            return;
        }
        let counts: Vec<usize> = batch.iter().map(|(events, _)| events.len()).collect();
        let vanish = |events: &Vec<VerifiedEvent>| events.iter().any(|it| it.kind() == VANISH);
        let vanish: Vec<bool> = batch.iter().map(|(events, _)| vanish(events)).collect();
        self.vanishing.is_pending |= vanish.contains(&true);
        let began = Instant::now();
        let (submissions, replies): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
        let apply = |connection: &Connection, now, vanishing: &mut _, change: &mut Change| {
            let mut outcomes = Vec::with_capacity(submissions.len());
            for events in submissions {
                let mut of_submission = Vec::with_capacity(events.len());
                for event in events {
                    of_submission.push(rules::apply(connection, event, now, vanishing, change)?);
                }
                outcomes.push(of_submission);
            }
            Ok(outcomes)
        };
        let (metrics, put_off) = (self.beside.metrics.clone(), Arc::clone(&self.put_off));
        self.transact(apply, move |stored| match stored {
            Ok(outcomes) => {
                measure(&metrics, counts.iter().sum(), began.elapsed());
                for ((reply, outcomes), vanish) in replies.into_iter().zip(outcomes).zip(vanish) {
                    if vanish {
                        lock(&put_off).push((reply, outcomes));
                    } else {
                        reply(outcomes);
                    }
                }
            }
            Err(error) => {
                let failed = Outcome::Failed(error.to_owned());
                for (reply, count) in replies.into_iter().zip(counts) {
                    reply(vec![failed.clone(); count]);
                }
            }
        });
    }

    /// NIP-40: removes what is due, a bounded batch at a time.
    fn expire_due(&mut self) {
        let mut is_due = self.next_expiry <= unix_now()
            || self.expire_again.is_some_and(|at| at <= Instant::now());
        while is_due {
            self.expire_again = None;
            let mut removed = 0;
            let expire = |connection: &Connection, now, _: &mut _, change: &mut Change| {
                removed = rules::expire(connection, now, EXPIRE_EVENTS, change)?;
                Ok(())
            };
            let is_done = self.transact(expire, |_| {});
            is_due = is_done && removed == EXPIRE_EVENTS;
            if !is_done {
                self.expire_again = Some(Instant::now() + EXPIRE_AGAIN);
                if let Err(error) = self.hide_due() {
                    self.trouble.failed("what has expired could not be read", &error.into());
                }
            }
        }
    }

    /// NIP-62: removes a part of what is to vanish, and replies once nothing is left of it.
    /// Returns whether there is more to remove now.
    fn vanish(&mut self) -> bool {
        if !self.vanishing.is_pending {
            return false;
        }
        let put_off = Arc::clone(&self.put_off);
        let is_done = self.transact(
            |connection, _, vanishing, change| {
                vanishing.is_pending = vanish::remove_some(connection, VANISH_EVENTS, change)?;
                Ok(vanishing.is_pending)
            },
            move |removed| match removed {
                Ok(true) => {}
                Ok(false) => answer_put_off(&put_off, Ok(())),
                Err(error) => answer_put_off(&put_off, Err(error)),
            },
        );
        // What failed is tried again, though not at once.
        self.vanishing.is_pending |= !is_done;
        is_done && self.vanishing.is_pending
    }

    /// What is due and cannot be removed leaves all sets and answers nevertheless, for good: the
    /// clock may go back, what was said to be gone does not return.
    fn hide_due(&mut self) -> rusqlite::Result<()> {
        let (hidden, now) = (self.beside.expired_until.load(Ordering::Acquire), self.now());
        let due = rules::due(&self.connection, hidden, now)?;
        self.next_expiry = rules::next_expiry(&self.connection, now)?;
        // As good as a commit: from here on no reading shows them.
        let untold = self.beside.commits.make(|| {
            self.beside.expired_until.store(now, Ordering::Release);
            Ok::<_, rusqlite::Error>(())
        })?;
        let steps = due.into_iter().map(Step::Removed).collect();
        self.flusher.committed(Committed {
            untold: Some(untold),
            change: Change { steps },
            next_expiry: self.next_expiry,
            tell: Box::new(|_| {}),
        });
        Ok(())
    }

    /// The second that decides what has expired.
    fn now(&self) -> u64 {
        unix_now().max(self.beside.expired_until.load(Ordering::Acquire))
    }

    /// Runs `work` in a transaction, commits it and has it flushed; `tell` hears when what it
    /// did is durable and known to all, or why it is not. Returns whether it was committed.
    fn transact<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&Connection, u64, &mut Vanishing, &mut Change) -> rusqlite::Result<T>,
        tell: impl FnOnce(Result<T, &str>) + Send + 'static,
    ) -> bool {
        let mut change = Change::default();
        let written = self.write(&mut change, work);
        let is_done = written.is_ok();
        let (tell, untold): (Tell, _) = match written {
            Ok((done, untold)) => {
                if !change.steps.is_empty() {
                    self.trouble.worked();
                }
                self.beside.checkpointer.committed(&self.connection);
                (Box::new(|flushed| tell(flushed.map(|()| done))), Some(untold))
            }
            Err(error) => {
                change = Change::default();
                self.trouble.failed("the store could not be written", &error);
                if let StoreError::Sqlite(error) = &error {
                    self.beside.checkpointer.doubt().note(error);
                }
                if fault::is_full(&error) {
                    // What the log holds can often be moved to where there is room already.
                    self.beside.checkpointer.relieve(&self.connection);
                }
                let words = fault::in_words(&error);
                (Box::new(move |_| tell(Err(&words))), None)
            }
        };
        // A failure as well: whoever hears of it has heard of all that came before.
        let next_expiry = self.next_expiry;
        self.flusher.committed(Committed { untold, change, next_expiry, tell });
        is_done
    }

    fn write<T>(
        &mut self,
        change: &mut Change,
        work: impl FnOnce(&Connection, u64, &mut Vanishing, &mut Change) -> rusqlite::Result<T>,
    ) -> Result<(T, Untold), StoreError> {
        if !self.connection.is_autocommit() {
            // A failure so bad that even its transaction could not be undone at the time.
            self.connection.execute_batch("ROLLBACK")?;
        }
        self.beside.checkpointer.mend(&self.connection)?;
        let (now, hidden) = (self.now(), self.beside.expired_until.load(Ordering::Acquire));
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let done = work(&transaction, now, &mut self.vanishing, change)?;
        let next_expiry = rules::next_expiry(&transaction, hidden)?;
        let untold = self.beside.commits.make(|| {
            if self.beside.checkpointer.doubt().is_there() {
                return Err(StoreError::NotWritten("the disk failed a moment ago".into()));
            }
            Ok(transaction.commit()?)
        })?;
        self.next_expiry = next_expiry;
        Ok((done, untold))
    }
}

/// Notes a commit of events; one that only waited for expirations is none.
fn measure(metrics: &StoreMetrics, events: usize, elapsed: Duration) {
    if events > 0 {
        metrics.commit_s.observe(elapsed.as_secs_f64());
        metrics.commit_events.observe(events as f64);
    }
}

/// Gives the replies that were put off, or says what kept the rest from vanishing.
fn answer_put_off(put_off: &PutOff, vanished: Result<(), &str>) {
    let waiting = std::mem::take(&mut *lock(put_off));
    for (reply, mut outcomes) in waiting {
        if let Err(error) = vanished {
            outcomes.fill(Outcome::Failed(error.to_owned()));
        }
        reply(outcomes);
    }
}

fn lock(put_off: &PutOff) -> MutexGuard<'_, Vec<(Reply, Vec<Outcome>)>> {
    put_off.lock().unwrap_or_else(PoisonError::into_inner)
}

fn answer(reply: &Answer, done: Result<(), &str>) {
    // Fails only where nobody waits any more.
    let _ = reply.send(done.map_err(|error| StoreError::NotWritten(error.to_owned())));
}

/// What the writer does next.
#[derive(Default)]
struct Gathered {
    batch: Vec<(Vec<VerifiedEvent>, Reply)>,
    removals: Vec<Removal>,
    notes: Vec<Note>,
    // Whether to end after it.
    stop: bool,
}

/// Takes what waits without waiting for more.
fn gather(first: Option<Job>, queue: &Receiver<Job>) -> Gathered {
    let mut gathered = Gathered::default();
    let mut events_in_batch = 0;
    let mut next = first;
    while let Some(job) = next {
        match job {
            Job::Publish { events, reply } => {
                events_in_batch += events.len();
                gathered.batch.push((events, reply));
            }
            Job::Expire { reply } => gathered.batch.push((Vec::new(), reply)),
            Job::Remove(removal) => gathered.removals.push(removal),
            Job::Note(note) => gathered.notes.push(note),
            Job::Stop => {
                gathered.stop = true;
                return gathered;
            }
        }
        next = if events_in_batch < BATCH_EVENTS { queue.try_recv().ok() } else { None };
    }
    gathered
}

/// Seconds since the Unix epoch by the system's clock; 0 before it.
pub fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
