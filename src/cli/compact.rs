//! `negsync compact`

use super::StoreArguments;
use negsync::store::{Compacted, compact};
use std::io::Write;
use std::process::ExitCode;

#[derive(clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    store: StoreArguments,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let path = arguments.store.file_config("`negsync compact`", "use VACUUM")?.store.path;
    let Compacted { before_bytes, after_bytes, expired, tombstones } = compact(&path)?;
    let _ = writeln!(
        std::io::stdout(),
        "{}: {before_bytes} bytes before, {after_bytes} after; {expired} expired events removed, \
         {tombstones} tombstones kept",
        path.display()
    );
    Ok(ExitCode::SUCCESS)
}
