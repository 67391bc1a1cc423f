//! The orderly end of serving: signalled to all tasks, and waited for.

use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// Timeout for connections to end.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// Held by each running task until it has ended.
pub(crate) struct Running {
    pub(crate) stopping: CancellationToken,
    _counted: TaskTrackerToken,
}

/// Ends all tasks. Dropping it does so without waiting.
pub(crate) struct Stop {
    stop: DropGuard,
    held: TaskTracker,
    accepting: Vec<JoinHandle<()>>,
}

/// A new pair: the handle that stops, and the one that tasks hold.
pub(crate) fn running() -> (Stop, Running) {
    let (stopping, held) = (CancellationToken::new(), TaskTracker::new());
    let running = Running { stopping: stopping.clone(), _counted: held.token() };
    held.close();
    (Stop { stop: stopping.drop_guard(), held, accepting: Vec::new() }, running)
}

impl Stop {
    /// Adds a task that accepts connections; it ends by itself when stopping begins.
    pub(crate) fn accepts(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.accepting.push(tokio::spawn(task));
    }

    /// Stops, and returns when all tasks have ended or after 10 seconds.
    pub(crate) async fn stop(self) {
        drop(self.stop);
        for accepting in self.accepting {
            let _ = accepting.await;
        }
        if tokio::time::timeout(STOP_TIMEOUT, self.held.wait()).await.is_err() {
            tracing::warn!("some connections did not end in time");
        }
    }
}
