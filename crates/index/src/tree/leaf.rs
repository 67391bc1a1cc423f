//! The leaves: items in order, and marks that say how far a sum has come.

use negsync_reconcile::Item;
use negsync_reconcile::Sum;
use std::sync::Arc;

/// How many items lie between two marks.
pub(super) const BLOCK: usize = 16;

/// A leaf: its items, and after them a mark for each full block of items. The
/// marks make it cheap to look into a leaf: to add up to any place in it takes
/// at most half a block, to find a place the marks and one block.
///
/// A mark is written as an item, so that a leaf is one piece of memory: its
/// `created_at` is that of the item after the block (or the last there can be),
/// and its `id` the sum of all ids up to there.
#[derive(Clone, Debug)]
pub(super) struct Leaf(Arc<[Item]>);

impl Leaf {
    /// A leaf of `items`, which ascend, and their sum.
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
        // A full block and its mark are BLOCK + 1 entries, and the rest is less than that.
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

/// A leaf of a tree, and what is before it there.
#[derive(Clone, Copy, Default)]
pub(super) struct Spot<'a> {
    pub items: &'a [Item],
    marks: &'a [Item],
    /// How many items come before the leaf.
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

    /// Whether the leaves that follow are all above `item`.
    pub fn ends_above(&self, item: &Item) -> bool {
        self.next.is_none_or(|next| item < next)
    }

    /// Which block of the leaf has the place of `item`.
    pub fn block_of(&self, item: &Item) -> usize {
        earlier(self.marks, item)
    }

    /// How many items of the leaf are less than `item`, whose block is `block`.
    pub fn lower_bound(&self, item: &Item, block: usize) -> usize {
        let start = block * BLOCK;
        let rest = self.items.get(start..).unwrap_or_default();
        let rank = start + earlier(rest.get(..BLOCK).unwrap_or(rest), item);
        match self.items.get(rank) {
            // Of the same second, which is rare but where the item is a bound
            // that was made from it, and then nothing is below.
            Some(other) if other < item => {
                let rest = self.items.get(rank..).unwrap_or_default();
                rank + rest.partition_point(|other| other < item)
            }
            _ => rank,
        }
    }

    /// The sum of the ids below the item at `rank` of the leaf, from the
    /// beginning of the tree, by way of the nearest mark.
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

/// How many of `items`, which ascend, are of an earlier second than `item`.
/// All are counted: so nothing waits for what was read before.
fn earlier(items: &[Item], item: &Item) -> usize {
    items.iter().map(|other| usize::from(other.created_at < item.created_at)).sum()
}

fn add_all(sum: &mut Sum, items: &[Item]) {
    for item in items {
        sum.add(&Sum::of(&item.id));
    }
}
