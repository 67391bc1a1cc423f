//! For sides that know only the ids of their events: without times no part of a set can be
//! compared, so the moves are determined once all of the peer's ids are known.

use super::ledger::{Entry, IdState, Side};
use super::{Id, Machine, Work};
use crate::sync::reason::Reason;
use std::collections::HashMap;

/// The final state of an event that was to be moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::sync) enum Left {
    /// The peer took it, and shows it if it was looked for.
    Taken,
    /// It was not moved. `None` means not tried.
    Stayed(Option<Reason>),
}

impl Machine {
    /// Sets the machine up for a side that knows only ids.
    pub(in crate::sync) fn over_ids(mut self) -> Self {
        self.over_ids = true;
        self
    }

    /// Whether events that were requested by id may still come.
    pub(in crate::sync) fn downloads(&self) -> bool {
        self.on.arriving_bytes > 0 || self.on.batch.is_some() || !self.on.download.is_idle()
    }

    /// The final state of each event that was to be sent, or was requested and did not come.
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
            // The connection was lost in the meantime.
            round.is_concluded = false;
        }
    }
}
