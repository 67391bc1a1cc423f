//! The gate between a client's stream and its WebSocket (RFC 6455): a long message passes only when
//! there is room for all of it, and each message must be complete in time. The WebSocket itself
//! allocates a frame by its head, and has no deadline.

use super::websocket;
use crate::config::Config;
use crate::prefix::Prefix;
use crate::server::frames::{Frames, Piece};
use crate::server::limits::{MessageSize, Place, Reservation};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};
use tokio_tungstenite::WebSocketStream;

/// Maximum length of one read from the system.
const READ_BYTES: usize = 16 << 10;

/// The WebSocket of one client.
pub(super) type Socket = WebSocketStream<MessageGate<TokioIo<Upgraded>>>;

/// Why a client is no longer read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum GateError {
    /// A message was not complete in time.
    #[error("{prefix}: message timeout (not complete within {0} s)", prefix = Prefix::Closed)]
    Late(u64),
    /// There was no room for a message in time.
    #[error(
        "{prefix}: too many long messages are on their way; try again later",
        prefix = Prefix::RateLimited
    )]
    NoRoom,
}

/// A client's stream that is read only as far as there is room.
pub(super) struct MessageGate<S> {
    stream: S,
    place: Arc<Place>,
    message_bytes: usize,
    timeout: Duration,
    frames: Frames,
    size: MessageSize,
    // For the current message, and until the next one is requested: the message is in memory until
    // then.
    room: Option<Box<Reservation>>,
    wait: Option<Pin<Box<dyn Future<Output = Reservation> + Send>>>,
    // Bytes that were read and have not passed the gate.
    held: Held,
    deadline: Option<Pin<Box<Sleep>>>,
}

/// The WebSocket of an upgraded connection.
pub(super) async fn socket(upgraded: Upgraded, place: &Arc<Place>, config: &Config) -> Socket {
    let longest =
        websocket::Longest { received: config.limits.message_bytes, sent: longest_sent(config) };
    let gate = MessageGate::new(TokioIo::new(upgraded), Arc::clone(place), config);
    websocket::socket(gate, longest).await
}

/// Maximum length of a message that is sent: a NEG-MSG in hex, or an event, whose JSON may take six
/// times its received bytes.
fn longest_sent(config: &Config) -> usize {
    let neg_msg = match config.negentropy.frame_limit_bytes {
        0 => return usize::MAX,
        bytes => usize::try_from(bytes).unwrap_or(usize::MAX).saturating_mul(2),
    };
    neg_msg.max(config.limits.event_bytes.saturating_mul(6)).saturating_add(64 << 10)
}

impl<S> MessageGate<S> {
    fn new(stream: S, place: Arc<Place>, config: &Config) -> Self {
        Self {
            stream,
            place,
            message_bytes: config.limits.message_bytes,
            timeout: Duration::from_secs(config.connections.message_timeout_s),
            frames: Frames::default(),
            size: MessageSize::default(),
            room: None,
            wait: None,
            held: Held::default(),
            deadline: None,
        }
    }

    /// The underlying stream, for input that is no longer parsed as messages.
    pub(super) fn stream_mut(&mut self) -> &mut S {
        &mut self.stream
    }

    /// Waits for room for a message, with a timeout.
    fn poll_room(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(wait) = &mut self.wait
            && let Poll::Ready(room) = wait.as_mut().poll(context)
        {
            (self.room, self.wait) = (Some(Box::new(room)), None);
            // The waiting has a timeout of its own.
            self.deadline = None;
            self.set_deadline();
        }
        if let Some(deadline) = &mut self.deadline
            && deadline.as_mut().poll(context).is_ready()
        {
            let error = match self.wait {
                Some(_) => GateError::NoRoom,
                None => GateError::Late(self.timeout.as_secs()),
            };
            return Poll::Ready(Err(io::Error::other(error)));
        }
        if self.wait.is_some() { Poll::Pending } else { Poll::Ready(Ok(())) }
    }

    fn set_deadline(&mut self) {
        let timeout = self.timeout;
        self.deadline
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(Instant::now() + timeout)));
    }

    /// The number of the next bytes that may pass.
    fn let_in(&mut self, bytes: &[u8]) -> usize {
        let mut rest = bytes;
        loop {
            let (before, at) = (self.frames.clone(), bytes.len() - rest.len());
            let Some(piece) = self.frames.next(&mut rest) else { return bytes.len() };
            let frame = match piece {
                Piece::Head { frame, .. } => frame,
                Piece::Payload(_) => continue,
                Piece::End => {
                    if self.frames.is_between_messages() {
                        self.deadline = None;
                    }
                    continue;
                }
            };
            let size = self.size.clone();
            let needed = self.size.add(&frame, self.message_bytes);
            let has_room = |room: &Reservation| room.holds(needed);
            if needed > 0 && !self.room.as_deref().is_some_and(has_room) {
                (self.frames, self.size) = (before, size);
                self.wait = Some(Box::pin(self.place.reserve(needed)));
                return at;
            }
        }
    }
}

/// Bytes that were read and not passed on yet. It allocates only while it has bytes: an idle
/// connection needs no buffer.
#[derive(Default)]
struct Held {
    bytes: Box<[u8]>,
    // The number of bytes passed on.
    passed: usize,
}

thread_local! {
    // A read buffer that all connections of a thread share.
    static READ_BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES].into());
}

impl Held {
    fn is_empty(&self) -> bool {
        self.passed == self.bytes.len()
    }

    /// Reads available bytes. Holds nothing at the end of the stream.
    fn poll_fill<S: AsyncRead>(
        &mut self,
        stream: Pin<&mut S>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        READ_BUFFER.with_borrow_mut(|buffer| {
            let mut buffer = ReadBuf::new(buffer);
            ready!(stream.poll_read(context, &mut buffer))?;
            *self = Self { bytes: buffer.filled().into(), passed: 0 };
            Poll::Ready(Ok(()))
        })
    }

    /// Passes on as many bytes as `buffer` accepts.
    fn take(&mut self, buffer: &mut ReadBuf<'_>) {
        let rest = self.bytes.get(self.passed..).unwrap_or_default();
        let count = rest.len().min(buffer.remaining());
        buffer.put_slice(rest.get(..count).unwrap_or_default());
        self.passed += count;
    }

    /// Takes back the last `count` bytes passed on.
    fn give_back(&mut self, count: usize) {
        self.passed = self.passed.saturating_sub(count);
    }

    /// Frees its memory if it holds no bytes.
    fn tidy(&mut self) {
        if self.is_empty() {
            *self = Self::default();
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for MessageGate<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let gate = self.get_mut();
        // The last message was handled, since its reader asks for more. A connection that waits
        // holds no room: a message with room never needs more.
        if gate.wait.is_some() || gate.frames.is_between_messages() {
            gate.room = None;
        }
        let start = buffer.filled().len();
        loop {
            ready!(gate.poll_room(context))?;
            if gate.held.is_empty() {
                ready!(gate.held.poll_fill(Pin::new(&mut gate.stream), context))?;
            }
            gate.held.take(buffer);
            let bytes = buffer.filled().get(start..).unwrap_or_default();
            let count = gate.let_in(bytes);
            if count < bytes.len() {
                gate.held.give_back(bytes.len() - count);
                buffer.set_filled(start + count);
            }
            if !gate.frames.is_between_messages() || gate.wait.is_some() {
                gate.set_deadline();
            }
            gate.held.tidy();
            if count > 0 || gate.wait.is_none() {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for MessageGate<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::limits::Addresses;
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// Complete and fragmented messages with pings in between, as a client sends them.
    fn stream(rng: &mut StdRng) -> Vec<u8> {
        let mut stream = Vec::new();
        let mut frame = |first: u8, length: usize| {
            stream.extend([first, 0x80 | 127]);
            stream.extend((length as u64).to_be_bytes());
            stream.extend([0; 4]);
            stream.extend(std::iter::repeat_n(b'x', length));
        };
        for _ in 0..rng.random_range(1..10) {
            let mut length = || [0, 100, 16_384, 16_385, 90_000][rng.random_range(0..5)];
            let parts = length() % 4;
            for part in 0..=parts {
                let first = if part == 0 { 1 } else { 0 };
                frame(if part == parts { 0x80 | first } else { first }, length() / (parts + 1));
                frame(0x89, length().min(100));
            }
        }
        stream
    }

    /// For any division of the stream, the output equals the input, while many connections share a
    /// little room.
    #[tokio::test]
    async fn what_is_let_in_is_the_stream() {
        let mut config = Config::default();
        config.limits.message_bytes = 100_000;
        config.connections.incoming_bytes_per_address = 200_000;
        config.connections.incoming_bytes_in_all = 200_000;
        for seed in 0..40 {
            let addresses = Arc::<Addresses>::default();
            let mut clients = tokio::task::JoinSet::new();
            for client in 0..5 {
                let mut rng = StdRng::seed_from_u64(seed * 100 + client);
                let address = std::net::IpAddr::V4(u32::from(client as u8 % 2).into());
                let place = addresses.connect(address, &config.connections).ok().unwrap();
                let (mut near, far) = tokio::io::duplex(5_000);
                let mut gate = MessageGate::new(far, Arc::new(place), &config);
                let sent = stream(&mut rng);
                let expected = sent.clone();
                let cut = rng.random_range(1..70_000);
                clients.spawn(async move {
                    for part in sent.chunks(cut) {
                        near.write_all(part).await.unwrap();
                    }
                });
                let most = rng.random_range(1..40_000);
                clients.spawn(async move {
                    let (mut seen, mut buffer) = (Vec::new(), vec![0; most]);
                    loop {
                        let read = gate.read(&mut buffer).await.unwrap();
                        if read == 0 {
                            break;
                        }
                        seen.extend_from_slice(&buffer[..read]);
                    }
                    assert!(seen == expected, "seed {seed}, client {client}");
                });
            }
            let done = async {
                while let Some(ended) = clients.join_next().await {
                    ended.unwrap()
                }
            };
            let done = tokio::time::timeout(Duration::from_secs(60), done).await;
            done.unwrap_or_else(|_| panic!("seed {seed}: they wait for each other"));
        }
    }
}
