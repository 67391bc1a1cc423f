//! A bounded pool of threads that parse events and check their signatures. This is the most
//! expensive work of a relay, so it uses every core and blocks no other thread.

use super::StoreError;
use super::source_queue::{Origin, SourceQueue};
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use tokio::sync::oneshot;

/// Bytes of JSON that take as long to parse as one signature takes to check.
const SIGNATURE_BYTES: usize = 8 << 10;

type Job = Box<dyn FnOnce() + Send>;

/// The pool. Clones share it; its threads end when the last clone is dropped.
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

/// Closed when the last clone of the pool is dropped.
struct VerifyQueue(Arc<SourceQueue<Job>>);

impl Drop for VerifyQueue {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Verifier {
    /// Starts a pool with one thread for each core.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn start() -> Result<Self, StoreError> {
        let threads = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let queue = Arc::new(VerifyQueue(Arc::default()));
        for number in 0..threads {
            let jobs = Arc::clone(&queue.0);
            std::thread::Builder::new()
                .name(format!("verify-{number}"))
                .spawn(move || {
                    while let Some(job) = jobs.pop() {
                        // A panic in one job must not cost the pool a thread.
                        if catch_unwind(AssertUnwindSafe(job)).is_err() {
                            tracing::error!("a verification job panicked");
                        }
                    }
                })
                .map_err(StoreError::Thread)?;
        }
        Ok(Self { queue, threads })
    }

    /// The number of jobs that run at the same time.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Queues a job that parses `bytes` bytes of events; the queue is fair between origins. Does
    /// not wait: the caller must bound its pending jobs.
    pub fn run(&self, origin: &Origin, bytes: usize, job: impl FnOnce() + Send + 'static) {
        // A signature takes as long as some kilobytes.
        let weight = SIGNATURE_BYTES.saturating_add(bytes);
        // Cannot fail: the queue closes only with the pool.
        let _ = self.queue.0.push(origin, [(weight, Box::new(job) as Job)]);
    }

    /// Like [`Verifier::run`], but returns the result of `job`; `None` if it panicked.
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
