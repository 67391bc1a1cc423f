//! The state of every id that differed; all figures derive from it.

use super::Id;
use crate::sync::reason::Reason;
use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroU32;

/// The side that had an event when the difference was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Side {
    Ours,
    Peers,
}

/// The state of an event's move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum IdState {
    /// To be moved; also the state in a sync that only compares.
    Open,
    /// Requested from the peer, or sent to it.
    UnderWay,
    /// Sent, but the connection was lost before the peer's OK.
    Unconfirmed,
    /// Received and stored.
    Stored,
    /// Received, but we had it already.
    Known,
    /// The peer's OK says accepted.
    Accepted,
    /// The peer's OK says duplicate.
    Duplicate,
    /// The peer accepted it and shows it.
    Shown,
    /// Not moved, for this reason.
    Stays(Reason),
    /// Not moved, for a reason known before it was found: not counted.
    Excused(Reason),
}

impl IdState {
    /// Whether only one side has the event, as far as is known.
    pub(crate) fn differs(self) -> bool {
        self.is_unsettled() || matches!(self, Self::Stays(_) | Self::Excused(_))
    }

    /// Whether the event is still to be moved, or being moved.
    pub(crate) fn is_unsettled(self) -> bool {
        matches!(self, Self::Open | Self::UnderWay | Self::Unconfirmed)
    }
}

/// The entry of an id.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry {
    pub(crate) side: Side,
    pub(crate) state: IdState,
    /// The last round that found it to differ.
    pub(crate) round: u32,
    /// The connection on which the peer showed it; for an event of ours, an earlier connection than
    /// the one on which the peer lacks it.
    pub(crate) shown_on: Option<NonZeroU32>,
    /// The number of times it was requested or sent.
    pub(crate) tries: u8,
    /// How likely it is to be the cause of lost connections.
    pub(crate) losses: u8,
    /// The kind of an event that was sent.
    pub(crate) kind: u16,
}

/// The round and connection of a difference.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FoundAt {
    pub(crate) round: u32,
    /// Counts from 1.
    pub(crate) connection: Option<NonZeroU32>,
}

/// Every id that was found to differ, with its state.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    entries: HashMap<Id, Entry>,
    // The number of entries in each state, updated by `set`, so that figures cost nothing.
    counts: HashMap<(Side, IdState), u64>,
    // The figures of dropped entries.
    base: Figures,
}

/// The totals of the ledger.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Figures {
    pub(crate) have: u64,
    pub(crate) need: u64,
    pub(crate) stored: u64,
    pub(crate) uploaded: u64,
    pub(crate) duplicates: u64,
    /// Events from the peer that were not stored.
    pub(crate) refused: BTreeMap<Reason, u64>,
    /// Events of ours that the peer did not take or keep.
    pub(crate) refused_by_peer: BTreeMap<Reason, u64>,
}

impl Ledger {
    pub(crate) fn get(&self, id: &Id) -> Option<&Entry> {
        self.entries.get(id)
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Id, &Entry)> {
        self.entries.iter()
    }

    /// Records that an id was found to differ.
    pub(crate) fn find(&mut self, id: Id, side: Side, state: IdState, found_at: FoundAt) {
        let FoundAt { round, connection } = found_at;
        let shown_on = connection.filter(|_| side == Side::Peers);
        let mut new = Entry { side, state, round, shown_on, tries: 0, losses: 0, kind: 0 };
        if let Some(old) = self.entries.get(&id).copied() {
            self.uncount(old.side, old.state);
            (new.tries, new.losses, new.kind) = (old.tries, old.losses, old.kind);
            let came = matches!(old.state, IdState::Stored | IdState::Known);
            if side == Side::Ours && (old.side == Side::Ours || came) {
                new.shown_on = old.shown_on.filter(|_| old.shown_on != connection);
            }
        }
        self.entries.insert(id, new);
        *self.counts.entry((side, state)).or_default() += 1;
    }

    /// Changes the state of an id; ignores an unknown id.
    pub(crate) fn set(&mut self, id: &Id, state: IdState) {
        let Some(entry) = self.entries.get_mut(id) else { return };
        let (side, old) = (entry.side, std::mem::replace(&mut entry.state, state));
        self.uncount(side, old);
        *self.counts.entry((side, state)).or_default() += 1;
    }

    /// Changes fields that no figure depends on.
    pub(crate) fn note(&mut self, id: &Id, change: impl FnOnce(&mut Entry)) {
        if let Some(entry) = self.entries.get_mut(id) {
            let before = (entry.side, entry.state);
            change(entry);
            debug_assert_eq!(before, (entry.side, entry.state), "a state changes by `set`");
        }
    }

    fn uncount(&mut self, side: Side, state: IdState) {
        if let Some(count) = self.counts.get_mut(&(side, state)) {
            *count -= 1;
        }
    }

    fn sum(&self, wanted: impl Fn(Side, IdState) -> bool) -> u64 {
        let counted = self.counts.iter().filter(|((side, state), _)| wanted(*side, *state));
        counted.map(|(_, count)| count).sum()
    }

    /// The number of ids of one side that are to be moved or being moved.
    pub(crate) fn unsettled(&self, side: Side) -> u64 {
        self.sum(|of, state| of == side && state.is_unsettled())
    }

    /// Whether any id was not moved for a reason that may be temporary.
    pub(crate) fn has_unexplained(&self) -> bool {
        self.sum(|_, state| matches!(state, IdState::Stays(reason) if reason.is_unexplained())) > 0
    }

    /// The current totals.
    pub(crate) fn figures(&self) -> Figures {
        let mut figures = self.base.clone();
        let moves = |state| !matches!(state, IdState::Excused(_));
        figures.have += self.sum(|side, state| side == Side::Ours && moves(state));
        figures.need += self.sum(|side, state| side == Side::Peers && moves(state));
        figures.stored += self.sum(|_, state| state == IdState::Stored);
        let taken = |state| matches!(state, IdState::Accepted | IdState::Shown);
        figures.uploaded += self.sum(|_, state| taken(state));
        let had = |state| matches!(state, IdState::Known | IdState::Duplicate);
        figures.duplicates += self.sum(|_, state| had(state));
        for ((side, state), count) in self.counts.iter().filter(|(_, count)| **count > 0) {
            let IdState::Stays(reason) = state else { continue };
            let ours_to_keep = *side == Side::Peers || *reason == Reason::Protected;
            let all =
                if ours_to_keep { &mut figures.refused } else { &mut figures.refused_by_peer };
            *all.entry(*reason).or_default() += count;
        }
        figures
    }

    /// The ids found in round `round` that still differ, by reason; those without a reason count as
    /// [`Reason::NotMoved`].
    pub(crate) fn differences(&self, round: u32) -> BTreeMap<Reason, u64> {
        let mut differences = BTreeMap::new();
        for entry in self.entries.values().filter(|entry| entry.round == round) {
            let reason = match entry.state {
                IdState::Stays(reason) | IdState::Excused(reason) => reason,
                state if state.is_unsettled() => Reason::NotMoved,
                _ => continue,
            };
            *differences.entry(reason).or_default() += 1;
        }
        differences
    }

    /// The number of events that the peer sent on one connection, and took on another as new.
    pub(crate) fn contradicted(&self) -> u64 {
        let taken = |state| matches!(state, IdState::Accepted | IdState::Shown);
        let is_so = |entry: &&Entry| {
            entry.side == Side::Ours && entry.shown_on.is_some() && taken(entry.state)
        };
        self.entries.values().filter(is_so).count() as u64
    }

    /// Completes round `round`: an event that was sent, had no OK, and is no longer found to differ
    /// was accepted.
    pub(crate) fn confirm(&mut self, round: u32) {
        let is_taken = |entry: &Entry| {
            entry.side == Side::Ours
                && entry.round < round
                && entry.state == IdState::Stays(Reason::NotAnswered)
        };
        let taken = self.entries.iter().filter(|(_, entry)| is_taken(entry));
        for id in taken.map(|(id, _)| *id).collect::<Vec<Id>>() {
            self.set(&id, IdState::Shown);
        }
    }

    /// Removes entries as if they had not been found.
    pub(crate) fn withdraw(&mut self, is_void: impl Fn(&Entry) -> bool) {
        let counts = &mut self.counts;
        self.entries.retain(|_, entry| {
            let goes = is_void(entry);
            if goes && let Some(count) = counts.get_mut(&(entry.side, entry.state)) {
                *count -= 1;
            }
            !goes
        });
    }

    /// Drops all entries; the figures stay.
    pub(crate) fn forget(&mut self) {
        self.base = self.figures();
        self.entries = HashMap::new();
        self.counts.clear();
    }

    /// Whether the counts agree with the entries.
    pub(crate) fn is_consistent(&self) -> bool {
        let mut counts: HashMap<(Side, IdState), u64> = HashMap::new();
        for entry in self.entries.values() {
            *counts.entry((entry.side, entry.state)).or_default() += 1;
        }
        let kept: HashMap<_, _> =
            self.counts.iter().filter(|(_, n)| **n > 0).map(|(k, n)| (*k, *n)).collect();
        counts == kept
    }
}
