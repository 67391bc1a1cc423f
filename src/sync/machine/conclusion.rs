//! Where our events are known by their ids alone, without their times, no part of a set can be
//! compared: what is to be moved is told once all of the peer's ids have been found.

use super::ledger::{Entry, IdState, Side};
use super::{Id, Machine, Work};
use crate::sync::reason::Reason;
use std::collections::HashMap;

/// How a sync left an event that it was to move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::sync) enum Left {
    /// The peer took it, and shows it where it was looked for.
    Taken,
    /// It was not moved. Without a reason it was not tried.
    Stayed(Option<Reason>),
}

impl Machine {
    /// The machine for a side of which only ids are known.
    pub(in crate::sync) fn over_ids(mut self) -> Self {
        self.over_ids = true;
        self
    }

    /// Whether something that the peer was asked for by id may still come.
    pub(in crate::sync) fn downloads(&self) -> bool {
        self.on.arriving_bytes > 0 || self.on.batch.is_some() || !self.on.download.is_idle()
    }

    /// How each event was left that was to go to the peer, or was asked for and did not come.
    pub(in crate::sync) fn left(&self) -> HashMap<Id, Left> {
        let left = |entry: &Entry| match entry.state {
            IdState::Shown | IdState::Accepted | IdState::Duplicate if entry.side == Side::Ours => {
                Some(Left::Taken)
            }
            IdState::Stays(reason) | IdState::Excused(reason) => Some(Left::Stayed(Some(reason))),
            IdState::Open | IdState::UnderWay => Some(Left::Stayed(None)),
            _ => None,
        };
        self.ledger.iter().filter_map(|(id, entry)| Some((*id, left(entry)?))).collect()
    }

    fn look(&self) -> u64 {
        u64::from(self.connections) << 32 | u64::from(self.looks)
    }

    pub(super) fn advance_conclusion(&mut self) {
        let Some(round) = self.round.as_ref().filter(|round| !round.is_concluded) else { return };
        let is_found = self.on.reconciling.is_idle() && (!round.is_read || self.reading.is_idle());
        if !self.over_ids || !is_found || self.working > 0 || self.on.batch.is_some() {
            return;
        }
        let (is_first, is_read) = (round.index == 1, round.is_read);
        let is_whole = !is_read || self.reading.is_whole();
        let look = self.look();
        if let Some(round) = &mut self.round {
            round.is_concluded = true;
        }
        self.begin_work(Work::Conclude { look, is_first, is_whole });
    }

    pub(super) fn concluded(&mut self, look: u64, have: Vec<Id>, need: Vec<Id>) {
        if self.is_up() && self.look() == look {
            self.found(have, need, &HashMap::new());
        } else if let Some(round) = &mut self.round {
            // The connection was lost meanwhile.
            round.is_concluded = false;
        }
    }
}
