//! Accepts connections and hands each to HTTP or, upgraded, to WebSocket.

use super::websocket::{self, Refused};
use super::{Shared, connection, http, stopped};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};

/// How long a client may take over the headers of its request.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a relay that stops waits for an answer to be taken, and not for half a request.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long to wait when the system has no connection to give (out of descriptors, say).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Accepts until the relay stops.
pub(super) async fn accept(listener: TcpListener, relay: Arc<Shared>) {
    let mut stopping = relay.stopping.clone();
    let mut is_refused = false;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stopped(&mut stopping) => return,
        };
        match accepted {
            Ok((stream, from)) => {
                is_refused = false;
                tokio::spawn(serve(stream, from.ip(), Arc::clone(&relay)));
            }
            Err(error) => {
                // Said once: it is tried again and again until there is one to be had.
                if !std::mem::replace(&mut is_refused, true) {
                    tracing::warn!(%error, "no connection can be accepted");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve(stream: TcpStream, from: IpAddr, relay: Arc<Shared>) {
    // Answers are small and awaited: never hold them back to fill a packet.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a connection cannot send at once");
    }
    let mut stopping = relay.stopping.clone();
    let service = service_fn(move |request| {
        let relay = Arc::clone(&relay);
        async move { Ok::<_, Infallible>(respond(request, from, relay).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HANDSHAKE_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut served = std::pin::pin!(served);
    let ended = tokio::select! {
        ended = served.as_mut() => ended,
        () = stopped(&mut stopping) => {
            served.as_mut().graceful_shutdown();
            tokio::time::timeout(CLOSE_TIMEOUT, served).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended before its request was answered");
    }
}

async fn respond(
    mut request: Request<Incoming>,
    from: IpAddr,
    relay: Arc<Shared>,
) -> Response<http::Body> {
    if !websocket::is_asked_for(&request) {
        return http::respond(&request, &relay, from).await;
    }
    let refused = &relay.metrics.connections_refused;
    let accept = match websocket::accept(&request) {
        Ok(accept) => accept,
        Err(error) => {
            refused.count("handshake");
            return match error {
                Refused::NoHandshake => {
                    http::refuse(StatusCode::BAD_REQUEST, "This is no WebSocket handshake.\n")
                }
                Refused::Version => websocket::with_version(http::refuse(
                    StatusCode::UPGRADE_REQUIRED,
                    "Use WebSocket 13.\n",
                )),
            };
        }
    };
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        match upgrade.await {
            Ok(upgraded) => {
                let message_bytes = relay.config.limits.message_bytes.size();
                let socket = websocket::socket(upgraded, message_bytes).await;
                connection::serve(relay, socket, from).await;
            }
            Err(error) => tracing::debug!(%error, "a connection could not be upgraded"),
        }
    });
    websocket::switch(accept)
}
