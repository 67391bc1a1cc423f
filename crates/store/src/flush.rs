//! Makes commits durable and publishes them while the writer works on the next transaction.

use super::StoreError;
use super::change::Change;
use super::commits::Unpublished;
use super::doubt::Doubt;
use super::presence::Presence;
use super::sqlite_error;
use crate::options::Synchronous;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

/// Called with each change once it is durable, before the replies to its events.
pub type OnCommit = Box<dyn FnMut(Arc<Change>) + Send>;

/// Called with whether a commit is durable, or why it may not be.
pub(super) type Tell = Box<dyn FnOnce(Result<(), &str>) + Send>;

/// A transaction that SQLite has committed and that is not published yet.
pub(super) struct Committed {
    // `None` if the transaction changed nothing.
    pub(super) unpublished: Option<Unpublished>,
    pub(super) change: Change,
    // The second at which the next stored event expires, as of this commit.
    pub(super) next_expiry: u64,
    pub(super) tell: Tell,
}

/// The flushing thread, owned by the writer.
pub(super) struct Flusher {
    commits: SyncSender<Committed>,
    thread: JoinHandle<()>,
}

impl Flusher {
    /// Starts the thread. `flush` must return once everything committed before the call is durable.
    pub(super) fn start(
        flush: impl FnMut() -> Result<(), FlushError> + Send + 'static,
        on_commit: OnCommit,
        next_expiry: Arc<AtomicU64>,
        doubt: Doubt,
    ) -> Result<Self, StoreError> {
        let (commits, waiting) = sync_channel(1);
        let thread = FlushThread { flush, on_commit, next_expiry, doubt };
        let thread = std::thread::Builder::new()
            .name("store-flush".into())
            .spawn(move || thread.run(&waiting))
            .map_err(StoreError::Thread)?;
        Ok(Self { commits, thread })
    }

    /// Queues a commit; commits are published in order.
    pub(super) fn committed(&self, committed: Committed) {
        if let Err(refused) = self.commits.send(committed) {
            (refused.0.tell)(Err("the store's flush thread has ended"));
        }
    }

    /// Ends the thread once the last commit is published.
    pub(super) fn finish(self) {
        drop(self.commits);
        if self.thread.join().is_err() {
            tracing::error!("the store's flush thread panicked");
        }
    }
}

struct FlushThread<Flush> {
    flush: Flush,
    on_commit: OnCommit,
    // Shared with readers that check whether an event is due to be removed.
    next_expiry: Arc<AtomicU64>,
    doubt: Doubt,
}

impl<Flush: FnMut() -> Result<(), FlushError>> FlushThread<Flush> {
    fn run(mut self, waiting: &Receiver<Committed>) {
        while let Ok(committed) = waiting.recv() {
            let flushed = self.flush();
            self.tell(committed, &flushed);
        }
    }

    /// After a failed flush, the success of a later one says nothing about earlier commits.
    fn flush(&mut self) -> Result<(), String> {
        if self.doubt.is_there() {
            return Err("an earlier write could not be flushed to the disk".into());
        }
        (self.flush)().map_err(|error| match error {
            FlushError::Disk(error) => {
                tracing::error!(%error, "the write-ahead log could not be flushed to the disk");
                self.doubt.log_failed();
                format!("not flushed to the disk: {error}")
            }
            FlushError::Elsewhere(error) => sqlite_error::in_words(&error),
        })
    }

    /// A commit that may not be durable is published too: the tables have it, so the sets in memory
    /// must have it.
    fn tell(&mut self, committed: Committed, flushed: &Result<(), String>) {
        if !committed.change.steps.is_empty() {
            (self.on_commit)(Arc::new(committed.change));
        }
        // Must come last: a reader that sees the new second must also see the expired events gone.
        self.next_expiry.store(committed.next_expiry, Ordering::Release);
        drop(committed.unpublished);
        (committed.tell)(flushed.as_ref().copied().map_err(String::as_str));
    }
}

/// Why a commit may not be durable.
pub(super) enum FlushError {
    Disk(io::Error),
    /// The commit is durable, but not in the file that the next start opens.
    Elsewhere(StoreError),
}

/// Makes the store's commits durable: flushes the write-ahead log, and checks that the log and the
/// store are where the next start expects them.
pub(super) fn log_flush(
    log: Arc<File>,
    presence: Presence,
    synchronous: Synchronous,
) -> impl FnMut() -> Result<(), FlushError> + Send + 'static {
    move || {
        if synchronous == Synchronous::Full {
            log.sync_data().map_err(FlushError::Disk)?;
        }
        presence.check().map_err(FlushError::Elsewhere)
    }
}

#[cfg(test)]
mod tests {
    use super::super::apply::RuleMemory;
    use super::super::change::Step;
    use super::super::checkpoint::{Checkpointer, LogLength};
    use super::super::clock::Clock;
    use super::super::commits::Commits;
    use super::super::doubt::{Mender, open_log};
    use super::super::lock;
    use super::super::read_gate::ReadGate;
    use super::super::retention::Retaining;
    use super::super::rules::Outcome;
    use super::super::schema;
    use super::super::source_queue::Origin;
    use super::super::vanish::Vanishing;
    use super::super::writer::{Batches, Writer, WriterContext};
    use super::*;
    use crate::metrics::StoreMetrics;
    use negsync_nostr::Event;
    use std::sync::Mutex;
    use std::sync::atomic::AtomicBool;

    fn publish(writer: &Writer, number: u8) -> Outcome {
        let (id, zeros) = (format!("{number:064x}"), "0".repeat(128));
        let json = format!(
            r#"{{"id":"{id}","pubkey":"{id}","created_at":1,"kind":1,"tags":[],"content":"","sig":"{zeros}"}}"#
        );
        let (send, outcomes) = sync_channel(1);
        let events = vec![Event::parse(&json).unwrap().trust()];
        writer.submit(
            &Origin::Local,
            events,
            Box::new(move |outcomes| send.send(outcomes).unwrap()),
        );
        outcomes.recv().unwrap().remove(0)
    }

    /// A disk that failed once may have lost earlier writes, even if a later flush succeeds:
    /// nothing is acknowledged until everything is written again.
    #[test]
    fn nothing_is_acknowledged_on_the_word_of_a_disk_that_failed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store.sqlite");
        let mut connection = schema::open_writer(&path).unwrap();
        let checkpointer = schema::open_checkpointer(&path).unwrap();
        let (log, lock) = (open_log(&path).unwrap(), lock::take(&path).unwrap());
        let presence = Presence::of(&path, &log, &lock).unwrap();
        let mender = Mender::new(&path, log, false, presence);
        let length = LogLength::from_mb(1);
        let gate = ReadGate::default();
        let checkpointer =
            Checkpointer::start(&mut connection, checkpointer, length, mender, gate).unwrap();
        let fails = Arc::new(AtomicBool::new(false));
        let disk = Arc::clone(&fails);
        let flush = move || match disk.swap(false, Ordering::SeqCst) {
            true => Err(FlushError::Disk(io::Error::other("bad sector"))),
            false => Ok(()),
        };
        let heard = Arc::new(Mutex::new(0));
        let hears = Arc::clone(&heard);
        let on_commit = move |change: Arc<Change>| {
            let added = change.steps.iter().filter(|step| matches!(step, Step::Added(_)));
            *hears.lock().unwrap() += added.count();
        };
        let vanishing = Vanishing::load(&connection, None).unwrap();
        let retaining = Retaining::load(&connection, None).unwrap();
        let rules = RuleMemory { vanishing, retaining };
        let (commits, metrics) = (Commits::default(), StoreMetrics::default());
        let expired_until = Arc::default();
        let batches = Batches::Short;
        let clock = Clock::system();
        let beside =
            WriterContext { checkpointer, commits, expired_until, metrics, batches, clock };
        let writer =
            Writer::start(&path, connection, beside, rules, flush, Box::new(on_commit)).unwrap();
        assert_eq!(publish(&writer, 1), Outcome::Stored);
        // A read that does not end keeps the log from being moved; the log is repaired
        // nevertheless.
        let reader = schema::open_reader(&path).unwrap();
        let reading = reader.unchecked_transaction().unwrap();
        let count = |_: ()| -> i64 {
            reading.query_row("SELECT count(*) FROM event", [], |row| row.get(0)).unwrap()
        };
        assert_eq!(count(()), 1);
        fails.store(true, Ordering::SeqCst);
        assert!(matches!(publish(&writer, 2), Outcome::Failed(why) if why.contains("bad sector")));
        assert_eq!(publish(&writer, 2), Outcome::Duplicate);
        assert_eq!(publish(&writer, 3), Outcome::Stored);
        drop(reading);
        writer.stop();
        assert_eq!(*heard.lock().unwrap(), 3);
    }
}
