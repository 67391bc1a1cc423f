//! Whether something that serving needs can do its work: tried now and then, however many ask.

use std::time::{Duration, Instant};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

/// How long a try may take before what is tried counts as stuck.
const TIMEOUT: Duration = Duration::from_secs(5);
/// It is tried at most this often.
const EVERY: Duration = Duration::from_secs(2);

/// What is known of it.
#[derive(Default)]
pub(crate) struct Health {
    // Held while a try is under way: those who come meanwhile wait for its result.
    tries: Mutex<Tries>,
}

#[derive(Default)]
struct Tries {
    last: Option<(Instant, Result<(), String>)>,
    // Stays here while nobody waits for it, so that what is stuck is tried once and not again.
    under_way: Option<JoinHandle<Result<(), String>>>,
}

impl Health {
    /// Why it cannot do its work, by the last try or by a new one, which `begin` begins.
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
