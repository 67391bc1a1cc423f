//! Power cuts at random times of publishing, with and without a disk that fails once, with the real
//! binary: acknowledged events are in the remaining files, and these are sound.

use super::kills::number;
use crate::support::power_cut::{FailingSync, Record, Replay, record};
use crate::support::process::{RelayProcess, negsync};
use crate::support::{Author, Client, events, id_of};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rusqlite::Connection;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

/// Power cuts in one run of the relay.
const CUTS_A_RUN: usize = 10;
const CLIENTS: usize = 2;
/// Events that each client publishes, and the number of them in flight.
const EVENTS: usize = 150;
const GROUP: usize = 5;
/// Events that the log holds before it is moved for the first time.
const BEFORE_READER: usize = 15;
/// Pause before an event is published again after a failure of the disk.
const TRY_AGAIN: Duration = Duration::from_millis(20);
const TRIES: usize = 200;
/// More than a pipe can hold: `export` blocks in the middle.
const FEW_EVENTS: usize = 400;

/// The faults of a relay while clients publish.
#[derive(Clone, Copy)]
struct Mode {
    name: &'static str,
    /// Initial number of events in the store.
    begins_with: usize,
    fails: Option<Failure>,
}

/// The flush that fails, and the following steps.
#[derive(Clone, Copy, PartialEq)]
enum Failure {
    /// The log's; the clients continue to publish.
    Log,
    /// The log's; a reader begins, and keeps the log from being restarted.
    LogThenReader,
    /// The log's; the relay is killed and started again.
    LogThenKill,
    /// The log's; the relay is stopped and started again.
    LogThenStop,
    /// The store file's, after a reader that kept a part of the log from being moved.
    StoreAfterReader,
}

impl Mode {
    const fn of(name: &'static str, begins_with: usize, fails: Option<Failure>) -> Self {
        Self { name, begins_with, fails }
    }

    fn failing_sync(self, rng: &mut StdRng) -> Option<FailingSync> {
        Some(match self.fails? {
            Failure::StoreAfterReader => FailingSync::Store(1),
            _ => FailingSync::Log(rng.random_range(4..12)),
        })
    }
}

/// Acknowledged events, each with the length of the record at that time.
type Acknowledged = Vec<(usize, String)>;

/// A relay whose writes are recorded, and the observations of its clients.
struct Stage {
    mode: Mode,
    folder: tempfile::TempDir,
    acknowledged: Mutex<Acknowledged>,
    /// The first client performs the steps after the failure.
    failed: tokio::sync::Mutex<bool>,
    reader: Mutex<Option<IdleExport>>,
}

impl Stage {
    fn new(mode: Mode, prepared: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        // Through a path without links, as the program sees it.
        std::fs::copy(prepared, folder.path().join("events.sqlite")).unwrap();
        let (acknowledged, failed) = (Mutex::default(), tokio::sync::Mutex::new(false));
        Self { mode, folder, acknowledged, failed, reader: Mutex::default() }
    }

    fn store(&self) -> PathBuf {
        self.folder.path().canonicalize().unwrap().join("events.sqlite")
    }

    fn record(&self) -> PathBuf {
        self.folder.path().join("record")
    }

    fn record_bytes(&self) -> usize {
        self.record().metadata().map_or(0, |record| record.len() as usize)
    }

    fn start(&self, fails: Option<FailingSync>) -> RelayProcess {
        let config = self.folder.path().join("relay.toml");
        std::fs::write(&config, "[store]\nwal_mb = 1\n[rates]\nevents_per_s = 0\n").unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_negsync"));
        record(&mut command, &self.store(), &self.record(), fails);
        RelayProcess::start_by(command, &self.store(), &["--config", config.to_str().unwrap()])
    }

    /// Publishes, and repeats events answered with an error, until all are acknowledged or the
    /// expected error occurs.
    async fn publish(&self, client: &mut Client, events: &[Value]) {
        for group in events.chunks(GROUP) {
            let mut left = group.to_vec();
            for tries in 0.. {
                let outcomes = client.publish_all(&left).await;
                let at = self.record_bytes();
                let (taken, refused): (Vec<_>, Vec<_>) =
                    left.into_iter().partition(|event| outcomes[id_of(event)].0);
                let taken = taken.iter().map(|event| (at, id_of(event).to_owned()));
                self.acknowledged.lock().unwrap().extend(taken);
                left = refused;
                let Some(refused) = left.first() else { break };
                let text = &outcomes[id_of(refused)].1;
                assert!(text.starts_with("error: "), "{text}");
                assert!(tries < TRIES, "still after {tries} tries: {text}");
                if self.see_to_failure().await {
                    return;
                }
                tokio::time::sleep(TRY_AGAIN).await;
            }
        }
    }

    /// Returns whether the clients should stop publishing.
    async fn see_to_failure(&self) -> bool {
        let mut failed = self.failed.lock().await;
        let is_first = !std::mem::replace(&mut *failed, true);
        if is_first && self.mode.fails == Some(Failure::LogThenReader) {
            *self.reader.lock().unwrap() = Some(IdleExport::begin(&self.store()));
        }
        matches!(self.mode.fails, Some(Failure::LogThenKill | Failure::LogThenStop))
    }

    async fn publish_from_all(
        &self,
        relay: &RelayProcess,
        rng: &mut StdRng,
        round: u64,
        each: usize,
    ) {
        let mut sides = Vec::new();
        for number in 0..CLIENTS {
            let author = Author::new(number as u8 + 1);
            let note = |n: usize| {
                let at = events::EPOCH + round * 10_000 + n as u64;
                let bytes = rng.random_range(0..2_000);
                author.event(1, at, json!([["t", "power"]]), &"x".repeat(bytes))
            };
            sides.push((relay.client().await, (0..each).map(note).collect::<Vec<_>>()));
        }
        let [(one, ones), (two, twos)] = sides.as_mut_slice() else { unreachable!() };
        tokio::join!(self.publish(one, ones), self.publish(two, twos));
    }

    /// Runs the relay to its end.
    async fn run(&self, rng: &mut StdRng) {
        let relay = self.start(self.mode.failing_sync(rng));
        if self.mode.fails == Some(Failure::StoreAfterReader) {
            self.publish_from_all(&relay, rng, 0, BEFORE_READER).await;
            *self.reader.lock().unwrap() = Some(IdleExport::begin(&self.store()));
            self.publish_from_all(&relay, rng, 1, EVENTS).await;
            // The reader ends: the rest of the log can be moved, and the flush after that fails.
            drop(self.reader.lock().unwrap().take());
            self.publish_from_all(&relay, rng, 2, EVENTS).await;
        }
        self.publish_from_all(&relay, rng, 3, EVENTS).await;
        let again = match self.mode.fails {
            Some(Failure::LogThenKill) => "KILL",
            Some(Failure::LogThenStop) => "TERM",
            _ => return,
        };
        relay.signal(again);
        relay.ended();
        let relay = self.start(None);
        self.publish_from_all(&relay, rng, 4, EVENTS).await;
    }

    /// Cuts the power at random points of the record, half of them after the failure, if there was
    /// one. Returns the failed cuts.
    fn cut(&self, prepared: &Path, cuts: usize, rng: &mut StdRng) -> Vec<String> {
        let record = Record::read(&self.record());
        assert_eq!(record.failed_at().is_some(), self.mode.fails.is_some(), "{}", self.mode.name);
        let interesting = record.failed_at().unwrap_or(0);
        let mut places: Vec<usize> = (0..cuts)
            .map(|cut| rng.random_range(if cut % 2 == 0 { 0 } else { interesting }..record.len()))
            .collect();
        places.sort_unstable();
        let acknowledged = self.acknowledged.lock().unwrap();
        let mut replay = Replay::new(&record, Some(prepared), StdRng::seed_from_u64(rng.random()));
        let wrong = |place: usize| {
            replay.go_to(place);
            let folder = tempfile::tempdir().unwrap();
            let store = folder.path().join("events.sqlite");
            replay.cut(&store);
            let must_be_there = acknowledged.iter().filter(|(at, _)| *at <= place);
            let found = what_is_wrong(&store, must_be_there.map(|(_, id)| id.as_str()))?;
            Some(format!("cut at {place} of {}: {found}", record.len()))
        };
        places.into_iter().filter_map(wrong).collect()
    }
}

/// `negsync export` without a reader: a read transaction that does not end.
struct IdleExport(Child);

impl IdleExport {
    fn begin(store: &Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_negsync"));
        command.args(["export", "--store"]).arg(store).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut first = String::new();
        let mut out = BufReader::with_capacity(1, child.stdout.take().unwrap());
        out.read_line(&mut first).unwrap();
        assert!(first.starts_with('{'), "{first:?}");
        child.stdout = Some(out.into_inner());
        Self(child)
    }
}

impl Drop for IdleExport {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn what_is_wrong<'a>(store: &Path, mut must: impl Iterator<Item = &'a str>) -> Option<String> {
    let connection = Connection::open(store).unwrap();
    let check = |connection: &Connection| -> rusqlite::Result<(String, BTreeSet<String>)> {
        let verdict = connection.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
        let mut select = connection.prepare("SELECT lower(hex(id)) FROM event NOT INDEXED")?;
        let ids = select.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
        Ok((verdict, ids))
    };
    let (verdict, ids) = match check(&connection) {
        Ok(checked) => checked,
        Err(error) => return Some(error.to_string()),
    };
    if verdict != "ok" {
        return Some(verdict);
    }
    drop(connection);
    let checked = negsync(&["check", "--store", store.to_str().unwrap()], "");
    if !checked.status.success() {
        let last: String = checked.stdout.lines().rev().take(3).collect();
        return Some(format!("check: {last}{}", checked.stderr));
    }
    let must: Vec<&str> = must.by_ref().collect();
    let lost = must.iter().filter(|id| !ids.contains(**id)).count();
    (lost > 0).then(|| format!("{lost} of {} acknowledged events are lost", must.len()))
}

/// A store with `count` events, closed in order.
fn prepare(folder: &Path, count: usize) -> PathBuf {
    let (file, store) = (folder.join(format!("{count}.jsonl")), folder.join(count.to_string()));
    let author = Author::new(9);
    let note = |n: usize| {
        let tags = json!([["t", (n % 1_000).to_string()]]);
        let event = author.event(1, events::EPOCH - 1 - n as u64, tags, &"x".repeat(200));
        format!("{event}\n")
    };
    std::fs::write(&file, (0..count).map(note).collect::<String>()).unwrap();
    let mut import = Command::new(env!("CARGO_BIN_EXE_negsync"));
    import.args(["import", "--no-verify", "--store"]).arg(&store).arg(&file);
    assert!(import.output().unwrap().status.success());
    store
}

async fn hold(modes: &[Mode], cuts: usize) {
    let folder = tempfile::tempdir().unwrap();
    let mut all_wrong = Vec::new();
    for mode in modes {
        let prepared = prepare(folder.path(), mode.begins_with);
        let (mut acknowledged, mut wrong) = (0, Vec::new());
        for seed in 0..cuts.div_ceil(CUTS_A_RUN) as u64 {
            let mut rng = StdRng::seed_from_u64(seed);
            let stage = Stage::new(*mode, &prepared);
            stage.run(&mut rng).await;
            acknowledged += stage.acknowledged.lock().unwrap().len();
            let cuts = CUTS_A_RUN.min(cuts - seed as usize * CUTS_A_RUN);
            let found = stage.cut(&prepared, cuts, &mut rng);
            wrong.extend(found.into_iter().map(|it| format!("{}, seed {seed}, {it}", mode.name)));
        }
        println!(
            "{}, {} events at first: {cuts} power cuts, {acknowledged} events acknowledged, \
             {} cuts with something lost or damaged",
            mode.name,
            mode.begins_with,
            wrong.len()
        );
        all_wrong.append(&mut wrong);
    }
    assert!(all_wrong.is_empty(), "{}", all_wrong.join("\n"));
}

/// `NEGSYNC_POWER_CUTS` sets the number of cuts for each; scripts/power-cut runs sixty.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_power_cuts() {
    const MODES: [Mode; 6] = [
        Mode::of("no fault", FEW_EVENTS, None),
        Mode::of("a flush fails", FEW_EVENTS, Some(Failure::Log)),
        Mode::of("a flush fails, then a reader", FEW_EVENTS, Some(Failure::LogThenReader)),
        Mode::of("a flush fails, then kill -9", FEW_EVENTS, Some(Failure::LogThenKill)),
        Mode::of("a flush fails, then SIGTERM", FEW_EVENTS, Some(Failure::LogThenStop)),
        Mode::of("the store's own flush fails", FEW_EVENTS, Some(Failure::StoreAfterReader)),
    ];
    hold(&MODES, number("NEGSYNC_POWER_CUTS", 4)).await;
}

/// The same on a store of `NEGSYNC_EVENTS` events.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_power_cuts_over_a_large_store() {
    let events = number("NEGSYNC_EVENTS", 3_000);
    let modes = [
        Mode::of("no fault", events, None),
        Mode::of("a flush fails", events, Some(Failure::Log)),
        Mode::of("a flush fails, then a reader", events, Some(Failure::LogThenReader)),
        Mode::of("the store's own flush fails", events, Some(Failure::StoreAfterReader)),
    ];
    hold(&modes, number("NEGSYNC_POWER_CUTS", 2)).await;
}
