//! `negsync export`

use super::{StoreArguments, is_broken_pipe};
use anyhow::Context;
use negsync::store::{Filter, Reader};
use std::io::{BufWriter, Write};
use std::ops::ControlFlow;
use std::process::ExitCode;

/// After how many events a reader that has gone is noticed.
const READ_EVENTS: usize = 1_000;

#[derive(clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    store: StoreArguments,
    /// Only events that match this NIP-01 filter.
    #[arg(long, value_name = "JSON", default_value = "{}")]
    filter: String,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let filter = Filter::parse(&arguments.filter).context("--filter")?;
    let config = arguments.store.config()?;
    let reader = Reader::open(&config.store.path, 1)?;
    match export(&reader, &filter) {
        Err(error) if is_broken_pipe(&error) => Ok(ExitCode::SUCCESS),
        exported => exported.map(|()| ExitCode::SUCCESS),
    }
}

fn export(reader: &Reader, filter: &Filter) -> anyhow::Result<()> {
    let mut out = BufWriter::new(std::io::stdout().lock());
    // All of it as it is now: of two events that a relay replaces meanwhile, exactly one is there.
    reader.read_snapshot(|moment| {
        let mut hits = moment.newest(std::slice::from_ref(filter), usize::MAX)?;
        // Oldest first, so that an import meets an event before what deletes or replaces it.
        hits.reverse();
        for hits in hits.chunks(READ_EVENTS) {
            let mut written = Ok(());
            moment.fetch(hits, |_, json| {
                written = writeln!(out, "{json}");
                if written.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })?;
            written?;
        }
        out.flush()?;
        Ok(())
    })
}
