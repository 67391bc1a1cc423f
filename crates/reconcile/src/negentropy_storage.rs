//! Our range sets as storage of the `negentropy` crate's engine.

use crate::item::Item;
use crate::range_set::RangeSet;
use negentropy::{Bound, Error, Id, NegentropyStorageBase};

/// A [`RangeSet`] as the storage of the `negentropy` crate, for programs that use that crate's
/// engine already. Its `size`, `get_item`, `iterate` and `find_lower_bound` answer from the set.
#[derive(Clone, Debug)]
pub struct NegentropyStorage<S>(pub S);

fn to_crate(item: &Item) -> negentropy::Item {
    negentropy::Item::with_timestamp_and_id(item.created_at, Id::from_byte_array(item.id))
}

fn from_crate(item: &negentropy::Item) -> Item {
    Item::new(item.timestamp, item.id.to_bytes())
}

impl<S: RangeSet> NegentropyStorageBase for NegentropyStorage<S> {
    fn size(&self) -> Result<usize, Error> {
        Ok(self.0.len())
    }

    fn get_item(&self, rank: usize) -> Result<Option<negentropy::Item>, Error> {
        Ok(self.0.item(rank).as_ref().map(to_crate))
    }

    fn iterate(
        &self,
        begin: usize,
        end: usize,
        visit: &mut dyn FnMut(negentropy::Item, usize) -> Result<bool, Error>,
    ) -> Result<(), Error> {
        if begin > end || end > self.0.len() {
            return Err(Error::BadRange);
        }
        let mut outcome = Ok(true);
        let mut rank = begin;
        self.0.for_each(begin..end, &mut |item| {
            if matches!(outcome, Ok(true)) {
                outcome = visit(to_crate(&item), rank);
                rank += 1;
            }
        });
        outcome.map(|_| ())
    }

    fn find_lower_bound(&self, first: usize, last: usize, bound: &Bound) -> usize {
        self.0.lower_bound(&from_crate(&bound.item)).min(last).max(first)
    }
}
