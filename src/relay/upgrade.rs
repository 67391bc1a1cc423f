//! Answers a request with HTTP or with a WebSocket upgrade.

use super::response::{Body, refuse};
use super::websocket::{self, UpgradeRefusal};
use super::{RelayState, connection, http, management, message_gate};
use crate::server::limits::client_address;
use hyper::body::Incoming;
use hyper::header::HOST;
use hyper::{Request, Response, StatusCode};
use std::net::IpAddr;
use std::sync::Arc;

/// Answers a request; after an upgrade, serves the WebSocket.
pub(super) async fn respond(
    mut request: Request<Incoming>,
    peer: IpAddr,
    relay: Arc<RelayState>,
) -> Response<Body> {
    let client =
        client_address(peer, request.headers(), &relay.config().connections.trusted_proxies);
    relay.service.pace_request(client).await;
    if management::is_asked_for(&request) && relay.endpoint.is(request.uri().path()) {
        return management::respond(request, &relay).await;
    }
    if !websocket::is_asked_for(&request) {
        return http::respond(&request, &relay, peer).await;
    }
    let service = &relay.service;
    if !relay.endpoint.is(request.uri().path()) {
        service.metrics.connections_refused.count("handshake");
        return refuse(StatusCode::NOT_FOUND, "There is no relay at this path.\n");
    }
    let accept = match websocket::accept(&request) {
        Ok(accept) => accept,
        Err(error) => {
            service.metrics.connections_refused.count("handshake");
            return match error {
                UpgradeRefusal::NoHandshake => {
                    refuse(StatusCode::BAD_REQUEST, "This is no WebSocket handshake.\n")
                }
                UpgradeRefusal::Version => websocket::with_version(refuse(
                    StatusCode::UPGRADE_REQUIRED,
                    "Use WebSocket 13.\n",
                )),
            };
        }
    };
    let host = request.headers().get(HOST).and_then(|host| host.to_str().ok()).map(str::to_owned);
    if relay.admission.moderation().current().blocks(client) {
        service.metrics.connections_refused.count("banned");
        return refuse(StatusCode::FORBIDDEN, "Your address is banned.\n");
    }
    let place = match service.place(&request, peer) {
        Ok(place) => place,
        Err((status, text)) => return refuse(status, &text),
    };
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        match upgrade.await {
            Ok(upgraded) => {
                let place = Arc::new(place);
                let socket = message_gate::socket(upgraded, &place, &relay.config()).await;
                // A new task, so that the memory of this one is freed during the connection.
                tokio::spawn(connection::serve(relay, socket, place, host.as_deref()));
            }
            Err(error) => tracing::debug!(%error, "a connection could not be upgraded"),
        }
    });
    websocket::switch(accept)
}
