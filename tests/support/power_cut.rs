//! The effect of a power cut on a store: `power_cut.c` records a program's writes, and the files
//! are rebuilt as of any point in the record.

use rand::RngExt;
use rand::rngs::StdRng;
use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Page size of the system's file cache.
const PAGE_BYTES: usize = 4_096;
/// A disk writes this many bytes completely or not at all.
const SECTOR_BYTES: usize = 512;
/// `struct header` in power_cut.c.
const HEADER_BYTES: usize = 16;
/// One write in this many makes the system write a page on its own. If it were more often, the
/// pages of a failed flush would be on the disk already.
const WRITES_A_WRITEBACK: u32 = 512;
/// Suffixes of the store's files.
const SUFFIXES: [&str; 3] = ["", "-wal", "-journal"];

/// The flush that fails with EIO.
#[derive(Debug, Clone, Copy)]
pub enum FailingSync {
    /// The flush of the write-ahead log with this number in the process, counted from 1.
    Log(u32),
    /// A flush of the store's file.
    Store(u32),
}

/// Records a command's writes to `store` in `record`.
pub fn record(command: &mut Command, store: &Path, record: &Path, fails: Option<FailingSync>) {
    command.env("LD_PRELOAD", shim()).env("NEGSYNC_RECORD_STORE", store);
    command.env("NEGSYNC_RECORD_TO", record);
    match fails {
        Some(FailingSync::Log(number)) => command.env("NEGSYNC_FAIL_SYNC", format!("log:{number}")),
        Some(FailingSync::Store(number)) => {
            command.env("NEGSYNC_FAIL_SYNC", format!("store:{number}"))
        }
        None => command,
    };
}

/// The library to load, built on first use.
fn shim() -> &'static Path {
    static SHIM: OnceLock<PathBuf> = OnceLock::new();
    SHIM.get_or_init(|| {
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/power_cut.c");
        let name = format!("power_cut-{}.so", std::process::id());
        let built = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let mut compile = Command::new("cc");
        compile.args(["-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-o"]).arg(&built);
        let compiled = compile.args([source, "-ldl", "-lpthread"]).output().unwrap();
        let _ = std::io::stderr().write_all(&compiled.stderr);
        assert!(compiled.status.success(), "tests/support/power_cut.c could not be built");
        built
    })
}

/// One system call of the program.
struct Call<'record> {
    kind: u8,
    file: usize,
    offset: usize,
    bytes: &'record [u8],
}

/// The program's file operations, in order.
pub struct Record(Vec<u8>);

impl Record {
    pub fn read(path: &Path) -> Self {
        Self(std::fs::read(path).unwrap())
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The position of the failed flush, if one failed.
    pub fn failed_at(&self) -> Option<usize> {
        let mut at = 0;
        while let Some((call, next)) = self.call(at) {
            if call.kind == FAILED_SYNC {
                return Some(at);
            }
            at = next;
        }
        None
    }

    /// The call at this position, and the position of the next one; `None` at the end.
    fn call(&self, at: usize) -> Option<(Call<'_>, usize)> {
        let header = self.0.get(at..at + HEADER_BYTES)?;
        let number = |from: usize, to: usize| {
            header[from..to].iter().rev().fold(0, |sum, byte| sum << 8 | usize::from(*byte))
        };
        let begin = at + HEADER_BYTES;
        let end = begin + number(4, 8);
        let (kind, file) = (header[0], usize::from(header[1]) - 1);
        Some((Call { kind, file, offset: number(8, 16), bytes: self.0.get(begin..end)? }, end))
    }
}

const WRITE: u8 = 1;
const TRUNCATE: u8 = 2;
const SYNC: u8 = 3;
const FAILED_SYNC: u8 = 4;
const UNLINK: u8 = 5;

/// A file as the running program sees it, and the part of it that is on the disk.
#[derive(Clone, Default)]
struct CachedFile {
    is_there: bool,
    cache: Vec<u8>,
    disk: Vec<u8>,
    // Pages of the cache that are not on the disk and that the system still has to write.
    dirty: BTreeSet<usize>,
}

impl CachedFile {
    fn apply(&mut self, call: &Call<'_>, rng: &mut StdRng) {
        match call.kind {
            WRITE => self.write(call.offset, call.bytes),
            TRUNCATE => {
                self.is_there = true;
                self.cache.resize(call.offset, 0);
                self.dirty.retain(|page| page * PAGE_BYTES < call.offset);
                self.dirty.insert(call.offset / PAGE_BYTES);
            }
            SYNC => {
                for page in std::mem::take(&mut self.dirty) {
                    self.write_back(page, |_| true);
                }
                self.disk.resize(self.cache.len(), 0);
            }
            // Like Linux: pages that could not be written count as clean from then on.
            FAILED_SYNC => {
                for page in std::mem::take(&mut self.dirty) {
                    if rng.random_range(0..4) == 0 {
                        self.write_back(page, |_| true);
                    }
                }
            }
            UNLINK => *self = Self::default(),
            kind => panic!("a record of kind {kind}"),
        }
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) {
        self.is_there = true;
        let end = offset + bytes.len();
        if self.cache.len() < end {
            self.cache.resize(end, 0);
        }
        self.cache[offset..end].copy_from_slice(bytes);
        self.dirty.extend(offset / PAGE_BYTES..end.div_ceil(PAGE_BYTES));
    }

    /// Writes those sectors of a page to the disk that `takes` chooses.
    fn write_back(&mut self, page: usize, mut takes: impl FnMut(usize) -> bool) {
        for sector in page * PAGE_BYTES / SECTOR_BYTES..(page + 1) * PAGE_BYTES / SECTOR_BYTES {
            let begin = sector * SECTOR_BYTES;
            let end = (begin + SECTOR_BYTES).min(self.cache.len());
            if begin < end && takes(sector) {
                if self.disk.len() < end {
                    self.disk.resize(end, 0);
                }
                self.disk[begin..end].copy_from_slice(&self.cache[begin..end]);
            }
        }
    }

    /// The remains after a power cut: everything flushed, and a random part of the rest.
    fn cut(&self, rng: &mut StdRng) -> Vec<u8> {
        let mut left = self.clone();
        for page in std::mem::take(&mut left.dirty) {
            left.write_back(page, |_| rng.random());
        }
        if rng.random() {
            left.disk.resize(self.cache.len(), 0);
        }
        left.disk
    }
}

/// A store's files at a point in the record.
pub struct Replay<'record> {
    record: &'record Record,
    at: usize,
    files: [CachedFile; SUFFIXES.len()],
    rng: StdRng,
}

impl<'record> Replay<'record> {
    /// Starts at the beginning of the record, when only the store's file existed, durably.
    pub fn new(record: &'record Record, store: Option<&Path>, rng: StdRng) -> Self {
        let mut files: [CachedFile; SUFFIXES.len()] = Default::default();
        if let Some(store) = store {
            let bytes = std::fs::read(store).unwrap();
            files[0].is_there = true;
            (files[0].cache, files[0].disk) = (bytes.clone(), bytes);
        }
        Self { record, at: 0, files, rng }
    }

    /// Continues to the last call that is complete at this position of the record.
    pub fn go_to(&mut self, place: usize) {
        while let Some((call, next)) = self.record.call(self.at).filter(|(_, next)| *next <= place)
        {
            self.files[call.file].apply(&call, &mut self.rng);
            if call.kind == WRITE && self.rng.random_range(0..WRITES_A_WRITEBACK) == 0 {
                self.write_some_page_back();
            }
            self.at = next;
        }
    }

    fn write_some_page_back(&mut self) {
        let file = &mut self.files[self.rng.random_range(0..SUFFIXES.len())];
        let pages = file.dirty.len();
        if pages > 0 {
            let chosen = self.rng.random_range(0..pages);
            let page = *file.dirty.iter().nth(chosen).unwrap();
            file.dirty.remove(&page);
            file.write_back(page, |_| true);
        }
    }

    /// Writes the files as a power cut at this point would leave them.
    pub fn cut(&mut self, store: &Path) {
        for (file, suffix) in self.files.iter().zip(SUFFIXES) {
            let mut name = store.to_owned().into_os_string();
            name.push(suffix);
            if file.is_there {
                std::fs::write(name, file.cut(&mut self.rng)).unwrap();
            }
        }
    }
}
