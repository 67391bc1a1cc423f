//! One WebSocket connection to a peer: text messages, bounded in both directions.

use super::connector::Connector;
use super::dial::{DialError, Duplex};
use super::machine::Loss;
use super::message::one_line;
use super::nip11::Information;
use super::trace::{Speaker, Trace};
use crate::relay_url::{RelayUrl, redacted};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::http::header::LOCATION;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message, Utf8Bytes};

/// Maximum length of a received message. Events above the store's limit are read up to this size,
/// so that they can be refused by id.
const MESSAGE_BYTES: usize = 16 << 20;
/// Maximum number of unsent bytes, including pongs: above the longest message sent.
const MOST_UNSENT_BYTES: usize = MESSAGE_BYTES + (1 << 20);
/// Maximum number of queued messages. The windows of download and upload keep the number far below
/// it.
const QUEUE_MESSAGES: usize = 4_096;
/// Timeout for sending while the peer reads nothing.
const SEND_TIMEOUT: Duration = Duration::from_secs(60);
/// Temporary HTTP statuses among 4xx: Request Timeout, Too Early, Too Many Requests.
const PASSING: [u16; 3] = [408, 425, 429];
/// Timeout for the last messages and the close frame.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

type Socket = WebSocketStream<Box<dyn Duplex>>;

/// Why a connection could not be made or was lost.
#[derive(Debug, thiserror::Error)]
pub(super) enum PeerError {
    #[error(transparent)]
    Connect(#[from] DialError),
    #[error("the connection was lost: {reason}")]
    Lost { reason: String },
    #[error("the peer sent a message of more than {MESSAGE_BYTES} bytes")]
    TooLong,
}

impl From<PeerError> for Loss {
    fn from(error: PeerError) -> Self {
        match &error {
            PeerError::Connect(dial) if dial.is_final => Self::Final(error.to_string(), dial.hint),
            PeerError::Connect(dial) if dial.is_silence => Self::Silent(error.to_string()),
            PeerError::TooLong => Self::TooLong(error.to_string()),
            _ => Self::Gone(error.to_string()),
        }
    }
}

/// A received frame.
pub(super) enum Frame {
    Text(Utf8Bytes),
    /// A ping, a pong or another frame without a message: it shows that the connection works.
    Control,
}

/// A connection.
pub(super) struct Peer {
    stream: SplitStream<Socket>,
    outbox: mpsc::Sender<Message>,
    sending: JoinHandle<()>,
    pub(super) information: Information,
    trace: Option<Trace>,
}

impl Peer {
    /// Connects. Fetches the peer's NIP-11 document at the same time, unless it is known.
    pub(super) async fn connect(
        url: &RelayUrl,
        connector: &Connector,
        known: Option<Information>,
        trace: Option<Trace>,
    ) -> Result<Self, PeerError> {
        let information = async {
            match known {
                Some(information) => information,
                None => Information::fetch(url, connector).await.unwrap_or_else(|error| {
                    tracing::debug!(peer = %url, %error, "NIP-11 document not available");
                    Information::default()
                }),
            }
        };
        let (socket, information) = tokio::join!(open(url, connector), information);
        let (sink, stream) = socket?.split();
        let (outbox, queue) = mpsc::channel(QUEUE_MESSAGES);
        let sending = tokio::spawn(send_all(sink, queue));
        Ok(Self { stream, outbox, sending, information, trace })
    }

    /// The next frame. Cancel-safe.
    pub(super) async fn next(&mut self) -> Result<Frame, PeerError> {
        match self.stream.next().await {
            Some(Ok(Message::Text(text))) => {
                self.hear(Speaker::Peer, &text);
                Ok(Frame::Text(text))
            }
            // Some peers send text in binary frames.
            Some(Ok(Message::Binary(bytes))) => Ok(match Utf8Bytes::try_from(bytes) {
                Ok(text) => {
                    self.hear(Speaker::Peer, &text);
                    Frame::Text(text)
                }
                Err(_) => Frame::Control,
            }),
            Some(Ok(Message::Close(frame))) => {
                let reason = frame.map_or_else(
                    || "the peer closed it".to_owned(),
                    |frame| format!("the peer closed it: {} {}", frame.code, frame.reason),
                );
                Err(PeerError::Lost { reason: one_line(reason.trim_end()) })
            }
            Some(Ok(_)) => Ok(Frame::Control),
            Some(Err(Error::Capacity(_))) => Err(PeerError::TooLong),
            Some(Err(error)) => Err(PeerError::Lost { reason: error.to_string() }),
            None => Err(PeerError::Lost { reason: "the peer closed it".into() }),
        }
    }

    /// Queues a message.
    pub(super) fn send(&self, text: String) -> Result<(), PeerError> {
        self.hear(Speaker::Us, &text);
        self.queue(Message::Text(Utf8Bytes::from(text)))
    }

    fn hear(&self, speaker: Speaker, text: &str) {
        if let Some(trace) = &self.trace {
            trace.hear(speaker, text);
        }
    }

    /// Sends a ping.
    pub(super) fn ping(&self) -> Result<(), PeerError> {
        self.queue(Message::Ping(Vec::new().into()))
    }

    fn queue(&self, message: Message) -> Result<(), PeerError> {
        self.outbox
            .try_send(message)
            .map_err(|_| PeerError::Lost { reason: "send timeout: the peer does not read".into() })
    }

    /// Sends queued messages, then closes.
    pub(super) async fn close(self) {
        drop(self.outbox);
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, self.sending).await;
    }
}

async fn open(url: &RelayUrl, connector: &Connector) -> Result<Socket, DialError> {
    let stream = connector.dial(url).await?;
    let config = WebSocketConfig::default()
        .max_message_size(Some(MESSAGE_BYTES))
        .max_write_buffer_size(MOST_UNSENT_BYTES)
        .max_frame_size(Some(MESSAGE_BYTES));
    let handshake = tokio_tungstenite::client_async_with_config(url.expose(), stream, Some(config));
    let (socket, _) = tokio::time::timeout(connector.step_timeout(), handshake)
        .await
        .map_err(|_| DialError::silence("no answer to the WebSocket handshake"))?
        .map_err(|error| refused(&error))?;
    Ok(socket)
}

/// Why the upgrade failed. A busy or failing server may succeed later; any other answer is
/// permanent.
fn refused(error: &Error) -> DialError {
    let Error::Http(response) = error else { return DialError::new(error.to_string()) };
    let status = response.status();
    let place = response.headers().get(LOCATION).and_then(|place| place.to_str().ok());
    match place {
        Some(place) if status.is_redirection() => DialError::lasting(
            format!(
                "HTTP {status}, which leads to {}; name that if it is a relay",
                redacted(&one_line(place))
            ),
            None,
        ),
        _ if status.is_server_error() || PASSING.contains(&status.as_u16()) => {
            DialError::new(format!("HTTP {status}"))
        }
        _ if status.is_client_error() => {
            let hint = match status.as_u16() {
                401..=403 => "the server lets in only some; ask its operator",
                _ => "check the URL, its path included",
            };
            DialError::lasting(format!("HTTP {status}"), Some(hint))
        }
        _ => DialError::lasting(
            format!("HTTP {status} and no WebSocket; is there a relay at this URL?"),
            None,
        ),
    }
}

/// Sends queued messages until the queue is closed or the socket fails.
async fn send_all(mut sink: SplitSink<Socket, Message>, mut queue: mpsc::Receiver<Message>) {
    let sending = async {
        while let Some(message) = queue.recv().await {
            let done = async {
                sink.feed(message).await?;
                if queue.is_empty() { sink.flush().await } else { Ok(()) }
            };
            match tokio::time::timeout(SEND_TIMEOUT, done).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return,
            }
        }
        let _ = sink.close().await;
    };
    // The reading side detects the failure itself, or by the closed queue.
    sending.await;
}
