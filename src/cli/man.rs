//! `negsync man`

use anyhow::{Context, bail};
use clap::CommandFactory;
use std::process::ExitCode;

/// The date of the last change of the pages, apart from flags.
const DATE: &str = "2026-11-22";

/// The sections that the command line definition does not contain, in the language of manual pages.
const MORE: &str = r"
.SH ENVIRONMENT
.TP
NEGSYNC_KEY
The secret key (64 hex digits or nsec) with which relays that ask (NIP\-42) are told who we are; it
wins over the file that the configuration names.
.SH EXAMPLES
.nf
negsync relay \-\-store events.sqlite
negsync sync wss://relay.example.com \-\-store events.sqlite \-\-direction down
negsync man sync | man \-l \-
.fi
";

pub(super) const EXAMPLES: &str = "Examples:
  negsync man
  negsync man sync | man -l -";

#[derive(clap::Args)]
pub(super) struct ManArguments {
    /// The command whose page it is; without it the page of `negsync` itself.
    command: Option<String>,
}

pub(super) fn run(arguments: &ManArguments) -> anyhow::Result<ExitCode> {
    let mut all = super::CommandLine::command().disable_help_subcommand(true);
    // Needed for the full names of commands and for shared options.
    all.build();
    let command = match &arguments.command {
        None => all,
        Some(name) => match all.find_subcommand(name) {
            Some(command) => command.clone(),
            None => bail!("there is no command {name:?}; `negsync --help` lists them"),
        },
    };
    let mut page = Vec::new();
    let source = concat!("negsync ", env!("CARGO_PKG_VERSION"));
    let man =
        clap_mangen::Man::new(command).source(source).date(DATE).manual("Nostr relays in sync");
    man.render(&mut page).context("cannot write the page")?;
    if arguments.command.is_none() {
        page.extend_from_slice(MORE.as_bytes());
    }
    super::write_all(&page)
}
