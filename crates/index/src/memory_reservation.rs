//! The memory of sets that are not or no longer kept, accounted for while they are in use.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The total memory of these sets, in bytes.
#[derive(Debug, Default)]
pub(super) struct Charged {
    bytes: AtomicUsize,
}

/// One set's share of the total. Every holder of the set holds this; the last drop releases the
/// memory.
#[derive(Debug)]
pub(super) struct Charge {
    charged: Arc<Charged>,
    bytes: AtomicUsize,
}

impl Charged {
    pub(super) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// The charge of a kept set: zero until the set is no longer kept.
    pub(super) fn nothing(self: &Arc<Self>) -> Arc<Charge> {
        Arc::new(Charge { charged: Arc::clone(self), bytes: AtomicUsize::new(0) })
    }

    /// The charge of a set that is not kept.
    pub(super) fn of(self: &Arc<Self>, bytes: usize) -> Arc<Charge> {
        let charge = self.nothing();
        charge.add(bytes);
        charge
    }
}

impl Charge {
    /// Adds `bytes` to the set's share.
    pub(super) fn add(&self, bytes: usize) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.charged.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        let bytes = self.bytes.load(Ordering::Relaxed);
        self.charged.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::super::slice::Slice;
    use super::super::tree::Tree;
    use super::*;
    use negsync_reconcile::Item;

    /// A set that is evicted while in use still takes memory.
    #[test]
    fn a_set_counts_once_it_is_kept_no_more_until_nobody_holds_it() {
        let charged: Arc<Charged> = Arc::default();
        let items = (0..10_000).map(|second| Item::new(second, [1; 32]));
        let kept = Tree::from_sorted(items).charged(charged.nothing());
        let mut held = kept.clone();
        held.insert_batch(&[Item::new(20_000, [1; 32])]);
        assert_eq!(charged.bytes(), 0);
        kept.charge_all();
        drop(kept);
        assert!(charged.bytes() >= 400_000);
        let slice = Slice::new(held, Some(5), None, None);
        assert!(charged.bytes() >= 400_000);
        drop(slice);
        assert_eq!(charged.bytes(), 0);
    }
}
