//! What a sync did and what it proved, while it runs and at its end.

use super::machine::Unseen;
use super::reason::Reason;
use super::{Direction, PeerFilter};
use crate::metrics::Tally;
pub use crate::metrics::{Proof, Verdict};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// How a peer's events were found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// By reconciliation (NIP-77).
    #[default]
    Negentropy,
    /// By reading all that matches, page by page (NIP-01), because the peer does not reconcile.
    Req,
}

/// The error of a sync that was told to end.
pub(super) const STOPPED: &str = "stopped";

/// The end of a sync.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// The peer.
    pub url: String,
    /// Which events were to be synced.
    pub filter: serde_json::Map<String, serde_json::Value>,
    /// Which way events were to move.
    pub direction: Direction,
    /// How the peer's events were found out.
    pub method: Method,
    /// How both sides compare.
    pub verdict: Verdict,
    /// What the verdict rests on; nothing where it is `incomplete`.
    pub proof: Option<Proof>,
    /// Where the proof is `read_since`: the second from which on the peer was read, and when it
    /// was last read whole, in seconds since the Unix epoch.
    pub read_since: Option<u64>,
    /// See `read_since`.
    pub read_whole_at: Option<u64>,
    /// What the peer did not show, though it may have it.
    pub not_seen: Vec<Unseen>,
    /// Kinds that the peer shows to their owners only: they were not compared.
    pub not_compared: Vec<u16>,
    /// The second before which our own retention keeps nothing, in seconds since the Unix epoch: what is
    /// older was not compared, but for requests to delete or to vanish.
    pub kept_since: Option<u64>,
    /// Events of the peer's that cannot be read.
    pub unreadable: u64,
    /// Questions of the reconciliation that were answered, or pages that were read.
    pub round_trips: u64,
    /// Bytes of messages sent.
    pub bytes_up: u64,
    /// Bytes of messages received.
    pub bytes_down: u64,
    /// How often everything was looked at; the last time proves the result.
    pub passes: u32,
    /// The connections that the verdict rests on. More than one may have led to different relays
    /// behind the address, so that the verdict is not `equal`.
    pub connections: u32,
    /// Connections that were lost and made again.
    pub reconnects: u32,
    /// Events that only we had.
    pub have: u64,
    /// Events that only the peer had.
    pub need: u64,
    /// Of those that only we had, how many the last look still found.
    pub have_left: u64,
    /// Of those that only the peer had, how many the last look still found.
    pub need_left: u64,
    /// Events that came from the peer and are stored now.
    pub stored: u64,
    /// Events that the peer took.
    pub uploaded: u64,
    /// Events that either side turned out to have already.
    pub duplicates: u64,
    /// Events from the peer that were not kept, by reason.
    pub refused: BTreeMap<Reason, u64>,
    /// Events that the peer did not take or keep, by reason.
    pub refused_by_peer: BTreeMap<Reason, u64>,
    /// What still differs, by reason.
    pub differs: BTreeMap<Reason, u64>,
    /// Whether both sides hold the same events that match: the verdict is `equal`.
    pub equal: bool,
    /// Whether all that was to be moved has been moved or has a reason not to be: the verdict is
    /// not `incomplete`.
    pub complete: bool,
    /// Milliseconds from the beginning to the end.
    pub elapsed_ms: u64,
    /// Why the sync is not complete.
    pub error: Option<String>,
    /// What may help.
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

    /// What was moved and what that took.
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

    /// Whether the sync was told to end.
    pub fn is_stopped(&self) -> bool {
        self.error.as_deref() == Some(STOPPED)
    }
}

/// What a sync tells while it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress {
    /// The peer has been reached.
    Connected,
    /// Something that the operator may want to know, in words.
    Note(String),
    /// Everything is looked at; from the second round on to prove the first.
    Round(u32),
    /// How far everything is.
    Moved(Counts),
    /// Everything that was there is synced; from here on events move as they come.
    Live,
    /// A live sync has looked at everything and moved what was there; what it did up to here. It
    /// looks again when the connection was lost or it could not keep up.
    CaughtUp(Box<Report>),
    /// The connection was lost, and is made again after a pause.
    Waiting {
        /// Why it was lost.
        reason: String,
        /// The pause.
        pause: Duration,
    },
}

/// How far a sync is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Our items in ranges that are not settled.
    pub unsettled_items: u64,
    /// Our items in all.
    pub items: u64,
    /// Events that the peer was asked for and that came or will not come.
    pub downloaded: u64,
    /// Events to ask for that are known by now, those included.
    pub to_download: u64,
    /// Events that the peer has answered for.
    pub uploaded: u64,
    /// Events to send that are known by now, those included.
    pub to_upload: u64,
    /// What was moved and what that took.
    pub tally: Tally,
}
