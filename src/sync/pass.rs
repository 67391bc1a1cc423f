//! The accounts of one reconciliation: what differed when it was looked at, and why it need not
//! worry anyone.

use super::breakdown::Breakdown;
use std::collections::{BTreeMap, HashSet};

/// One look at everything, and the transfers that follow from it.
#[derive(Debug, Default)]
pub(super) struct Pass {
    /// Which one it is, counted from 1.
    pub(super) number: u32,
    /// Ids that only the peer has.
    pub(super) need: u64,
    /// Ids that only we have.
    pub(super) have: u64,
    /// How many of both stay where they are, by reason.
    pub(super) explained: BTreeMap<String, u64>,
    /// Those that are to be moved.
    pub(super) open: HashSet<[u8; 32]>,
    /// Events that were moved.
    pub(super) moved: u64,
    /// The newest `created_at` of our set when it was looked at.
    pub(super) newest: u64,
    /// What differs, row by row, where that is asked for.
    pub(super) breakdown: Option<Breakdown>,
}

/// What a pass shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing had to be moved: what was moved before is proven.
    Proven,
    /// What was moved has to be proven by another pass.
    Again,
    /// Something does not move, whatever is tried.
    Stuck,
    /// Every pass finds something new: the sets change while they are compared.
    Moving,
}

/// The most passes; the first moves, the second proves, more are needed where sets change.
const MOST_PASSES: u32 = 4;

impl Pass {
    /// Notes an id that stays where it is.
    pub(super) fn explain(&mut self, reason: &str) {
        *self.explained.entry(reason.to_owned()).or_default() += 1;
    }

    /// Whether both sides are equal.
    pub(super) fn is_equal(&self) -> bool {
        self.need == 0 && self.have == 0
    }

    /// Judges the pass by what earlier passes tried to move.
    pub(super) fn verdict(&self, tried: &HashSet<[u8; 32]>) -> Verdict {
        if self.open.is_empty() {
            return Verdict::Proven;
        }
        let stuck = self.open.iter().any(|id| tried.contains(id));
        match (stuck, self.moved > 0, self.number < MOST_PASSES) {
            (_, true, true) => Verdict::Again,
            // Nothing moved: looking again shows whether what was tried went away.
            (false, false, true) => Verdict::Again,
            (true, _, _) => Verdict::Stuck,
            (false, _, false) => Verdict::Moving,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pass(number: u32, open: &[u8], moved: u64) -> Pass {
        Pass { number, open: open.iter().map(|id| [*id; 32]).collect(), moved, ..Pass::default() }
    }

    #[test]
    fn only_a_look_that_finds_nothing_to_move_proves() {
        let none = HashSet::new();
        let tried = HashSet::from([[1; 32]]);
        assert_eq!(pass(1, &[], 0).verdict(&none), Verdict::Proven);
        assert_eq!(pass(1, &[1], 1).verdict(&none), Verdict::Again);
        assert_eq!(pass(2, &[1], 0).verdict(&tried), Verdict::Stuck);
        assert_eq!(pass(2, &[1, 2], 1).verdict(&tried), Verdict::Again);
        assert_eq!(pass(4, &[1, 2], 1).verdict(&tried), Verdict::Stuck);
        assert_eq!(pass(4, &[2], 1).verdict(&tried), Verdict::Moving);
    }
}
