//! A relay as a value: its events and its behaviour.

use negsync::index::Tree;
use negsync::item::Item;
use negsync::reconcile::RangeSet;

/// The behaviour of a relay towards asking relays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conduct {
    Honest,
    /// Accepts connections and answers nothing.
    Silent,
    /// Accepts events, but neither passes them on nor shows them.
    Hoarder,
    /// Answers every reconciliation without differences, and passes nothing on.
    Liar,
}

/// A relay.
pub struct Relay {
    pub conduct: Conduct,
    set: Tree,
    /// The events that a hoarder shows: those it had at the beginning.
    at_first: Tree,
    /// The number of events that arrived and were there already.
    pub redundant: u64,
}

impl Relay {
    pub fn new(conduct: Conduct, set: Tree) -> Self {
        Self { conduct, at_first: set.clone(), set, redundant: 0 }
    }

    pub fn is_honest(&self) -> bool {
        self.conduct == Conduct::Honest
    }

    /// The number of its events.
    pub fn count(&self) -> usize {
        self.set.len()
    }

    /// Its events, for its own syncs.
    pub fn set(&self) -> &Tree {
        &self.set
    }

    /// The events that it shows to others.
    pub fn shown(&self) -> &Tree {
        match self.conduct {
            Conduct::Hoarder => &self.at_first,
            _ => &self.set,
        }
    }

    /// Stores an event. Returns whether it is new.
    pub fn store(&mut self, item: Item) -> bool {
        let is_new = !self.set.contains(&item);
        match is_new {
            true => {
                self.set.insert_batch(&[item]);
            }
            false => self.redundant += 1,
        }
        is_new
    }
}
