//! The peer's information document (NIP-11), as far as a sync uses it.

use super::connector::Connector;
use super::dial::DialError;
use crate::relay_url::RelayUrl;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::Request;
use hyper::body::Bytes;
use hyper::header::{ACCEPT, HOST, USER_AGENT};
use hyper_util::rt::TokioIo;
use negsync_nostr::RelayDocument;
use std::time::Duration;

/// Timeout for the document; a sync works without it.
const PATIENCE: Duration = Duration::from_secs(3);
/// Maximum length of the document.
const DOCUMENT_BYTES: usize = 256 << 10;
/// The lowest message length in use, that of strfry; assumed for a peer that states none.
const MESSAGE_BYTES: usize = 131_072;
/// Minimum message length that is accepted from a peer's document.
const LEAST_MESSAGE_BYTES: usize = 4_096;
/// Bytes of a message for verb, id and brackets.
const WRAPPING_BYTES: usize = 1_024;
/// Maximum length of a negentropy message; longer ones gain nothing.
const MOST_FRAME_BYTES: usize = 500_000;

/// A peer's limits. Missing ones have the values of the most restrictive known relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Information {
    /// Maximum length of a message to the peer, in bytes.
    pub message_bytes: usize,
    /// Maximum number of events that a REQ returns.
    pub events_per_req: usize,
    /// The same, if the peer states it.
    pub max_limit: Option<usize>,
    /// Maximum number of subscriptions at a time.
    pub subscriptions: usize,
    /// Whether the peer announces NIP-77; `None` if it lists no NIPs.
    pub negentropy: Option<bool>,
    /// Whether the peer announces COUNT (NIP-45).
    pub counts: bool,
    /// Whether the peer announces authentication (NIP-42).
    pub auth: bool,
}

impl Default for Information {
    fn default() -> Self {
        Self {
            message_bytes: MESSAGE_BYTES,
            events_per_req: 500,
            max_limit: None,
            subscriptions: 10,
            negentropy: None,
            counts: false,
            auth: false,
        }
    }
}

impl Information {
    /// Requests the document.
    pub(super) async fn fetch(url: &RelayUrl, connector: &Connector) -> Result<Self, DialError> {
        let fetched =
            tokio::time::timeout(connector.patience(PATIENCE), request(url, connector)).await;
        fetched.map_err(|_| DialError::new("no NIP-11 document in time"))?
    }

    /// Maximum length of a negentropy message to send, in bytes before hex encoding. At least the
    /// minimum of the protocol.
    pub(super) fn frame_limit_bytes(&self) -> usize {
        let left = self.message_bytes.saturating_sub(WRAPPING_BYTES) / 2;
        left.clamp(crate::reconcile::FRAME_LIMIT_MIN_BYTES, MOST_FRAME_BYTES)
    }

    /// Maximum length of the first message, which shares a frame with `filter_bytes` of filter. At
    /// least the minimum of the protocol; a longer filter has to be shortened by its author.
    pub(super) fn opening_limit_bytes(&self, filter_bytes: usize) -> usize {
        let left = self.message_bytes.saturating_sub(WRAPPING_BYTES + filter_bytes) / 2;
        left.clamp(crate::reconcile::FRAME_LIMIT_MIN_BYTES, MOST_FRAME_BYTES)
    }

    fn of(document: &RelayDocument) -> Self {
        let at_least = |number: Option<u64>, least: usize| {
            number.and_then(|number| usize::try_from(number).ok()).filter(|number| *number >= least)
        };
        let (default, told) = (Self::default(), &document.limitation);
        let max_limit = at_least(told.max_limit, 1);
        Self {
            message_bytes: at_least(told.max_message_length, LEAST_MESSAGE_BYTES)
                .unwrap_or(default.message_bytes),
            max_limit,
            events_per_req: max_limit.unwrap_or(default.events_per_req),
            subscriptions: at_least(told.max_subscriptions, 1).unwrap_or(default.subscriptions),
            negentropy: document.supports(77),
            counts: document.supports(45) == Some(true),
            auth: document.supports(42) == Some(true),
        }
    }
}

async fn request(url: &RelayUrl, connector: &Connector) -> Result<Information, DialError> {
    let failed = |reason: String| DialError::new(format!("NIP-11: {reason}"));
    let stream = TokioIo::new(connector.dial(url).await?);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream)
        .await
        .map_err(|error| failed(error.to_string()))?;
    let request = Request::get(url.expose_target())
        .header(HOST, url.authority())
        .header(ACCEPT, "application/nostr+json")
        .header(USER_AGENT, "negsync")
        .body(Empty::<Bytes>::new())
        .map_err(|error| failed(error.to_string()))?;
    let exchange = async {
        let response = sender.send_request(request).await?;
        Ok::<_, hyper::Error>(Limited::new(response.into_body(), DOCUMENT_BYTES).collect().await)
    };
    let mut connection = std::pin::pin!(connection);
    let mut exchange = std::pin::pin!(exchange);
    let body = tokio::select! {
        body = exchange.as_mut() => body,
        _ = connection.as_mut() => exchange.await,
    };
    let body = body
        .map_err(|error| failed(error.to_string()))?
        .map_err(|error| failed(error.to_string()))?;
    let document = RelayDocument::read(&body.to_bytes()).map_err(|e| failed(e.to_string()))?;
    Ok(Information::of(&document))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn what_a_peer_does_not_say_is_the_tightest() {
        let read = |document: Value| {
            Information::of(&RelayDocument::read(document.to_string().as_bytes()).unwrap())
        };
        assert_eq!(read(json!({})), Information::default());
        let frame = Information::default().frame_limit_bytes();
        assert!(frame * 2 + WRAPPING_BYTES <= MESSAGE_BYTES);
        let told = read(json!({
            "supported_nips": [1, 77],
            "limitation": { "max_message_length": 4_194_304, "max_limit": -1 }
        }));
        assert_eq!(told.message_bytes, 4_194_304);
        assert_eq!(told.frame_limit_bytes(), MOST_FRAME_BYTES);
        assert_eq!((told.events_per_req, told.negentropy), (500, Some(true)));
    }
}
