//! Memory for the filters of live subscriptions. Each connection has a part of its own; beyond it,
//! filters count towards a total for the address and a total for all.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A connection's own part, in bytes.
const OWN_BYTES: usize = 16 << 10;
/// An address may use one part in this many of the total for all.
const ADDRESS_PARTS: usize = 4;

/// The bytes beyond the connections' own parts. Clones share the total.
#[derive(Clone, Default)]
pub(super) struct SubscribedTotal(Arc<AtomicUsize>);

/// One connection's share of both totals; returned when this is dropped.
#[derive(Default)]
pub(crate) struct SubscribedShare {
    of_address: SubscribedTotal,
    of_all: SubscribedTotal,
    held: usize,
}

/// There is no room for the filters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoRoom {
    /// The address's total is used up.
    OfAddress,
    /// The total for all connections is used up.
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
    /// An empty share of both totals.
    pub(super) fn new(of_address: &SubscribedTotal, of_all: &SubscribedTotal) -> Self {
        Self { of_address: of_address.clone(), of_all: of_all.clone(), held: 0 }
    }

    /// Sets the number of bytes held, if the total of all connections beyond their own parts stays
    /// below `most`. Reducing it always succeeds.
    ///
    /// # Errors
    /// [`NoRoom`] names the total that is used up; the share is then unchanged.
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
        // After `most` is lowered, held bytes stay, and nothing can be added.
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
