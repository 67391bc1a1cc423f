//! `negsync completions`

use clap::CommandFactory;
use clap_complete::Shell;
use std::process::ExitCode;

pub(super) const EXAMPLES: &str = "Examples:
  negsync completions bash > ~/.local/share/bash-completion/completions/negsync
  negsync completions fish";

#[derive(clap::Args)]
pub(super) struct CompletionsArguments {
    /// The shell that reads the script.
    shell: Shell,
}

pub(super) fn run(arguments: &CompletionsArguments) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    let mut command = super::CommandLine::command();
    clap_complete::generate(arguments.shell, &mut command, "negsync", &mut script);
    super::write_all(&script)
}
