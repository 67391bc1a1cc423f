//! Hands each commit of a store to the catalog, and then to the subscribers.

use super::catalog::Catalog;
use super::commit_feed::CommitFeed;
use super::keeper::{Signal, WriteRule};
use super::slice::Slice;
use negsync_reconcile::{Item, RangeSet};
use negsync_store::{Change, Listener};
use std::sync::Arc;

/// The listener of a store.
pub(super) struct Heard {
    pub(super) catalog: Arc<Catalog>,
    pub(super) changes: CommitFeed,
}

/// Like [`Heard`], for sets that are kept in files.
pub(super) struct KeptOnFiles {
    pub(super) heard: Heard,
    pub(super) rule: WriteRule,
    pub(super) signal: Arc<Signal>,
}

impl Listener for KeptOnFiles {
    fn begun(&self, items: Vec<Item>) {
        self.heard.begun(items);
        self.signal.look();
    }

    fn changed(&self, change: Arc<Change>) {
        let changes = change.steps.len();
        self.heard.changed(change);
        self.signal.hear(changes);
        if self.heard.catalog.resident_sets().is_some_and(|sets| self.rule.is_met(&sets)) {
            self.signal.look();
        }
    }

    fn holds(&self, item: &Item) -> bool {
        self.heard.holds(item)
    }

    fn held(&self, from: u64, to: u64, visit: &mut dyn FnMut(Item)) {
        self.heard.held(from, to, visit);
    }
}

impl Listener for Heard {
    fn begun(&self, items: Vec<Item>) {
        self.catalog.replace(items);
        self.changes.skip();
    }

    fn changed(&self, change: Arc<Change>) {
        self.catalog.apply(&change);
        self.changes.send(change);
    }

    fn holds(&self, item: &Item) -> bool {
        self.catalog.contains(item)
    }

    fn held(&self, from: u64, to: u64, visit: &mut dyn FnMut(Item)) {
        if let Some(set) = self.catalog.public() {
            let set = Slice::new(set, Some(from), Some(to), None);
            set.for_each(0..set.len(), visit);
        }
    }
}
