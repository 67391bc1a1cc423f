//! How much one message asks for: a little more than one answer holds, so that answers are full,
//! and no more than a peer can reasonably be asked to produce.

/// Maximum expected answer to one message.
const MOST_BYTES: usize = 2 << 20;

/// Expected answer of a peer whose frame limit is not known.
const FIRST_BYTES: usize = 1 << 20;

/// Minimum expected answer, for peers with the smallest frame limit.
const LEAST_BYTES: usize = 4096;

/// The answer length to aim for, in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReplyBudget(usize);

impl ReplyBudget {
    pub(super) fn new(reply_limit_bytes: Option<usize>) -> Self {
        reply_limit_bytes.map_or(Self(FIRST_BYTES), Self::above)
    }

    pub(super) fn bytes(self) -> usize {
        self.0
    }

    /// A cut answer shows the peer's frame limit. A complete answer, although more was expected,
    /// shows that the estimates are too high.
    pub(super) fn learn(&mut self, answer_bytes: usize, cut: bool) {
        *self = if cut {
            Self::above(answer_bytes)
        } else {
            Self((self.0 + self.0 / 4).min(MOST_BYTES))
        };
    }

    fn above(frame_bytes: usize) -> Self {
        Self(frame_bytes.saturating_add(frame_bytes / 10).clamp(LEAST_BYTES, MOST_BYTES))
    }
}
