//! Health checks of the parts that serving needs, at a bounded rate.

use std::time::{Duration, Instant};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

/// Timeout after which a part counts as stuck.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Minimum interval between two checks.
const EVERY: Duration = Duration::from_secs(2);

/// The results of checks.
#[derive(Default)]
pub(crate) struct Health {
    // Held during a check: concurrent requests wait for its result.
    tries: Mutex<Tries>,
}

#[derive(Default)]
struct Tries {
    last: Option<(Instant, Result<(), String>)>,
    // Kept after a timeout, so that no further check starts while one is stuck.
    under_way: Option<JoinHandle<Result<(), String>>>,
}

impl Health {
    /// Why the part does not work, by the last check or by a new one that `begin` starts.
    pub(crate) async fn check(
        &self,
        begin: impl FnOnce() -> JoinHandle<Result<(), String>>,
    ) -> Result<(), String> {
        let mut tries = self.tries.lock().await;
        if let Some((at, result)) = &tries.last
            && at.elapsed() < EVERY
        {
            return result.clone();
        }
        let trying = tries.under_way.get_or_insert_with(begin);
        let tried = tokio::time::timeout(TIMEOUT, trying).await;
        if tried.is_ok() {
            tries.under_way = None;
        }
        let result = match tried {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(panic)) => Err(panic.to_string()),
            Err(_) => Err(format!("no answer within {} s", TIMEOUT.as_secs())),
        };
        tries.last = Some((Instant::now(), result.clone()));
        result
    }
}
