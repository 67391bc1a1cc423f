//! The result of a sync, as all reports name it.

use serde::Serialize;

/// The comparison of both sides at the end of a sync.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Default)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Verdict {
    /// Both sides have the same events.
    Equal,
    /// Everything that the peer showed is here and everything of ours is there, within the reach of
    /// the proof.
    CaughtUp,
    /// Some events differ, each for a known reason.
    Differs,
    /// Not all events were seen or moved.
    #[default]
    Incomplete,
}

impl Verdict {
    /// The name in logs and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Equal => "equal",
            Self::CaughtUp => "caught up",
            Self::Differs => "differs",
            Self::Incomplete => "incomplete",
        }
    }

    /// The verdict for rounds over this many connections. Several connections may have led to
    /// different relays behind one address, and then no relay is proven equal.
    pub(crate) fn over(self, connections: u32) -> Self {
        match self {
            Self::Equal if connections > 1 => Self::CaughtUp,
            verdict => verdict,
        }
    }
}

/// The basis of a verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Proof {
    /// A reconciliation of both complete sets.
    Negentropy,
    /// The peer's complete set was read without a gap.
    Read,
    /// The peer's set was read without a gap since a mark, and completely at an earlier time.
    ReadSince,
}

impl Proof {
    /// The name in logs and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Negentropy => "negentropy",
            Self::Read => "read",
            Self::ReadSince => "read since",
        }
    }
}
