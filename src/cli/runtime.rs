//! The runtime of serving commands, with its threads.

use anyhow::Context;
use negsync::config::Config;
use negsync::store::DAY_S;
use std::io;
use std::num::NonZeroUsize;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::available_parallelism;
use std::time::Duration;
use tokio::runtime::Runtime;

/// Timeout for starting all threads for blocking work.
const THREADS_TIMEOUT: Duration = Duration::from_secs(10);
const FOREVER: Duration = Duration::from_secs(100 * 365 * DAY_S);

/// A runtime that starts its blocking threads at once and keeps them: clients are answered even if
/// the system gives no more threads later.
pub(super) fn start(config: &Config) -> anyhow::Result<Runtime> {
    let count = negsync::server::blocking_threads(config);
    let workers = available_parallelism().map_or(1, NonZeroUsize::get);
    check_threads(count + workers).with_context(|| {
        format!(
            "cannot start {} threads for reading the store and for clients. Hint: raise the limit of \
             processes (`ulimit -u`, TasksMax of the systemd unit) or of address space (`ulimit -v`), or \
             lower store.readers",
            count + workers
        )
    })?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_keep_alive(FOREVER)
        .build()
        .context("cannot start the runtime")?;
    let started = Arc::new(Started::default());
    for _ in 0..count {
        let started = Arc::clone(&started);
        runtime.spawn_blocking(move || started.add_and_wait(count));
    }
    anyhow::ensure!(started.wait(count), "cannot start {count} threads for reading the store");
    Ok(runtime)
}

/// Checks that the system gives this many threads at a time: tokio panics if it gets none.
fn check_threads(count: usize) -> io::Result<()> {
    let gate = Mutex::new(());
    let closed = gate.lock();
    std::thread::scope(|scope| {
        let started = (0..count).try_for_each(|_| {
            std::thread::Builder::new().spawn_scoped(scope, || drop(gate.lock())).map(drop)
        });
        drop(closed);
        started
    })
}

/// Counts the started threads. Each waits until all are there, so that each piece of work gets its
/// own thread.
#[derive(Default)]
struct Started {
    count: Mutex<usize>,
    changed: Condvar,
}

impl Started {
    fn add_and_wait(&self, all: usize) {
        *self.lock() += 1;
        self.changed.notify_all();
        self.wait(all);
    }

    /// Waits until all have started; `false` at the timeout.
    fn wait(&self, all: usize) -> bool {
        let waited =
            self.changed.wait_timeout_while(self.lock(), THREADS_TIMEOUT, |count| *count < all);
        waited.is_ok_and(|(count, _)| *count >= all)
    }

    fn lock(&self) -> MutexGuard<'_, usize> {
        self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
