//! A set of items: a sorted file with two trees, one of the items added since and one of the items
//! removed. A set without a file is its first tree. A clone is an O(1) snapshot.
//!
//! # Invariants
//!
//! 1. Added items are not in the file.
//! 2. Removed items are in the file.

#[cfg(test)]
mod tests;

use super::memory_reservation::Charge;
use super::sorted_file::SortedFile;
use super::tree::Tree;
use negsync_reconcile::Item;
use negsync_reconcile::{Bound, RangePosition, RangeSet, Sum};
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

/// An ordered set of items.
#[derive(Clone, Debug, Default)]
pub struct ItemSet {
    file: Option<Arc<SortedFile>>,
    added: Tree,
    removed: Tree,
}

impl From<Tree> for ItemSet {
    fn from(added: Tree) -> Self {
        Self { file: None, added, removed: Tree::new() }
    }
}

impl From<SortedFile> for ItemSet {
    fn from(file: SortedFile) -> Self {
        Self { file: Some(Arc::new(file)), ..Self::default() }
    }
}

/// The number of items of each part before a position of the set.
#[derive(Clone, Copy)]
struct Position {
    file: usize,
    added: usize,
    removed: usize,
}

impl ItemSet {
    /// Whether all reads so far succeeded. After a failed read answers may be wrong, so check this
    /// after each answer.
    #[must_use]
    pub fn is_readable(&self) -> bool {
        self.file.as_ref().is_none_or(|file| file.is_readable())
    }

    /// Whether `item` is in the set.
    #[must_use]
    pub fn contains(&self, item: &Item) -> bool {
        self.added.contains(item) || self.is_in_file(item) && !self.removed.contains(item)
    }

    /// Inserts `items`, preferably in ascending order, and returns the number of new ones.
    pub fn insert_batch(&mut self, items: &[Item]) -> usize {
        if self.file.is_none() {
            return self.added.insert_batch(items);
        }
        let (back, new): (Vec<Item>, Vec<Item>) =
            items.iter().partition(|item| self.is_in_file(item));
        self.removed.remove_batch(&back) + self.added.insert_batch(&new)
    }

    /// Removes `items`, preferably in ascending order, and returns the number that were present.
    pub fn remove_batch(&mut self, items: &[Item]) -> usize {
        if self.file.is_none() {
            return self.added.remove_batch(items);
        }
        let (in_file, added): (Vec<Item>, Vec<Item>) =
            items.iter().partition(|item| self.is_in_file(item));
        self.removed.insert_batch(&in_file) + self.added.remove_batch(&added)
    }

    /// The number of items in the trees: additions and removals since the file was written.
    #[must_use]
    pub fn changes(&self) -> usize {
        self.added.len() + self.removed.len()
    }

    /// Whether the set has a file.
    #[must_use]
    pub fn has_file(&self) -> bool {
        self.file.is_some()
    }

    /// Whether its file belongs to it alone: the file of a kept set that is too large for memory.
    pub(super) fn has_own_file(&self) -> bool {
        self.file.as_ref().is_some_and(|file| file.has_share())
    }

    /// Whether dropping this set frees such a file.
    pub(super) fn alone_has_file(&self) -> bool {
        self.has_own_file() && self.file.as_ref().is_some_and(|file| Arc::strong_count(file) == 1)
    }

    /// An upper estimate of its heap memory in bytes, including parts shared with snapshots.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let file = self.file.as_ref().map_or(0, |file| file.memory_bytes());
        file + self.added.memory_bytes() + self.removed.memory_bytes()
    }

    /// Accounts for the memory of its trees as long as this set or a clone exists.
    pub(super) fn charged(self, charge: Arc<Charge>) -> Self {
        Self { added: self.added.charged(charge), ..self }
    }

    /// Accounts for the memory of a set that is no longer kept.
    pub(super) fn charge_all(&self) {
        self.added.charge_all();
    }

    /// Calls `visit` with the items at `ranks`, in order, until it fails.
    ///
    /// # Errors
    /// The first error of `visit`.
    pub fn try_for_each<E>(
        &self,
        ranks: Range<usize>,
        mut visit: impl FnMut(Item) -> Result<(), E>,
    ) -> Result<(), E> {
        let (start, _) = self.position(ranks.start);
        let mut left = ranks.len();
        let mut added = self.added.iter_range(start.added..usize::MAX).copied().peekable();
        let mut removed = self.removed.iter_range(start.removed..usize::MAX).peekable();
        let mut give = |item| {
            let Some(fewer) = left.checked_sub(1) else { return ControlFlow::Break(Ok(())) };
            left = fewer;
            visit(item).map_or_else(|error| ControlFlow::Break(Err(error)), ControlFlow::Continue)
        };
        if let Some(file) = &self.file {
            let mut done = Ok(());
            let (end, _) = self.position(ranks.end);
            let flow = file.try_for_each(start.file..end.file, &mut |item| {
                let mut flow = ControlFlow::Continue(());
                while flow.is_continue()
                    && let Some(earlier) = added.next_if(|added| *added < item)
                {
                    flow = give(earlier);
                }
                if flow.is_continue() && removed.next_if_eq(&&item).is_none() {
                    flow = give(item);
                }
                flow.map_break(|ended| done = ended)
            });
            if flow.is_break() {
                return done;
            }
        }
        match added.try_for_each(give) {
            ControlFlow::Break(ended) => ended,
            ControlFlow::Continue(()) => Ok(()),
        }
    }

    fn is_in_file(&self, item: &Item) -> bool {
        self.file.as_ref().is_some_and(|file| file.contains(item))
    }

    /// The item at `rank`, and its position.
    fn position(&self, rank: usize) -> (Position, Option<Item>) {
        self.position_near(rank, rank)
    }

    /// Like [`ItemSet::position`], but searches the file from its item `near` on.
    fn position_near(&self, rank: usize, near: usize) -> (Position, Option<Item>) {
        let Some(file) = self.file.as_ref().filter(|_| rank < self.len()) else {
            return self.position_at_end(rank);
        };
        if self.changes() == 0 {
            return (Position { file: rank, added: 0, removed: 0 }, file.item(rank));
        }
        let last = self.last_in_file(file, rank, near);
        let Some((last, item)) = last.and_then(|last| Some((last, file.item(last)?))) else {
            return (Position { file: 0, added: rank, removed: 0 }, self.added.item(rank));
        };
        let place = self.position_of(last, &item);
        let is_there = self.removed.item(place.removed) != Some(item);
        let behind = rank.saturating_sub(place.rank());
        if is_there && behind == 0 {
            return (place, Some(item));
        }
        // Items that follow it in the set, up to the next item of the file, were added.
        let added = place.added + behind - usize::from(is_there);
        let removed = place.removed + usize::from(!is_there);
        (Position { file: last + 1, added, removed }, self.added.item(added))
    }

    /// The last item of the file that is not after the one at `rank`. The error of a guess gives
    /// the next guess, which is exact if nothing in between was changed; every third step halves
    /// the remaining range.
    fn last_in_file(&self, file: &SortedFile, rank: usize, near: usize) -> Option<usize> {
        // The trees shift the rank of a file item by at most the number of items they hold.
        let mut low = rank.saturating_sub(self.added.len()).min(file.len());
        let most = rank.saturating_add(self.removed.len()).saturating_add(1);
        let (mut high, mut guess) = (most.min(file.len()), near);
        for step in 1.. {
            if low >= high {
                break;
            }
            let at = if step % 3 == 0 { low.midpoint(high) } else { guess.clamp(low, high - 1) };
            // A file that cannot be read yields no items.
            let its_rank = self.position_of(at, &file.item(at)?).rank();
            if its_rank <= rank {
                low = at + 1;
            } else {
                high = at;
            }
            guess = (at + rank).saturating_sub(its_rank);
        }
        low.checked_sub(1)
    }

    /// The item before the one at `rank`, whose position is known.
    fn item_before(&self, place: Position, rank: usize) -> Option<Item> {
        let in_file = place.file.checked_sub(1).and_then(|last| self.file.as_ref()?.item(last));
        let removed = place.removed.checked_sub(1).and_then(|last| self.removed.item(last));
        if in_file.is_some() && in_file == removed {
            return self.item(rank.checked_sub(1)?);
        }
        let added = place.added.checked_sub(1).and_then(|last| self.added.item(last));
        in_file.max(added)
    }

    /// Like [`ItemSet::position`], without a file or past the end.
    fn position_at_end(&self, rank: usize) -> (Position, Option<Item>) {
        match &self.file {
            None => (Position { file: 0, added: rank, removed: 0 }, self.added.item(rank)),
            Some(file) => {
                let (added, removed) = (self.added.len(), self.removed.len());
                (Position { file: file.len(), added, removed }, None)
            }
        }
    }

    /// The position of a file item whose rank in the file is known.
    fn position_of(&self, in_file: usize, item: &Item) -> Position {
        let (added, removed) = (self.added.lower_bound(item), self.removed.lower_bound(item));
        Position { file: in_file, added, removed }
    }

    fn sum_before(&self, place: Position) -> Sum {
        let mut sum = self.added.sum_below(place.added);
        if let Some(file) = &self.file {
            sum.add(&file.sum_below(place.file));
            sum.subtract(&self.removed.sum_below(place.removed));
        }
        sum
    }
}

impl Position {
    fn rank(self) -> usize {
        (self.file + self.added).saturating_sub(self.removed)
    }
}

impl RangeSet for ItemSet {
    fn len(&self) -> usize {
        let file = self.file.as_ref().map_or(0, |file| file.len());
        Position { file, added: self.added.len(), removed: self.removed.len() }.rank()
    }

    fn item(&self, rank: usize) -> Option<Item> {
        self.position(rank).1
    }

    fn lower_bound(&self, item: &Item) -> usize {
        let file = self.file.as_ref().map_or(0, |file| file.lower_bound(item));
        self.position_of(file, item).rank()
    }

    fn sum_below(&self, rank: usize) -> Sum {
        self.sum_before(self.position(rank).0)
    }

    fn for_each(&self, ranks: Range<usize>, visit: &mut dyn FnMut(Item)) {
        let Ok(()) = self.try_for_each(ranks, |item| {
            visit(item);
            Ok::<_, std::convert::Infallible>(())
        });
    }

    fn places(&self, items: &[Item]) -> Vec<RangePosition> {
        let mut places = self.added.places(items);
        let Some(file) = &self.file else { return places };
        let (in_file, removed) = (file.places(items), self.removed.places(items));
        for (place, (in_file, removed)) in places.iter_mut().zip(in_file.iter().zip(&removed)) {
            place.rank = (place.rank + in_file.rank).saturating_sub(removed.rank);
            place.sum.add(&in_file.sum);
            place.sum.subtract(&removed.sum);
        }
        places
    }

    fn cuts(&self, ranks: &[usize]) -> Vec<(Bound, Sum)> {
        match &self.file {
            None => self.added.cuts(ranks),
            Some(file) if self.changes() == 0 => file.cuts(ranks),
            Some(_) => {
                // Ranks ascend, and changes before one rank are also before the next.
                let (mut last, mut in_file) = (0, 0);
                let cut = |rank: &usize| {
                    let near = (in_file + *rank).saturating_sub(last);
                    let (place, cut) = self.cut_near(*rank, near);
                    (last, in_file) = (*rank, place.file);
                    cut
                };
                ranks.iter().map(cut).collect()
            }
        }
    }

    fn cut(&self, rank: usize) -> (Bound, Sum) {
        self.cut_near(rank, rank).1
    }
}

impl ItemSet {
    /// The position and the cut at `rank`, searched for from the file's item `near` on.
    fn cut_near(&self, rank: usize, near: usize) -> (Position, (Bound, Sum)) {
        let (place, right) = self.position_near(rank, near);
        let left = self.item_before(place, rank);
        let bound = match (left, right) {
            (Some(left), Some(right)) => Bound::between(&left, &right),
            _ => self.bound_at(rank),
        };
        (place, (bound, self.sum_before(place)))
    }
}
