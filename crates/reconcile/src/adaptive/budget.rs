//! How much one message should ask for: a little more than one answer holds, so
//! that every answer is full, and no more than a peer should have to make.

/// The most that one message may be expected to provoke.
const MOST_BYTES: usize = 2 << 20;

/// What to ask for of a peer whose frames are not known.
const FIRST_BYTES: usize = 1 << 20;

/// What even the tightest frame is asked for.
const LEAST_BYTES: usize = 4096;

/// The answer to aim for, in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReplyBudget(usize);

impl ReplyBudget {
    pub(super) fn new(reply_limit_bytes: Option<usize>) -> Self {
        reply_limit_bytes.map_or(Self(FIRST_BYTES), Self::above)
    }

    pub(super) fn bytes(self) -> usize {
        self.0
    }

    /// An answer that was cut shows the peer's frame. One that was not, though
    /// as much had been asked for, shows that we expected too much of it.
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
