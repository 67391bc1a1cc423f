//! After any writes, every set of the index equals a new scan of the store.

use negsync_index::{Catalog, Index, SetCacheSize};
use negsync_reconcile::Item;
use negsync_reconcile::RangeSet;
use negsync_store::{
    Clock, Deadline, Event, EventSource, Filter, ManualClock, PrivateKinds, SourceSnapshot,
    StoreError, StoreOptions, Synchronous, VerifiedEvent, Viewer, Work,
};
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use std::collections::BTreeSet;
use std::ops::{ControlFlow, Range};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Enough for the sets of broad filters to be costly, and so kept.
const FIRST_EVENTS: usize = 12_000;
const AUTHORS: u64 = 12;

/// Filters whose sets are kept, are too small to be kept, or are slices of kept ones.
const FILTERS: [&str; 10] = [
    "{}",
    r#"{"kinds":[1]}"#,
    r#"{"kinds":[1,7]}"#,
    r#"{"kinds":[0,30000]}"#,
    r##"{"#t":["a"]}"##,
    r##"{"#t":["a","b"],"kinds":[1,7]}"##,
    r#"{"authors":["0000000000000000000000000000000000000000000000000000000000000003"]}"#,
    r#"{"kinds":[1],"since":400,"until":900}"#,
    r#"{"since":10,"limit":7000}"#,
    r#"{"kinds":[7],"limit":3}"#,
];

/// The start of the tests.
const NOW: u64 = 1_700_000_000;

struct Writer {
    rng: StdRng,
    clock: ManualClock,
    // Ids from which deletions choose.
    known: Vec<(u64, String)>,
}

impl Writer {
    fn new(seed: u64) -> Self {
        let (rng, clock) = (StdRng::seed_from_u64(seed), ManualClock::at(NOW));
        Self { rng, clock, known: Vec::new() }
    }

    fn event(&mut self) -> VerifiedEvent {
        let author = self.rng.random_range(0..AUTHORS);
        let created_at = self.rng.random_range(0..1_000);
        let tag = ["a", "b", "c"][self.rng.random_range(0..3)];
        match self.rng.random_range(0..100) {
            0..60 => self.make(author, created_at, 1, format!(r#"[["t","{tag}"]]"#)),
            60..85 => self.make(author, created_at, 7, format!(r#"[["t","{tag}"],["t","a"]]"#)),
            85..88 => self.make(author, created_at, 0, "[]".into()),
            88..92 => self.make(author, created_at, 30_000, format!(r#"[["d","{tag}"]]"#)),
            92..95 => {
                let due = self.clock.now() + self.rng.random_range(0..4);
                self.make(author, created_at, 1, format!(r#"[["expiration","{due}"]]"#))
            }
            _ => match self.known.get(self.rng.random_range(0..self.known.len().max(1))).cloned() {
                Some((author, id)) => {
                    self.make(author, created_at, 5, format!(r#"[["e","{id}"]]"#))
                }
                None => self.make(author, created_at, 1, "[]".into()),
            },
        }
    }

    /// Signatures are not tested here: the event counts as verified.
    fn make(&mut self, author: u64, created_at: u64, kind: u16, tags: String) -> VerifiedEvent {
        let mut id = [0; 32];
        self.rng.fill_bytes(&mut id);
        let id: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
        let event = format!(
            r#"{{"id":"{id}","pubkey":"{author:064x}","created_at":{created_at},"kind":{kind},"tags":{tags},"content":"","sig":"{}"}}"#,
            "0".repeat(128)
        );
        self.known.push((author, id));
        Event::parse(&event).unwrap().trust()
    }
}

fn open(path: &Path, size: impl Into<SetCacheSize>) -> Index {
    open_with(path, size, &[], &ManualClock::at(NOW))
}

fn open_with(
    path: &Path,
    size: impl Into<SetCacheSize>,
    private_kinds: &[u16],
    clock: &ManualClock,
) -> Index {
    let private_kinds = PrivateKinds::new(private_kinds.iter().copied());
    let options = StoreOptions::default()
        .synchronous(Synchronous::Normal)
        .readers(4)
        .private_kinds(private_kinds)
        .clock(Clock::from(clock));
    Index::open(path, options, size).unwrap()
}

/// The set of the index.
fn given(index: &Index, filter: &Filter) -> Vec<Item> {
    let set = index.snapshot(std::slice::from_ref(filter), usize::MAX).unwrap();
    let mut items = Vec::new();
    set.for_each(0..set.len(), &mut |item| items.push(item));
    items
}

/// The set of the store, by a scan with NIP-01's `limit`.
fn scanned(index: &Index, filter: &Filter) -> Vec<Item> {
    let mut items = BTreeSet::new();
    index
        .store()
        .items(std::slice::from_ref(filter), &mut |_, item| {
            items.insert(item);
            ControlFlow::Continue(())
        })
        .unwrap();
    let mut items: Vec<Item> = items.into_iter().collect();
    items.sort_by_key(|item| (std::cmp::Reverse(item.created_at), item.id));
    items.truncate(filter.limit.unwrap_or(usize::MAX));
    items.sort();
    items
}

fn check(index: &Index, filter: &Filter, seed: u64) {
    let set = given(index, filter);
    assert!(
        set == scanned(index, filter),
        "seed {seed}: the set of {filter:?} is not that of a scan"
    );
}

#[test]
fn every_set_equals_a_fresh_scan_after_any_writes() {
    for seed in 0..8 {
        let dir = tempfile::tempdir().unwrap();
        // There is room for all kept sets, for one or two, for the small ones and one or two in
        // files, or for the small ones alone.
        let little = SetCacheSize::memory(200_000);
        let sizes = [(64 << 20).into(), 500_000.into(), little.files(700_000), little];
        let size = sizes[(seed as usize + seed as usize / 4) % 4];
        // The operator sees the same, whichever kinds are private.
        let private_kinds: [&[u16]; 4] = [&[], &[7], &[1], &[7, 9, 30_000]];
        let path = dir.path().join("store.sqlite");
        let mut writer = Writer::new(seed);
        let index = open_with(&path, size, private_kinds[seed as usize % 4], &writer.clock);
        let filters = FILTERS.map(|text| Filter::parse(text).unwrap());
        let first = (0..FIRST_EVENTS).map(|_| writer.event()).collect();
        index.store().publish(first).unwrap();
        for _ in 0..60 {
            let events = writer.rng.random_range(0..200);
            index.store().publish((0..events).map(|_| writer.event()).collect()).unwrap();
            writer.clock.advance(writer.rng.random_range(0..2));
            let filter = &filters[writer.rng.random_range(0..filters.len())];
            check(&index, filter, seed);
        }
        for filter in &filters {
            check(&index, filter, seed);
        }
    }
}

#[test]
fn sets_that_are_built_while_events_are_written_are_whole() {
    let seed = 77;
    for size in [SetCacheSize::memory(64 << 20), SetCacheSize::memory(200_000).files(1 << 20)] {
        let dir = tempfile::tempdir().unwrap();
        let index = open(&dir.path().join("store.sqlite"), size);
        let mut writer = Writer::new(seed);
        let first = (0..FIRST_EVENTS).map(|_| writer.event()).collect();
        index.store().publish(first).unwrap();
        let filters = FILTERS.map(|text| Filter::parse(text).unwrap());
        std::thread::scope(|scope| {
            for filter in &filters {
                for _ in 0..2 {
                    scope.spawn(|| given(&index, filter));
                }
            }
            for _ in 0..40 {
                index.store().publish((0..50).map(|_| writer.event()).collect()).unwrap();
            }
        });
        filters.iter().for_each(|filter| check(&index, filter, seed));
    }
}

/// Each session over such a set scanned for it, and held it in memory.
#[test]
fn a_set_that_is_too_large_for_memory_is_built_once_and_kept_in_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let size = SetCacheSize::memory(200_000).files(500_000);
    let index = open(&dir.path().join("store.sqlite"), size);
    let mut writer = Writer::new(8);
    let event = |at: u64| match at % 2 {
        0 => writer.make(1, at / 2, 1, "[]".into()),
        _ => writer.make(2, at / 2, 7, "[]".into()),
    };
    let events = (0..18_000).map(event).collect();
    index.store().publish(events).unwrap();
    let snapshot = |text| index.snapshot(&[Filter::parse(text).unwrap()], usize::MAX).unwrap();
    let builds = || index.sets().metrics().build_s.count();
    assert_eq!(snapshot("{}").len(), 18_000);
    let before = builds();

    let held = snapshot(r#"{"kinds":[1]}"#);
    assert_eq!(held.len(), 9_000);
    assert_eq!(snapshot(r#"{"kinds":[1],"since":3000}"#).len(), 6_000);
    index.store().publish(vec![writer.make(3, 10_000, 1, "[]".into())]).unwrap();
    assert_eq!(snapshot(r#"{"kinds":[1]}"#).len(), 9_001);
    assert_eq!(builds(), before + 1);
    let now = index.sets().statistics();
    assert_eq!((now.kept_sets, now.kept_file_bytes), (1, 9_000 * 41));
    assert_eq!(index.sets().session_bytes(), 0);

    // A session holds the room of the file, so that there is none for a second one.
    assert_eq!(snapshot(r#"{"kinds":[7,8]}"#).len(), 9_000);
    let now = index.sets().statistics();
    assert_eq!((now.kept_sets, now.kept_file_bytes), (1, 9_000 * 41));
    assert_eq!(held.len(), 9_000);
    drop(held);
    assert_eq!(snapshot(r#"{"kinds":[7]}"#).len(), 9_000);
    let kept =
        |text| index.sets().kept_for(&Viewer::default(), &[Filter::parse(text).unwrap()], 9_999);
    assert!(kept(r#"{"kinds":[7]}"#).unwrap().is_some());
    assert!(kept(r#"{"kinds":[1]}"#).unwrap().is_none());
    // Files have no names.
    let names = std::fs::read_dir(dir.path()).unwrap().map(|it| it.unwrap().file_name());
    assert!(names.into_iter().all(|name| name.to_string_lossy().starts_with("store.sqlite")));
}

#[test]
fn a_set_that_is_acknowledged_is_in_the_next_snapshot_even_before_the_index_is_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.sqlite");
    let mut writer = Writer::new(5);
    for _ in 0..5 {
        let index = open(&path, 0);
        let event = writer.make(1, 5, 1, "[]".into());
        let item = event.item();
        index.store().publish(vec![event]).unwrap();
        assert!(given(&index, &Filter::default()).contains(&item));
        index.store().close();
    }
}

/// Items on a disk that may fail to be read, one a second, which match every filter.
#[derive(Clone)]
struct Disk {
    fails: bool,
    seconds: Range<u64>,
    // The number of items that scans have visited.
    visited: Arc<AtomicUsize>,
    deadline: Deadline,
    clock: Clock,
}

impl Disk {
    fn of(seconds: Range<u64>, clock: Clock) -> Self {
        let (visited, deadline) = (Arc::default(), Deadline::default());
        Self { fails: false, seconds, visited, deadline, clock }
    }
}

/// A disk with three items.
fn disk(fails: bool) -> Disk {
    Disk { fails, ..Disk::of(1..4, Clock::system()) }
}

impl EventSource for Disk {
    fn with_deadline(&self, deadline: Deadline) -> Arc<dyn EventSource> {
        Arc::new(Self { deadline, ..self.clone() })
    }

    fn deadline(&self) -> &Deadline {
        &self.deadline
    }

    fn clock(&self) -> &Clock {
        &self.clock
    }

    fn catch_up(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn read_snapshot(&self, work: &mut Work<'_>) -> Result<(), StoreError> {
        work(self)
    }

    fn read_at_commit(
        &self,
        beside: &mut dyn FnMut(),
        work: &mut Work<'_>,
    ) -> Result<(), StoreError> {
        beside();
        work(self)
    }

    fn events(&self, _: &[[u8; 32]], _: &mut dyn FnMut(&Item, &str)) -> Result<(), StoreError> {
        Ok(())
    }
}

impl SourceSnapshot for Disk {
    fn items(
        &self,
        filter: &Filter,
        visit: &mut dyn FnMut(Item) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        if self.fails {
            return Err(StoreError::NotWritten("a bad sector".into()));
        }
        let first = filter.since.unwrap_or(0).max(self.seconds.start);
        let _ = (first..self.seconds.end).try_for_each(|at| {
            self.visited.fetch_add(1, Ordering::Relaxed);
            visit(Item::new(at, [at as u8; 32]))
        });
        Ok(())
    }
}

#[test]
fn an_index_that_could_not_be_loaded_is_whole_once_the_disk_can_be_read_again() {
    let catalog = Catalog::new(0, &PrivateKinds::default());
    let all = [Filter::default()];
    assert!(catalog.load(&disk(true)).is_err());
    assert!(catalog.snapshot(&disk(true), &all, 10).is_err());
    assert!(!catalog.statistics().is_loaded);
    assert_eq!(catalog.snapshot(&disk(false), &all, 10).unwrap().len(), 3);
    // Cached: the disk is not read again.
    assert!(catalog.statistics().is_loaded && catalog.contains(&Item::new(2, [2; 32])));
    assert_eq!(catalog.snapshot(&disk(true), &all, 10).unwrap().len(), 3);
}

/// A session over a part of such a set scanned for the whole set each time.
#[test]
fn a_set_that_cannot_be_kept_is_scanned_for_once_in_ten_minutes() {
    let clock = ManualClock::at(NOW);
    let source = Disk::of(0..20_000, Clock::from(&clock));
    let visited = || source.visited.load(Ordering::Relaxed);
    let catalog = Catalog::new(200_000, &PrivateKinds::default());
    catalog.load(&source).unwrap();
    let filter = Filter::parse(r#"{"kinds":[1],"since":12000}"#).unwrap();
    let cost = || {
        let before = visited();
        let set = catalog.snapshot(&source, std::slice::from_ref(&filter), 10_000).unwrap();
        assert_eq!(set.len(), 8_000);
        visited() - before
    };
    let first = cost();
    // More than the 5,000 of a cheap set, and then the set itself.
    assert_eq!(cost(), 5_001 + 8_000);
    clock.advance(599);
    assert_eq!(cost(), 5_001 + 8_000);
    clock.advance(1);
    assert_eq!(cost(), first);
    assert!(first > 5_001 + 8_000);
}
