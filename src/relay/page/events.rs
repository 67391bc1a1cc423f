//! The page's updates: server-sent events (the HTML standard, section 9.2), each with the changed
//! parts.

use super::render::{self, Part};
use super::streams::StreamPermit;
use super::{Visitor, view};
use crate::relay::RelayState;
use crate::relay::response::Body;
use hyper::body::Bytes;
use serde_json::{Map, Value};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Interval of checks for changes.
const TICK: Duration = Duration::from_secs(1);
/// Time without a change after which only the time is sent, to show that the connection works.
const SIGN_OF_LIFE: Duration = Duration::from_secs(15);
/// Maximum number of queued updates.
const QUEUE: usize = 2;
/// Timeout for sending an update.
const PATIENCE: Duration = Duration::from_secs(60);

/// Keeps a page up to date while it is open, until the relay stops at the latest.
pub(super) fn subscribe(relay: Arc<RelayState>, visitor: Visitor, permit: StreamPermit) -> Body {
    let (updates, body) = mpsc::channel(QUEUE);
    let stopping = relay.service.running.stopping.clone();
    tokio::spawn(async move {
        let _permit = permit;
        tokio::select! {
            () = keep_current(&relay, &visitor, &updates) => {}
            () = updates.closed() => {}
            () = stopping.cancelled() => {}
        }
    });
    Body::Updates(body)
}

/// Returns when the page accepts no more updates, or none can come.
async fn keep_current(relay: &Arc<RelayState>, visitor: &Visitor, updates: &mpsc::Sender<Bytes>) {
    let mut sent: Arc<Vec<Part>> = Arc::default();
    let mut sent_at = Instant::now();
    let mut tick = tokio::time::interval(TICK);
    loop {
        tick.tick().await;
        if !relay.config().page.enabled {
            return;
        }
        let Ok(now) = view(relay, visitor.viewer(relay), visitor.span).await else { return };
        let mut parts: Vec<Part> =
            now.parts.iter().filter(|part| !sent.contains(part)).cloned().collect();
        if parts.is_empty() && sent_at.elapsed() < SIGN_OF_LIFE {
            continue;
        }
        parts.push(render::as_of(&now.facts));
        let sending = updates.send(message(parts));
        if !matches!(tokio::time::timeout(PATIENCE, sending).await, Ok(Ok(()))) {
            return;
        }
        (sent, sent_at) = (now.parts, Instant::now());
    }
}

fn message(parts: Vec<Part>) -> Bytes {
    let parts: Map<String, Value> =
        parts.into_iter().map(|(id, html)| (id.to_owned(), Value::from(html))).collect();
    // JSON text contains no line ends.
    Bytes::from(format!("event: parts\ndata: {}\n\n", Value::Object(parts)))
}
