//! The leaves: items in order, with marks that hold partial sums.

use negsync_reconcile::Item;
use negsync_reconcile::Sum;
use std::sync::Arc;

/// Items between two marks.
pub(super) const BLOCK: usize = 16;

/// A leaf: its items, and after them one mark for each full block of items. Marks make lookups in a
/// leaf cheap: the sum up to any position takes at most half a block, a search takes the marks and
/// one block.
///
/// A mark has the form of an item, so that a leaf is one piece of memory: its `created_at` is that
/// of the item after the block (or `u64::MAX` at the end), and its `id` is the sum of all ids up to
/// there.
#[derive(Clone, Debug)]
pub(super) struct Leaf(Arc<[Item]>);

impl Leaf {
    /// A leaf of `items`, which must ascend, and their sum.
    pub fn new(items: &[Item]) -> (Self, Sum) {
        let mut sum = Sum::ZERO;
        let (blocks, rest) = items.as_chunks::<BLOCK>();
        let mut entries = Vec::with_capacity(items.len() + blocks.len());
        entries.extend_from_slice(items);
        for (index, block) in blocks.iter().enumerate() {
            add_all(&mut sum, block);
            let next = items.get((index + 1) * BLOCK);
            entries.push(Item::new(next.map_or(u64::MAX, |item| item.created_at), sum.to_bytes()));
        }
        add_all(&mut sum, rest);
        (Self(entries.into()), sum)
    }

    /// The items and the marks.
    pub fn parts(&self) -> (&[Item], &[Item]) {
        // A full block and its mark are BLOCK + 1 entries; the rest is shorter than that.
        let marks = self.0.len() / (BLOCK + 1);
        self.0.split_at(self.0.len() - marks)
    }

    /// The items.
    pub fn items(&self) -> &[Item] {
        self.parts().0
    }

    #[cfg(test)]
    pub fn address_and_bytes(&self) -> (usize, usize) {
        (Arc::as_ptr(&self.0).addr(), size_of_val(&*self.0) + 16)
    }
}

/// A leaf of a tree, with totals of the items before it.
#[derive(Clone, Copy, Default)]
pub(super) struct Spot<'a> {
    pub items: &'a [Item],
    marks: &'a [Item],
    /// The number of items before the leaf.
    pub rank: usize,
    /// The sum of their ids.
    sum: Sum,
    /// The first item after the leaf.
    next: Option<&'a Item>,
}

impl<'a> Spot<'a> {
    pub fn new(leaf: &'a Leaf, rank: usize, sum: Sum, next: Option<&'a Item>) -> Self {
        let (items, marks) = leaf.parts();
        Self { items, marks, rank, sum, next }
    }

    /// Whether all following leaves are above `item`.
    pub fn ends_above(&self, item: &Item) -> bool {
        self.next.is_none_or(|next| item < next)
    }

    /// The block of the leaf that contains the position of `item`.
    pub fn block_of(&self, item: &Item) -> usize {
        earlier(self.marks, item)
    }

    /// The number of items of the leaf that are less than `item`; `block` is the block of `item`.
    pub fn lower_bound(&self, item: &Item, block: usize) -> usize {
        let start = block * BLOCK;
        let rest = self.items.get(start..).unwrap_or_default();
        let rank = start + earlier(rest.get(..BLOCK).unwrap_or(rest), item);
        match self.items.get(rank) {
            // Of the same second: rare, unless the item is a bound made from it, and then nothing
            // is below.
            Some(other) if other < item => {
                let rest = self.items.get(rank..).unwrap_or_default();
                rank + rest.partition_point(|other| other < item)
            }
            _ => rank,
        }
    }

    /// The sum of the ids below the item at `rank` of the leaf, from the beginning of the tree;
    /// uses the nearest mark.
    pub fn sum_below(&self, rank: usize) -> Sum {
        let mut sum = self.sum;
        let (block, past) = (rank / BLOCK, rank % BLOCK);
        let start = rank - past;
        match self.marks.get(block) {
            Some(mark) if past > BLOCK / 2 => {
                sum.add(&Sum::of(&mark.id));
                for item in self.items.get(rank..start + BLOCK).unwrap_or_default() {
                    sum.subtract(&Sum::of(&item.id));
                }
            }
            _ => {
                if let Some(mark) = block.checked_sub(1).and_then(|block| self.marks.get(block)) {
                    sum.add(&Sum::of(&mark.id));
                }
                add_all(&mut sum, self.items.get(start..rank).unwrap_or_default());
            }
        }
        sum
    }
}

/// The number of `items`, which must ascend, with an earlier second than `item`. Counts all of
/// them: without early exits, no step depends on an earlier read.
fn earlier(items: &[Item], item: &Item) -> usize {
    items.iter().map(|other| usize::from(other.created_at < item.created_at)).sum()
}

fn add_all(sum: &mut Sum, items: &[Item]) {
    for item in items {
        sum.add(&Sum::of(&item.id));
    }
}
