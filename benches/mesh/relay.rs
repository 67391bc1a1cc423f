//! A relay as a value: its events, and how it behaves.

use negsync::index::Tree;
use negsync::item::Item;
use negsync::reconcile::RangeSet;

/// How a relay behaves towards those that ask it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conduct {
    Honest,
    /// Takes connections and answers nothing.
    Silent,
    /// Takes events, and neither passes them on nor shows them.
    Hoarder,
    /// Says that nothing differs, whatever it is asked, and passes nothing on.
    Liar,
}

/// A relay.
pub struct Relay {
    pub conduct: Conduct,
    set: Tree,
    /// What a hoarder shows: what it had at the beginning.
    at_first: Tree,
    /// Events that came and were there already.
    pub redundant: u64,
}

impl Relay {
    pub fn new(conduct: Conduct, set: Tree) -> Self {
        Self { conduct, at_first: set.clone(), set, redundant: 0 }
    }

    pub fn is_honest(&self) -> bool {
        self.conduct == Conduct::Honest
    }

    /// How many events it has.
    pub fn count(&self) -> usize {
        self.set.len()
    }

    /// Its events, for its own syncs.
    pub fn set(&self) -> &Tree {
        &self.set
    }

    /// Its events as far as it shows them to others.
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
