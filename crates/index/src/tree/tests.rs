//! Tests of internals: the invariants, under random operations on nodes small enough to split and
//! join all the time, and the nodes that a write shares with snapshots.

use super::node::{NodeShape, Subtree};
use super::*;
use crate::Slice;
use negsync_reconcile::SortedItems;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use std::collections::{BTreeSet, HashSet};

const SHAPES: [NodeShape; 5] = [
    NodeShape { leaf: 2, fanout: 4 },
    NodeShape { leaf: 3, fanout: 5 },
    NodeShape { leaf: 8, fanout: 4 },
    NodeShape { leaf: 5, fanout: 7 },
    NodeShape { leaf: 48, fanout: 8 },
];

/// An item from a small range, so that duplicates and absent items occur.
fn item(rng: &mut StdRng, times: u64) -> Item {
    let mut id = [rng.random_range(0..3u8) * 0x7f; 32];
    id[31] = rng.random_range(0..4);
    Item::new(rng.random_range(0..times), id)
}

fn items(rng: &mut StdRng, count: usize, times: u64) -> Vec<Item> {
    (0..count).map(|_| item(rng, times)).collect()
}

fn sum_of(items: &[Item]) -> Sum {
    items.iter().fold(Sum::ZERO, |mut sum, item| {
        sum.add(&Sum::of(&item.id));
        sum
    })
}

impl Tree {
    /// Panics unless every invariant holds and the tree contains exactly `expected`.
    fn check(&self, expected: &[Item], context: &str) {
        let mut found = Vec::new();
        let mut bytes = 0;
        self.root.check(self.shape, [true, true], &mut found, &mut bytes, context);
        assert_eq!(found, expected, "{context}");
        assert_eq!(self.len(), expected.len(), "{context}");
        assert!(bytes <= self.memory_bytes(), "{context}: {bytes} > {}", self.memory_bytes());
    }

    /// The addresses of the nodes, and the depth.
    fn nodes(&self) -> (HashSet<usize>, usize) {
        let mut nodes = HashSet::new();
        let depth = self.root.nodes(&mut nodes);
        (nodes, depth)
    }
}

impl Subtree {
    /// Checks the subtree, adds its items and heap bytes to the totals, and returns its depth.
    fn check(
        &self,
        shape: NodeShape,
        [root, edge]: [bool; 2],
        found: &mut Vec<Item>,
        bytes: &mut usize,
        context: &str,
    ) -> usize {
        let before = found.len();
        *bytes += self.address_and_bytes().1;
        let (size, full, least) = match self.parts() {
            (Some(items), _) => {
                found.extend_from_slice(items);
                (items.len(), shape.leaf, 1)
            }
            (None, children) => (children.len(), shape.fanout, if root { 2 } else { 1 }),
        };
        let mut depths = HashSet::new();
        let (_, children) = self.parts();
        for (at, child) in children.iter().enumerate() {
            let edge = edge && at + 1 == children.len();
            depths.insert(child.check(shape, [false, edge], found, bytes, context));
        }
        assert!(depths.len() <= 1, "{context}: depths {depths:?}");
        assert!(size <= full, "{context}: {size} in a node for {full}");
        let empty_root = root && before == found.len();
        let least = if root || edge { least } else { full / 2 };
        assert!(size >= least || empty_root, "{context}: only {size}, edge: {edge}");
        let below = &found[before..];
        assert!(below.is_sorted_by(|a, b| a < b), "{context}: out of order");
        let first = below.first().copied().unwrap_or_default();
        assert_eq!(self.totals(), (first, below.len(), sum_of(below)), "{context}");
        depths.into_iter().next().unwrap_or(0) + 1
    }

    fn nodes(&self, nodes: &mut HashSet<usize>) -> usize {
        nodes.insert(self.address_and_bytes().0);
        let (_, children) = self.parts();
        children.iter().map(|child| child.nodes(nodes)).max().unwrap_or(0) + 1
    }
}

/// One random write to the tree and to the model, whose answers must agree.
fn write(rng: &mut StdRng, tree: &mut Tree, model: &mut BTreeSet<Item>, context: &str) {
    let times = 40 + tree.shape.leaf as u64 * 4;
    let size = *[0, 1, 1, 2, 5, 40, 300].choose(rng).unwrap();
    let (insert, mut batch) = match rng.random_range(0..8) {
        0..3 => (true, items(rng, size, times)),
        3 => {
            // After the last item.
            let last = model.last().map_or(0, |item| item.created_at);
            let mut batch = items(rng, size, 1 + size as u64);
            batch.iter_mut().for_each(|item| item.created_at += last);
            (true, batch)
        }
        4 => (false, items(rng, size, times)),
        5 => {
            let present: Vec<Item> = model.iter().copied().collect();
            (false, present.sample(rng, size).copied().collect())
        }
        6 => {
            let from = rng.random_range(0..=model.len());
            let some = rng.random_range(0..=model.len() - from);
            (false, model.iter().skip(from).take(some).copied().collect())
        }
        _ if rng.random_range(0..10) == 0 => {
            (false, model.iter().copied().filter(|_| rng.random_range(0..20) > 0).collect())
        }
        _ => (true, model.iter().copied().take(size).collect()),
    };
    if rng.random() {
        batch.sort();
    }
    let before = model.len();
    if insert {
        model.extend(&batch);
        assert_eq!(tree.insert_batch(&batch), model.len() - before, "{context}");
    } else {
        for item in &batch {
            model.remove(item);
        }
        assert_eq!(tree.remove_batch(&batch), before - model.len(), "{context}");
    }
}

#[test]
fn random_writes_keep_the_invariants_and_every_snapshot() {
    for (seed, shape) in (0..60).zip(SHAPES.into_iter().cycle()) {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut tree = Tree::with_shape(shape);
        let mut model = BTreeSet::new();
        let mut snapshots: Vec<(Tree, Vec<Item>)> = Vec::new();
        for step in 0..120 {
            let context = format!("seed {seed}, step {step}, {shape:?}");
            write(&mut rng, &mut tree, &mut model, &context);
            let expected: Vec<Item> = model.iter().copied().collect();
            tree.check(&expected, &context);
            if rng.random_range(0..4) == 0 {
                snapshots.push((tree.clone(), expected));
            }
            if snapshots.len() > 8 {
                let (snapshot, expected) = snapshots.remove(rng.random_range(0..8));
                snapshot.check(&expected, &context);
            }
        }
        for (snapshot, expected) in snapshots {
            snapshot.check(&expected, &format!("seed {seed}, kept to the end"));
        }
    }
}

#[test]
fn every_query_agrees_with_a_sorted_vector() {
    for (seed, shape) in (0..20).zip(SHAPES.into_iter().cycle()) {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut tree = Tree::with_shape(shape);
        let mut model = BTreeSet::new();
        for step in 0..30 {
            let context = format!("seed {seed}, step {step}, {shape:?}");
            write(&mut rng, &mut tree, &mut model, &context);
            let sorted: Vec<Item> = model.iter().copied().collect();
            let past = sorted.len() + 3;
            for _ in 0..20 {
                let probe = item(&mut rng, 60);
                assert_eq!(tree.contains(&probe), model.contains(&probe), "{context}");
                let below = sorted.partition_point(|item| *item < probe);
                assert_eq!(tree.lower_bound(&probe), below, "{context}");
                let rank = rng.random_range(0..past);
                assert_eq!(tree.item(rank), sorted.get(rank).copied(), "{context}");
                // Ranges past the end, and reversed ones, are cut to the tree.
                let ranks = rank..rng.random_range(0..past);
                let end = ranks.end.min(sorted.len());
                let expected = sorted.get(ranks.start.min(end)..end).unwrap();
                assert_eq!(tree.sum(ranks.clone()), sum_of(expected), "{context}, {ranks:?}");
                let mut probes = items(&mut rng, 40, 60);
                if rng.random() {
                    probes.sort();
                }
                let ranks_of: Vec<usize> =
                    (0..20).map(|_| rng.random_range(0..=sorted.len())).collect();
                agrees_item_by_item(&tree, &probes, &ranks_of, &sorted, &context);
                for limit in [None, Some(rng.random_range(0..past))] {
                    let [since, until] = [rng.random_range(0..30), rng.random_range(20..80)];
                    let slice = Slice::new(tree.clone(), Some(since), Some(until), limit);
                    let sorted: Vec<Item> = slice.to_vec();
                    let ranks_of: Vec<usize> =
                        ranks_of.iter().map(|rank| rank % (sorted.len() + 1)).collect();
                    agrees_item_by_item(&slice, &probes, &ranks_of, &sorted, &context);
                }
                let mut visited = Vec::new();
                tree.for_each(ranks.clone(), &mut |item| visited.push(item));
                assert_eq!(visited, expected, "{context}, {ranks:?}");
            }
        }
    }
}

/// A joint lookup gives the same results as a sorted vector for each item.
fn agrees_item_by_item(
    set: &impl RangeSet,
    probes: &[Item],
    ranks: &[usize],
    sorted: &[Item],
    context: &str,
) {
    let model: SortedItems = sorted.iter().copied().collect();
    let places = set.places(probes);
    assert_eq!(places.len(), probes.len(), "{context}");
    for (probe, place) in probes.iter().zip(places) {
        assert_eq!(place, model.place(probe), "{context}, {probe:?}");
    }
    let cuts = set.cuts(ranks);
    assert_eq!(cuts.len(), ranks.len(), "{context}");
    for (rank, cut) in ranks.iter().zip(cuts) {
        assert_eq!(cut, model.cut(*rank), "{context}, {rank} of {ranks:?}");
    }
}

#[test]
fn loading_takes_items_in_any_order() {
    for (seed, shape) in (0..40).zip(SHAPES.into_iter().cycle()) {
        let mut rng = StdRng::seed_from_u64(seed);
        let size = rng.random_range(0..400);
        let mut given = items(&mut rng, size, 50);
        let context = format!("seed {seed}, {shape:?}");
        let model: BTreeSet<Item> = given.iter().copied().collect();
        let expected: Vec<Item> = model.into_iter().collect();
        Tree::with_shape(shape).filled(given.iter().copied()).check(&expected, &context);
        Tree::from_unsorted(given.clone()).check(&expected, &context);
        // In order except for a few, and with duplicates.
        given.sort();
        let last = given.len().saturating_sub(1);
        given.swap(last / 2, last / 3 * usize::from(last > 0));
        Tree::with_shape(shape).filled(given).check(&expected, &context);
    }
}

fn ascending(count: u64) -> impl Iterator<Item = Item> {
    (0..count).map(|time| Item::new(time, [time as u8; 32]))
}

#[test]
fn loading_and_appending_leave_full_leaves() {
    let all: Vec<Item> = ascending(5_000).collect();
    let full = all.len().div_ceil(NodeShape::default().leaf);
    for batch in [1, 7, 64, 1_000, all.len()] {
        let mut tree = Tree::new();
        for batch in all.chunks(batch) {
            assert_eq!(tree.insert_batch(batch), batch.len());
        }
        tree.check(&all, "appended");
        assert_eq!(tree.root.leaves(), full, "batches of {batch}");
    }
    assert_eq!(Tree::from_sorted(all).root.leaves(), full);
}

#[test]
fn a_write_copies_only_the_paths_that_it_changes() {
    let mut tree = Tree::from_sorted(ascending(50_000));
    let snapshot = tree.clone();
    let (shared, depth) = snapshot.nodes();

    // Duplicates and absent items change nothing.
    assert_eq!(tree.insert_batch(&[Item::new(10, [10; 32])]), 0);
    assert_eq!(tree.remove_batch(&[Item::new(10, [11; 32])]), 0);
    assert_eq!(tree.nodes().0, shared);

    // Many items of one leaf share one path.
    let batch: Vec<Item> =
        ascending(50_000).skip(100 * NodeShape::default().leaf + 10).take(50).collect();
    assert_eq!(tree.remove_batch(&batch), 50);
    let nodes = tree.nodes().0;
    assert_eq!(nodes.difference(&shared).count(), depth);
    assert_eq!(shared.difference(&nodes).count(), depth);

    // Without a snapshot, inner nodes are changed in place.
    drop(snapshot);
    let before = tree.nodes().0;
    assert_eq!(tree.insert_batch(&batch), 50);
    assert_eq!(tree.nodes().0.difference(&before).count(), 1);
}
