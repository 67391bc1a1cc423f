//! The progress and the result of a sync.

use super::machine::Unseen;
use super::reason::Reason;
use super::{Direction, PeerFilter};
use crate::metrics::Tally;
pub use crate::metrics::{Proof, Verdict};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// How a peer's events were found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// By reconciliation (NIP-77).
    #[default]
    Negentropy,
    /// By reading all matching events, page by page (NIP-01), because the peer does not reconcile.
    Req,
}

/// The error of a sync that was stopped.
pub(super) const STOPPED: &str = "stopped";

/// The result of a sync.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// The peer.
    pub url: String,
    /// The filter of the sync.
    pub filter: serde_json::Map<String, serde_json::Value>,
    /// The direction of moves.
    pub direction: Direction,
    /// How the peer's events were found.
    pub method: Method,
    /// The verdict about both sides.
    pub verdict: Verdict,
    /// The basis of the verdict; `None` if it is `incomplete`.
    pub proof: Option<Proof>,
    /// For the proof `read_since`: the second from which the peer was read, and the second at which
    /// it was last read completely, since the Unix epoch.
    pub read_since: Option<u64>,
    /// See `read_since`.
    pub read_whole_at: Option<u64>,
    /// Ranges that the peer may have but did not show.
    pub not_seen: Vec<Unseen>,
    /// Kinds that the peer shows only to their owners: they were not compared.
    pub not_compared: Vec<u16>,
    /// The second before which our own retention keeps nothing, since the Unix epoch. Older events
    /// were not compared, except for requests to delete or to vanish.
    pub kept_since: Option<u64>,
    /// The number of the peer's events that cannot be parsed.
    pub unreadable: u64,
    /// The number of answered questions of the reconciliation, or of pages read.
    pub round_trips: u64,
    /// Bytes of messages sent.
    pub bytes_up: u64,
    /// Bytes of messages received.
    pub bytes_down: u64,
    /// The number of rounds; the last one proves the result.
    pub passes: u32,
    /// The number of connections that the verdict rests on. If there are several, they may have led
    /// to different relays behind the address, so the verdict is not `equal`.
    pub connections: u32,
    /// The number of lost connections that were made again.
    pub reconnects: u32,
    /// The number of events that only we had.
    pub have: u64,
    /// The number of events that only the peer had.
    pub need: u64,
    /// The events that only we had and that the last round still found.
    pub have_left: u64,
    /// The events that only the peer had and that the last round still found.
    pub need_left: u64,
    /// The number of events that came from the peer and are now stored.
    pub stored: u64,
    /// The number of events that the peer accepted.
    pub uploaded: u64,
    /// The number of events that the other side turned out to have already.
    pub duplicates: u64,
    /// The number of events from the peer that were not stored, by reason.
    pub refused: BTreeMap<Reason, u64>,
    /// The number of events that the peer refused or did not keep, by reason.
    pub refused_by_peer: BTreeMap<Reason, u64>,
    /// The number of events that still differ, by reason.
    pub differs: BTreeMap<Reason, u64>,
    /// Whether both sides have the same matching events: the verdict is `equal`.
    pub equal: bool,
    /// Whether every event has been moved or has a reason not to be: the verdict is not
    /// `incomplete`.
    pub complete: bool,
    /// Duration in milliseconds.
    pub elapsed_ms: u64,
    /// Why the sync is not complete.
    pub error: Option<String>,
    /// A hint.
    pub hint: Option<&'static str>,
}

impl Report {
    pub(super) fn new(url: &str, filter: &PeerFilter, direction: Direction) -> Self {
        let (url, filter) = (url.to_owned(), filter.json().clone());
        Self { url, filter, direction, ..Self::default() }
    }

    pub(super) fn judge(&mut self, verdict: Verdict, proof: Option<Proof>) {
        let verdict = verdict.over(self.connections);
        self.verdict = verdict;
        self.proof = proof.filter(|_| verdict != Verdict::Incomplete);
        self.equal = verdict == Verdict::Equal;
        self.complete = verdict != Verdict::Incomplete;
        self.connections = if self.complete { self.connections.max(1) } else { 0 };
    }

    /// The events moved and the traffic.
    pub fn tally(&self) -> Tally {
        Tally {
            have: self.have,
            need: self.need,
            stored: self.stored,
            uploaded: self.uploaded,
            refused: self.refused.values().sum(),
            refused_by_peer: self.refused_by_peer.values().sum(),
            round_trips: self.round_trips,
            bytes_up: self.bytes_up,
            bytes_down: self.bytes_down,
        }
    }

    /// Whether the sync was stopped.
    pub fn is_stopped(&self) -> bool {
        self.error.as_deref() == Some(STOPPED)
    }
}

/// A progress report of a running sync.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress {
    /// The peer has been reached.
    Connected,
    /// Information for the operator.
    Note(String),
    /// A round begins; from the second one on to prove the first.
    Round(u32),
    /// The progress of the sync.
    Moved(Counts),
    /// All existing events are synced; from here on new events are moved.
    Live,
    /// A live sync has finished a complete round; contains its results so far. It runs another one
    /// after a lost connection, or if it could not keep up.
    CaughtUp(Box<Report>),
    /// The connection was lost, and is made again after a pause.
    Waiting {
        /// Why it was lost.
        reason: String,
        /// The pause.
        pause: Duration,
    },
}

/// The progress of a sync.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// The number of our items in ranges that are not settled.
    pub unsettled_items: u64,
    /// The number of all our items.
    pub items: u64,
    /// The number of requested events that came or will not come.
    pub downloaded: u64,
    /// The number of events known to be requested, including those.
    pub to_download: u64,
    /// The number of sent events with a reply.
    pub uploaded: u64,
    /// The number of events known to be sent, including those.
    pub to_upload: u64,
    /// The events moved and the traffic.
    pub tally: Tally,
}
