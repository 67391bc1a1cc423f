//! Ctrl-C and SIGTERM in commands that move events: running work is completed and reported.

use std::pin::pin;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Waits for `work`, and cancels `stop` at each SIGINT or SIGTERM; `work` then ends by itself.
pub(super) async fn stoppable<T>(
    stop: CancellationToken,
    work: impl Future<Output = T>,
) -> std::io::Result<T> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut work = pin!(work);
    loop {
        tokio::select! {
            done = work.as_mut() => return Ok(done),
            _ = interrupt.recv() => stop.cancel(),
            _ = terminate.recv() => stop.cancel(),
        }
    }
}
