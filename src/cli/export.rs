//! `negsync export`

use super::packing::{PackedOutput, PackingArguments};
use super::store_reader::StoreReader;
use super::{StoreArguments, is_broken_pipe, progress_bar};
use anyhow::Context;
use negsync::store::{EventStore, ExportMark, Filter, Reader, StoreError};
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
            export_all(&**store, &filter, out).map(|()| ExportMark::default())
        }
    };
    let mark = match exported {
        // Events that nobody has read count as not exported.
        Err(error) if is_broken_pipe(&error) => return Ok(ExitCode::SUCCESS),
        exported => exported?,
    };
    if let Some(path) = &arguments.since_last {
        write_mark(path, &mark).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes the events stored after `last`, and returns the mark of the export.
fn export(
    reader: &Reader,
    filter: &Filter,
    last: Option<&ExportMark>,
    mut out: PackedOutput,
) -> anyhow::Result<ExportMark> {
    // One snapshot: of two versions of a replaceable event exactly one is in it.
    let mark = reader.read_snapshot(|moment| {
        let mut hits = moment.newest(std::slice::from_ref(filter), usize::MAX)?;
        if let Some(last) = last {
            moment.keep_stored_after(last, &mut hits)?;
        }
        // Oldest first, so that an import gets an event before the one that deletes or replaces it.
        hits.reverse();
        let bar = progress_bar(Some(hits.len() as u64), EVENTS);
        for hits in hits.chunks(READ_EVENTS) {
            let mut written = Ok(());
            moment.fetch(hits, |_, json| {
                written = writeln!(out, "{json}");
                if written.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })?;
            written?;
            bar.inc(hits.len() as u64);
        }
        bar.finish_and_clear();
        Ok::<_, anyhow::Error>(moment.export_mark()?)
    })?;
    out.finish()?;
    Ok(mark)
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
