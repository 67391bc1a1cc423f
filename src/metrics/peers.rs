//! The state of each scheduled peer: written by the schedule, read by pages, metrics and commands.

use super::{DriftLook, Proof, Verdict};
use crate::config::Direction;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The totals of syncs: events moved and traffic.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Tally {
    /// The number of events that only we had.
    pub have: u64,
    /// The number of events that only the peer had.
    pub need: u64,
    /// The number of events that came from the peer and are now stored.
    pub stored: u64,
    /// The number of events that the peer accepted.
    pub uploaded: u64,
    /// The number of events from the peer that were not stored.
    pub refused: u64,
    /// The number of events that the peer refused.
    pub refused_by_peer: u64,
    /// The number of answered questions of the reconciliation.
    pub round_trips: u64,
    /// Bytes of messages sent.
    pub bytes_up: u64,
    /// Bytes of messages received.
    pub bytes_down: u64,
}

impl Tally {
    /// The sum of both.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        self.each(other, u64::saturating_add)
    }

    /// The difference to an earlier value.
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

/// The last completed sync with a peer. A live sync completes each time it has caught up.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct LastSync {
    /// When it ended, in seconds since the Unix epoch.
    pub ended_at: u64,
    /// Its duration, in seconds.
    pub elapsed_s: f64,
    /// Its totals.
    pub tally: Tally,
    /// The verdict about both sides.
    pub verdict: Verdict,
    /// The basis of the verdict.
    pub proof: Option<Proof>,
    /// Kinds that the peer shows only to their owners.
    pub not_compared: Vec<u16>,
    /// The number of events that still differ, by reason.
    pub differs: BTreeMap<String, u64>,
    /// Whether the peer refuses all events that still differ.
    pub refuses_writes: bool,
    /// Whether the peer was reached.
    pub reached: bool,
}

/// The state of a peer. Times are in seconds since the Unix epoch.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct PeerStatus {
    /// The peer's configured URL; a second section with the same URL has `#2` appended.
    pub name: String,
    /// The direction of moves.
    pub direction: Direction,
    /// Whether new events are passed on between syncs.
    pub live: bool,
    /// Whether it is connected now.
    pub connected: bool,
    /// Whether it is caught up, connected and live: converged as long as that lasts.
    pub in_step: bool,
    /// The start of the last connection attempt.
    pub last_attempt: Option<u64>,
    /// When both sides were last equal, or as close to it as can be determined for a peer without
    /// NIP-77.
    pub last_converged: Option<u64>,
    /// The number of events that only we have, as of the last round.
    pub have: u64,
    /// The number of events that only the peer has, as of the last round.
    pub need: u64,
    /// Since when any events differ.
    pub differs_since: Option<u64>,
    /// The last completed sync.
    pub last_sync: Option<LastSync>,
    /// Why the last connection or sync failed.
    pub last_error: Option<String>,
    /// The time of that failure.
    pub last_error_at: Option<u64>,
    /// The days on which it differs, if they are looked up.
    #[serde(skip)]
    pub look: Option<Arc<DriftLook>>,
    /// The totals of all syncs since the start, including the current one.
    pub totals: Tally,
    /// Syncs completed since the start.
    pub syncs: u64,
    /// Connections and syncs failed since the start.
    pub errors: u64,
}

/// The state of a peer, as one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum PeerState {
    /// Caught up, connected and live.
    InStep,
    /// Both sides had the same events when the last sync ended.
    Equal,
    /// A peer without NIP-77 was read, and nothing was left to move.
    CaughtUp,
    /// Some events differ, each for a known reason.
    Differs,
    /// The peer refuses all events that differ.
    RefusesWrites,
    /// Not all events were seen or moved.
    Incomplete,
    /// The last attempt failed.
    NotReached,
    /// No sync has completed yet.
    FirstSync,
}

impl PeerState {
    /// The state as text for people.
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
    /// The current state.
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

    /// Whether a failure at that second came after the last complete sync.
    pub fn failed_since_sync(&self, second: u64) -> bool {
        let complete = self.last_sync.as_ref().filter(|last| last.verdict != Verdict::Incomplete);
        complete.is_none_or(|last| second > last.ended_at)
    }

    /// Records the numbers of differing events.
    pub fn differs(&mut self, have: u64, need: u64, now: u64) {
        (self.have, self.need) = (have, need);
        let differs = have > 0 || need > 0;
        self.differs_since = differs.then(|| self.differs_since.unwrap_or(now));
    }

    /// Records a failure.
    pub fn failed(&mut self, reason: String, now: u64) {
        self.errors += 1;
        (self.last_error, self.last_error_at) = (Some(reason), Some(now));
    }

    /// Seconds since everything was last known to be synced; `None` before the first time.
    pub fn lag_s(&self, now: u64) -> Option<u64> {
        self.last_converged.map(|then| now.saturating_sub(then))
    }
}

/// The peers of one relay, in configuration order. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Peers {
    list: Arc<Mutex<Vec<Watched>>>,
}

impl Peers {
    /// Removes all peers, for a new schedule.
    pub fn clear(&self) {
        lock(&self.list).clear();
    }

    /// Adds a peer without any results yet.
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

    /// The states of all peers at the second `now`.
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

/// The handle of one peer for the task that keeps it in sync.
#[derive(Debug, Clone)]
pub struct Watched(Arc<Mutex<PeerStatus>>);

impl Watched {
    /// The current state.
    pub fn status(&self) -> PeerStatus {
        lock(&self.0).clone()
    }

    /// Changes the state.
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
