//! A bounded pool of threads that parse events and check their signatures: the costliest thing
//! that a relay does, so it keeps every core busy and no other thread.

use super::StoreError;
use super::source_queue::{Origin, SourceQueue};
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use tokio::sync::oneshot;

/// So many bytes of JSON take as long to read as one signature to check.
const SIGNATURE_BYTES: usize = 8 << 10;

type Job = Box<dyn FnOnce() + Send>;

/// The pool. Clones share it; its threads end when the last clone is gone.
#[derive(Clone)]
pub struct Verifier {
    queue: Arc<VerifyQueue>,
    threads: usize,
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verifier").finish_non_exhaustive()
    }
}

/// Closed with the last clone of the pool.
struct VerifyQueue(Arc<SourceQueue<Job>>);

impl Drop for VerifyQueue {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Verifier {
    /// A pool of one thread a core.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start() -> Result<Self, StoreError> {
        let threads = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let queue = Arc::new(VerifyQueue(Arc::default()));
        for number in 0..threads {
            let jobs = Arc::clone(&queue.0);
            std::thread::Builder::new()
                .name(format!("verify-{number}"))
                .spawn(move || {
                    while let Some(job) = jobs.pop() {
                        // A fault in one event's job must not cost the pool a thread.
                        if catch_unwind(AssertUnwindSafe(job)).is_err() {
                            tracing::error!("a verification job panicked");
                        }
                    }
                })
                .map_err(StoreError::Thread)?;
        }
        Ok(Self { queue, threads })
    }

    /// How many jobs run at the same time.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Hands a job over that reads so many bytes of events; each origin has its turn. Does not wait:
    /// whoever hands over bounds what it has under way.
    pub fn run(&self, origin: &Origin, bytes: usize, job: impl FnOnce() + Send + 'static) {
        // A signature takes as long as some kilobytes.
        let weight = SIGNATURE_BYTES.saturating_add(bytes);
        // The queue closes only with the pool itself.
        let _ = self.queue.0.push(origin, [(weight, Box::new(job) as Job)]);
    }

    /// As [`Verifier::run`], and returns what `job` returns; `None` when it panicked.
    pub async fn check<T: Send + 'static>(
        &self,
        origin: &Origin,
        bytes: usize,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let (done, result) = oneshot::channel();
        self.run(origin, bytes, move || drop(done.send(job())));
        result.await.ok()
    }
}
