//! One client's WebSocket and the relay's: every frame passes as it is, but for the messages whose
//! verb begins with `NEG-`, which end here. Each direction is read only as fast as the other side
//! takes what was read.

use super::auth::{SharedAuth, lock};
use super::frames::{self, CLOSE, CONTINUATION, Frames, Head, Piece, TEXT};
use super::neg::NegSessions;
use super::{Shared, stopped};
use crate::relay::message;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

type Reading = ReadHalf<TokioIo<Upgraded>>;
type Writing = WriteHalf<TokioIo<Upgraded>>;

/// What is read at a time.
const READ_BYTES: usize = 32 << 10;
/// The most answers that wait for the client; then its messages wait.
const QUEUE_ANSWERS: usize = 16;
/// A verb is known within so many bytes of its message, or it is none of ours.
const VERB_BYTES: usize = 64;
/// AUTH and OK messages of up to this size are read in passing.
const SEEN_BYTES: usize = 64 << 10;
/// How long the last words may take, of either side to the other.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Something for the client that does not come from the relay.
enum Own {
    Answer(String),
    /// The last thing.
    Close(CloseCode, &'static str),
}

/// Passes messages until either side is gone.
pub(super) async fn run(client: Upgraded, relay: Upgraded, shared: Arc<Shared>) {
    let (from_client, to_client) = tokio::io::split(TokioIo::new(client));
    let (from_relay, to_relay) = tokio::io::split(TokioIo::new(relay));
    let (own, own_out) = mpsc::channel(QUEUE_ANSWERS);
    let auth = SharedAuth::default();
    let has_closed = Arc::new(AtomicBool::new(false));
    let up = Up {
        neg: NegSessions::new(Arc::clone(&shared)),
        auth: Arc::clone(&auth),
        shared: Arc::clone(&shared),
        own: own.clone(),
        has_closed: Arc::clone(&has_closed),
        frames: Frames::default(),
        message: Message::default(),
        frame: None,
        frame_at: 0,
    };
    let mut stopping = shared.stopping.clone();
    let down = tokio::spawn(down(from_relay, to_client, own_out, auth, has_closed));
    let mut down = std::pin::pin!(down);
    tokio::select! {
        // The relay is gone, and has said so if it could.
        _ = &mut down => return,
        ended = up.run(from_client, to_relay) => {
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection ended while it was passed on");
            }
        }
        () = stopped(&mut stopping) => {
            let _ = own.send(Own::Close(CloseCode::Away, "the relay is stopping")).await;
        }
    }
    // What the relay still has to say to a client that has said its last.
    drop(own);
    if tokio::time::timeout(CLOSE_TIMEOUT, &mut down).await.is_err() {
        down.abort();
    }
}

/// From the client to the relay.
struct Up {
    neg: NegSessions,
    auth: SharedAuth,
    shared: Arc<Shared>,
    own: mpsc::Sender<Own>,
    // The client has said its last.
    has_closed: Arc<AtomicBool>,
    frames: Frames,
    message: Message,
    // The frame that is being read, and how much of its payload has come.
    frame: Option<Head>,
    frame_at: usize,
}

/// What is known of the client's message that is being read.
#[derive(Default)]
struct Message {
    fate: Fate,
    /// Its bytes that have not been passed on, heads and all.
    held: Vec<u8>,
    /// Its text, as much as is needed.
    text: Vec<u8>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Fate {
    /// Its verb has not come.
    #[default]
    Open,
    /// It is the relay's.
    Pass,
    /// It is the relay's, and read in passing.
    Seen,
    /// It is ours.
    Neg,
}

/// What a piece of the stream leads to.
enum Outcome {
    Nothing,
    Neg(Vec<u8>),
    TooLong,
}

impl Up {
    async fn run(mut self, mut from: Reading, mut to: Writing) -> io::Result<()> {
        let mut buffer = vec![0; READ_BYTES];
        let mut passing = Vec::with_capacity(READ_BYTES);
        loop {
            let read = from.read(&mut buffer).await?;
            let Some(mut stream) = buffer.get(..read).filter(|stream| !stream.is_empty()) else {
                return to.shutdown().await;
            };
            loop {
                let mut frames = std::mem::take(&mut self.frames);
                let piece = frames.next(&mut stream);
                self.frames = frames;
                let Some(piece) = piece else { break };
                match self.take(piece, &mut passing) {
                    Outcome::Nothing => {}
                    Outcome::Neg(text) => {
                        // In order: what came before it has gone to the relay.
                        to.write_all(&passing).await?;
                        passing.clear();
                        self.answer(text).await;
                    }
                    Outcome::TooLong => {
                        let most = self.shared.config.limits.message_bytes.get();
                        let text = format!("invalid: a message of more than {most} bytes");
                        let _ = self.own.send(Own::Answer(message::notice(&text))).await;
                        let _ = self.own.send(Own::Close(CloseCode::Size, "")).await;
                        return to.shutdown().await;
                    }
                }
            }
            to.write_all(&passing).await?;
            passing.clear();
        }
    }

    async fn answer(&mut self, text: Vec<u8>) {
        let answer = match String::from_utf8(text) {
            Ok(text) => self.neg.take(text, &self.auth).await,
            Err(_) => Some(message::notice("invalid: a message that is not UTF-8")),
        };
        if let Some(answer) = answer {
            // Fails only when the client is gone.
            let _ = self.own.send(Own::Answer(answer)).await;
        }
    }

    fn take(&mut self, piece: Piece<'_>, passing: &mut Vec<u8>) -> Outcome {
        match piece {
            Piece::Head { frame, bytes } => {
                self.frame = Some(frame);
                self.frame_at = 0;
                if frame.opcode == CLOSE {
                    self.has_closed.store(true, Ordering::Relaxed);
                }
                if frame.is_control() {
                    passing.extend(bytes);
                } else {
                    if frame.opcode != CONTINUATION {
                        let fate = if frame.opcode == TEXT { Fate::Open } else { Fate::Pass };
                        self.message = Message { fate, ..Message::default() };
                    }
                    self.message.pass(&bytes, passing);
                }
                Outcome::Nothing
            }
            Piece::Payload(payload) => {
                let Some(frame) = self.frame else { return Outcome::Nothing };
                if frame.is_control() {
                    passing.extend_from_slice(payload);
                } else {
                    self.message.pass(payload, passing);
                    self.message.read(payload, &frame, self.frame_at);
                    self.frame_at = self.frame_at.saturating_add(payload.len());
                    self.message.decide(false, passing);
                }
                let most = self.shared.config.limits.message_bytes.size();
                let is_too_long = self.message.fate == Fate::Neg && self.message.text.len() > most;
                if is_too_long { Outcome::TooLong } else { Outcome::Nothing }
            }
            Piece::End => match self.frame.take() {
                Some(frame) if frame.is_last && !frame.is_control() => self.end(passing),
                _ => Outcome::Nothing,
            },
        }
    }

    /// A message is complete.
    fn end(&mut self, passing: &mut Vec<u8>) -> Outcome {
        self.message.decide(true, passing);
        let Message { fate, text, .. } = std::mem::take(&mut self.message);
        match fate {
            Fate::Neg => return Outcome::Neg(text),
            Fate::Seen => {
                if let Ok(text) = std::str::from_utf8(&text) {
                    let relay_url = &self.shared.config.attach.relay_url;
                    lock(&self.auth).hear_client(text, self.shared.kind, relay_url);
                }
            }
            Fate::Open | Fate::Pass => {}
        }
        Outcome::Nothing
    }
}

impl Message {
    /// Bytes of it, which go on unless they may be ours.
    fn pass(&mut self, bytes: &[u8], passing: &mut Vec<u8>) {
        match self.fate {
            Fate::Open => self.held.extend_from_slice(bytes),
            Fate::Pass | Fate::Seen => passing.extend_from_slice(bytes),
            Fate::Neg => {}
        }
    }

    /// Keeps as much of its text as may be needed.
    fn read(&mut self, payload: &[u8], frame: &Head, at: usize) {
        if self.fate == Fate::Seen && self.text.len() > SEEN_BYTES {
            self.fate = Fate::Pass;
        }
        if self.fate != Fate::Pass {
            self.text.extend(frames::unmask(payload, frame.mask, at));
        }
    }

    /// Decides whose it is, as soon as its verb tells.
    fn decide(&mut self, is_complete: bool, passing: &mut Vec<u8>) {
        if self.fate != Fate::Open {
            return;
        }
        self.fate = match verb(&self.text) {
            Some(verb) if verb.starts_with("NEG-") => Fate::Neg,
            Some(verb) if verb == "AUTH" => Fate::Seen,
            Some(_) => Fate::Pass,
            None if is_complete || self.text.len() >= VERB_BYTES => Fate::Pass,
            None => return,
        };
        let held = std::mem::take(&mut self.held);
        self.pass(&held, passing);
    }
}

/// The string that a JSON array begins with; an empty one where it is something else; `None` while
/// that cannot be told.
fn verb(text: &[u8]) -> Option<String> {
    let text = text.trim_ascii_start();
    let (bracket, rest) = text.split_first()?;
    let (quote, name) = rest.trim_ascii_start().split_first().or(if *bracket == b'[' {
        None
    } else {
        Some((bracket, rest))
    })?;
    if *bracket != b'[' || *quote != b'"' {
        return Some(String::new());
    }
    let mut is_escaped = false;
    let end = name.iter().position(|byte| {
        let ends = *byte == b'"' && !is_escaped;
        is_escaped = *byte == b'\\' && !is_escaped;
        ends
    })?;
    let quoted = [b"\"", name.get(..=end)?].concat();
    Some(serde_json::from_slice(&quoted).unwrap_or_default())
}

/// From the relay to the client, with our own answers between its messages.
async fn down(
    mut from: Reading,
    mut to: Writing,
    mut own: mpsc::Receiver<Own>,
    auth: SharedAuth,
    client_has_closed: Arc<AtomicBool>,
) {
    let mut listening =
        Listening { auth, frames: Frames::default(), text: None, has_closed: false };
    let mut buffer = vec![0; READ_BYTES];
    let mut waiting: Option<Vec<u8>> = None;
    let mut is_open = true;
    loop {
        if waiting.is_some() && listening.frames.is_between_messages() {
            let answer = waiting.take().unwrap_or_default();
            if to.write_all(&answer).await.is_err() {
                return;
            }
        }
        tokio::select! {
            read = from.read(&mut buffer) => match read {
                Ok(read) if read > 0 => {
                    let stream = buffer.get(..read).unwrap_or_default();
                    let between = listening.hear(stream);
                    // An answer that waits goes where a message of the relay's ends.
                    let (before, after) = match (&waiting, between) {
                        (Some(_), Some(at)) => stream.split_at_checked(at).unwrap_or((stream, &[])),
                        _ => (stream, &[][..]),
                    };
                    let answer = if after.is_empty() { None } else { waiting.take() };
                    let parts = [before, answer.as_deref().unwrap_or_default(), after];
                    for part in parts {
                        if to.write_all(part).await.is_err() {
                            return;
                        }
                    }
                }
                _ => {
                    let has_closed =
                        listening.has_closed || client_has_closed.load(Ordering::Relaxed);
                    if !has_closed && listening.frames.is_between_messages() {
                        let gone = frames::close(CloseCode::Restart, "the relay has gone");
                        let _ = to.write_all(&gone).await;
                    }
                    let _ = to.shutdown().await;
                    return;
                }
            },
            answer = own.recv(), if is_open && waiting.is_none() => match answer {
                Some(Own::Answer(text)) => waiting = Some(frames::text(text)),
                Some(Own::Close(code, reason)) => {
                    if listening.frames.is_between_messages() && !listening.has_closed {
                        let _ = to.write_all(&frames::close(code, reason)).await;
                    }
                    let _ = to.shutdown().await;
                    return;
                }
                None => is_open = false,
            },
        }
    }
}

/// What is heard of the relay in passing.
struct Listening {
    auth: SharedAuth,
    frames: Frames,
    // The text of a message that may be about AUTH.
    text: Option<Vec<u8>>,
    has_closed: bool,
}

impl Listening {
    /// Hears a part of the stream. Returns the last place in it that is between two messages.
    fn hear(&mut self, stream: &[u8]) -> Option<usize> {
        let mut rest = stream;
        let mut between = None;
        while let Some(piece) = self.frames.next(&mut rest) {
            match piece {
                Piece::Head { frame, .. } if frame.opcode == TEXT => {
                    self.text = Some(Vec::new());
                }
                Piece::Head { frame, .. } => self.has_closed |= frame.opcode == CLOSE,
                Piece::Payload(payload) => self.read(payload),
                Piece::End => {
                    if self.frames.is_between_messages() {
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
        let is_of_interest = [&b"[\"AUTH\""[..], b"[\"OK\""].iter().any(|beginning| {
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

#[cfg(test)]
mod tests {
    use super::verb;

    #[test]
    fn a_verb_is_known_as_soon_as_it_has_come() {
        for (text, expected) in [
            (r#"["NEG-OPEN","x""#, Some("NEG-OPEN")),
            (" [ \"NEG-CLOSE\" ,", Some("NEG-CLOSE")),
            (r#"["\u004eEG-MSG""#, Some("NEG-MSG")),
            (r#"["a\"b","#, Some("a\"b")),
            (r#"["REQ","#, Some("REQ")),
            (r#"["NEG-OP"#, None),
            ("[", None),
            ("", None),
            ("{\"a\":1}", Some("")),
            ("[1", Some("")),
            ("x", Some("")),
        ] {
            assert_eq!(verb(text.as_bytes()).as_deref(), expected, "{text}");
        }
    }
}
