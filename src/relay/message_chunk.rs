//! Several messages in one allocation: many small ones, allocated on one thread and freed on
//! another, would cost more time than reading the events.

use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use tokio_tungstenite::tungstenite::{Bytes, Message};

/// The concatenated texts.
#[derive(Default)]
pub(super) struct MessageChunk {
    text: String,
    // The end of each of them.
    ends: Vec<usize>,
}

impl MessageChunk {
    /// An empty chunk with a capacity in bytes.
    pub(super) fn with_capacity(bytes: usize) -> Self {
        Self { text: String::with_capacity(bytes), ends: Vec::new() }
    }

    /// Adds a message, which `write` appends.
    pub(super) fn add(&mut self, write: impl FnOnce(&mut String)) {
        write(&mut self.text);
        self.ends.push(self.text.len());
    }

    /// The number of messages.
    pub(super) fn count(&self) -> usize {
        self.ends.len()
    }

    /// Their total length in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.text.len()
    }

    /// Each message in a frame of its own. RFC 6455, section 5.6.
    pub(super) fn into_frames(self) -> impl Iterator<Item = Message> {
        let text = Bytes::from(self.text);
        let mut start = 0;
        self.ends.into_iter().map(move |end| {
            let message = text.slice(start..end);
            start = end;
            Message::Frame(Frame::message(message, OpCode::Data(Data::Text), true))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_message_is_a_whole_text_frame() {
        let texts = ["", "[\"EVENT\"]", "Zürich ☃", "x"];
        let mut chunk = MessageChunk::default();
        texts.iter().for_each(|text| chunk.add(|to| to.push_str(text)));
        assert_eq!((chunk.count(), chunk.bytes()), (4, texts.concat().len()));
        let frames: Vec<Message> = chunk.into_frames().collect();
        for (frame, text) in frames.iter().zip(texts) {
            let Message::Frame(frame) = frame else { panic!("{frame:?}") };
            assert_eq!(frame.to_text(), Ok(text));
            assert_eq!(frame.header().opcode, OpCode::Data(Data::Text));
            assert!(frame.header().is_final);
        }
        assert_eq!(frames.len(), texts.len());
    }
}
