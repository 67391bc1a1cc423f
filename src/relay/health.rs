//! Whether the relay can do its work, for those who start it again when it cannot.

use super::Shared;
use super::response::{Body, answer_own};
use crate::store::StoreError;
use hyper::{Response, StatusCode};
use serde_json::json;
use std::time::{Duration, Instant};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

/// How long the store may take over a write before it counts as stuck.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// A write is tried at most this often, however many ask.
const WRITE_EVERY: Duration = Duration::from_secs(2);

/// What is known of whether the store can be written.
#[derive(Default)]
pub(super) struct Health {
    // Held while a try is under way: those who come meanwhile wait for its result.
    tries: Mutex<Tries>,
}

#[derive(Default)]
struct Tries {
    last: Option<(Instant, Result<(), String>)>,
    // Stays here while nobody waits for it, so that a stuck store is tried once and not again.
    under_way: Option<JoinHandle<Result<(), StoreError>>>,
}

/// 200 when the relay can do its work, 503 with the reasons when it cannot.
pub(super) async fn respond(relay: &Shared) -> Response<Body> {
    let mut reasons = Vec::new();
    if *relay.stopping.borrow() {
        reasons.push("the relay is stopping".to_owned());
    }
    if !relay.index.sets().statistics().is_loaded {
        reasons.push("the index is being loaded".to_owned());
    }
    if let Err(reason) = try_write(relay).await {
        reasons.push(format!("the store cannot be written: {reason}"));
    }
    let (status, word) = match reasons.is_empty() {
        true => (StatusCode::OK, "ok"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
    };
    let body = json!({ "status": word, "reasons": reasons });
    answer_own(status, "application/json", format!("{body}\n"))
}

async fn try_write(relay: &Shared) -> Result<(), String> {
    let mut tries = relay.health.tries.lock().await;
    if let Some((at, result)) = &tries.last
        && at.elapsed() < WRITE_EVERY
    {
        return result.clone();
    }
    let writing = tries.under_way.get_or_insert_with(|| {
        let store = relay.index.store().clone();
        tokio::task::spawn_blocking(move || store.check_writable())
    });
    let written = tokio::time::timeout(WRITE_TIMEOUT, writing).await;
    if written.is_ok() {
        tries.under_way = None;
    }
    let result = match written {
        Ok(Ok(written)) => written.map_err(|error| error.to_string()),
        Ok(Err(panic)) => Err(panic.to_string()),
        Err(_) => Err(format!("no answer within {} s", WRITE_TIMEOUT.as_secs())),
    };
    tries.last = Some((Instant::now(), result.clone()));
    result
}
