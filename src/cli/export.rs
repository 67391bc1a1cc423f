//! `negsync export`

use super::packing::{PackedOutput, PackingArguments};
use super::store_reader::StoreReader;
use super::{StoreArguments, is_broken_pipe, progress_bar};
use anyhow::Context;
use negsync::item::Item;
use negsync::store::{EventStore, ExportMark, Filter, Hit, ReadSnapshot, Reader, StoreError};
use std::collections::HashSet;
use std::io::{ErrorKind, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

pub(super) const EXAMPLES: &str = "Examples:
  negsync export --store events.sqlite --zstd > events.jsonl.zst
  negsync export --config /etc/negsync/relay.toml --filter '{\"kinds\":[0,3]}'
  negsync export --since-last /var/lib/negsync/exported --gzip > $(date +%F).jsonl.gz";

/// The progress bar of an export: on standard error, because the events go to standard output.
const EVENTS: &str = "{bar:40} {percent}% {human_pos} of {human_len} events, {eta} left";
/// Number of events between checks whether the reader of the output is gone.
const READ_EVENTS: usize = 1_000;

/// Exit code after an export from a damaged store.
const DAMAGED: u8 = 2;

/// A finished export.
#[derive(Default)]
struct Exported {
    mark: ExportMark,
    /// For a damaged store, the number of places in it that cannot be read.
    unreadable: Option<u64>,
}

#[derive(clap::Args)]
pub(super) struct ExportArguments {
    #[command(flatten)]
    store: StoreArguments,
    /// Only events that match this NIP-01 filter.
    #[arg(long, value_name = "JSON", default_value = "{}")]
    filter: String,
    /// Only events that were stored since the last export that named this file, whatever their
    /// created_at; all where it is not there. It is written when the export is complete. Now and then an
    /// event is exported again, where those stored last were removed.
    #[arg(long, value_name = "FILE")]
    since_last: Option<PathBuf>,
    #[command(flatten)]
    packing: PackingArguments,
}

pub(super) fn run(arguments: &ExportArguments) -> anyhow::Result<ExitCode> {
    let filter = Filter::parse(&arguments.filter).context("--filter")?;
    let config = arguments.store.config()?;
    let last = match &arguments.since_last {
        Some(path) => Some(read_mark(path)?),
        None => None,
    };
    let store = StoreReader::open(&config)?;
    if let (StoreReader::Database(_), Some(_)) = (&store, &last) {
        let (what, instead) =
            ("--since-last", "export everything, or since a second with --filter");
        return Err(StoreError::Unsupported { what, instead }.into());
    }
    let out = arguments.packing.standard_output()?;
    let exported = match &store {
        StoreReader::File(reader) => export(reader, &filter, last.as_ref(), out),
        StoreReader::Database(store) => {
            export_all(&**store, &filter, out).map(|()| Exported::default())
        }
    };
    let Exported { mark, unreadable } = match exported {
        // Events that nobody has read count as not exported.
        Err(error) if is_broken_pipe(&error) => return Ok(ExitCode::SUCCESS),
        exported => exported?,
    };
    if let Some(unreadable) = unreadable {
        let lost = match unreadable {
            0 => "every event was read and exported".to_owned(),
            places => format!("{places} places in it cannot be read; everything else was exported"),
        };
        eprintln!(
            "negsync: the store is damaged: {lost}. Hint: `negsync check` describes the damage; a backup may \
             have what is missing"
        );
        return Ok(ExitCode::from(DAMAGED));
    }
    if let Some(path) = &arguments.since_last {
        write_mark(path, &mark).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes the events stored after `last`. If the store is damaged and no `last` is given, writes all
/// that can be read.
fn export(
    reader: &Reader,
    filter: &Filter,
    last: Option<&ExportMark>,
    mut out: PackedOutput,
) -> anyhow::Result<Exported> {
    // One snapshot: of two versions of a replaceable event exactly one is in it.
    let exported = reader.read_snapshot(|moment| {
        let mut hits = Vec::new();
        let mut newest = None;
        let done = write_hits(moment, filter, last, &mut out, &mut hits, &mut newest);
        match done {
            Err(error) if last.is_none() && is_damage(&error) => {
                let written = hits.iter().rposition(|hit| Some(hit.item) == newest);
                let written = hits.iter().take(written.map_or(0, |at| at + 1));
                let written = written.map(|hit| hit.item.id).collect();
                let unreadable = write_readable(moment, filter, &written, &mut out)?;
                Ok(Exported { mark: ExportMark::default(), unreadable: Some(unreadable) })
            }
            done => done.map(|mark| Exported { mark, unreadable: None }),
        }
    })?;
    out.finish()?;
    Ok(exported)
}

/// Writes the events stored after `last`, found by an index. `hits` and the last one written are valid
/// after an error too.
fn write_hits(
    moment: &ReadSnapshot<'_>,
    filter: &Filter,
    last: Option<&ExportMark>,
    out: &mut PackedOutput,
    hits: &mut Vec<Hit>,
    newest: &mut Option<Item>,
) -> anyhow::Result<ExportMark> {
    *hits = moment.newest(std::slice::from_ref(filter), usize::MAX)?;
    if let Some(last) = last {
        moment.keep_stored_after(last, hits)?;
    }
    // Oldest first, so that an import gets an event before the one that deletes or replaces it.
    hits.reverse();
    let bar = progress_bar(Some(hits.len() as u64), EVENTS);
    for chunk in hits.chunks(READ_EVENTS) {
        let mut line = Ok(());
        moment.fetch(chunk, |item, json| {
            line = writeln!(out, "{json}");
            *newest = Some(*item);
            if line.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        line?;
        bar.inc(chunk.len() as u64);
    }
    bar.finish_and_clear();
    Ok(moment.export_mark()?)
}

/// Writes what can be read of a damaged store, except for events already `written`. Returns the number
/// of places that cannot be read.
fn write_readable(
    moment: &ReadSnapshot<'_>,
    filter: &Filter,
    written: &HashSet<[u8; 32]>,
    out: &mut PackedOutput,
) -> anyhow::Result<u64> {
    let mut line = Ok(());
    let unreadable = moment.salvage(filter, |event| {
        if !written.contains(&event.item().id) {
            line = writeln!(out, "{}", event.json());
        }
        if line.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    line?;
    Ok(unreadable)
}

fn is_damage(error: &anyhow::Error) -> bool {
    error.downcast_ref::<StoreError>().is_some_and(StoreError::is_damage)
}

/// Writes every matching event of a database.
fn export_all(
    store: &dyn EventStore,
    filter: &Filter,
    mut out: PackedOutput,
) -> anyhow::Result<()> {
    let mut written = Ok(());
    store.oldest_first(filter, &mut |_, json| {
        written = writeln!(out, "{json}");
        if written.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    written?;
    Ok(out.finish()?)
}

fn read_mark(path: &Path) -> anyhow::Result<ExportMark> {
    let text = match std::fs::read_to_string(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(ExportMark::default()),
        read => read.with_context(|| format!("cannot read {}", path.display()))?,
    };
    serde_json::from_str(&text).with_context(|| {
        format!("{} is no file of --since-last; remove it to export everything", path.display())
    })
}

/// Replaces the last mark by a new file.
fn write_mark(path: &Path, mark: &ExportMark) -> anyhow::Result<()> {
    let directory = path.parent().filter(|it| !it.as_os_str().is_empty());
    let mut file = tempfile::NamedTempFile::new_in(directory.unwrap_or(Path::new(".")))?;
    writeln!(file, "{}", serde_json::to_string(mark)?)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}
