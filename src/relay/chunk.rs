//! Stored events on their way out, many in one piece of memory: to find room for each of them, and
//! to give it back, would take as long as to send it.

use super::message;
use std::str::Utf8Error;
use tokio_tungstenite::tungstenite::{Bytes, Utf8Bytes};

/// A chunk is full at this size.
const FULL_BYTES: usize = 64 << 10;

/// EVENT messages (NIP-01), one after the other.
#[derive(Default)]
pub(super) struct Chunk {
    text: String,
    // Where each message ends.
    ends: Vec<usize>,
}

impl Chunk {
    /// Adds the message that carries `event` to the subscription.
    pub(super) fn add(&mut self, id_json: &str, event: &str) {
        message::add_event(&mut self.text, id_json, event);
        self.ends.push(self.text.len());
    }

    pub(super) fn is_full(&self) -> bool {
        self.text.len() >= FULL_BYTES
    }

    /// What it takes in memory, about.
    pub(super) fn bytes(&self) -> usize {
        self.text.capacity() + size_of_val(self.ends.as_slice())
    }

    /// How many messages it holds.
    pub(super) fn messages(&self) -> usize {
        self.ends.len()
    }

    /// The messages, which share its memory.
    pub(super) fn into_messages(self) -> impl Iterator<Item = Result<Utf8Bytes, Utf8Error>> {
        let text = Bytes::from(self.text);
        let mut from = 0;
        self.ends.into_iter().map(move |end| {
            let message = text.slice(from..end);
            from = end;
            Utf8Bytes::try_from(message)
        })
    }
}
