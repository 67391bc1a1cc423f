//! `/health`, `/metrics` and `/status` on an address of their own: on the address for clients,
//! these paths belong to the relay.

use super::{SidecarState, http};
use crate::config::AttachConfig;
use crate::server::status;
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::{Method, Request, Response, StatusCode};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

/// Answers a request.
pub(super) async fn respond<B>(
    request: Request<B>,
    from: IpAddr,
    shared: Arc<SidecarState>,
) -> Response<Full<Bytes>> {
    match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/health") => health(&shared).await,
        (&Method::GET | &Method::HEAD, "/metrics") => {
            let bytes = file_bytes(&shared.service.config().attach);
            shared.service.metrics(&request, from, bytes, None)
        }
        (&Method::GET | &Method::HEAD, "/status") => shared.service.status(&request, from, None),
        _ => {
            let text = "Here are /health, /metrics and /status.\n".to_owned();
            status::answer(StatusCode::NOT_FOUND, "text/plain", text)
        }
    }
}

/// 200 if the database can be read and the relay answers, otherwise 503 with the reasons.
async fn health(shared: &Arc<SidecarState>) -> Response<Full<Bytes>> {
    let mut reasons = shared.service.reasons();
    let read = shared.database.check(|| {
        let sets = shared.service.sets.clone();
        tokio::task::spawn_blocking(move || {
            sets.source().catch_up().map_err(|error| error.to_string())
        })
    });
    if let Err(reason) = read.await {
        reasons.push(format!("the relay's database cannot be read: {reason}"));
    }
    let answered = shared.answers.check(|| {
        let relay = shared.relay.clone();
        tokio::spawn(async move { http::ask(&relay).await.map_err(|error| error.to_string()) })
    });
    if let Err(reason) = answered.await {
        reasons.push(format!("the relay does not answer: {reason}"));
    }
    status::health(&reasons)
}

/// The sizes of the relay's database and of its log, in bytes; 0 for a missing file.
fn file_bytes(config: &AttachConfig) -> (u64, u64) {
    let bytes = |path: &Path| std::fs::metadata(path).map_or(0, |it| it.len());
    let mut wal = config.path.clone().into_os_string();
    wal.push("-wal");
    (bytes(&config.path), bytes(Path::new(&wal)))
}
