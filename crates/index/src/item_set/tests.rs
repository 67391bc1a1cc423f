//! After any additions and removals, a set over a file gives the same answers as a sorted vector.

use super::*;
use crate::sorted_file::{FileIdentity, FileWriter};
use negsync_reconcile::SortedItems;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use std::collections::BTreeSet;

const IDENTITY: FileIdentity = FileIdentity { set: [1; 32], mark: [2; 16] };

fn item(rng: &mut StdRng, times: u64) -> Item {
    let mut id = [0; 32];
    id[0] = rng.random_range(0..4);
    id[31] = rng.random();
    Item::new(rng.random_range(0..times), id)
}

fn over_a_file(items: &BTreeSet<Item>) -> ItemSet {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("items");
    let mut writer = FileWriter::begin(&path).unwrap();
    items.iter().for_each(|item| writer.push(*item).unwrap());
    writer.finish(IDENTITY).unwrap();
    // The open file stays readable after its name is gone.
    SortedFile::open(&path, &IDENTITY).unwrap().into()
}

/// One random write to the set and to the model, whose answers must agree.
fn write(rng: &mut StdRng, set: &mut ItemSet, model: &mut BTreeSet<Item>, times: u64) {
    let size = *[0, 1, 3, 40, 700].choose(rng).unwrap();
    let present: Vec<Item> = model.iter().copied().collect();
    let batch: Vec<Item> = match rng.random_range(0..4) {
        // New items, some of which were there before.
        0 => (0..size).map(|_| item(rng, times)).collect(),
        1 => present.sample(rng, size).copied().collect(),
        // A run, so that whole blocks of the file are removed and added again.
        2 => {
            let from = rng.random_range(0..=present.len());
            present[from..].iter().take(size).copied().collect()
        }
        _ => (0..size as u64).map(|second| Item::new(times + second, [7; 32])).collect(),
    };
    let before = model.len();
    if rng.random() {
        model.extend(&batch);
        assert_eq!(set.insert_batch(&batch), model.len() - before);
    } else {
        model.retain(|item| !batch.contains(item));
        let mut batch = batch;
        batch.sort();
        batch.dedup();
        assert_eq!(set.remove_batch(&batch), before - model.len());
    }
}

fn agree(rng: &mut StdRng, set: &ItemSet, model: &BTreeSet<Item>, context: &str) {
    let items: Vec<Item> = model.iter().copied().collect();
    let sorted: SortedItems = items.iter().copied().collect();
    assert_eq!(set.len(), items.len(), "{context}");
    let ranks: Vec<usize> = (0..40).map(|_| rng.random_range(0..=items.len() + 1)).collect();
    let mut probes: Vec<Item> = (0..40).map(|_| item(rng, 60)).collect();
    probes.extend(ranks.iter().filter_map(|rank| items.get(*rank)));
    for probe in &probes {
        assert_eq!(set.contains(probe), model.contains(probe), "{context}, {probe:?}");
        assert_eq!(set.lower_bound(probe), sorted.lower_bound(probe), "{context}, {probe:?}");
    }
    let places: Vec<RangePosition> = probes.iter().map(|probe| sorted.place(probe)).collect();
    assert!(set.places(&probes) == places, "{context}");
    let cuts: Vec<(Bound, Sum)> = ranks.iter().map(|rank| sorted.cut(*rank)).collect();
    for (rank, (found, cut)) in ranks.iter().zip(set.cuts(&ranks).into_iter().zip(cuts)) {
        assert_eq!(found, cut, "{context}, rank {rank}");
    }
    for rank in ranks.iter().chain(&[0, 1, items.len()]) {
        assert_eq!(set.item(*rank), items.get(*rank).copied(), "{context}, rank {rank}");
        assert_eq!(set.sum_below(*rank), sorted.sum_below(*rank), "{context}, rank {rank}");
    }
    for pair in ranks.windows(2).take(10).chain([&[0, items.len()][..]]) {
        let range = pair[0].min(pair[1])..pair[0].max(pair[1]);
        let mut visited = Vec::new();
        set.for_each(range.clone(), &mut |item| visited.push(item));
        let end = range.end.min(items.len());
        assert_eq!(visited, items[range.start.min(end)..end], "{context}, {range:?}");
    }
}

#[test]
fn a_set_over_a_file_answers_as_a_sorted_vector() {
    for seed in 0..20 {
        let mut rng = StdRng::seed_from_u64(seed);
        let size = *[0, 1, 100, 256, 600, 2_000].choose(&mut rng).unwrap();
        let mut model: BTreeSet<Item> = (0..size).map(|_| item(&mut rng, 60)).collect();
        let mut set = over_a_file(&model);
        let mut held = Vec::new();
        for step in 0..12 {
            write(&mut rng, &mut set, &mut model, 60);
            let context = format!("seed {seed}, step {step}");
            agree(&mut rng, &set, &model, &context);
            held.push((set.clone(), model.clone(), context));
            if rng.random_range(0..6) == 0 {
                set = over_a_file(&model);
                assert_eq!(set.changes(), 0);
            }
        }
        // Snapshots are unchanged.
        for (set, model, context) in &held {
            agree(&mut rng, set, model, context);
        }
    }
}

#[test]
fn what_comes_back_takes_no_memory() {
    let items: BTreeSet<Item> = (0..2_000).map(|second| Item::new(second, [1; 32])).collect();
    let all: Vec<Item> = items.iter().copied().collect();
    let mut set = over_a_file(&items);
    assert_eq!(set.remove_batch(&all), 2_000);
    assert_eq!((set.len(), set.changes()), (0, 2_000));
    assert_eq!(set.insert_batch(&all), 2_000);
    assert_eq!((set.len(), set.changes()), (2_000, 0));
}

#[test]
fn a_walk_ends_with_the_first_error() {
    let items: BTreeSet<Item> = (0..900).map(|second| Item::new(2 * second, [1; 32])).collect();
    let mut set = over_a_file(&items);
    set.insert_batch(&[Item::new(1_001, [1; 32]), Item::new(5_000, [1; 32])]);
    for bad in [0, 1_000, 1_001, 1_798, 5_000] {
        let mut last = None;
        let walked = set.try_for_each(0..set.len(), |item| {
            last = Some(item.created_at);
            if item.created_at == bad { Err(bad) } else { Ok(()) }
        });
        assert_eq!((walked, last), (Err(bad), Some(bad)));
    }
}
