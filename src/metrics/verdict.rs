//! How a sync ended, as everybody who shows it says it.

use serde::Serialize;

/// How the peer's events compare with ours at the end of a sync.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Default)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Verdict {
    /// Both sides hold the same events.
    Equal,
    /// All that the peer showed is here and all of ours is there, as far as the proof reaches.
    CaughtUp,
    /// Something differs, and each event that does has a reason.
    Differs,
    /// Not everything was seen or moved.
    #[default]
    Incomplete,
}

impl Verdict {
    /// The verdict as it is written in logs and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Equal => "equal",
            Self::CaughtUp => "caught up",
            Self::Differs => "differs",
            Self::Incomplete => "incomplete",
        }
    }

    /// The same of looks over so many connections: more than one may have led to different relays behind
    /// an address, and no relay is known to be equal.
    pub(crate) fn over(self, connections: u32) -> Self {
        match self {
            Self::Equal if connections > 1 => Self::CaughtUp,
            verdict => verdict,
        }
    }
}

/// What a verdict rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Proof {
    /// A reconciliation of both whole sets.
    Negentropy,
    /// The peer's whole set was read without a gap.
    Read,
    /// The peer's set was read without a gap since a mark, and whole at an earlier time.
    ReadSince,
}

impl Proof {
    /// The proof as it is written in logs and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Negentropy => "negentropy",
            Self::Read => "read",
            Self::ReadSince => "read since",
        }
    }
}
