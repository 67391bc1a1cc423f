//! How serving comes to its end: told to all, and waited for.

use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How long connections have to end.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// Held by all that runs, for as long as it has not ended.
pub(crate) struct Running {
    pub(crate) stopping: watch::Receiver<bool>,
    _ended: watch::Receiver<()>,
}

/// Ends what runs.
pub(crate) struct Stop {
    stop: watch::Sender<bool>,
    // Closed once nobody holds a `Running` any more.
    ended: watch::Sender<()>,
    accepting: Vec<JoinHandle<()>>,
}

/// Something that runs from now on.
pub(crate) fn running() -> (Stop, Running) {
    let (stop, stopping) = watch::channel(false);
    let (ended, _ended) = watch::channel(());
    (Stop { stop, ended, accepting: Vec::new() }, Running { stopping, _ended })
}

/// Returns when it begins to stop.
pub(crate) async fn stopped(stopping: &mut watch::Receiver<bool>) {
    // An error means that whoever could stop it is gone.
    let _ = stopping.wait_for(|stop| *stop).await;
}

impl Stop {
    /// A task that accepts connections, and ends by itself when this begins to stop.
    pub(crate) fn accepts(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.accepting.push(tokio::spawn(task));
    }

    /// Stops, and returns when all have ended or after 10 seconds.
    pub(crate) async fn stop(self) {
        let _ = self.stop.send(true);
        for accepting in self.accepting {
            let _ = accepting.await;
        }
        if tokio::time::timeout(STOP_TIMEOUT, self.ended.closed()).await.is_err() {
            tracing::warn!("some connections did not end in time");
        }
    }
}
