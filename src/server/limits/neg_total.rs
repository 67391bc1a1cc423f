//! The number of NEG sessions of all connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The total number, including sessions that are about to be opened.
#[derive(Default)]
pub(crate) struct NegTotal {
    sessions: AtomicUsize,
}

/// A connection's share of the total; returned when this is dropped.
pub(crate) struct NegShare {
    total: Arc<NegTotal>,
    held: usize,
}

impl NegTotal {
    /// An empty share.
    pub(crate) fn share(self: &Arc<Self>) -> NegShare {
        NegShare { total: Arc::clone(self), held: 0 }
    }
}

impl NegShare {
    /// Adds one session unless there are `most` already. Returns whether it did.
    pub(crate) fn take(&mut self, most: usize) -> bool {
        let one_more = |sessions| (sessions < most).then_some(sessions + 1);
        let (set, fetch) = (Ordering::Relaxed, Ordering::Relaxed);
        let taken = self.total.sessions.fetch_update(set, fetch, one_more).is_ok();
        self.held += usize::from(taken);
        taken
    }

    /// Reduces the share to `held`.
    pub(crate) fn keep(&mut self, held: usize) {
        let surplus = self.held.saturating_sub(held);
        self.total.sessions.fetch_sub(surplus, Ordering::Relaxed);
        self.held -= surplus;
    }
}

impl Drop for NegShare {
    fn drop(&mut self) {
        self.keep(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_shares_together_hold_no_more_than_there_may_be() {
        let total = Arc::new(NegTotal::default());
        let (mut a, mut b) = (total.share(), total.share());
        assert!(a.take(3) && b.take(3) && a.take(3));
        assert!(!b.take(3) && !a.take(3));
        a.keep(1);
        assert!(b.take(3) && !a.take(3));
        drop(b);
        assert!(a.take(3) && a.take(3) && !a.take(3));
        a.keep(5);
        drop(a);
        assert_eq!(total.sessions.load(Ordering::Relaxed), 0);
    }
}
