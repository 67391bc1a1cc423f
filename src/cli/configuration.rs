//! `negsync config check` and `negsync config show`

use super::serving::ListenArguments;
use super::{StoreArguments, log_filter, memory, read_config, unless_closed};
use negsync::config::{Config, ValueOrigin, Via};
use negsync::moderation::Moderation;
use negsync::relay_url::redacted;
use negsync::sync::Schedule;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

pub(super) const EXAMPLES: &str = "Examples:
  negsync config check /etc/negsync/relay.toml && systemctl reload negsync
  negsync config show --config /etc/negsync/relay.toml
  NEGSYNC__LIMITS__FILTERS=5 negsync config show --json | jq '.keys[\"limits.filters\"]'";

#[derive(clap::Args)]
pub(super) struct ConfigArguments {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(clap::Subcommand)]
enum ConfigCommand {
    /// Say whether a relay would start with a file and with what the environment sets.
    ///
    /// Exit code 0: it would. 1: it would not, and why.
    Check {
        /// The configuration file; without it the environment alone is checked.
        file: Option<PathBuf>,
        /// The same, as for the other commands.
        #[arg(long, value_name = "FILE", conflicts_with = "file")]
        config: Option<PathBuf>,
    },
    /// Print what is in force, as a file, and where each value comes from.
    Show(ShowArguments),
}

#[derive(clap::Args)]
struct ShowArguments {
    #[command(flatten)]
    store: StoreArguments,
    #[command(flatten)]
    listen: ListenArguments,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &ConfigArguments) -> anyhow::Result<ExitCode> {
    match &arguments.command {
        ConfigCommand::Check { file, config } => check(file.as_ref().or(config.as_ref())),
        ConfigCommand::Show(arguments) => show(arguments),
    }
}

fn check(file: Option<&PathBuf>) -> anyhow::Result<ExitCode> {
    let config = read_config(file.map(PathBuf::as_path))?.config;
    Schedule::check(&config)?;
    log_filter(&config.log)?;
    Moderation::configured(&config)?;
    let changed = config.differing_keys(&Config::default()).len();
    let what = file.map_or("the environment".to_owned(), |file| file.display().to_string());
    let _ = writeln!(
        std::io::stdout(),
        "{what}: nothing is wrong; {changed} of {} keys differ from their defaults",
        Config::keys().len()
    );
    Ok(ExitCode::SUCCESS)
}

fn show(arguments: &ShowArguments) -> anyhow::Result<ExitCode> {
    let loaded = read_config(arguments.store.config.as_deref())?;
    let mut config = loaded.config.clone();
    arguments.store.apply(&mut config)?;
    arguments.listen.apply(&mut config);
    let by_command_line = loaded.config.differing_keys(&config);
    let before = config.clone();
    config.fit(memory());
    let lowered = before.differing_keys(&config);
    let origin = |key: &str| {
        let origin = match loaded.origin(key) {
            _ if by_command_line.iter().any(|it| it == key) => "command line".to_owned(),
            ValueOrigin::File { path, line } => format!("{}, line {line}", path.display()),
            ValueOrigin::Environment { variable } => format!("environment, {variable}"),
            _ => "default".to_owned(),
        };
        let is_lowered = lowered.iter().any(|it| it == key);
        if is_lowered { format!("{origin}; lowered to a share of the memory") } else { origin }
    };
    let values = values(&config)?;
    let mut out = std::io::stdout().lock();
    let mut print = || -> anyhow::Result<()> {
        if arguments.json {
            let keys: BTreeMap<&String, Value> = values
                .iter()
                .map(|(key, value)| (key, json!({ "value": value, "from": origin(key) })))
                .collect();
            writeln!(out, "{}", json!({ "keys": keys }))?;
        } else {
            out.write_all(text(&values, origin).as_bytes())?;
        }
        Ok(())
    };
    unless_closed(print())?;
    Ok(ExitCode::SUCCESS)
}

/// Each key with its value, without possible secrets.
fn values(config: &Config) -> anyhow::Result<HashMap<String, toml::Value>> {
    let mut values = HashMap::new();
    for (section, value) in toml::Table::try_from(config)? {
        match value {
            toml::Value::Table(keys) => {
                let keys = keys.into_iter();
                values.extend(keys.map(|(key, value)| (format!("{section}.{key}"), value)));
            }
            value => drop(values.insert(section, value)),
        }
    }
    values.insert("store.url".to_owned(), config.store.url.to_string().into());
    values.insert("sync.proxy".to_owned(), shown_proxy(&config.sync.proxy).into());
    let database = redacted(&config.attach.database_url);
    values.insert("attach.database_url".to_owned(), database.into());
    if let Some(toml::Value::Array(peers)) = values.get_mut("peer") {
        for (shown, peer) in peers.iter_mut().zip(&config.peers) {
            let Some(shown) = shown.as_table_mut() else { continue };
            shown.insert("url".to_owned(), peer.url.to_string().into());
            if let Some(proxy) = &peer.proxy {
                shown.insert("proxy".to_owned(), shown_proxy(proxy).into());
            }
        }
    }
    Ok(values)
}

/// A proxy's URL without its password.
fn shown_proxy(via: &Via) -> String {
    match via {
        Via::Direct => String::new(),
        Via::Proxy(proxy) => proxy.to_string(),
    }
}

/// The values as a file in the order of relay.toml, each with its origin after it.
fn text(values: &HashMap<String, toml::Value>, origin: impl Fn(&str) -> String) -> String {
    let (mut text, mut current) = (String::new(), String::new());
    for key in Config::keys() {
        let (Some((section, name)), Some(value)) =
            (key.name.split_once('.'), values.get(&key.name))
        else {
            continue;
        };
        if section != current {
            let gap = if current.is_empty() { "" } else { "\n" };
            text += &format!("{gap}[{section}]\n");
            section.clone_into(&mut current);
        }
        text += &format!("{:<40} # {}\n", format!("{name} = {value}"), origin(&key.name));
    }
    let peers = values.get("peer").and_then(toml::Value::as_array).into_iter().flatten();
    for peer in peers.filter_map(toml::Value::as_table) {
        text += &format!("\n[[peer]] # {}\n", origin("peer"));
        for (key, value) in peer {
            text += &format!("{key} = {value}\n");
        }
    }
    text
}
