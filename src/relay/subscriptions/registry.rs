//! What connections share of their subscriptions: the inverted index of all filters, and who still
//! remembers which stored events it has sent.

use super::{Subscriptions, lock};
use crate::relay::filter_index::FilterIndex;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, Weak};

/// The filters of all connections' subscriptions. Locks are taken in this order: a connection's,
/// then the registry's.
#[derive(Default)]
pub(in crate::relay) struct Registry {
    filters: Mutex<FilterIndex<Arc<Subscription>>>,
    // Connections that remember the stored events they sent, and after which commit they need not.
    pub(super) remembering: Mutex<VecDeque<(u64, Weak<Subscriptions>)>>,
}

/// What a REQ asked for.
pub(in crate::relay) struct Subscription {
    pub(in crate::relay) connection: Weak<Subscriptions>,
    pub(super) id: String,
    // The id as it is written into each message.
    pub(super) id_json: String,
    // Distinguishes it from an earlier one of the same id.
    pub(super) generation: u64,
    // Events of earlier commits are stored events; none comes live.
    pub(super) first_commit: u64,
}

impl Registry {
    pub(in crate::relay) fn filters(&self) -> MutexGuard<'_, FilterIndex<Arc<Subscription>>> {
        lock(&self.filters)
    }

    /// Called after each commit with its number. Connections forget which stored events they have sent
    /// once no commit can bring these again.
    pub(in crate::relay) fn end_commit(&self, commit: u64) {
        loop {
            let due = lock(&self.remembering).pop_front_if(|(through, _)| *through <= commit);
            let Some((_, connection)) = due else { return };
            if let Some(connection) = connection.upgrade() {
                connection.forget_sent(commit);
            }
        }
    }

    /// Has [`Registry::end_commit`] tell a connection when the commit `through` has been published.
    pub(super) fn remember(&self, through: u64, connection: &Weak<Subscriptions>) {
        lock(&self.remembering).push_back((through, Weak::clone(connection)));
    }
}
