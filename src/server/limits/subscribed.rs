//! The memory that the filters of live subscriptions take. A part of it is each connection's own; what
//! a connection holds beyond that comes out of a sum for its address and a sum for all.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A connection's own part, in bytes.
const OWN_BYTES: usize = 16 << 10;
/// An address has one part in so many of what there is for all.
const ADDRESS_PARTS: usize = 4;

/// The bytes that connections hold together beyond their own parts. Clones are of the same sum.
#[derive(Clone, Default)]
pub(super) struct SubscribedTotal(Arc<AtomicUsize>);

/// What one connection holds of both sums; given back once this is dropped.
#[derive(Default)]
pub(crate) struct SubscribedShare {
    of_address: SubscribedTotal,
    of_all: SubscribedTotal,
    held: usize,
}

/// There is no room for the filters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoRoom {
    /// Those of the address take all that an address may have.
    OfAddress,
    /// Those of all connections take all that there is.
    OfAll,
}

impl SubscribedTotal {
    fn take(&self, bytes: usize, most: usize) -> bool {
        let more = |held: usize| held.checked_add(bytes).filter(|held| *held <= most);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    fn give_back(&self, bytes: usize) {
        self.0.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl SubscribedShare {
    /// Nothing yet, of an address and of all.
    pub(super) fn new(of_address: &SubscribedTotal, of_all: &SubscribedTotal) -> Self {
        Self { of_address: of_address.clone(), of_all: of_all.clone(), held: 0 }
    }

    /// Holds so many bytes from now on, where all connections may hold `most` beyond their own parts. To hold
    /// less is always possible.
    ///
    /// # Errors
    /// Which sum does not allow it; then it holds what it held.
    pub(crate) fn hold(&mut self, bytes: usize, most: usize) -> Result<(), NoRoom> {
        let beyond = bytes.saturating_sub(OWN_BYTES);
        match beyond.checked_sub(self.held) {
            None => self.keep(beyond),
            Some(more) => {
                if !self.of_address.take(more, most / ADDRESS_PARTS) {
                    return Err(NoRoom::OfAddress);
                }
                if !self.of_all.take(more, most) {
                    self.of_address.give_back(more);
                    return Err(NoRoom::OfAll);
                }
                self.held = beyond;
            }
        }
        Ok(())
    }

    fn keep(&mut self, beyond: usize) {
        let surplus = self.held - beyond;
        self.of_address.give_back(surplus);
        self.of_all.give_back(surplus);
        self.held = beyond;
    }
}

impl Drop for SubscribedShare {
    fn drop(&mut self) {
        self.keep(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_share_what_is_beyond_their_own_by_address_and_in_all() {
        let (all, one, two) = Default::default();
        let share = |address: &SubscribedTotal| SubscribedShare::new(address, &all);
        let most = 400_000;
        let (mut a, mut b, mut c) = (share(&one), share(&one), share(&two));
        assert_eq!(a.hold(OWN_BYTES + 60_000, most), Ok(()));
        assert_eq!(b.hold(OWN_BYTES + 40_001, most), Err(NoRoom::OfAddress));
        assert_eq!(b.hold(OWN_BYTES + 40_000, most), Ok(()));
        assert_eq!(c.hold(OWN_BYTES + 100_000, most), Ok(()));
        assert_eq!(a.hold(OWN_BYTES, most), Ok(()));
        assert_eq!(b.hold(OWN_BYTES + 100_000, most), Ok(()));
        // What was allowed once is kept, and nothing can be added, when there is to be less.
        assert_eq!(b.hold(OWN_BYTES + 100_000, 1), Err(NoRoom::OfAddress));
        assert_eq!(b.hold(OWN_BYTES + 50_000, 1), Ok(()));
        assert_eq!(
            share(&Default::default()).hold(OWN_BYTES + 50_001, 200_000),
            Err(NoRoom::OfAddress)
        );
        assert_eq!(share(&Default::default()).hold(OWN_BYTES + 50_000, 200_000), Ok(()));
        drop((a, b, c));
        assert_eq!(all.0.load(Ordering::Relaxed), 0);
        assert_eq!(one.0.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn others_leave_each_connection_its_own_part() {
        let (all, address) = Default::default();
        let full = SubscribedTotal::take(&all, 1_000, 1_000);
        let mut share = SubscribedShare::new(&address, &all);
        assert!(full);
        assert_eq!(share.hold(OWN_BYTES, 1_000), Ok(()));
        assert_eq!(share.hold(OWN_BYTES + 1, 1_000), Err(NoRoom::OfAll));
    }
}
