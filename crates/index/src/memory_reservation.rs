//! The memory of sets that are not kept, or not any more, for as long as somebody answers from
//! them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What all of them take together, in bytes.
#[derive(Debug, Default)]
pub(super) struct Charged {
    bytes: AtomicUsize,
}

/// A set's part of it. Whoever holds the set holds this; with the last of them it is given back.
#[derive(Debug)]
pub(super) struct Charge {
    charged: Arc<Charged>,
    bytes: AtomicUsize,
}

impl Charged {
    pub(super) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// The charge of a set that is kept: nothing, until it is kept no more.
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
    /// The set takes so many bytes from now on.
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

    /// A set that is evicted while somebody answers from it is still there.
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
