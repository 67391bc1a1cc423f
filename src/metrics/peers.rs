//! How each peer of the schedule stands: written by the schedule, read by whoever shows it.

use super::{DriftLook, Proof, Verdict};
use crate::config::Direction;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What syncs have moved and what that took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Tally {
    /// Events that only we had.
    pub have: u64,
    /// Events that only the peer had.
    pub need: u64,
    /// Events that came from the peer and are stored now.
    pub stored: u64,
    /// Events that the peer took.
    pub uploaded: u64,
    /// Events from the peer that were not kept.
    pub refused: u64,
    /// Events that the peer did not take.
    pub refused_by_peer: u64,
    /// Questions of the reconciliation that were answered.
    pub round_trips: u64,
    /// Bytes of messages sent.
    pub bytes_up: u64,
    /// Bytes of messages received.
    pub bytes_down: u64,
}

impl Tally {
    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        self.each(other, u64::saturating_add)
    }

    /// What came since `earlier`.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        self.each(earlier, u64::saturating_sub)
    }

    fn each(self, other: Self, of: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            have: of(self.have, other.have),
            need: of(self.need, other.need),
            stored: of(self.stored, other.stored),
            uploaded: of(self.uploaded, other.uploaded),
            refused: of(self.refused, other.refused),
            refused_by_peer: of(self.refused_by_peer, other.refused_by_peer),
            round_trips: of(self.round_trips, other.round_trips),
            bytes_up: of(self.bytes_up, other.bytes_up),
            bytes_down: of(self.bytes_down, other.bytes_down),
        }
    }
}

/// The last sync with a peer that came to its end. A live sync comes to one each time it has
/// caught up.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct LastSync {
    /// When, in seconds since the Unix epoch.
    pub ended_at: u64,
    /// How long it took, in seconds.
    pub elapsed_s: f64,
    /// What it moved.
    pub tally: Tally,
    /// How both sides compare.
    pub verdict: Verdict,
    /// What that rests on.
    pub proof: Option<Proof>,
    /// Kinds that the peer shows to their owners only.
    pub not_compared: Vec<u16>,
    /// How many events still differ, by reason.
    pub differs: BTreeMap<String, u64>,
    /// Whether the peer takes none of the events that still differ.
    pub refuses_writes: bool,
    /// Whether the peer was reached.
    pub reached: bool,
}

/// How a peer stands. Times are in seconds since the Unix epoch.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct PeerStatus {
    /// The peer's URL as it is configured; a second section of the same URL has `#2` behind it.
    pub name: String,
    /// Which way events move.
    pub direction: Direction,
    /// Whether events are passed on as they come, between syncs.
    pub live: bool,
    /// Whether there is a connection to it now.
    pub connected: bool,
    /// Caught up, connected and live: converged as long as that lasts.
    pub in_step: bool,
    /// When connecting was last begun.
    pub last_attempt: Option<u64>,
    /// When both sides were last equal, or as near as a peer without NIP-77 can be known to be.
    pub last_converged: Option<u64>,
    /// Events that only we have, as far as the last look shows.
    pub have: u64,
    /// Events that only the peer has, as far as the last look shows.
    pub need: u64,
    /// Since when there are any of either.
    pub differs_since: Option<u64>,
    /// The last sync that came to its end.
    pub last_sync: Option<LastSync>,
    /// Why the last connection or sync failed.
    pub last_error: Option<String>,
    /// When that was.
    pub last_error_at: Option<u64>,
    /// On which days it differs, where that is looked up.
    #[serde(skip)]
    pub look: Option<Arc<DriftLook>>,
    /// What all syncs moved since the start, the one under way included.
    pub totals: Tally,
    /// Syncs that came to their end since the start.
    pub syncs: u64,
    /// Connections and syncs that failed since the start.
    pub errors: u64,
}

/// How a peer stands, in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum PeerState {
    /// Caught up, connected and live.
    InStep,
    /// Both sides held the same events when the last sync ended.
    Equal,
    /// A peer without NIP-77 was read, and nothing more was to be moved.
    CaughtUp,
    /// Something differs, and has a reason.
    Differs,
    /// All that differs is what the peer does not take.
    RefusesWrites,
    /// Not everything was seen or moved.
    Incomplete,
    /// What was tried last has failed.
    NotReached,
    /// No sync has come to its end yet.
    FirstSync,
}

impl PeerState {
    /// The state as people read it.
    pub fn words(self) -> &'static str {
        match self {
            Self::InStep => "in step",
            Self::Equal => "equal",
            Self::CaughtUp => "caught up",
            Self::Differs => "differs",
            Self::RefusesWrites => "refuses writes",
            Self::Incomplete => "incomplete",
            Self::NotReached => "not reached",
            Self::FirstSync => "first sync under way",
        }
    }
}

impl PeerStatus {
    /// How it stands.
    pub fn state(&self) -> PeerState {
        let failed = self.last_error_at.is_some_and(|at| self.failed_since_sync(at));
        match &self.last_sync {
            _ if self.in_step => PeerState::InStep,
            Some(last) if last.verdict == Verdict::Incomplete && last.reached => {
                PeerState::Incomplete
            }
            _ if failed && !self.connected => PeerState::NotReached,
            Some(last) => match last.verdict {
                Verdict::Equal => PeerState::Equal,
                Verdict::CaughtUp => PeerState::CaughtUp,
                Verdict::Differs if last.refuses_writes => PeerState::RefusesWrites,
                Verdict::Differs => PeerState::Differs,
                Verdict::Incomplete => PeerState::Incomplete,
            },
            None => PeerState::FirstSync,
        }
    }

    /// Whether what failed at that second came after the last sync that was complete.
    pub fn failed_since_sync(&self, second: u64) -> bool {
        let complete = self.last_sync.as_ref().filter(|last| last.verdict != Verdict::Incomplete);
        complete.is_none_or(|last| second > last.ended_at)
    }

    /// Notes what either side lacks.
    pub fn differs(&mut self, have: u64, need: u64, now: u64) {
        (self.have, self.need) = (have, need);
        let differs = have > 0 || need > 0;
        self.differs_since = differs.then(|| self.differs_since.unwrap_or(now));
    }

    /// Notes that something failed.
    pub fn failed(&mut self, reason: String, now: u64) {
        self.errors += 1;
        (self.last_error, self.last_error_at) = (Some(reason), Some(now));
    }

    /// Seconds since all was last known to be moved; `None` before the first time.
    pub fn lag_s(&self, now: u64) -> Option<u64> {
        self.last_converged.map(|then| now.saturating_sub(then))
    }
}

/// The peers of one relay, in the order of its configuration. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Peers {
    list: Arc<Mutex<Vec<Watched>>>,
}

impl Peers {
    /// Forgets all of them: another schedule begins.
    pub fn clear(&self) {
        lock(&self.list).clear();
    }

    /// Adds a peer, of which nothing is known yet.
    pub fn add(&self, url: &str, direction: Direction, live: bool) -> Watched {
        let mut list = lock(&self.list);
        let names: Vec<String> = list.iter().map(|peer| lock(&peer.0).name.clone()).collect();
        let mut name = url.to_owned();
        let mut number = 2;
        while names.contains(&name) {
            name = format!("{url}#{number}");
            number += 1;
        }
        let status = PeerStatus { name, direction, live, ..PeerStatus::default() };
        let watched = Watched(Arc::new(Mutex::new(status)));
        list.push(watched.clone());
        watched
    }

    /// How all of them stand at the second `now`.
    pub fn all(&self, now: u64) -> Vec<PeerStatus> {
        let at_present = |peer: &Watched| {
            let mut status = lock(&peer.0);
            if status.in_step {
                status.last_converged = Some(now);
            }
            status.clone()
        };
        lock(&self.list).iter().map(at_present).collect()
    }
}

/// One of the peers, for whoever keeps it in sync.
#[derive(Debug, Clone)]
pub struct Watched(Arc<Mutex<PeerStatus>>);

impl Watched {
    /// How it stands.
    pub fn status(&self) -> PeerStatus {
        lock(&self.0).clone()
    }

    /// Changes what is known of it.
    pub fn update(&self, change: impl FnOnce(&mut PeerStatus)) {
        change(&mut lock(&self.0));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_differs_from_the_first_lack_until_there_is_none() {
        let mut status = PeerStatus::default();
        for (have, need, now, since) in [
            (0, 0, 10, None),
            (0, 3, 11, Some(11)),
            (5, 0, 12, Some(11)),
            (0, 0, 13, None),
            (1, 0, 14, Some(14)),
        ] {
            status.differs(have, need, now);
            assert_eq!((status.have, status.need, status.differs_since), (have, need, since));
        }
    }

    #[test]
    fn a_peer_in_step_converges_as_long_as_that_lasts_and_names_are_told_apart() {
        let peers = Peers::default();
        let first = peers.add("ws://a", Direction::Both, true);
        peers.add("ws://a", Direction::Up, false);
        peers.add("ws://a", Direction::Up, false);
        let lag = |now| peers.all(now)[0].lag_s(now);
        assert_eq!(lag(5), None);
        first.update(|status| status.in_step = true);
        assert_eq!(lag(7), Some(0));
        first.update(|status| status.in_step = false);
        assert_eq!(lag(9), Some(2));
        let names: Vec<String> = peers.all(9).into_iter().map(|status| status.name).collect();
        assert_eq!(names, ["ws://a", "ws://a#2", "ws://a#3"]);
    }
}
