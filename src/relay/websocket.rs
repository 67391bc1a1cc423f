//! The way from an HTTP request to a WebSocket (RFC 6455, section 4.2), and how sockets are set.
//! It knows nothing of Nostr: `examples/echo.rs` puts the Autobahn cases to it.

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

/// A connection's buffer for reading, and what is read into it at once. It is allocated from the
/// beginning, so that it counts ten-thousandfold. The system is asked for more (`message_gate`).
const READ_BUFFER_BYTES: usize = 128;
/// What is gathered for one write to the socket.
const WRITE_BUFFER_BYTES: usize = 64 << 10;
/// The least that a socket's write buffer may hold: more than any stored event, in any form.
const LEAST_WRITE_BUFFER_BYTES: usize = 16 << 20;
/// The version of the WebSocket protocol.
const VERSION: &str = "13";

/// Why a request does not become a WebSocket.
pub(super) enum UpgradeRefusal {
    /// It is no handshake.
    NoHandshake,
    /// It is one of another version than 13.
    Version,
}

/// Whether the request is for a WebSocket at all.
pub(super) fn is_asked_for<B>(request: &Request<B>) -> bool {
    has_token(request, UPGRADE, "websocket")
}

/// The `Sec-WebSocket-Accept` that answers the request.
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

/// The answer that ends HTTP on the connection.
pub(super) fn switch<B: Default>(accept: HeaderValue) -> Response<B> {
    let mut response = Response::new(B::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    response
}

/// Says in a refusal which version would do.
pub(super) fn with_version<B>(mut response: Response<B>) -> Response<B> {
    response.headers_mut().insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static(VERSION));
    response
}

/// The longest messages of a connection, in bytes.
pub(super) struct Longest {
    /// That may come.
    pub(super) received: usize,
    /// That may be sent.
    pub(super) sent: usize,
}

/// The socket of a connection that has been upgraded.
pub(super) async fn socket<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    longest: Longest,
) -> WebSocketStream<S> {
    // A bound for pongs that are not taken. What is sent waits until the buffer is written out,
    // so that it has to hold the longest message beside what is gathered for a write.
    let most = longest.sent.max(LEAST_WRITE_BUFFER_BYTES).saturating_add(2 * WRITE_BUFFER_BYTES);
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(WRITE_BUFFER_BYTES)
        .max_write_buffer_size(most)
        .max_message_size(Some(longest.received))
        .max_frame_size(Some(longest.received));
    WebSocketStream::from_raw_socket(stream, Role::Server, Some(config)).await
}

/// The code to close with after such an error; none where nothing can be sent any more.
pub(super) fn close_code(error: &Error) -> Option<CloseCode> {
    match error {
        Error::Capacity(_) => Some(CloseCode::Size),
        Error::Utf8(_) => Some(CloseCode::Invalid),
        Error::Protocol(_) => Some(CloseCode::Protocol),
        _ => None,
    }
}

/// Whether one of a header's values, separated by commas, is `token`, in either case.
fn has_token<B>(request: &Request<B>, header: HeaderName, token: &str) -> bool {
    let values = request.headers().get_all(header);
    let mut tokens =
        values.iter().filter_map(|value| value.to_str().ok()).flat_map(|v| v.split(','));
    tokens.any(|value| value.trim().eq_ignore_ascii_case(token))
}
