//! A persistent (copy-on-write) B+tree of items whose nodes carry count and sum.
//!
//! A clone is a snapshot: it costs one reference count and never sees a later write. A write copies
//! the nodes on the paths that it changes, once for the whole batch, and only if a snapshot still
//! holds them.
//!
//! # Invariants
//!
//! 1. Items are in the leaves, strictly ascending from the first leaf to the last. All leaves have
//!    the same depth.
//! 2. A `Subtree` states exactly the items below it: the least item, their number, and the sum of
//!    their ids. An inner node states for each child the number of items of the node before it and
//!    their sum; a leaf states the sum of its items up to the end of each block of them.
//! 3. No leaf holds more than `NodeShape::leaf` items and no inner node more than
//!    `NodeShape::fanout` children.
//! 4. No node holds less than half of that, except the root and the last node of each level (the
//!    right edge), which hold at least one. Only the root of an empty tree is an empty leaf, and
//!    the root never has exactly one child.
//! 5. A leaf is never changed, only replaced by one of exactly the size needed. An inner node is
//!    changed in place only while this tree is its only holder.
//! 6. Growth at the right edge leaves full nodes behind it; growth anywhere else halves the nodes
//!    that overflow.

mod leaf;
mod node;
#[cfg(test)]
mod tests;

use super::memory_reservation::Charge;
use leaf::Spot;
use negsync_reconcile::Item;
use negsync_reconcile::{Bound, RangePosition, RangeSet, Sum};
use node::{NodeShape, Subtree, TreeBatch};
use std::ops::Range;
use std::sync::Arc;

/// An ordered set of items. A clone is an O(1) snapshot.
#[derive(Clone, Debug)]
pub struct Tree {
    root: Subtree,
    shape: NodeShape,
    // Accounts for the memory of the tree, including later changes.
    charge: Option<Arc<Charge>>,
}

impl Default for Tree {
    fn default() -> Self {
        Self::new()
    }
}

/// Sorts items, which may contain long ascending runs.
fn sort_runs(items: &mut [Item]) {
    let breaks = items.windows(2).filter(|pair| pair.first() > pair.last()).count();
    if breaks < items.len() / 64 {
        // The stable sort merges runs; the unstable one is twice as fast without runs.
        items.sort();
    } else {
        items.sort_unstable();
    }
}

impl Tree {
    /// A tree of no items.
    #[must_use]
    pub fn new() -> Self {
        Self::with_shape(NodeShape::default())
    }

    fn with_shape(shape: NodeShape) -> Self {
        Self { root: Subtree::leaf(&[]), shape, charge: None }
    }

    /// Accounts for its memory as long as this tree or a clone exists.
    pub(super) fn charged(self, charge: Arc<Charge>) -> Self {
        Self { charge: Some(charge), ..self }
    }

    /// Accounts for the memory of a tree that is no longer kept.
    pub(super) fn charge_all(&self) {
        if let Some(charge) = &self.charge {
            charge.add(self.memory_bytes());
        }
    }

    /// A tree of `items`, which should ascend. Duplicates are dropped. Items out of order are set
    /// aside and inserted at the end: the result is correct, but each of them costs time.
    pub fn from_sorted(items: impl IntoIterator<Item = Item>) -> Self {
        Self::new().filled(items)
    }

    /// A tree of `items` in any order. Long ascending runs, such as those of several sorted scans,
    /// are merged.
    #[must_use]
    pub fn from_unsorted(items: Vec<Item>) -> Self {
        Self::from_parts([items])
    }

    /// A tree of all `parts`: each in any order, but all items of a part before those of the next.
    /// A part is freed as soon as the tree has it.
    pub(super) fn from_parts<const PARTS: usize>(mut parts: [Vec<Item>; PARTS]) -> Self {
        parts.iter_mut().for_each(|part| sort_runs(part));
        Self::from_sorted(parts.into_iter().flatten())
    }

    /// Fills an empty tree, with every leaf full.
    fn filled(mut self, items: impl IntoIterator<Item = Item>) -> Self {
        let mut leaves = Vec::new();
        let mut leaf: Vec<Item> = Vec::with_capacity(self.shape.leaf);
        let mut strays = Vec::new();
        let mut greatest = None;
        for item in items {
            if greatest.is_some_and(|greatest| item <= greatest) {
                if greatest != Some(item) {
                    strays.push(item);
                }
                continue;
            }
            greatest = Some(item);
            if leaf.len() == self.shape.leaf {
                leaves.push(Subtree::leaf(&leaf));
                leaf.clear();
            }
            leaf.push(item);
        }
        leaves.push(Subtree::leaf(&leaf));
        self.root = Subtree::over(leaves, self.shape);
        self.insert_batch(&strays);
        self
    }

    /// Inserts `items`, preferably in ascending order, and returns the number of new ones.
    pub fn insert_batch(&mut self, items: &[Item]) -> usize {
        let fresh = self.chosen(items, false);
        if !fresh.is_empty() {
            let mut work = TreeBatch::new(self.shape);
            let mut level = self.root.insert(&fresh, true, &mut work);
            if !level.is_empty() {
                level.insert(0, self.root.clone());
                self.root = Subtree::over(level, self.shape);
            }
        }
        fresh.len()
    }

    /// Removes `items`, preferably in ascending order, and returns the number that were present.
    pub fn remove_batch(&mut self, items: &[Item]) -> usize {
        let gone = self.chosen(items, true);
        if !gone.is_empty() {
            self.root.remove(&gone, true, &mut TreeBatch::new(self.shape));
            self.root.shorten();
        }
        gone.len()
    }

    /// Those of `items` that are present, or absent, ascending and without duplicates. Determined
    /// before any change, so that a batch without effect copies no node.
    fn chosen(&self, items: &[Item], present: bool) -> Vec<Item> {
        let keep = |item: &&Item| self.contains(item) == present;
        let mut chosen: Vec<Item> = items.iter().filter(keep).copied().collect();
        if !chosen.is_sorted() {
            chosen.sort();
        }
        chosen.dedup();
        chosen
    }

    /// Whether `item` is in the tree. O(log n).
    #[must_use]
    pub fn contains(&self, item: &Item) -> bool {
        let spot = self.root.spot_of(item);
        spot.items.get(spot.lower_bound(item, spot.block_of(item))) == Some(item)
    }

    /// The items at `ranks`, in order. A range past the end is cut to the tree.
    pub fn iter_range(&self, ranks: Range<usize>) -> impl Iterator<Item = &Item> {
        let mut at = ranks.start;
        let runs = std::iter::from_fn(move || {
            let left = ranks.end.checked_sub(at).filter(|left| *left > 0)?;
            let run = self.run(at)?;
            let run = run.get(..left).unwrap_or(run);
            at += run.len();
            Some(run)
        });
        runs.flatten()
    }

    /// The leaf that contains `item` or its position. `last` is the previous item and its leaf,
    /// which is often the same.
    fn next_spot<'a>(&'a self, last: &mut Option<(Spot<'a>, Item)>, item: &Item) -> Spot<'a> {
        let spot = match last {
            Some((spot, before)) if *before <= *item && spot.ends_above(item) => *spot,
            _ => self.root.spot_of(item),
        };
        *last = Some((spot, *item));
        spot
    }

    /// The items from `rank` to the end of its leaf.
    fn run(&self, rank: usize) -> Option<&[Item]> {
        let spot = self.root.spot_at(rank);
        spot.items.get(rank.checked_sub(spot.rank)?..).filter(|run| !run.is_empty())
    }

    /// An upper estimate of the heap bytes below this tree, including nodes shared with snapshots.
    /// O(1): it follows from the count and invariant 4.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.shape.memory_bytes(self.root.count())
    }
}

impl RangeSet for Tree {
    fn len(&self) -> usize {
        self.root.count()
    }

    fn item(&self, rank: usize) -> Option<Item> {
        self.run(rank)?.first().copied()
    }

    fn lower_bound(&self, item: &Item) -> usize {
        let spot = self.root.spot_of(item);
        spot.rank + spot.lower_bound(item, spot.block_of(item))
    }

    fn sum_below(&self, rank: usize) -> Sum {
        if rank >= self.len() {
            return self.root.sum();
        }
        let spot = self.root.spot_at(rank);
        spot.sum_below(rank - spot.rank)
    }

    // Each step runs for all items before the next step: their reads of leaves do not wait for each
    // other.
    fn places(&self, items: &[Item]) -> Vec<RangePosition> {
        let mut spot = None;
        let spots: Vec<Spot> = items.iter().map(|item| self.next_spot(&mut spot, item)).collect();
        let blocks: Vec<usize> =
            items.iter().zip(&spots).map(|(item, spot)| spot.block_of(item)).collect();
        let place = |((item, spot), block): ((&Item, &Spot), usize)| {
            let rank = spot.lower_bound(item, block);
            RangePosition { rank: spot.rank + rank, sum: spot.sum_below(rank) }
        };
        items.iter().zip(&spots).zip(blocks).map(place).collect()
    }

    fn cuts(&self, ranks: &[usize]) -> Vec<(Bound, Sum)> {
        let mut last = self.root.spot_at(0);
        let spot = |rank: &usize| {
            let rank = (*rank).min(self.len());
            if !(last.rank..last.rank + last.items.len()).contains(&rank) {
                last = self.root.spot_at(rank);
            }
            (last, rank, rank - last.rank)
        };
        let spots: Vec<(Spot, usize, usize)> = ranks.iter().map(spot).collect();
        let bounds = spots.iter().map(|(spot, rank, within)| {
            let left = within.checked_sub(1).and_then(|left| spot.items.get(left));
            let bound =
                left.zip(spot.items.get(*within)).map(|(left, right)| Bound::between(left, right));
            bound.unwrap_or_else(|| self.bound_at(*rank))
        });
        let bounds: Vec<Bound> = bounds.collect();
        let sums = spots.iter().map(|(spot, _, within)| spot.sum_below(*within));
        bounds.into_iter().zip(sums).collect()
    }

    fn for_each(&self, ranks: Range<usize>, visit: &mut dyn FnMut(Item)) {
        self.iter_range(ranks).for_each(|item| visit(*item));
    }
}
