//! State shared by the subscriptions of all connections: the inverted index of all filters, and the
//! connections that still remember the stored events they sent.

use super::{Subscriptions, lock};
use crate::relay::filter_index::FilterIndex;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, Weak};

/// The filters of all connections' subscriptions. Lock order: a connection's lock, then the
/// registry's.
#[derive(Default)]
pub(in crate::relay) struct Registry {
    filters: Mutex<FilterIndex<Arc<Subscription>>>,
    // Connections that remember the stored events they sent, each with the commit up to which they
    // need to.
    pub(super) remembering: Mutex<VecDeque<(u64, Weak<Subscriptions>)>>,
}

/// The subscription of a REQ.
pub(in crate::relay) struct Subscription {
    pub(in crate::relay) connection: Weak<Subscriptions>,
    pub(super) id: String,
    // The id as a JSON string.
    pub(super) id_json: String,
    // Distinguishes it from an earlier one with the same id.
    pub(super) generation: u64,
    // Events of earlier commits are stored events, which are not sent live.
    pub(super) first_commit: u64,
}

impl Registry {
    pub(in crate::relay) fn filters(&self) -> MutexGuard<'_, FilterIndex<Arc<Subscription>>> {
        lock(&self.filters)
    }

    /// Called after each commit with its number. Connections drop the ids of stored events that no
    /// later commit can repeat.
    pub(in crate::relay) fn end_commit(&self, commit: u64) {
        loop {
            let due = lock(&self.remembering).pop_front_if(|(through, _)| *through <= commit);
            let Some((_, connection)) = due else { return };
            if let Some(connection) = connection.upgrade() {
                connection.forget_sent(commit);
            }
        }
    }

    /// Registers a connection to be called by [`Registry::end_commit`] when the commit `through`
    /// has been published.
    pub(super) fn remember(&self, through: u64, connection: &Weak<Subscriptions>) {
        lock(&self.remembering).push_back((through, Weak::clone(connection)));
    }
}
