//! The `negentropy` crate's view of our snapshots, so that its engine runs over
//! them: the oracle for ours, and the baseline beside it.

use super::{Slice, Tree};
use crate::item::Item;
use crate::reconcile::RangeSet;
use negentropy::{Bound, Error, Id, NegentropyStorageBase};

fn to_crate(item: &Item) -> negentropy::Item {
    negentropy::Item::with_timestamp_and_id(item.created_at, Id::from_byte_array(item.id))
}

fn from_crate(item: &negentropy::Item) -> Item {
    Item::new(item.timestamp, item.id.to_bytes())
}

macro_rules! crate_storage {
    ($set:ty) => {
        impl NegentropyStorageBase for $set {
            fn size(&self) -> Result<usize, Error> {
                Ok(self.len())
            }

            fn get_item(&self, rank: usize) -> Result<Option<negentropy::Item>, Error> {
                Ok(self.item(rank).as_ref().map(to_crate))
            }

            fn iterate(
                &self,
                begin: usize,
                end: usize,
                visit: &mut dyn FnMut(negentropy::Item, usize) -> Result<bool, Error>,
            ) -> Result<(), Error> {
                if begin > end || end > self.len() {
                    return Err(Error::BadRange);
                }
                for (rank, item) in (begin..end).zip(self.iter_range(begin..end)) {
                    if !visit(to_crate(item), rank)? {
                        break;
                    }
                }
                Ok(())
            }

            fn find_lower_bound(&self, first: usize, last: usize, bound: &Bound) -> usize {
                self.lower_bound(&from_crate(&bound.item)).min(last).max(first)
            }
        }
    };
}

crate_storage!(Tree);
crate_storage!(Slice);
