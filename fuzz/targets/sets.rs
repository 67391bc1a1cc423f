//! The sets of the targets: sizes on both sides of each threshold.

use negsync::item::Item;
use negsync::reconcile::{RangeSet, SortedItems, Sum};
use std::cell::Cell;
use std::ops::Range;
use std::sync::OnceLock;

/// Frame limits: none, the minimum, and some above it.
pub const FRAME_LIMITS: [usize; 4] = [0, 4_096, 4_300, 6_000];

/// Several sets with most of their items in common.
pub fn sets() -> &'static [SortedItems] {
    static SETS: OnceLock<Vec<SortedItems>> = OnceLock::new();
    SETS.get_or_init(|| {
        let mut sets: Vec<SortedItems> =
            [0, 1, 31, 32, 33, 300].map(|count| (0..count).map(spread).collect()).into();
        sets.push((0..300).filter(|number| number % 9 != 4).map(spread).collect());
        sets.push((40..330).map(spread).collect());
        sets.push((0..90).map(one_second).collect());
        sets
    })
}

/// Items of widely spread times, with random ids.
fn spread(number: u64) -> Item {
    let mut id = [0; 32];
    for (place, part) in id.chunks_exact_mut(8).enumerate() {
        let mixed = (number * 4 + place as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        part.copy_from_slice(&(mixed ^ mixed >> 29).to_be_bytes());
    }
    Item::new(1_700_000_000 + number * 7 / 3, id)
}

/// Items of one second whose ids share 31 bytes.
fn one_second(number: u64) -> Item {
    let mut id = [0xab; 32];
    id[31] = number as u8;
    Item::new(1_700_000_000, id)
}

/// A set that counts accesses.
pub struct Counted<'set> {
    set: &'set SortedItems,
    pub visited: Cell<usize>,
    pub looked_up: Cell<usize>,
}

impl<'set> Counted<'set> {
    pub fn new(set: &'set SortedItems) -> Self {
        Self { set, visited: Cell::new(0), looked_up: Cell::new(0) }
    }
}

impl RangeSet for Counted<'_> {
    fn len(&self) -> usize {
        self.set.len()
    }

    fn item(&self, rank: usize) -> Option<Item> {
        self.looked_up.update(|count| count + 1);
        self.set.item(rank)
    }

    fn lower_bound(&self, item: &Item) -> usize {
        self.looked_up.update(|count| count + 1);
        self.set.lower_bound(item)
    }

    fn sum_below(&self, rank: usize) -> Sum {
        self.looked_up.update(|count| count + 1);
        self.set.sum_below(rank)
    }

    fn for_each(&self, ranks: Range<usize>, visit: &mut dyn FnMut(Item)) {
        self.visited.update(|count| count + ranks.len());
        self.set.for_each(ranks, visit);
    }
}
