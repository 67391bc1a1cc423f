//! WebSocket frames (RFC 6455, section 5.2) in a stream of bytes. The stream is divided without
//! being decoded: every byte is passed on unchanged.

use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{CloseCode, Data, OpCode};

/// Maximum length of a frame's head.
const HEAD_BYTES: usize = 14;

/// A part of the stream.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece<'stream> {
    /// The head of a frame, with its bytes.
    Head { frame: FrameHead, bytes: Vec<u8> },
    /// Some bytes of its payload, still masked.
    Payload(&'stream [u8]),
    /// The end of the frame.
    End,
}

/// The fields of a frame's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FrameHead {
    /// Whether the frame is the last one of its message.
    pub(crate) is_last: bool,
    pub(crate) opcode: u8,
    pub(crate) mask: Option<[u8; 4]>,
    pub(crate) length: u64,
    // Bits that have a meaning only with an extension.
    has_reserved_bits: bool,
}

/// Opcodes.
pub(crate) const CONTINUATION: u8 = 0;
pub(crate) const TEXT: u8 = 1;
pub(crate) const CLOSE: u8 = 8;

impl FrameHead {
    /// Whether it is a control frame, which may come between the frames of a message.
    pub(crate) fn is_control(&self) -> bool {
        self.opcode >= CLOSE
    }

    /// RFC 6455, sections 5.1 and 5.2: why a client must not send such a frame. No extension is
    /// ever negotiated.
    pub(crate) fn fault_of_client(&self) -> Option<&'static str> {
        match (self.mask, self.has_reserved_bits) {
            (None, _) => Some("a frame that is not masked"),
            (_, true) => Some("a frame with reserved bits"),
            _ => None,
        }
    }

    /// Parses a head once all its bytes are there. Returns its length too.
    fn read(bytes: &[u8]) -> Option<(Self, usize)> {
        let [first, second] = *bytes.first_chunk::<2>()?;
        let (length, mut at) = match second & 0x7f {
            126 => (u64::from(u16::from_be_bytes(*bytes.get(2..)?.first_chunk()?)), 4),
            127 => (u64::from_be_bytes(*bytes.get(2..)?.first_chunk()?), 10),
            short => (u64::from(short), 2),
        };
        let mask = if second & 0x80 == 0 {
            None
        } else {
            let mask = *bytes.get(at..)?.first_chunk()?;
            at += 4;
            Some(mask)
        };
        let (is_last, opcode) = (first & 0x80 != 0, first & 0x0f);
        let has_reserved_bits = first & 0x70 != 0;
        Some((Self { is_last, opcode, mask, length, has_reserved_bits }, at))
    }
}

/// The state of a reader of the stream.
#[derive(Debug, Clone, Default)]
pub(crate) struct Frames {
    // The first bytes of an incomplete head.
    head: Vec<u8>,
    // Bytes of the frame's payload that have not come.
    left: Option<u64>,
    is_message_last: bool,
    // A message has begun and its last frame has not ended.
    in_message: bool,
}

impl Frames {
    /// Removes and returns the next piece of `stream`.
    pub(crate) fn next<'stream>(&mut self, stream: &mut &'stream [u8]) -> Option<Piece<'stream>> {
        match self.left {
            None => self.read_head(stream),
            Some(0) => {
                self.left = None;
                if self.is_message_last {
                    self.in_message = false;
                }
                Some(Piece::End)
            }
            Some(_) if stream.is_empty() => None,
            Some(left) => {
                let most = usize::try_from(left).unwrap_or(usize::MAX).min(stream.len());
                let (payload, rest) = stream.split_at_checked(most)?;
                *stream = rest;
                self.left = Some(left.saturating_sub(most as u64));
                Some(Piece::Payload(payload))
            }
        }
    }

    fn read_head<'stream>(&mut self, stream: &mut &'stream [u8]) -> Option<Piece<'stream>> {
        let held = self.head.len();
        let most = HEAD_BYTES.saturating_sub(held).min(stream.len());
        self.head.extend_from_slice(stream.get(..most)?);
        let Some((frame, length)) = FrameHead::read(&self.head) else {
            *stream = stream.get(most..)?;
            return None;
        };
        *stream = stream.get(length.saturating_sub(held)..)?;
        let mut bytes = std::mem::take(&mut self.head);
        bytes.truncate(length);
        self.left = Some(frame.length);
        self.is_message_last = frame.is_last && !frame.is_control();
        if !frame.is_control() {
            self.in_message = true;
        }
        Some(Piece::Head { frame, bytes })
    }

    /// Whether the stream is between two messages.
    pub(crate) fn is_between_messages(&self) -> bool {
        self.head.is_empty() && self.left.is_none() && !self.in_message
    }
}

/// Unmasks a part of a payload; `at` bytes of the payload came before it.
pub(crate) fn unmask(payload: &[u8], mask: Option<[u8; 4]>, at: usize) -> Vec<u8> {
    let mask = mask.unwrap_or_default();
    let keys = mask.iter().cycle().skip(at % mask.len());
    payload.iter().zip(keys).map(|(byte, key)| byte ^ key).collect()
}

/// A text message, as a server sends it.
pub(crate) fn text(text: String) -> Vec<u8> {
    bytes(Frame::message(text, OpCode::Data(Data::Text), true))
}

/// A close frame, as a server sends it.
pub(crate) fn close(code: CloseCode, reason: &'static str) -> Vec<u8> {
    bytes(Frame::close(Some(CloseFrame { code, reason: reason.into() })))
}

fn bytes(frame: Frame) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(frame.len());
    // Writing to memory does not fail.
    let _ = frame.format(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    /// The pieces contain the whole stream in order, and the messages are complete.
    #[test]
    fn pieces_are_the_stream_however_it_is_cut() {
        for seed in 0..200 {
            let mut rng = StdRng::seed_from_u64(seed);
            let mut stream = Vec::new();
            let mut texts = Vec::new();
            for _ in 0..rng.random_range(1..8) {
                let length = [0, 1, 125, 126, 127, 65_535, 65_536][rng.random_range(0..7)];
                let payload: Vec<u8> = (0..length).map(|_| rng.random()).collect();
                let mut frame = Frame::message(payload.clone(), OpCode::Data(Data::Binary), true);
                if rng.random() {
                    frame.header_mut().mask = Some(rng.random());
                }
                stream.extend(bytes(frame));
                texts.push(payload);
            }
            let (mut frames, mut seen) = (Frames::default(), Vec::new());
            let (mut found, mut mask, mut message) = (Vec::new(), None, Vec::new());
            let mut rest = stream.as_slice();
            while !rest.is_empty() {
                let (mut cut, later) = rest.split_at(rng.random_range(1..=rest.len().min(70_000)));
                rest = later;
                while let Some(piece) = frames.next(&mut cut) {
                    match piece {
                        Piece::Head { frame, bytes } => {
                            seen.extend(bytes);
                            mask = frame.mask;
                        }
                        Piece::Payload(payload) => {
                            seen.extend_from_slice(payload);
                            message.extend(unmask(payload, mask, message.len()));
                        }
                        Piece::End => found.push(std::mem::take(&mut message)),
                    }
                }
                assert!(cut.is_empty());
            }
            assert!(seen == stream, "seed {seed}");
            assert!(found == texts, "seed {seed}");
            assert!(frames.is_between_messages(), "seed {seed}");
        }
    }
}
