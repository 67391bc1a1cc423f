//! Reads ahead while a client's message is being handled, to detect that the client has
//! disconnected.

use super::message_gate::Socket;
use crate::server::departure::Attending;
use futures_util::StreamExt;
use futures_util::stream::SplitStream;
use std::collections::VecDeque;
use tokio_tungstenite::tungstenite::{Error, Message};

/// Maximum number of messages read ahead.
const AHEAD_MESSAGES: usize = 32;
/// Maximum bytes read ahead; a single message may exceed it.
const AHEAD_BYTES: usize = 64 << 10;

/// The messages of a client, in order.
pub(super) struct ReadAhead<'stream> {
    stream: &'stream mut SplitStream<Socket>,
    ahead: VecDeque<Result<Message, Error>>,
    ahead_bytes: usize,
    has_ended: bool,
}

impl<'stream> ReadAhead<'stream> {
    pub(super) fn new(stream: &'stream mut SplitStream<Socket>) -> Self {
        Self { stream, ahead: VecDeque::new(), ahead_bytes: 0, has_ended: false }
    }

    /// The next message; `None` at the end of the stream.
    pub(super) async fn next(&mut self) -> Option<Result<Message, Error>> {
        if let Some(next) = self.ahead.pop_front() {
            self.ahead_bytes = self.ahead_bytes.saturating_sub(bytes(&next));
            return Some(next);
        }
        if self.has_ended { None } else { self.stream.next().await }
    }

    /// Waits for `work`, and marks the client as gone if its stream ends meanwhile. `see` is called
    /// with each message read ahead.
    pub(super) async fn during(
        &mut self,
        attending: &Attending,
        see: impl Fn(&Message),
        work: impl Future<Output = ()>,
    ) {
        let mut work = std::pin::pin!(work);
        loop {
            let has_room = self.ahead.len() < AHEAD_MESSAGES && self.ahead_bytes < AHEAD_BYTES;
            tokio::select! {
                biased;
                () = &mut work => return,
                next = self.stream.next(), if has_room && !self.has_ended => {
                    self.has_ended = !matches!(next, Some(Ok(_)));
                    if self.has_ended {
                        attending.end();
                    }
                    if let Some(next) = next {
                        if let Ok(message) = &next {
                            see(message);
                        }
                        self.ahead_bytes += bytes(&next);
                        self.ahead.push_back(next);
                    }
                }
            }
        }
    }
}

fn bytes(message: &Result<Message, Error>) -> usize {
    message.as_ref().map_or(0, Message::len)
}
