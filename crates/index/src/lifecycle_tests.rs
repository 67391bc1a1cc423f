//! After any writes, removals and damage between two starts, every set equals a scan of the store,
//! and sessions answer from the snapshot with which they began. Files are written after a few dozen
//! changes here, so that it happens often.
//!
//! `NEGSYNC_INDEX_RUNS` and `NEGSYNC_SEED` set the number of runs and the first seed.

use super::keeper::WriteRule;
use super::{Index, ItemSet, SetCacheSize};
use negsync_reconcile::Item;
use negsync_store::{
    Clock, Event, Filter, ManualClock, PrivateKinds, StoreError, StoreOptions, Synchronous,
    VerifiedEvent,
};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, RngExt, SeedableRng};
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The start of the tests.
const NOW: u64 = 1_700_000_000;
const PATIENCE: Duration = Duration::from_secs(20);

const PRIVATE: [&[u16]; 3] = [&[], &[7], &[1]];
const FILTERS: [&str; 4] =
    ["{}", r#"{"since":200,"until":700}"#, r#"{"limit":30}"#, r#"{"kinds":[7]}"#];

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn seeds(runs: u64) -> std::ops::Range<u64> {
    let first = number("NEGSYNC_SEED").unwrap_or(0);
    first..first + number("NEGSYNC_INDEX_RUNS").unwrap_or(runs)
}

/// Opens the index once the store is free: the threads of an index that was dropped without being
/// closed hold it until they end.
fn open(path: &Path, private_kinds: &[u16], least: usize) -> Index {
    open_by(&ManualClock::at(NOW), path, private_kinds, least)
}

/// Like [`open`], with a clock that the test sets.
fn open_by(clock: &ManualClock, path: &Path, private_kinds: &[u16], least: usize) -> Index {
    let began = Instant::now();
    let private_kinds = PrivateKinds::new(private_kinds.iter().copied());
    let options = StoreOptions::default()
        .synchronous(Synchronous::Normal)
        .readers(3)
        .private_kinds(private_kinds)
        .clock(Clock::from(clock));
    loop {
        match Index::open_with(
            path,
            options.clone(),
            SetCacheSize::memory(1 << 20),
            WriteRule { least, part: 16, ..WriteRule::OPEN },
        ) {
            Err(StoreError::InUse { .. }) if began.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(1));
            }
            opened => return opened.unwrap(),
        }
    }
}

/// Writes events of every lifetime.
struct Author {
    rng: StdRng,
    clock: ManualClock,
    ids: Vec<String>,
}

impl Author {
    fn new(seed: u64) -> Self {
        let (rng, clock) = (StdRng::seed_from_u64(seed), ManualClock::at(NOW));
        Self { rng, clock, ids: Vec::new() }
    }

    fn events(&mut self, most: usize) -> Vec<VerifiedEvent> {
        let count = self.rng.random_range(0..=most);
        (0..count).map(|_| self.event()).collect()
    }

    fn event(&mut self) -> VerifiedEvent {
        let word = ["a", "b", "c"].choose(&mut self.rng).unwrap().to_string();
        let (kind, tags) = match self.rng.random_range(0..40) {
            0..20 => (1, "[]".to_owned()),
            20..26 => (7, "[]".to_owned()),
            26..29 => (0, "[]".to_owned()),
            29..33 => (30_000, format!(r#"[["d","{word}"]]"#)),
            33..35 => {
                let due = self.clock.now() + self.rng.random_range(0..3);
                (1, format!(r#"[["expiration","{due}"]]"#))
            }
            35 => (62, r#"[["relay","ALL_RELAYS"]]"#.to_owned()),
            _ => match self.ids.choose(&mut self.rng) {
                Some(id) => (5, format!(r#"[["e","{id}"]]"#)),
                None => (1, "[]".to_owned()),
            },
        };
        // A request to vanish removes everything that its author has written before.
        let author = if kind == 62 { 9 } else { self.rng.random_range(0..10) };
        let created_at = self.rng.random_range(0..1_000);
        let mut id = [0; 32];
        self.rng.fill_bytes(&mut id);
        let id: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
        let json = format!(
            r#"{{"id":"{id}","pubkey":"{author:064x}","created_at":{created_at},"kind":{kind},"tags":{tags},"content":"","sig":"{}"}}"#,
            "0".repeat(128)
        );
        self.ids.push(id);
        Event::parse(&json).unwrap().trust()
    }
}

fn given(index: &Index, filter: &Filter) -> Vec<Item> {
    index.snapshot(std::slice::from_ref(filter), usize::MAX).unwrap().to_vec()
}

fn scanned(index: &Index, filter: &Filter) -> Vec<Item> {
    let mut items = BTreeSet::new();
    let mut all = |_: usize, item: Item| {
        items.insert((std::cmp::Reverse(item.created_at), item.id));
        ControlFlow::Continue(())
    };
    index.store().items(std::slice::from_ref(filter), &mut all).unwrap();
    let newest = items.into_iter().take(filter.limit.unwrap_or(usize::MAX));
    let mut items: Vec<Item> = newest.map(|(second, id)| Item::new(second.0, id)).collect();
    items.sort();
    items
}

fn check(index: &Index, context: &str) {
    for text in FILTERS {
        let filter = Filter::parse(text).unwrap();
        let set = given(index, &filter);
        assert!(
            set == scanned(index, &filter),
            "{context}: the set of {text} is not that of a scan"
        );
    }
}

fn is_on_files(index: &Index) -> bool {
    let sets = index.sets.catalog.resident_sets();
    sets.is_some_and(|sets| sets.iter().all(ItemSet::has_file))
}

/// Waits until the index is loaded and no write is due.
fn settled(index: &Index, rule: WriteRule) {
    let keeper = index.sets.keeper.as_ref().unwrap();
    while index.sets.catalog.resident_sets().is_none_or(|sets| rule.is_met(&sets)) {
        keeper.look();
        std::thread::yield_now();
    }
}

fn files_of(path: &Path) -> Vec<PathBuf> {
    let folder = std::fs::read_dir(path.parent().unwrap()).unwrap();
    let paths = folder.map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> =
        paths.filter(|path| path.to_string_lossy().contains("-index-")).collect();
    files.sort();
    files
}

/// Changes the files of a closed store. Returns the name of the change.
fn disturb(rng: &mut StdRng, path: &Path, kept: &mut Vec<(PathBuf, Vec<u8>)>) -> &'static str {
    let files = files_of(path);
    let Some(file) = files.choose(rng) else { return "there is no file" };
    let bytes = std::fs::read(file).unwrap();
    match rng.random_range(0..8) {
        0 => {
            std::fs::remove_file(file).unwrap();
            "a file was removed"
        }
        1 => {
            let mut bytes = bytes;
            let place = rng.random_range(0..bytes.len());
            bytes[place] ^= 1 << rng.random_range(0..8);
            std::fs::write(file, bytes).unwrap();
            "a bit was turned"
        }
        2 => {
            std::fs::write(file, &bytes[..rng.random_range(0..bytes.len())]).unwrap();
            "a file was cut"
        }
        3 => {
            // Files of a killed process, and of an earlier mark.
            std::fs::write(format!("{}.partial", file.display()), &bytes).unwrap();
            kept.iter().for_each(|(path, bytes)| std::fs::write(path, bytes).unwrap());
            "old files came back"
        }
        4 => {
            if let Some((_, old)) = kept.choose(rng) {
                std::fs::write(file, old).unwrap();
            }
            "another file took its place"
        }
        _ => {
            kept.push((file.clone(), bytes));
            "nothing was disturbed"
        }
    }
}

#[test]
fn every_set_equals_a_scan_after_any_writes_stops_and_damage() {
    let (mut starts, mut from_files) = (0, 0);
    for seed in seeds(6) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.sqlite");
        let mut author = Author::new(seed);
        let mut private = PRIVATE[seed as usize % PRIVATE.len()];
        let (mut kept, mut last) = (Vec::new(), "it is new");
        for life in 0..6 {
            let context = format!("seed {seed}, life {life}, before it {last}");
            let least = author.rng.random_range(20..150);
            let index = open_by(&author.clock, &path, private, least);
            if author.rng.random() {
                settled(&index, WriteRule { least: usize::MAX, part: 1, ..WriteRule::OPEN });
                starts += 1;
                from_files += u32::from(is_on_files(&index));
            }
            let mut sessions = Vec::new();
            for _ in 0..author.rng.random_range(0..8) {
                let session = index.snapshot(&[Filter::default()], usize::MAX).unwrap();
                sessions.push((session.to_vec(), session));
                let events = author.events(100);
                index.store().publish(events).unwrap();
                author.clock.advance(author.rng.random_range(0..2));
                if author.rng.random_range(0..4) == 0 {
                    check(&index, &context);
                }
            }
            if author.rng.random() {
                settled(&index, WriteRule { least, part: 16, ..WriteRule::OPEN });
            }
            check(&index, &context);
            for (items, session) in sessions {
                assert!(session.to_vec() == items, "{context}: a session saw a later write");
                session.check().unwrap();
            }
            match author.rng.random_range(0..3) {
                0 => index.close(),
                // Like a crash, except that the store's log is moved.
                _ => drop(index),
            }
            last = disturb(&mut author.rng, &path, &mut kept);
            if author.rng.random_range(0..12) == 0 {
                private = PRIVATE.choose(&mut author.rng).unwrap();
            }
        }
        assert!(files_of(&path).len() < 12, "seed {seed}: {:?}", files_of(&path));
    }
    println!("{from_files} of {starts} starts were from files");
    assert!(from_files > 0);
}

/// Set for the process to be killed: the store that it writes to.
const WRITTEN_STORE: &str = "NEGSYNC_INDEX_STORE";
/// Set for the process to be killed: the seed of its writes.
const WRITTEN_SEED: &str = "NEGSYNC_INDEX_STREAM";

/// The work of the process to be killed.
fn write_until_killed(path: &Path, seed: u64) -> ! {
    let mut author = Author::new(seed);
    let index = open(path, PRIVATE[1], 60);
    loop {
        index.store().publish(author.events(60)).unwrap();
        println!("committed");
    }
}

/// Starts this program again, as a process that runs only this test of the module.
fn start_writer(test: &str, path: &Path, seed: u32) -> Child {
    let (_, module) = module_path!().split_once("::").unwrap();
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", &format!("{module}::{test}")])
        .env(WRITTEN_STORE, path)
        .env(WRITTEN_SEED, seed.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn every_set_equals_a_scan_after_a_kill_at_any_moment() {
    // The process that this test starts and kills runs this test too.
    if let Some(path) = std::env::var_os(WRITTEN_STORE) {
        write_until_killed(Path::new(&path), number(WRITTEN_SEED).unwrap());
    }
    for seed in seeds(3) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.sqlite");
        let mut rng = StdRng::seed_from_u64(seed);
        for life in 0..4 {
            let own_name = "every_set_equals_a_scan_after_a_kill_at_any_moment";
            let mut killed = start_writer(own_name, &path, rng.random());
            let commits = rng.random_range(1..40);
            let lines = BufReader::new(killed.stdout.take().unwrap()).lines();
            let heard = lines.map_while(Result::ok).filter(|line| line.contains("committed"));
            let heard = heard.take(commits).count();
            killed.kill().unwrap();
            killed.wait().unwrap();
            assert_eq!(heard, commits);
            let index = open(&path, PRIVATE[1], usize::MAX);
            settled(&index, WriteRule { least: usize::MAX, part: 1, ..WriteRule::OPEN });
            println!("seed {seed}, life {life}: from files: {}", is_on_files(&index));
            check(&index, &format!("seed {seed}, life {life}"));
        }
    }
}

/// A part of the disk becomes unreadable under an index in use.
#[test]
fn a_file_that_cannot_be_read_any_more_is_made_anew_and_answers_nothing_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.sqlite");
    let mut author = Author::new(3);
    let index = open(&path, &[], 100);
    let events = (0..5_000).map(|_| author.event()).collect();
    index.store().publish(events).unwrap();
    settled(&index, WriteRule { least: 100, part: 16, ..WriteRule::OPEN });
    let session = index.snapshot(&[Filter::default()], usize::MAX).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&files_of(&path)[0]).unwrap();
    file.set_len(0).unwrap();
    let _ = session.to_vec();
    assert!(matches!(index.sets().check(&session), Err(StoreError::IndexLost)));
    // Refused until it is rebuilt, and then complete.
    while index.snapshot(&[Filter::default()], usize::MAX).is_err() {
        std::thread::yield_now();
    }
    check(&index, "made anew");
    settled(&index, WriteRule { least: 100, part: 16, ..WriteRule::OPEN });
    assert!(is_on_files(&index));
    check(&index, "on a file again");
}

#[test]
fn a_clean_stop_writes_a_file_only_where_much_has_changed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.sqlite");
    let mut author = Author::new(4);
    let index = open(&path, &[], usize::MAX);
    index.store().publish((0..200).map(|_| author.event()).collect()).unwrap();
    index.close();
    assert_eq!(files_of(&path).len(), 0);
    let index = open(&path, &[], usize::MAX);
    let events = (0..WriteRule::STOP.least + 8_000).map(|_| author.event()).collect();
    index.store().publish(events).unwrap();
    settled(&index, WriteRule { least: usize::MAX, part: 1, ..WriteRule::OPEN });
    index.close();
    assert_eq!(files_of(&path).len(), 1);
    let index = open(&path, &[], usize::MAX);
    settled(&index, WriteRule { least: usize::MAX, part: 1, ..WriteRule::OPEN });
    assert!(is_on_files(&index));
    check(&index, "after a clean stop");
    index.close();
    assert_eq!(files_of(&path).len(), 1);
}
