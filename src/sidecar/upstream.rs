//! Passes messages from the relay to the client, with our own answers in between.

use super::auth::{SEEN_BYTES, SharedAuth, lock};
use super::socket::{ProxySocket, READ_BYTES, Reading};
use crate::server::frames::{self, CLOSE, Frames, Piece, TEXT};
use crate::server::limits::{OutboundPermit, OutboundRoom};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

/// Maximum number of queued answers; beyond it, the client's messages wait.
const QUEUE_ANSWERS: usize = 16;

/// A message for the client that does not come from the relay.
pub(super) enum Own {
    /// A message, with its share of the outbound memory.
    Answer(String, OutboundPermit),
    /// A close frame; nothing follows it.
    Close(CloseCode, &'static str),
}

/// The queue of our own answers to the client. Clones share it.
#[derive(Clone)]
pub(super) struct Answers {
    queue: mpsc::Sender<Own>,
    room: OutboundRoom,
}

/// A queue whose messages take their memory from `room`.
pub(super) fn answers(room: OutboundRoom) -> (Answers, mpsc::Receiver<Own>) {
    let (queue, out) = mpsc::channel(QUEUE_ANSWERS);
    (Answers { queue, room }, out)
}

impl Answers {
    /// Queues a message, once there is room for it.
    pub(super) async fn send(&self, text: String) {
        if let Some(room) = self.room.take(text.len()).await {
            // Fails only if the client is gone.
            let _ = self.queue.send(Own::Answer(text, room)).await;
        }
    }

    /// Queues a close frame.
    pub(super) async fn close(&self, code: CloseCode, reason: &'static str) {
        let _ = self.queue.send(Own::Close(code, reason)).await;
    }
}

/// Passes messages from the relay to the client, with our own answers in between, until either side
/// is gone or a close frame is sent.
///
/// # Errors
/// The client does not accept more data.
pub(super) async fn down(
    mut from: Reading,
    mut to: ProxySocket,
    mut own: mpsc::Receiver<Own>,
    auth: SharedAuth,
    client_has_closed: Arc<AtomicBool>,
) -> io::Result<()> {
    let frames = Frames::default();
    let mut listening =
        Listening { auth, frames, text: None, is_control: false, has_closed: false };
    let mut buffer = vec![0; READ_BYTES];
    let mut waiting: Option<(Vec<u8>, OutboundPermit)> = None;
    let mut is_open = true;
    loop {
        // RFC 6455, section 5.5.1: nothing follows a close frame.
        if let Some((answer, _room)) = waiting.take_if(|_| listening.frames.is_between_messages())
            && !listening.has_closed
        {
            to.send(&answer).await?;
        }
        tokio::select! {
            // A close frame that was queued before the relay ended says why it did.
            biased;
            answer = own.recv(), if is_open && waiting.is_none() => match answer {
                Some(Own::Answer(text, room)) => waiting = Some((frames::text(text), room)),
                Some(Own::Close(code, reason)) => {
                    if listening.frames.is_between_messages() && !listening.has_closed {
                        to.send(&frames::close(code, reason)).await?;
                    }
                    return to.shutdown().await;
                }
                None => is_open = false,
            },
            read = from.read(&mut buffer) => match read {
                Ok(read) if read > 0 => {
                    let stream = buffer.get(..read).unwrap_or_default();
                    let between = listening.hear(stream);
                    // A queued answer is inserted after the end of a message from the relay.
                    let (before, after) = match (&waiting, between) {
                        (Some(_), Some(at)) => stream.split_at_checked(at).unwrap_or((stream, &[])),
                        _ => (stream, &[][..]),
                    };
                    let answer = if after.is_empty() { None } else { waiting.take() };
                    let own = answer.as_ref().map_or(&[][..], |(bytes, _)| bytes.as_slice());
                    for part in [before, own, after] {
                        to.send(part).await?;
                    }
                }
                _ => {
                    let has_closed =
                        listening.has_closed || client_has_closed.load(Ordering::Relaxed);
                    if !has_closed && listening.frames.is_between_messages() {
                        let gone = frames::close(CloseCode::Restart, "the relay has gone");
                        to.send(&gone).await?;
                    }
                    return to.shutdown().await;
                }
            },
            // The relay has begun a message and does not continue, so nothing else can be sent.
            () = tokio::time::sleep(to.patience()), if waiting.is_some() => {
                return to.shutdown().await;
            }
        }
    }
}

/// The state of the observed stream from the relay.
struct Listening {
    auth: SharedAuth,
    frames: Frames,
    // The text of a message that may be about AUTH.
    text: Option<Vec<u8>>,
    // Whether the current frame is a control frame within a message.
    is_control: bool,
    has_closed: bool,
}

impl Listening {
    /// Observes a part of the stream. Returns the last position in it that is between two messages
    /// and before a close frame.
    fn hear(&mut self, stream: &[u8]) -> Option<usize> {
        let mut rest = stream;
        let mut between = None;
        while let Some(piece) = self.frames.next(&mut rest) {
            match piece {
                Piece::Head { frame, .. } => {
                    self.is_control = frame.is_control();
                    self.has_closed |= frame.opcode == CLOSE;
                    if frame.opcode == TEXT {
                        self.text = Some(Vec::new());
                    }
                }
                Piece::Payload(_) if self.is_control => {}
                Piece::Payload(payload) => self.read(payload),
                Piece::End => {
                    if self.frames.is_between_messages() && !self.has_closed {
                        between = Some(stream.len().saturating_sub(rest.len()));
                        self.end();
                    }
                }
            }
        }
        between
    }

    fn read(&mut self, payload: &[u8]) {
        let Some(text) = &mut self.text else { return };
        text.extend_from_slice(payload.get(..payload.len().min(SEEN_BYTES)).unwrap_or_default());
        let is_of_interest =
            [&b"[\"AUTH\""[..], b"[\"OK\"", b"[\"NOTICE\""].iter().any(|beginning| {
                let length = beginning.len().min(text.len());
                beginning.get(..length) == text.get(..length)
            });
        if !is_of_interest || text.len() > SEEN_BYTES {
            self.text = None;
        }
    }

    fn end(&mut self) {
        if let Some(text) = self.text.take()
            && let Ok(text) = std::str::from_utf8(&text)
        {
            lock(&self.auth).hear_relay(text);
        }
    }
}
