//! A bounded pool of threads that parse events and check their signatures: the costliest thing
//! that a relay does, so it keeps every core busy and no other thread.

use super::StoreError;
use async_channel::{Receiver, Sender};
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use tokio::sync::oneshot;

/// The most jobs that wait for a thread; then handing over waits.
const QUEUE_JOBS: usize = 1_024;

type Job = Box<dyn FnOnce() + Send>;

/// The pool. Clones share it; its threads end when the last clone is gone.
#[derive(Clone)]
pub struct Verifier {
    jobs: Sender<Job>,
    threads: usize,
}

impl Verifier {
    /// A pool of one thread a core.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start() -> Result<Self, StoreError> {
        let threads = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let (jobs, queue) = async_channel::bounded::<Job>(QUEUE_JOBS);
        for number in 0..threads {
            let queue: Receiver<Job> = queue.clone();
            std::thread::Builder::new()
                .name(format!("verify-{number}"))
                .spawn(move || {
                    while let Ok(job) = queue.recv_blocking() {
                        // A fault in one event's job must not cost the pool a thread.
                        if catch_unwind(AssertUnwindSafe(job)).is_err() {
                            tracing::error!("a verification job panicked");
                        }
                    }
                })
                .map_err(StoreError::Thread)?;
        }
        Ok(Self { jobs, threads })
    }

    /// How many jobs run at the same time.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Hands a job over; waits while the queue is full.
    pub async fn run(&self, job: impl FnOnce() + Send + 'static) {
        // The queue closes only with the pool itself.
        let _ = self.jobs.send(Box::new(job)).await;
    }

    /// Runs `job` on the pool and returns what it returns; `None` when it panicked.
    pub async fn check<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let (done, result) = oneshot::channel();
        self.run(move || drop(done.send(job()))).await;
        result.await.ok()
    }

    /// Hands a job over from a thread that may block.
    pub fn run_blocking(&self, job: impl FnOnce() + Send + 'static) {
        let _ = self.jobs.send_blocking(Box::new(job));
    }
}
