//! The upgrade from HTTP to WebSocket (RFC 6455, section 4.2), and the settings of sockets.
//! Independent of Nostr: `examples/echo.rs` runs the Autobahn cases against it.

use hyper::header::{
    CONNECTION, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use hyper::{Method, Request, Response, StatusCode, Version};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Error;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

/// A connection's read buffer and the length of one read. It is allocated from the start, so its
/// size counts for ten thousand connections. Larger reads from the system are made by
/// `message_gate`.
const READ_BUFFER_BYTES: usize = 128;
/// Bytes that are collected for one write to the socket.
const WRITE_BUFFER_BYTES: usize = 64 << 10;
/// Minimum size of a socket's write buffer: more than any stored event in any form.
const LEAST_WRITE_BUFFER_BYTES: usize = 16 << 20;
/// The version of the WebSocket protocol.
const VERSION: &str = "13";

/// Why a request is not upgraded.
pub(super) enum UpgradeRefusal {
    /// It is not a valid handshake.
    NoHandshake,
    /// It has a version other than 13.
    Version,
}

/// Whether the request asks for a WebSocket.
pub(super) fn is_asked_for<B>(request: &Request<B>) -> bool {
    has_token(request, UPGRADE, "websocket")
}

/// The `Sec-WebSocket-Accept` header for the response.
pub(super) fn accept<B>(request: &Request<B>) -> Result<HeaderValue, UpgradeRefusal> {
    let is_handshake = request.method() == Method::GET
        && request.version() == Version::HTTP_11
        && has_token(request, CONNECTION, "upgrade");
    let key = request.headers().get(SEC_WEBSOCKET_KEY).filter(|_| is_handshake);
    let key = key.ok_or(UpgradeRefusal::NoHandshake)?;
    if request.headers().get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != VERSION) {
        return Err(UpgradeRefusal::Version);
    }
    HeaderValue::from_str(&derive_accept_key(key.as_bytes()))
        .map_err(|_| UpgradeRefusal::NoHandshake)
}

/// The response that ends HTTP on the connection.
pub(super) fn switch<B: Default>(accept: HeaderValue) -> Response<B> {
    let mut response = Response::new(B::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    response
}

/// Adds the supported version to a refusal.
pub(super) fn with_version<B>(mut response: Response<B>) -> Response<B> {
    response.headers_mut().insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static(VERSION));
    response
}

/// Maximum lengths of messages of a connection, in bytes.
pub(super) struct Longest {
    /// Of a received message.
    pub(super) received: usize,
    /// Of a sent message.
    pub(super) sent: usize,
}

/// The socket of an upgraded connection.
pub(super) async fn socket<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    longest: Longest,
) -> WebSocketStream<S> {
    // A bound for pongs that the client does not read. Sent data waits until the buffer is flushed,
    // so the buffer must hold the longest message and the bytes collected for a write.
    let most = longest.sent.max(LEAST_WRITE_BUFFER_BYTES).saturating_add(2 * WRITE_BUFFER_BYTES);
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(WRITE_BUFFER_BYTES)
        .max_write_buffer_size(most)
        .max_message_size(Some(longest.received))
        .max_frame_size(Some(longest.received));
    WebSocketStream::from_raw_socket(stream, Role::Server, Some(config)).await
}

/// The close code for an error; `None` if nothing can be sent any more.
pub(super) fn close_code(error: &Error) -> Option<CloseCode> {
    match error {
        Error::Capacity(_) => Some(CloseCode::Size),
        Error::Utf8(_) => Some(CloseCode::Invalid),
        Error::Protocol(_) => Some(CloseCode::Protocol),
        _ => None,
    }
}

/// Whether one of a header's comma-separated values is `token`, ignoring case.
fn has_token<B>(request: &Request<B>, header: HeaderName, token: &str) -> bool {
    let values = request.headers().get_all(header);
    let mut tokens =
        values.iter().filter_map(|value| value.to_str().ok()).flat_map(|v| v.split(','));
    tokens.any(|value| value.trim().eq_ignore_ascii_case(token))
}
