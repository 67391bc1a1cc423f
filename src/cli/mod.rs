//! The command line: one file for each command.

mod attach;
mod backup;
mod bad_lines;
mod ban;
mod bans;
mod between;
mod check;
mod chunks;
mod compact;
mod completions;
mod configuration;
mod connecting;
mod copy;
mod decode;
mod delete;
mod descriptors;
mod diff;
mod explain;
mod export;
mod freed_memory;
mod hand_over;
mod hints;
mod import;
mod import_input;
mod interrupt;
mod lines;
mod local;
mod man;
mod neg_open;
mod operator_request;
mod packing;
mod peers;
mod progress_line;
mod relay;
mod restore;
mod retention;
mod runtime;
mod service_manager;
mod serving;
mod store_reader;
mod sync;
mod sync_progress;
mod sync_trace;
mod top;
mod undelete;

pub(crate) use hints::hints;

use anyhow::{Context, ensure};
use clap::{Args, Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use negsync::config::{Config, ConfigError, DatabaseUrl, LoadedConfig, LogConfig, LogFormat, Via};
use negsync::memory::Memory;
use negsync::store::StoreError;
use negsync::sync::PeerFilter;
use std::io::{ErrorKind, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::OnceLock;
use std::time::Duration;
use tracing_subscriber::EnvFilter;

/// Share of the memory for the events of a long batch, as one part in this many, and the maximum
/// that makes a difference.
const BATCH_PARTS: u64 = 32;
const MOST_BATCH_BYTES: usize = 64 << 20;

/// Keeps Nostr relays in sync: NIP-77 over SQLite or PostgreSQL.
#[derive(Parser)]
#[command(name = "negsync", version, about)]
pub(crate) struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a relay, on an SQLite file or a PostgreSQL database.
    #[command(after_help = relay::EXAMPLES)]
    Relay(relay::RelayArguments),
    /// Run as a proxy in front of another relay, and answer NIP-77 from its database.
    #[command(after_help = attach::EXAMPLES)]
    Attach(attach::AttachArguments),
    /// Store events from a JSON Lines file or from standard input.
    ///
    /// Exit code 0: what was an event is stored or accounted for. 1: no line was an event, some could
    /// not be stored, or a wrong command line or store.
    #[command(after_help = import::EXAMPLES)]
    Import(import::ImportArguments),
    /// Write the stored events as JSON Lines, oldest first.
    ///
    /// Exit code 0: all are written. 2: the store is damaged, and what can be read is written, in any
    /// order. 1: a wrong command line or store.
    #[command(after_help = export::EXAMPLES)]
    Export(export::ExportArguments),
    /// Print the NEG-OPEN line of a set, to paste into wscat.
    #[command(after_help = neg_open::EXAMPLES)]
    NegOpen(neg_open::NegOpenArguments),
    /// Explain NIP-77 messages.
    #[command(after_help = decode::EXAMPLES)]
    Decode(decode::DecodeArguments),
    /// Bring the store and other relays to the same events, or relays without a store.
    ///
    /// Exit code 0: complete. 2: it could not be completed. 1: a wrong command line or store.
    #[command(after_help = sync::EXAMPLES)]
    Sync(sync::SyncArguments),
    /// Verify the file, ids, signatures and rules of the store.
    ///
    /// Exit code 0: all is well. 2: something was found. 1: it could not be looked at.
    #[command(after_help = check::EXAMPLES)]
    Check(check::CheckArguments),
    /// Copy the store to a new file, also while a relay writes to it.
    ///
    /// Exit code 0: the copy is whole and on the disk. 2: `--verify` found something wrong in it. 1: no
    /// copy was made.
    #[command(after_help = backup::EXAMPLES)]
    Backup(backup::BackupArguments),
    /// Copy a store into another one: from SQLite to PostgreSQL, back, or between two of a kind.
    ///
    /// Exit code 0: both stores hold the same events. 2: they differ. 1: it could not be done. Whatever
    /// breaks it off, run again it goes on where it was.
    #[command(after_help = copy::EXAMPLES)]
    Copy(copy::CopyArguments),
    /// Make a store from a backup where there is none.
    #[command(after_help = restore::EXAMPLES)]
    Restore(restore::RestoreArguments),
    /// Remove events, and refuse them from then on.
    #[command(after_help = delete::EXAMPLES)]
    Delete(delete::DeleteArguments),
    /// Accept events again that `delete` has removed.
    #[command(after_help = undelete::EXAMPLES)]
    Undelete(undelete::UndeleteArguments),
    /// Refuse keys, events, words or addresses from now on.
    #[command(after_help = ban::EXAMPLES)]
    Ban(ban::BanArguments),
    /// Lift bans.
    #[command(after_help = ban::EXAMPLES)]
    Unban(ban::UnbanArguments),
    /// List the bans.
    #[command(after_help = bans::EXAMPLES)]
    Bans(bans::BansArguments),
    /// Show the events that the rules of retention remove, and remove them.
    #[command(after_help = retention::EXAMPLES)]
    Retention(retention::RetentionArguments),
    /// Check the configuration, or print each value and its source.
    #[command(after_help = configuration::EXAMPLES)]
    Config(configuration::ConfigArguments),
    /// Return the space of removed events to the file system.
    #[command(after_help = compact::EXAMPLES)]
    Compact(compact::CompactArguments),
    /// Show the events that only the store or only a relay has; move nothing.
    ///
    /// Exit code 0: equal. 3: something differs. 2: it could not be found out. 1: a wrong command
    /// line or store.
    #[command(after_help = diff::EXAMPLES)]
    Diff(diff::DiffArguments),
    /// Show the peers of a running relay.
    #[command(after_help = peers::EXAMPLES)]
    Peers(peers::PeersArguments),
    /// Show the clients, the store and the peers of a running relay, refreshed every few seconds.
    #[command(after_help = top::EXAMPLES)]
    Top(top::TopArguments),
    /// Print the script with which a shell completes `negsync`.
    #[command(after_help = completions::EXAMPLES)]
    Completions(completions::CompletionsArguments),
    /// Print a manual page, for `man -l -`.
    #[command(after_help = man::EXAMPLES)]
    Man(man::ManArguments),
}

/// Which configuration and which store a command works with.
#[derive(Args)]
struct StoreArguments {
    /// The configuration file; without it every key has its default. A variable such as
    /// NEGSYNC__STORE__PATH wins over the file.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The SQLite file that holds the events, or postgres://USER@HOST/DATABASE; wins over the
    /// configuration.
    #[arg(long, value_name = "FILE")]
    store: Option<PathBuf>,
}

impl StoreArguments {
    fn config(&self) -> anyhow::Result<Config> {
        let mut config = read_config(self.config.as_deref())?.config;
        self.apply(&mut config)?;
        config.fit(memory());
        Ok(config)
    }

    /// The configuration of a command that works on a file only; the error names `instead` for a
    /// database.
    fn file_config(&self, command: &'static str, instead: &'static str) -> anyhow::Result<Config> {
        let config = self.config()?;
        if !config.store.url.is_empty() {
            return Err(StoreError::Unsupported { what: command, instead }.into());
        }
        Ok(config)
    }

    /// Applies the store of the command line to the configuration.
    fn apply(&self, config: &mut Config) -> anyhow::Result<()> {
        let Some(store) = &self.store else { return Ok(()) };
        config.store.url = store.to_str().and_then(DatabaseUrl::parse).unwrap_or_default();
        if config.store.url.is_empty() {
            let is_url = store.to_str().is_some_and(|text| text.contains("://"));
            ensure!(!is_url, "--store takes a file or postgres://USER@HOST/DATABASE");
            config.store.path.clone_from(store);
        }
        Ok(())
    }
}

/// Reads the file, if there is one, and the environment. Also checks the settings of syncs.
fn read_config(path: Option<&Path>) -> Result<LoadedConfig, ConfigError> {
    let loaded = Config::load(path, std::env::vars_os())?;
    for (place, peer) in loaded.config.peers.iter().enumerate() {
        let wrong = |key, reason| loaded.wrong_peer(place, key, reason);
        let proxy = peer.proxy.as_ref().unwrap_or(&loaded.config.sync.proxy);
        if peer.url.is_onion() && *proxy == Via::Direct {
            let reason = "an onion service needs a proxy: name Tor's in sync.proxy, or here";
            return Err(wrong("url", reason.to_owned()));
        }
        for filter in peer.filter.texts() {
            PeerFilter::parse(&filter).map_err(|error| wrong("filter", error.to_string()))?;
        }
    }
    Ok(loaded)
}

pub(crate) fn run(command_line: CommandLine) -> anyhow::Result<ExitCode> {
    freed_memory::give_back_at_once_if_small();
    match command_line.command {
        Command::Relay(arguments) => relay::run(&arguments),
        Command::Attach(arguments) => attach::run(&arguments),
        Command::Import(arguments) => import::run(&arguments),
        Command::Export(arguments) => export::run(&arguments),
        Command::NegOpen(arguments) => neg_open::run(&arguments),
        Command::Decode(arguments) => decode::run(&arguments),
        Command::Sync(arguments) => sync::run(&arguments),
        Command::Check(arguments) => check::run(&arguments),
        Command::Backup(arguments) => backup::run(&arguments),
        Command::Copy(arguments) => copy::run(&arguments),
        Command::Restore(arguments) => restore::run(&arguments),
        Command::Delete(arguments) => delete::run(&arguments),
        Command::Undelete(arguments) => undelete::run(&arguments),
        Command::Ban(arguments) => ban::ban(&arguments),
        Command::Unban(arguments) => ban::unban(&arguments),
        Command::Bans(arguments) => bans::run(&arguments),
        Command::Retention(arguments) => retention::run(&arguments),
        Command::Config(arguments) => configuration::run(&arguments),
        Command::Compact(arguments) => compact::run(&arguments),
        Command::Diff(arguments) => diff::run(&arguments),
        Command::Peers(arguments) => peers::run(&arguments),
        Command::Top(arguments) => top::run(&arguments),
        Command::Completions(arguments) => completions::run(&arguments),
        Command::Man(arguments) => man::run(&arguments),
    }
}

/// The memory at the start of the process: a reloaded configuration gets the same shares.
fn memory() -> Memory {
    static AT_START: OnceLock<Memory> = OnceLock::new();
    *AT_START.get_or_init(Memory::read)
}

/// The memory for the events of a batch without waiting clients, in bytes.
fn batch_bytes() -> usize {
    memory().share(BATCH_PARTS, MOST_BATCH_BYTES)
}

/// Logs the available memory and its shares.
fn log_memory(config: &Config) {
    tracing::info!(
        provided_mb = memory().bytes() >> 20,
        limit = memory().limit(),
        store_cache_mb = config.store.cache_mb,
        index_memory_mb = config.index.memory_mb,
        negentropy_memory_mb = config.negentropy.memory_mb,
        "memory provided for"
    );
}

/// Writes to standard output; a reader that has gone is not an error.
fn write_all(bytes: &[u8]) -> anyhow::Result<ExitCode> {
    match std::io::stdout().lock().write_all(bytes) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(error).context("cannot write to standard output")
        }
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// Ignores the error of a closed standard output.
fn unless_closed(written: anyhow::Result<()>) -> anyhow::Result<()> {
    match written {
        Err(error) if is_broken_pipe(&error) => Ok(()),
        written => written.context("cannot write to standard output"),
    }
}

/// Whether the reader of standard output is gone, as in `negsync export | head`.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}

/// At `debug` or `trace` these modules log whole messages and statements, and with them the content
/// of events.
const SILENCED: [&str; 3] = ["tungstenite=off", "tokio_tungstenite=off", "tokio_postgres=off"];

/// A progress bar on a terminal, nothing elsewhere. Without a length it is a spinner.
fn progress_bar(length: Option<u64>, template: &str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = length.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// Interval of a spinner's steps.
const SPINNER_TURN: Duration = Duration::from_millis(120);

/// A spinner on a terminal, nothing elsewhere, for work without known progress.
fn waiting(what: &'static str) -> ProgressBar {
    let bar = progress_bar(None, "{spinner} {msg}, {elapsed}").with_message(what);
    if !bar.is_hidden() {
        bar.enable_steady_tick(SPINNER_TURN);
    }
    bar
}

/// The started log.
struct Log {
    /// Changes the log level at run time.
    set_level: Box<SetLevel>,
}

type SetLevel = dyn Fn(&LogConfig) -> anyhow::Result<()>;

fn start_log(config: &LogConfig) -> anyhow::Result<Log> {
    let log = tracing_subscriber::fmt()
        .with_env_filter(log_filter(config)?)
        .with_ansi(std::io::stderr().is_terminal())
        // Reporting a failed write to standard error would fail too, and end the program.
        .log_internal_errors(false)
        .with_writer(std::io::stderr);
    let set_level: Box<SetLevel> = match config.format {
        LogFormat::Text => {
            let log = log.with_filter_reloading();
            let handle = log.reload_handle();
            log.init();
            Box::new(move |config| Ok(handle.reload(log_filter(config)?)?))
        }
        LogFormat::Json => {
            let log = log.json().with_filter_reloading();
            let handle = log.reload_handle();
            log.init();
            Box::new(move |config| Ok(handle.reload(log_filter(config)?)?))
        }
    };
    Ok(Log { set_level })
}

fn log_filter(config: &LogConfig) -> anyhow::Result<EnvFilter> {
    let mut filter = EnvFilter::try_new(&config.level)
        .with_context(|| format!("log.level: {:?} is not a level", config.level))?;
    for directive in SILENCED {
        filter = filter.add_directive(directive.parse()?);
    }
    Ok(filter)
}
