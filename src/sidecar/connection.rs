//! One client's WebSocket and the relay's: every frame passes unchanged, except for messages whose
//! verb begins with `NEG-`, which are answered here. Each direction is read only as fast as the
//! other side accepts the data.

use super::auth::{SEEN_BYTES, SharedAuth, lock};
use super::neg::Neg;
use super::socket::{ProxySocket, READ_BYTES, Reading};
use super::upstream::{Answers, answers, down};
use super::{SidecarState, socket};
use crate::metrics::Share;
use crate::prefix::Prefix;
use crate::server::frames::{self, CLOSE, CONTINUATION, FrameHead, Frames, Piece, TEXT};
use crate::server::limits::{MessageSize, Place, Reservation};
use crate::server::lingering_close::linger;
use crate::server::message;
use hyper::upgrade::Upgraded;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

/// The verb must be complete within this many bytes of a message; otherwise the message is the
/// relay's.
const VERB_BYTES: usize = 64;
/// The same including the heads of its frames, because a client can send any number of empty
/// frames.
const HELD_BYTES: usize = 4 << 10;
/// Timeout for the last messages of either side to the other.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Passes messages until either side is gone. The client holds its slot as long as its socket is
/// open.
pub(super) async fn run(
    client: Upgraded,
    relay: Upgraded,
    place: Place,
    shared: Arc<SidecarState>,
) {
    let place = Arc::new(place);
    let metrics = &shared.service.metrics;
    metrics.connections_total.inc();
    let mut open = Share::of(&metrics.connections);
    open.set(1);
    let limits = shared.service.config().limits.clone();
    let connections = shared.service.config().connections.clone();
    let patience = Duration::from_secs(limits.send_timeout_s);
    let (mut from_client, to_client) = socket::split(client, patience);
    let (from_relay, mut to_relay) = socket::split(relay, patience);
    let (own, own_out) = answers(shared.service.outbound_room());
    let auth = SharedAuth::default();
    let has_closed = Arc::new(AtomicBool::new(false));
    let up = Up {
        neg: Neg::new(Arc::clone(&shared), Arc::clone(&place)),
        auth: Arc::clone(&auth),
        message_bytes: limits.message_bytes,
        shared: Arc::clone(&shared),
        own: own.clone(),
        has_closed: Arc::clone(&has_closed),
        frames: Frames::default(),
        message: Message::default(),
        frame: None,
        frame_at: 0,
        place: Arc::clone(&place),
        timeout: Duration::from_secs(connections.message_timeout_s),
        size: MessageSize::default(),
        needed: 0,
        room: Reservation::default(),
    };
    let stopping = shared.service.running.stopping.clone();
    let down = tokio::spawn(down(from_relay, to_client, own_out, auth, Arc::clone(&has_closed)));
    let mut down = std::pin::pin!(down);
    let ended = tokio::select! {
        // The relay is gone, and its close frame was passed on if it sent one; or the client does
        // not read.
        ended = &mut down => Some(ended),
        ended = up.run(&mut from_client, &mut to_relay) => {
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection ended while it was passed on");
            }
            None
        }
        () = stopping.cancelled() => {
            // A client that does not read is not waited for.
            let close = own.close(CloseCode::Away, "the relay is stopping");
            if tokio::time::timeout(CLOSE_TIMEOUT, close).await.is_err() {
                down.abort();
            }
            None
        }
    };
    // Passes on what the relay still sends to a client that has closed.
    drop((own, to_relay));
    let ended = match ended {
        Some(ended) => Ok(ended),
        None => tokio::time::timeout(CLOSE_TIMEOUT, &mut down).await,
    };
    if ended.is_err() {
        down.abort();
    }
    // A client that does not read did not get the close frame, and a client that has closed sends
    // nothing more.
    if matches!(ended, Ok(Ok(Ok(())))) && !has_closed.load(Ordering::Relaxed) {
        linger(&mut from_client).await;
    }
}

/// From the client to the relay.
struct Up {
    neg: Neg,
    auth: SharedAuth,
    shared: Arc<SidecarState>,
    // Maximum length of a message that is answered here.
    message_bytes: usize,
    own: Answers,
    // Whether the client has sent its close frame.
    has_closed: Arc<AtomicBool>,
    frames: Frames,
    message: Message,
    // The current frame, and the number of its payload bytes so far.
    frame: Option<FrameHead>,
    frame_at: usize,
    place: Arc<Place>,
    // Timeout for a NEG message to arrive, or to wait for room.
    timeout: Duration,
    size: MessageSize,
    // The room that the message needs if it is answered here, and the room it has.
    needed: usize,
    room: Reservation,
}

/// The state of the client's current message.
#[derive(Default)]
struct Message {
    fate: MessageOwner,
    /// Its bytes that have not been passed on, including frame heads.
    held: Vec<u8>,
    /// The beginning of its text, as far as needed.
    text: Vec<u8>,
    /// The deadline for a NEG message to be complete.
    deadline: Option<Instant>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum MessageOwner {
    /// Its verb is not complete.
    #[default]
    Open,
    /// It is passed to the relay.
    Pass,
    /// It is passed to the relay, and observed.
    Seen,
    /// It is answered here.
    Neg,
}

/// The result of a piece of the stream.
enum PieceOutcome {
    Nothing,
    Neg(Vec<u8>),
    /// It is a long message that is answered here.
    NeedsRoom,
    TooLong,
    /// It violates the WebSocket protocol.
    Malformed(&'static str),
}

impl Up {
    async fn run(mut self, from: &mut Reading, to: &mut ProxySocket) -> io::Result<()> {
        let mut buffer = vec![0; READ_BYTES];
        let mut passing = Vec::with_capacity(READ_BYTES);
        let mut seconds = tokio::time::interval(Duration::from_secs(1));
        seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let read = tokio::select! {
                read = from.read(&mut buffer) => read?,
                _ = seconds.tick(), if !self.neg.is_empty() => {
                    for text in self.neg.expire() {
                        self.own.send(text).await;
                    }
                    continue;
                }
                () = until(self.message.deadline) => {
                    let seconds = self.timeout.as_secs();
                    let text = format!("message timeout (not complete within {seconds} s)");
                    let text = Prefix::Closed.before(text);
                    return self.end_with(&text, CloseCode::Policy, to).await;
                }
            };
            let Some(mut stream) = buffer.get(..read).filter(|stream| !stream.is_empty()) else {
                return to.shutdown().await;
            };
            if self.shared.moderation.current().blocks(self.place.client()) {
                let text = Prefix::Blocked.before("your address is banned");
                return self.end_with(&text, CloseCode::Policy, to).await;
            }
            loop {
                let mut frames = std::mem::take(&mut self.frames);
                let piece = frames.next(&mut stream);
                self.frames = frames;
                let Some(piece) = piece else { break };
                match self.take(piece, &mut passing) {
                    PieceOutcome::Nothing => {}
                    PieceOutcome::NeedsRoom => {
                        // Earlier messages must not wait for it.
                        self.send(&mut passing, to).await?;
                        let waiting = self.place.reserve(self.needed);
                        let Ok(room) = tokio::time::timeout(self.timeout, waiting).await else {
                            let text = "too many long messages are on their way; try again later";
                            let text = Prefix::RateLimited.before(text);
                            return self.end_with(&text, CloseCode::Again, to).await;
                        };
                        self.room = room;
                        self.message.deadline = Some(Instant::now() + self.timeout);
                    }
                    PieceOutcome::Neg(text) => {
                        // In order: earlier messages have gone to the relay.
                        self.send(&mut passing, to).await?;
                        self.answer(text).await;
                        self.room = Reservation::default();
                    }
                    PieceOutcome::Malformed(fault) => {
                        self.send(&mut passing, to).await?;
                        let text = Prefix::Invalid.before(fault);
                        return self.end_with(&text, CloseCode::Protocol, to).await;
                    }
                    PieceOutcome::TooLong => {
                        self.send(&mut passing, to).await?;
                        let most = self.message_bytes;
                        let text = Prefix::Invalid
                            .before(format_args!("a message of more than {most} bytes"));
                        return self.end_with(&text, CloseCode::Size, to).await;
                    }
                }
            }
            self.send(&mut passing, to).await?;
        }
    }

    /// Ends the connection, with a reason for the client.
    async fn end_with(&self, text: &str, code: CloseCode, to: &mut ProxySocket) -> io::Result<()> {
        self.own.send(message::notice(text)).await;
        self.own.close(code, "").await;
        to.shutdown().await
    }

    /// Passes data on to the relay, with a timeout for a relay that does not read.
    async fn send(&self, passing: &mut Vec<u8>, to: &mut ProxySocket) -> io::Result<()> {
        let sent = to.send(passing).await;
        passing.clear();
        if sent.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::TimedOut) {
            self.own.close(CloseCode::Restart, "send timeout: the relay does not read").await;
        }
        sent
    }

    async fn answer(&mut self, text: Vec<u8>) {
        if let Some(answer) = self.neg.take(text, &self.auth).await {
            self.own.send(answer).await;
        }
    }

    fn take(&mut self, piece: Piece<'_>, passing: &mut Vec<u8>) -> PieceOutcome {
        match piece {
            Piece::Head { frame, bytes } => {
                if let Some(fault) = frame.fault_of_client() {
                    return PieceOutcome::Malformed(fault);
                }
                self.frame = Some(frame);
                self.frame_at = 0;
                if frame.opcode == CLOSE {
                    self.has_closed.store(true, Ordering::Relaxed);
                }
                if frame.is_control() {
                    passing.extend(bytes);
                } else {
                    self.needed = self.size.add(&frame, self.message_bytes);
                    if frame.opcode != CONTINUATION {
                        // An incomplete message is the relay's to judge.
                        passing.append(&mut self.message.held);
                        let fate = if frame.opcode == TEXT {
                            MessageOwner::Open
                        } else {
                            MessageOwner::Pass
                        };
                        self.message = Message { fate, ..Message::default() };
                    }
                    self.message.pass(&bytes, passing);
                    self.message.decide(false, passing);
                }
                PieceOutcome::Nothing
            }
            Piece::Payload(payload) => {
                let Some(frame) = self.frame else { return PieceOutcome::Nothing };
                if frame.is_control() {
                    passing.extend_from_slice(payload);
                } else {
                    self.message.pass(payload, passing);
                    self.message.read(payload, &frame, self.frame_at);
                    self.frame_at = self.frame_at.saturating_add(payload.len());
                    self.message.decide(false, passing);
                }
                if self.message.fate != MessageOwner::Neg {
                    return PieceOutcome::Nothing;
                }
                let deadline = Instant::now() + self.timeout;
                self.message.deadline.get_or_insert(deadline);
                match self.message.text.len() {
                    length if length > self.message_bytes => PieceOutcome::TooLong,
                    _ if !self.room.holds(self.needed) => PieceOutcome::NeedsRoom,
                    _ => PieceOutcome::Nothing,
                }
            }
            Piece::End => match self.frame.take() {
                Some(frame) if frame.is_last && !frame.is_control() => self.end(passing),
                _ => PieceOutcome::Nothing,
            },
        }
    }

    /// Handles the end of a message.
    fn end(&mut self, passing: &mut Vec<u8>) -> PieceOutcome {
        self.message.decide(true, passing);
        let Message { fate, text, .. } = std::mem::take(&mut self.message);
        match fate {
            MessageOwner::Neg => return PieceOutcome::Neg(text),
            MessageOwner::Seen => {
                if let Ok(text) = std::str::from_utf8(&text) {
                    let relay_url = &self.shared.service.config().attach.relay_url;
                    lock(&self.auth).hear_client(
                        text,
                        self.shared.kind,
                        relay_url,
                        self.shared.service.now(),
                    );
                }
            }
            MessageOwner::Open | MessageOwner::Pass => {}
        }
        PieceOutcome::Nothing
    }
}

impl Message {
    /// Handles bytes of it: passes them on, unless the message may be answered here.
    fn pass(&mut self, bytes: &[u8], passing: &mut Vec<u8>) {
        match self.fate {
            MessageOwner::Open => self.held.extend_from_slice(bytes),
            MessageOwner::Pass | MessageOwner::Seen => passing.extend_from_slice(bytes),
            MessageOwner::Neg => {}
        }
    }

    /// Keeps the beginning of its text, as far as needed.
    fn read(&mut self, payload: &[u8], frame: &FrameHead, at: usize) {
        if self.fate == MessageOwner::Seen && self.text.len() > SEEN_BYTES {
            self.fate = MessageOwner::Pass;
        }
        if self.fate != MessageOwner::Pass {
            self.text.extend(frames::unmask(payload, frame.mask, at));
        }
    }

    /// Decides who answers it, as soon as its verb is complete.
    fn decide(&mut self, is_complete: bool, passing: &mut Vec<u8>) {
        if self.fate != MessageOwner::Open {
            return;
        }
        self.fate = match verb(&self.text) {
            Some(verb) if verb.starts_with("NEG-") => MessageOwner::Neg,
            Some(verb) if verb == "AUTH" => MessageOwner::Seen,
            Some(_) => MessageOwner::Pass,
            None if is_complete
                || self.text.len() >= VERB_BYTES
                || self.held.len() >= HELD_BYTES =>
            {
                MessageOwner::Pass
            }
            None => return,
        };
        let held = std::mem::take(&mut self.held);
        self.pass(&held, passing);
    }
}

/// Waits until a deadline; forever without one.
async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// The string at the start of a JSON array; empty if there is something else; `None` while that is
/// unknown.
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
