//! The tree with one million items, compared with a sorted vector and a BTreeSet in the same run.
//! `cargo bench --bench tree [-- <items>]`.
//!
//! Memory is resident memory, read from the kernel (Linux) in a fresh process for each
//! construction, so that memory freed by another one does not count.

use negsync::index::{Slice, Tree};
use negsync::item::Item;
use negsync::reconcile::{RangeSet, Sum};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use std::collections::BTreeSet;
use std::hint::black_box;
use std::ops::Range;
use std::process::Command;
use std::time::{Duration, Instant};

const SEED: u64 = 77;
const REPEATS: usize = 5;

fn main() {
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    let first = args.next();
    if first.as_deref() == Some("memory") {
        let (way, count) = (args.next().unwrap(), args.next().unwrap().parse().unwrap());
        return println!("{}", memory_bytes(&way, count));
    }
    let count: usize = first.map_or(1_000_000, |count| count.parse().unwrap());
    println!("tree of {count} items; time per call, baseline, ratio\n");
    let sorted: Vec<Item> = ascending(count).collect();
    build(&sorted);
    write(&sorted);
    read(&sorted);
    memory(count);
}

/// About one event a second, as a busy relay has them; ids are random.
fn ascending(count: usize) -> impl Iterator<Item = Item> {
    let mut rng = StdRng::seed_from_u64(SEED);
    let mut item = Item::new(1_700_000_000, [0; 32]);
    (0..count).map(move |_| {
        item.created_at += rng.random_range(1..3);
        Item::new(item.created_at, rng.random())
    })
}

fn shuffled(items: &[Item]) -> Vec<Item> {
    let mut items = items.to_vec();
    items.shuffle(&mut StdRng::seed_from_u64(SEED));
    items
}

/// The best of several runs; `prepare` is outside the measured time.
fn best<I, O>(mut prepare: impl FnMut() -> I, mut run: impl FnMut(I) -> O) -> Duration {
    let time = |_| {
        let input = prepare();
        let start = Instant::now();
        let output = black_box(run(input));
        let elapsed = start.elapsed();
        drop(output);
        elapsed
    };
    (0..REPEATS).map(time).min().unwrap_or_default()
}

fn line(what: &str, ours: Duration, baseline: &str, theirs: Duration) {
    let ratio = theirs.as_secs_f64() / ours.as_secs_f64();
    println!("{what:<44} {ours:>11.2?}   {baseline:<34} {theirs:>11.2?}   x{ratio:.2}");
}

fn build(sorted: &[Item]) {
    let random = shuffled(sorted);
    // Eight sorted scans one after the other, as for a filter with eight kinds.
    let mut rng = StdRng::seed_from_u64(SEED);
    let mut runs = vec![Vec::new(); 8];
    for item in sorted {
        runs[rng.random_range(0..8)].push(*item);
    }
    let runs = runs.concat();
    let sort_and_sum = |mut items: Vec<Item>| {
        items.sort_unstable();
        let sum = sum_of(&items);
        (items, sum)
    };
    line(
        "build from sorted",
        best(|| (), |()| Tree::from_sorted(sorted.iter().copied())),
        "copy and sum a vector",
        best(|| (), |()| (sorted.to_vec(), sum_of(sorted))),
    );
    for (what, items) in [("random order", &random), ("8 sorted runs", &runs)] {
        line(
            &format!("build from {what}"),
            best(|| items.clone(), Tree::from_unsorted),
            "sort_unstable and sum a vector",
            best(|| items.clone(), sort_and_sum),
        );
    }
}

fn write(sorted: &[Item]) {
    let into_tree = |items: &[Item], batch: usize| {
        let mut tree = Tree::new();
        for batch in items.chunks(batch) {
            tree.insert_batch(batch);
        }
        tree
    };
    let into_set = |items: &[Item]| {
        let mut set = BTreeSet::new();
        for item in items {
            set.insert(*item);
        }
        set
    };
    let append_set = best(|| (), |()| into_set(sorted));
    for batch in [1, 64, 1_000] {
        let ours = best(|| (), |()| into_tree(sorted, batch));
        line(&format!("append all, batches of {batch}"), ours, "BTreeSet inserts", append_set);
    }
    let random = shuffled(sorted);
    let random_set = best(|| (), |()| into_set(&random));
    for batch in [1, 64, 1_000] {
        let ours = best(|| (), |()| into_tree(&random, batch));
        let what = format!("insert all in random order, batches of {batch}");
        line(&what, ours, "BTreeSet inserts", random_set);
    }

    // A store that publishes a snapshot after each commit.
    let some = random.len().min(64_000);
    let tree = Tree::from_sorted(sorted.iter().copied());
    let ours = best(
        || tree.clone(),
        |mut tree| {
            for batch in random[..some].chunks(64) {
                black_box(tree.clone());
                tree.remove_batch(batch);
                black_box(tree.clone());
                tree.insert_batch(batch);
            }
            tree
        },
    );
    let set: BTreeSet<Item> = sorted.iter().copied().collect();
    let theirs = best(
        || set.clone(),
        |mut set| {
            for item in &random[..some] {
                set.remove(item);
            }
            set.extend(&random[..some]);
            set
        },
    );
    line("remove and insert 64k random, in 64s, held", ours, "BTreeSet, in place", theirs);
}

fn read(sorted: &[Item]) {
    let tree = Tree::from_sorted(sorted.iter().copied());
    let probes: Vec<Item> = shuffled(sorted).into_iter().take(200_000).collect();
    let each = |run: &dyn Fn(&Item) -> usize| {
        let all = || probes.iter().map(run).fold(0, usize::wrapping_add);
        best(|| (), |()| all()) / probes.len() as u32
    };
    line(
        "contains, random",
        each(&|item| usize::from(tree.contains(item))),
        "vector binary search",
        each(&|item| usize::from(sorted.binary_search(item).is_ok())),
    );
    line(
        "lower_bound, random",
        each(&|item| tree.lower_bound(item)),
        "vector partition_point",
        each(&|item| sorted.partition_point(|other| other < item)),
    );
    let mut rng = StdRng::seed_from_u64(SEED);
    let count = sorted.len();
    for (what, widest) in [("any width", count), ("up to 1,000 wide", 1_000.min(count))] {
        let ranges: Vec<Range<usize>> = (0..1_000)
            .map(|_| {
                let width = rng.random_range(1..=widest);
                let start = rng.random_range(0..=count - width);
                start..start + width
            })
            .collect();
        let sums = |sum: &dyn Fn(&Range<usize>) -> Sum, ranges: &[Range<usize>]| {
            let mut total = Sum::ZERO;
            best(|| (), |()| ranges.iter().for_each(|range| total.add(&sum(range))))
                / ranges.len() as u32
        };
        line(
            &format!("sum of a range, {what}"),
            sums(&|range| tree.sum(range.clone()), &ranges),
            "sum of a vector's range",
            sums(&|range| sum_of(&sorted[range.clone()]), &ranges[..100]),
        );
    }
    line(
        "snapshot",
        each(&|_| black_box(tree.clone()).len()),
        "copy of a vector",
        best(|| (), |()| sorted.to_vec()),
    );
    let newest = sorted[count / 2].created_at;
    line(
        "slice: until the middle, newest 500",
        each(&|_| Slice::new(tree.clone(), None, Some(newest), Some(500)).len()),
        "copy of the vector's 500",
        each(&|_| {
            let end = sorted.partition_point(|item| item.created_at <= newest);
            black_box(sorted[end.saturating_sub(500)..end].to_vec()).len()
        }),
    );
}

fn memory(count: usize) {
    println!("\nresident bytes an item (estimate by memory_bytes)");
    let measure = |way: &str| {
        let this = std::env::current_exe().unwrap();
        let output = Command::new(this).args(["memory", way, &count.to_string()]).output().unwrap();
        println!("  {way:<10} {}", String::from_utf8_lossy(&output.stdout).trim());
    };
    ["vector", "btreeset", "sorted", "append", "random", "churn"]
        .iter()
        .for_each(|way| measure(way));
}

/// Builds in this process, and returns the increase of resident memory.
fn memory_bytes(way: &str, count: usize) -> String {
    let mut tree = Tree::new();
    let mut set = BTreeSet::new();
    let mut vector = Vec::new();
    let mut rng = StdRng::seed_from_u64(SEED);
    let before = resident_bytes();
    let mut batch = Vec::with_capacity(64);
    match way {
        "vector" => {
            vector.reserve_exact(count);
            vector.extend(ascending(count));
        }
        "btreeset" => set.extend(ascending(count)),
        "sorted" => tree = Tree::from_sorted(ascending(count)),
        _ => {
            for mut item in ascending(count) {
                if way != "append" {
                    item.created_at = rng.random();
                }
                batch.push(item);
                if batch.len() == 64 {
                    tree.insert_batch(&batch);
                    batch.clear();
                }
            }
            tree.insert_batch(&batch);
        }
    }
    if way == "churn" {
        // As many removals and insertions as there are items, with a snapshot before each batch.
        for _ in 0..count / 64 {
            let _held = tree.clone();
            let gone: Vec<Item> =
                (0..64).filter_map(|_| tree.item(rng.random_range(0..count))).collect();
            let removed = tree.remove_batch(&gone);
            let fresh: Vec<Item> =
                (0..removed).map(|_| Item::new(rng.random(), rng.random())).collect();
            tree.insert_batch(&fresh);
        }
    }
    let grown = resident_bytes().saturating_sub(before) as f64;
    let held = vector.len() + set.len() + tree.len();
    let each = format!("{:.1}", grown / held as f64);
    match tree.len() {
        0 => each,
        len => format!("{each} ({:.1})", tree.memory_bytes() as f64 / len as f64),
    }
}

fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    pages * 4096usize
}

fn sum_of(items: &[Item]) -> Sum {
    let mut sum = Sum::ZERO;
    items.iter().for_each(|item| sum.add(&Sum::of(&item.id)));
    sum
}
