//! Accepts connections and hands each to HTTP or, upgraded, to WebSocket.

use super::limits::{Full, Handshake, Place, client_address};
use super::response::{Body, refuse};
use super::websocket::{self, Refused};
use super::{Shared, connection, http, stopped};
use crate::config::ConnectionsConfig;
use hyper::body::Incoming;
use hyper::header::HOST;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};

/// How long an answer has to be taken when the relay stops or the connection's time is up.
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
            Ok((stream, peer)) => {
                is_refused = false;
                let most = relay.config().connections.half_open.size();
                let handshake = relay.counts.half_open.enter(most);
                tokio::spawn(serve(stream, peer.ip(), handshake, Arc::clone(&relay)));
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

/// Serves HTTP until a WebSocket has come of it, or for as long as a handshake may take.
async fn serve(stream: TcpStream, peer: IpAddr, mut handshake: Handshake, relay: Arc<Shared>) {
    // Answers are small and awaited: never hold them back to fill a packet.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a connection cannot send at once");
    }
    let mut stopping = relay.stopping.clone();
    let patience = Duration::from_secs(relay.config().connections.handshake_timeout_s.get());
    let service = service_fn(move |request| {
        let relay = Arc::clone(&relay);
        async move { Ok::<_, Infallible>(respond(request, peer, relay).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(patience)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut served = std::pin::pin!(served);
    let ended = tokio::select! {
        ended = served.as_mut() => ended,
        () = handshake.pushed_out() => return,
        _ = tokio::time::timeout(patience, stopped(&mut stopping)) => {
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
    peer: IpAddr,
    relay: Arc<Shared>,
) -> Response<Body> {
    if !websocket::is_asked_for(&request) {
        return http::respond(&request, &relay, peer).await;
    }
    let refused = &relay.metrics.connections_refused;
    let accept = match websocket::accept(&request) {
        Ok(accept) => accept,
        Err(error) => {
            refused.count("handshake");
            return match error {
                Refused::NoHandshake => {
                    refuse(StatusCode::BAD_REQUEST, "This is no WebSocket handshake.\n")
                }
                Refused::Version => websocket::with_version(refuse(
                    StatusCode::UPGRADE_REQUIRED,
                    "Use WebSocket 13.\n",
                )),
            };
        }
    };
    let host = request.headers().get(HOST).and_then(|host| host.to_str().ok()).map(str::to_owned);
    let place = match place(&request, peer, &relay) {
        Ok(place) => place,
        Err(full) => {
            refused.count(full.reason());
            return full_answer(full, &relay.config().connections);
        }
    };
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        match upgrade.await {
            Ok(upgraded) => {
                let message_bytes = relay.config().limits.message_bytes.size();
                let socket = websocket::socket(upgraded, message_bytes).await;
                connection::serve(relay, socket, place, host.as_deref()).await;
            }
            Err(error) => tracing::debug!(%error, "a connection could not be upgraded"),
        }
    });
    websocket::switch(accept)
}

/// Takes a place for the client's connection.
fn place(request: &Request<Incoming>, peer: IpAddr, relay: &Shared) -> Result<Place, Full> {
    let config = &relay.config().connections;
    let client = client_address(peer, request.headers(), &config.trusted_proxies);
    relay.counts.addresses.connect(client, config)
}

/// There is no place for a connection.
fn full_answer(full: Full, config: &ConnectionsConfig) -> Response<Body> {
    let (status, text) = match full {
        Full::InAll => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("All {} connections of this relay are taken.", config.in_all.get()),
        ),
        Full::Address => (
            StatusCode::TOO_MANY_REQUESTS,
            format!("Your address has {} connections already.", config.per_address.get()),
        ),
    };
    refuse(status, &format!("{text} Try again later.\n"))
}
