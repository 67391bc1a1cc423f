//! A set in a file, compared with the same set in a tree: the time to write and to open it, its
//! memory, and the cost of a session for the responder.
//!
//! `cargo bench -p negsync-index --bench sorted_file [-- <items>]`: ten million by default,
//! compared with one million. For each message of a session the shortest time of ten runs counts,
//! which removes the noise of other work on the machine. Memory is the resident anonymous memory of
//! a fresh process (Linux), without pages of the file in the system's cache.

use negsync_index::{FileIdentity, FileWriter, ItemSet, SortedFile, Tree};
use negsync_reconcile::{
    Difference, Initiator, InitiatorOptions, InitiatorStep, Item, RangeSet, Responder,
};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const SEED: u64 = 77;
const REPEATS: usize = 10;
const MISSING: usize = 100;
const FRAME_LIMIT_BYTES: usize = 60_000;
const IDENTITY: FileIdentity = FileIdentity { set: [0; 32], mark: [0; 16] };
/// Number of items added and removed since the file was written, in the rows with changes.
const CHANGES: usize = 100_000;
/// Maximum as a multiple of the time for a million items.
const MOST_OF_A_MILLION: f64 = 3.0;

fn main() {
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    let first = args.next();
    if first.as_deref() == Some("memory") {
        return print_memory(&args.next().unwrap());
    }
    let count: usize = first.map_or(10_000_000, |count| count.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    println!("items                       write     open   memory   100 missing, responder");
    let tree = Tree::from_sorted(ascending(1_000_000));
    let in_tree = responder_time(&tree.into());
    println!("{:<47} {in_tree:>24.2?}", "1000000 in a tree");
    let million = measure(folder.path(), 1_000_000);
    let many = measure(folder.path(), count);
    let ratio = many.as_secs_f64() / million.as_secs_f64();
    let verdict = if ratio <= MOST_OF_A_MILLION { "met" } else { "missed" };
    println!("{ratio:.2} times that of a million; at most {MOST_OF_A_MILLION}: {verdict}");
}

/// Measures a file of `count` items, and returns the cost of a session over it.
fn measure(folder: &Path, count: usize) -> Duration {
    let path = folder.join(count.to_string());
    let began = Instant::now();
    let mut writer = FileWriter::begin(&path).unwrap();
    ascending(count).for_each(|item| writer.push(item).unwrap());
    writer.finish(IDENTITY).unwrap();
    let written = began.elapsed();
    let began = Instant::now();
    let mut set = ItemSet::from(SortedFile::open(&path, &IDENTITY).unwrap());
    let opened = began.elapsed();
    let this = std::env::current_exe().unwrap();
    let memory = Command::new(this).arg("memory").arg(&path).output().unwrap();
    let memory = String::from_utf8_lossy(&memory.stdout).trim().to_owned();
    let bare = responder_time(&set);
    println!("{count:<22} {written:>10.2?} {opened:>8.2?} {memory:>8} {bare:>18.2?}");
    let mut rng = StdRng::seed_from_u64(SEED);
    let changed: Vec<Item> =
        (0..CHANGES / 2).filter_map(|_| set.item(rng.random_range(0..count))).collect();
    set.remove_batch(&changed);
    let added = changed.iter().map(|item| Item::new(item.created_at, rng.random()));
    set.insert_batch(&added.collect::<Vec<Item>>());
    let changed = responder_time(&set);
    println!("{:<47} {changed:>24.2?}", format!("  with {} changes beside it", set.changes()));
    bare
}

/// About one event a second, as a busy relay has them; ids are random.
fn ascending(count: usize) -> impl Iterator<Item = Item> {
    let mut rng = StdRng::seed_from_u64(SEED);
    let mut item = Item::new(1_500_000_000, [0; 32]);
    (0..count).map(move |_| {
        item.created_at += rng.random_range(1..3);
        Item::new(item.created_at, rng.random())
    })
}

/// The time of `set` to answer a peer that lacks some scattered items.
fn responder_time(set: &ItemSet) -> Duration {
    let mut rng = StdRng::seed_from_u64(SEED);
    let mut theirs = set.clone();
    let lost: Vec<Item> =
        (0..MISSING).filter_map(|_| set.item(rng.random_range(0..set.len()))).collect();
    let lost = theirs.remove_batch(&lost);
    let mut best = Vec::new();
    for _ in 0..REPEATS {
        let options = InitiatorOptions::default().frame_limit_bytes(FRAME_LIMIT_BYTES);
        let mut initiator = Initiator::new(&theirs, options).unwrap();
        let mut responder = Responder::new(set, FRAME_LIMIT_BYTES).unwrap();
        let mut found = Difference::new();
        let mut times = Vec::new();
        let mut question = initiator.open();
        loop {
            let began = Instant::now();
            let answer = responder.answer(&question).unwrap();
            times.push(began.elapsed());
            match initiator.receive(&answer, &mut found).unwrap() {
                InitiatorStep::Send(next) => question = next,
                InitiatorStep::Done => break,
            }
        }
        assert_eq!(found.need.len(), lost);
        // The same messages each time.
        best.resize(times.len(), Duration::MAX);
        best = times.into_iter().zip(best).map(|(time, best)| time.min(best)).collect();
    }
    best.into_iter().sum()
}

/// The increase of resident anonymous memory by opening a file, and by a session over it.
fn print_memory(path: &str) {
    let before = anonymous_bytes();
    let set = ItemSet::from(SortedFile::open(Path::new(path), &IDENTITY).unwrap());
    responder_time(&set);
    let grown = anonymous_bytes().saturating_sub(before);
    println!("{:.1} MB", grown as f64 / 1e6);
}

fn anonymous_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<usize>().ok());
    kib.unwrap_or(0) * 1_024
}
