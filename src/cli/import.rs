//! `negsync import`

use super::bad_lines::BadLines;
use super::chunks::{CHUNK_BYTES, Chunk, Chunks};
use super::hand_over::HandOver;
use super::import_input::{ImportInput, event_of, files};
use super::{StoreArguments, batch_bytes, memory, progress_bar};
use anyhow::Context;
use indicatif::{HumanCount, ProgressBar};
use negsync::admission::{Admission, RefusalReason, Source};
use negsync::engine::open_index;
use negsync::index::{Index, SetCacheSize};
use negsync::store::{Batches, Origin, Outcome, VerifiedEvent, Verifier};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, sync_channel};

/// Maximum length of a line; a longer one cannot be an event.
const LINE_BYTES: usize = 16 << 20;
/// Maximum number of chunks being verified, and their share of the memory, as one part in this
/// many. A parsed event takes up to three times its JSON.
const CHUNKS_IN_FLIGHT: usize = 16;
const CHUNKS_PARTS: u64 = 32;

pub(super) const EXAMPLES: &str = "Examples:
  negsync import events.jsonl.zst --store events.sqlite
  negsync import /backup/exports --config /etc/negsync/relay.toml --errors refused.txt
  strfry export | negsync import --store events.sqlite
  negsync import events.jsonl --into ws://127.0.0.1:7777 --json   (beside a running relay)";

#[derive(clap::Args)]
pub(super) struct ImportArguments {
    /// The file to read, or the directory whose files are; without it, or with `-`, standard input. One
    /// event a line, alone (as strfry writes them, fried or not) or as ["EVENT", event] or
    /// ["EVENT", id, event]; plain or packed by gzip or zstd.
    file: Option<PathBuf>,
    #[command(flatten)]
    store: StoreArguments,
    /// Hand the events to the relay that runs at ws://HOST:PORT, over its socket, and not to a store:
    /// those that it lacks are sent, by its own rules.
    #[arg(long, value_name = "URL", conflicts_with = "store")]
    into: Option<String>,
    /// Do not check ids and signatures: for events that were checked before.
    #[arg(long)]
    no_verify: bool,
    /// Where lines go that are no events and are not shown, those behind the first 20; by default the
    /// store's name with .import-errors at its end.
    #[arg(long, value_name = "FILE")]
    errors: Option<PathBuf>,
    /// Print one JSON object instead of a line.
    #[arg(long)]
    json: bool,
}

/// The results of the lines.
struct ImportTally {
    stored: u64,
    duplicate: u64,
    superseded: u64,
    deleted: u64,
    by_operator: u64,
    banned: u64,
    retired: u64,
    over_limits: u64,
    expired: u64,
    ephemeral: u64,
    bad_lines: BadLines,
    failed: u64,
    // The number of lines read.
    seen: u64,
}

/// The contents of a chunk's lines.
struct CheckedLines {
    events: Vec<VerifiedEvent>,
    duplicates: u64,
    banned: u64,
    // Line number and error.
    bad_lines: Vec<(u64, String)>,
    bytes: u64,
}

pub(super) fn run(arguments: &ImportArguments) -> anyhow::Result<ExitCode> {
    let mut config = arguments.store.config()?;
    let errors =
        arguments.errors.clone().unwrap_or_else(|| config.store.file_beside(".import-errors"));
    let hand_over = arguments.into.as_deref().map(HandOver::to).transpose()?;
    if let Some(hand_over) = &hand_over {
        hand_over.apply(&mut config);
    }
    let files = files(arguments.file.as_deref())?;
    let mut first = Some(ImportInput::open(files.first().and_then(|file| file.as_deref()))?);
    let batch_bytes = batch_bytes();
    let batches = Batches::Long { bytes: batch_bytes };
    let options = config.store_options().batches(batches);
    let index = open_index(&config, options, SetCacheSize::memory(0))?;
    let admission = Admission::start(config)?;
    let verifier = Verifier::start()?;
    let mut commits = ImportCommits::of(&index, batch_bytes);
    let mut tally = ImportTally::new(errors);
    let mut is_array = false;
    for file in &files {
        let opened = first.take().map_or_else(|| ImportInput::open(file.as_deref()), Ok);
        let ImportInput { lines: mut input, length } = opened?;
        is_array |= input.fill_buf().context("cannot read the input")?.starts_with(b"[");
        // The name is left out if there is a single file.
        tally.bad_lines.begin(file.as_deref().filter(|_| files.len() > 1));
        let progress = bar(length);
        let reading = ImportReading {
            input: &mut *input,
            trusted: arguments.no_verify,
            admission: &admission,
            verifier: &verifier,
            progress: &progress,
        };
        reading.run(&mut commits, &mut tally)?;
        progress.finish_and_clear();
    }
    commits.finish(&mut tally)?;
    if let Some(summary) = tally.bad_lines.summary() {
        say(&summary);
    }
    let text = if arguments.json { tally.object().to_string() } else { tally.to_string() };
    let _ = writeln!(std::io::stdout(), "{text}");
    let is_handed_over = match hand_over {
        Some(hand_over) => hand_over.send(index, &admission)?,
        None => {
            index.close();
            true
        }
    };
    let invalid = tally.bad_lines.count();
    let is_something_else = invalid > 0 && invalid == tally.lines();
    if is_something_else {
        let array = "; make lines of the array: jq -c '.[]' FILE | negsync import";
        say(&format!("negsync: no line is an event{}", if is_array { array } else { "" }));
    }
    let failed = tally.failed > 0 || is_something_else || !is_handed_over;
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// One input of an import.
struct ImportReading<'import> {
    input: &'import mut dyn BufRead,
    trusted: bool,
    admission: &'import Admission,
    verifier: &'import Verifier,
    progress: &'import ProgressBar,
}

impl ImportReading<'_> {
    /// Reads chunks ahead, verifies them on all cores, and stores their events in the largest
    /// commits that the memory allows: the larger a commit, the fewer times each page of an index
    /// is written.
    fn run(self, commits: &mut ImportCommits<'_>, tally: &mut ImportTally) -> anyhow::Result<()> {
        let Self { input, trusted, admission, verifier, progress } = self;
        let share = memory().share(CHUNKS_PARTS, CHUNKS_IN_FLIGHT * CHUNK_BYTES);
        let most_in_flight = (share / CHUNK_BYTES).max(2);
        let (check, checked) = sync_channel(most_in_flight);
        let mut in_flight = 0;
        let mut chunks = Chunks::new(input, LINE_BYTES);
        loop {
            let chunk = chunks.next()?;
            let at_end = chunk.is_none();
            if let Some(chunk) = chunk {
                let (admission, index) = (admission.clone(), commits.index.clone());
                let check = check.clone();
                // Fails only if the import has given up.
                let bytes = chunk.bytes as usize;
                let job =
                    move || drop(check.send(check_chunk(&chunk, trusted, &admission, &index)));
                verifier.run(&Origin::Local, bytes, job);
                in_flight += 1;
            }
            while in_flight > 0 && (at_end || in_flight == most_in_flight) {
                let checked = checked.recv().context("a chunk was lost while it was verified")?;
                in_flight -= 1;
                progress.inc(checked.bytes);
                tally.note(&checked, progress);
                commits.add(checked.events, tally)?;
            }
            if at_end {
                return Ok(());
            }
        }
    }
}

/// The commits of an import: one is written while the next is collected.
struct ImportCommits<'import> {
    index: &'import Index,
    pending: Vec<VerifiedEvent>,
    pending_bytes: usize,
    most_bytes: usize,
    under_way: Option<Receiver<Vec<Outcome>>>,
}

impl<'import> ImportCommits<'import> {
    fn of(index: &'import Index, most_bytes: usize) -> Self {
        Self { index, pending: Vec::new(), pending_bytes: 0, most_bytes, under_way: None }
    }

    fn add(&mut self, events: Vec<VerifiedEvent>, tally: &mut ImportTally) -> anyhow::Result<()> {
        self.pending_bytes += events.iter().map(|event| event.memory_bytes()).sum::<usize>();
        self.pending.extend(events);
        if self.pending_bytes >= self.most_bytes { self.submit(tally) } else { Ok(()) }
    }

    fn submit(&mut self, tally: &mut ImportTally) -> anyhow::Result<()> {
        self.settle(tally)?;
        let (reply, outcomes) = sync_channel(1);
        let events = std::mem::take(&mut self.pending);
        self.pending_bytes = 0;
        self.index.store().submit(
            &Origin::Local,
            events,
            Box::new(move |done| drop(reply.send(done))),
        );
        self.under_way = Some(outcomes);
        Ok(())
    }

    fn settle(&mut self, tally: &mut ImportTally) -> anyhow::Result<()> {
        let Some(outcomes) = self.under_way.take() else { return Ok(()) };
        tally.count(outcomes.recv().context("the store gave no answer")?);
        Ok(())
    }

    fn finish(&mut self, tally: &mut ImportTally) -> anyhow::Result<()> {
        self.submit(tally)?;
        self.settle(tally)
    }
}

fn check_chunk(chunk: &Chunk, trusted: bool, admission: &Admission, index: &Index) -> CheckedLines {
    let mut checked = CheckedLines {
        events: Vec::with_capacity(chunk.lines.len()),
        duplicates: 0,
        banned: 0,
        bad_lines: Vec::new(),
        bytes: chunk.bytes,
    };
    for (line, text) in &chunk.lines {
        match read_event(text, trusted, admission, index) {
            Ok(Some(event)) => checked.events.push(event),
            Ok(None) => checked.duplicates += 1,
            Err(NotTaken::Banned) => checked.banned += 1,
            Err(NotTaken::Invalid(reason)) => checked.bad_lines.push((*line, reason)),
        }
    }
    if let Some(line) = chunk.too_long {
        checked.bad_lines.push((line, format!("longer than {} MiB", LINE_BYTES >> 20)));
    }
    checked
}

/// Why a line is not stored.
enum NotTaken {
    Banned,
    Invalid(String),
}

/// The event; `None` if it is stored already.
fn read_event(
    text: &str,
    trusted: bool,
    admission: &Admission,
    index: &Index,
) -> Result<Option<VerifiedEvent>, NotTaken> {
    let read = admission.read(event_of(text), &Source::Import);
    let event = read.map_err(|refusal| match refusal.reason {
        RefusalReason::Banned => NotTaken::Banned,
        _ => {
            let reason = refusal.text.strip_prefix("invalid: ").unwrap_or(&refusal.text);
            NotTaken::Invalid(reason.to_owned())
        }
    })?;
    if index.contains(&event.item()) {
        return Ok(None);
    }
    if trusted {
        return Ok(Some(event.trust()));
    }
    event.verify().map(Some).map_err(|error| NotTaken::Invalid(error.to_string()))
}

impl ImportTally {
    fn new(errors: PathBuf) -> Self {
        Self {
            stored: 0,
            duplicate: 0,
            superseded: 0,
            deleted: 0,
            by_operator: 0,
            banned: 0,
            retired: 0,
            over_limits: 0,
            expired: 0,
            ephemeral: 0,
            bad_lines: BadLines::new(errors),
            failed: 0,
            seen: 0,
        }
    }

    /// The number of lines that were not empty.
    fn lines(&self) -> u64 {
        self.stored + self.duplicate + self.refusals().map(|(_, count)| count).sum::<u64>()
    }

    /// The reasons why lines were not stored, with their counts.
    fn refusals(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let all = [
            ("superseded", self.superseded),
            ("deleted", self.deleted),
            ("removed by the operator", self.by_operator),
            ("banned", self.banned),
            ("past retention", self.retired),
            ("over limits", self.over_limits),
            ("expired", self.expired),
            ("ephemeral", self.ephemeral),
            ("invalid", self.bad_lines.count()),
            ("failed", self.failed),
        ];
        all.into_iter().filter(|(_, count)| *count > 0)
    }

    fn object(&self) -> Value {
        let reasons: BTreeMap<&str, u64> = self.refusals().collect();
        let refused: u64 = reasons.values().sum();
        json!({ "stored": self.stored, "duplicate": self.duplicate, "refused": refused, "refused_for": reasons })
    }

    fn note(&mut self, checked: &CheckedLines, progress: &ProgressBar) {
        self.duplicate += checked.duplicates;
        self.banned += checked.banned;
        let bad = checked.bad_lines.len() as u64;
        self.seen += checked.events.len() as u64 + checked.duplicates + checked.banned + bad;
        progress.set_message(format!("{} events", HumanCount(self.seen)));
        for (line, reason) in &checked.bad_lines {
            if let Some(text) = self.bad_lines.add(*line, reason) {
                progress.suspend(|| say(&text));
            }
        }
    }

    fn count(&mut self, outcomes: Vec<Outcome>) {
        for outcome in outcomes {
            match outcome {
                Outcome::Stored => self.stored += 1,
                Outcome::Duplicate => self.duplicate += 1,
                Outcome::Superseded => self.superseded += 1,
                Outcome::Deleted | Outcome::Vanished => self.deleted += 1,
                Outcome::RemovedByOperator => self.by_operator += 1,
                Outcome::Retired => self.retired += 1,
                Outcome::DeletesTooMuch => self.over_limits += 1,
                Outcome::Expired => self.expired += 1,
                Outcome::PassedOn => self.ephemeral += 1,
                failed => {
                    if let (0, Outcome::Failed(reason)) = (self.failed, failed) {
                        say(&format!("negsync: {reason}"));
                    }
                    self.failed += 1;
                }
            }
        }
    }
}

impl std::fmt::Display for ImportTally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let refused = self.lines() - self.stored - self.duplicate;
        write!(f, "{} stored, {} duplicate, {refused} refused", self.stored, self.duplicate)?;
        let reasons: Vec<String> =
            self.refusals().map(|(reason, count)| format!("{count} {reason}")).collect();
        if reasons.is_empty() { Ok(()) } else { write!(f, " ({})", reasons.join(", ")) }
    }
}

/// Writes a line; the import continues even if nobody reads it.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

fn bar(length: Option<u64>) -> ProgressBar {
    let template = match length {
        Some(_) => "{bar:40} {percent}% {msg}, {bytes_per_sec}, {eta} left",
        None => "{spinner} {msg}, {bytes_per_sec}",
    };
    progress_bar(length, template)
}
