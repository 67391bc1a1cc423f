//! The one thread that writes. It gathers the events that wait into one transaction, so that many
//! share the price of one durable commit, and tells about each commit before any of its outcomes.

use super::StoreError;
use super::checkpoint::Checkpointer;
use super::commits::Commits;
use super::event::{VANISH, VerifiedEvent};
use super::rules::{self, Change, Outcome};
use super::vanish::{self, Vanishing};
use crate::metrics::StoreMetrics;
use rusqlite::{Connection, TransactionBehavior};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Called with the outcome of each event of a submission, in order, once they are durable.
pub type Reply = Box<dyn FnOnce(Vec<Outcome>) + Send>;

/// Called with every change, after its commit and before the replies to its events.
pub type OnCommit = Box<dyn FnMut(Arc<Change>) + Send>;

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
    reply: SyncSender<rusqlite::Result<()>>,
}

/// Something beside the events to write, which nobody hears of but its caller.
type Note = Box<dyn FnOnce(&mut Connection) + Send>;

/// The way to the writer thread.
pub(super) struct Writer {
    jobs: SyncSender<Job>,
    // The second at which the next stored event expires; `u64::MAX` when none does.
    next_expiry: Arc<AtomicU64>,
    // Taken by whoever stops the writer first.
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Writer {
    pub(super) fn start(
        connection: Connection,
        beside: Beside,
        vanishing: Vanishing,
        on_commit: OnCommit,
    ) -> Result<Self, StoreError> {
        let (jobs, queue) = sync_channel(QUEUE_SUBMISSIONS);
        let next_expiry = Arc::new(AtomicU64::new(rules::next_expiry(&connection)?));
        let state = Thread {
            connection,
            beside,
            vanishing,
            put_off: Vec::new(),
            on_commit,
            next_expiry: Arc::clone(&next_expiry),
        };
        let thread = std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || state.run(&queue))
            .map_err(StoreError::Thread)?;
        Ok(Self { jobs, next_expiry, thread: Mutex::new(Some(thread)) })
    }

    /// Hands events over; waits while the queue is full.
    pub(super) fn submit(&self, events: Vec<VerifiedEvent>, reply: Reply) {
        self.send(Job::Publish { events, reply });
    }

    /// Whether something stored was due to be removed by `now`.
    pub(super) fn has_expired(&self, now: u64) -> bool {
        self.next_expiry.load(Ordering::Acquire) <= now
    }

    /// Removes what is due now, then replies.
    pub(super) fn expire(&self, reply: Reply) {
        self.send(Job::Expire { reply });
    }

    /// Removes events in one commit, and waits for it.
    pub(super) fn remove(&self, ids: Vec<[u8; 32]>) -> Result<(), StoreError> {
        let (reply, removed) = sync_channel(1);
        self.send(Job::Remove(Removal { ids, reply }));
        Ok(removed.recv().map_err(|_| StoreError::Closed)??)
    }

    /// Writes something beside the events, in a transaction of its own, and waits for it.
    pub(super) fn note(
        &self,
        write: impl FnOnce(&Connection, u64) -> rusqlite::Result<()> + Send + 'static,
    ) -> Result<(), StoreError> {
        let (send, written) = sync_channel(1);
        self.send(Job::Note(Box::new(move |connection| {
            let done = connection.transaction_with_behavior(TransactionBehavior::Immediate);
            let done = done.and_then(|transaction| {
                write(&transaction, unix_now())?;
                transaction.commit()
            });
            let _ = send.send(done);
        })));
        Ok(written.recv().map_err(|_| StoreError::Closed)??)
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
    pub(super) metrics: StoreMetrics,
}

/// What the writer thread owns.
struct Thread {
    connection: Connection,
    beside: Beside,
    vanishing: Vanishing,
    // Replies that wait until all has vanished that they are about.
    put_off: Vec<(Reply, Vec<Outcome>)>,
    on_commit: OnCommit,
    next_expiry: Arc<AtomicU64>,
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
            self.expire_due();
            self.commit(gathered.batch);
            for Removal { ids, reply } in gathered.removals {
                let removed = self
                    .transact(|connection, _, _, change| rules::remove(connection, &ids, change));
                let _ = reply.send(removed);
            }
            for note in gathered.notes {
                note(&mut self.connection);
            }
            patience = if self.vanish() { Duration::ZERO } else { TICK };
            if gathered.stop {
                break;
            }
        }
        for (reply, outcomes) in self.put_off {
            // It goes on at the next start.
            let failed = Outcome::Failed("the store was closed before all had vanished".into());
            reply(vec![failed; outcomes.len()]);
        }
        self.beside.checkpointer.finish(&self.connection);
    }

    fn commit(&mut self, batch: Vec<(Vec<VerifiedEvent>, Reply)>) {
        if batch.is_empty() {
            return;
        }
        let counts: Vec<usize> = batch.iter().map(|(events, _)| events.len()).collect();
        let vanishes = |events: &Vec<VerifiedEvent>| events.iter().any(|it| it.kind() == VANISH);
        let vanish: Vec<bool> = batch.iter().map(|(events, _)| vanishes(events)).collect();
        let began = Instant::now();
        let (submissions, replies): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
        let written = self.transact(|connection, now, vanishing, change| {
            let mut outcomes = Vec::with_capacity(submissions.len());
            for events in submissions {
                let mut of_submission = Vec::with_capacity(events.len());
                for event in events {
                    of_submission.push(rules::apply(connection, event, now, vanishing, change)?);
                }
                outcomes.push(of_submission);
            }
            Ok(outcomes)
        });
        match written {
            Ok(outcomes) => {
                self.measure(counts.iter().sum(), began.elapsed());
                for ((reply, outcomes), vanish) in replies.into_iter().zip(outcomes).zip(vanish) {
                    if vanish && self.vanishing.is_pending {
                        self.put_off.push((reply, outcomes));
                    } else {
                        reply(outcomes);
                    }
                }
            }
            Err(error) => {
                tracing::error!(%error, "a batch of events could not be stored");
                let failed = Outcome::Failed(error.to_string());
                for (reply, count) in replies.into_iter().zip(counts) {
                    reply(vec![failed.clone(); count]);
                }
            }
        }
    }

    /// Notes a commit of events; one that only waited for expirations is none.
    fn measure(&self, events: usize, elapsed: Duration) {
        if events > 0 {
            self.beside.metrics.commit_s.observe(elapsed.as_secs_f64());
            self.beside.metrics.commit_events.observe(events as f64);
        }
    }

    /// NIP-40: removes what is due, a bounded batch at a time.
    fn expire_due(&mut self) {
        while self.next_expiry.load(Ordering::Acquire) <= unix_now() {
            let removed = self.transact(|connection, now, _, change| {
                rules::expire(connection, now, EXPIRE_EVENTS, change)
            });
            match removed {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) => {
                    tracing::error!(%error, "what has expired could not be removed");
                    break;
                }
            }
        }
    }

    /// NIP-62: removes a part of what is to vanish, and replies once nothing is left of it.
    /// Returns whether there is more.
    fn vanish(&mut self) -> bool {
        if !self.vanishing.is_pending {
            return false;
        }
        let removed = self.transact(|connection, _, vanishing, change| {
            vanishing.is_pending = vanish::remove_some(connection, VANISH_EVENTS, change)?;
            Ok(())
        });
        if let Err(error) = removed {
            tracing::error!(%error, "what is to vanish could not be removed");
            self.vanishing.is_pending = true;
            return false;
        }
        if !self.vanishing.is_pending {
            self.put_off.drain(..).for_each(|(reply, outcomes)| reply(outcomes));
        }
        self.vanishing.is_pending
    }

    /// Runs `work` in a transaction, commits it and publishes what it changed.
    fn transact<T>(
        &mut self,
        work: impl FnOnce(&Connection, u64, &mut Vanishing, &mut Change) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<T> {
        let mut change = Change::default();
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let done = work(&transaction, unix_now(), &mut self.vanishing, &mut change)?;
        let next_expiry = rules::next_expiry(&transaction)?;
        let is_change = !change.steps.is_empty();
        change.number = self.beside.commits.count(is_change, || transaction.commit())?;
        if is_change {
            (self.on_commit)(Arc::new(change));
        }
        // Only now: whoever sees the new second also sees what expired before it gone.
        self.next_expiry.store(next_expiry, Ordering::Release);
        self.beside.checkpointer.committed(&self.connection);
        Ok(done)
    }
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
