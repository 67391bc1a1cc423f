//! `negsync retention`

use super::delete::count;
use super::operator_request::follow;
use super::store_reader::StoreReader;
use super::{StoreArguments, waiting};
use anyhow::bail;
use negsync::control::ControlRequest;
use negsync::store::{KindRange, RetentionRule, RuleMatches};
use serde_json::{Value, json};
use std::io::Write;
use std::process::ExitCode;

pub(super) const EXAMPLES: &str = "Examples:
  negsync retention --dry-run --config /etc/negsync/relay.toml
  negsync retention --config /etc/negsync/relay.toml

A running relay follows its rules by itself, within ten seconds. It has those of its start or of the last SIGHUP.";

#[derive(clap::Args)]
pub(super) struct RetentionArguments {
    #[command(flatten)]
    store: StoreArguments,
    /// Say what would go, and change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON object instead of lines.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &RetentionArguments) -> anyhow::Result<ExitCode> {
    let config = arguments.store.config()?;
    let retention = config.retention.retention();
    if retention.is_empty() {
        bail!("[retention] has no rules; name a configuration that has some with --config");
    }
    let bar = waiting("looking at the stored events");
    let (matches, by_size) = StoreReader::open(&config)?.preview(&retention)?;
    if !arguments.dry_run {
        bar.set_message("removing events");
        follow(&config, &ControlRequest::Retire)?;
    }
    bar.finish_and_clear();
    let mut text = String::new();
    if arguments.json {
        let rules: Vec<Value> = retention
            .rules
            .iter()
            .zip(&matches)
            .map(|(rule, it)| json!({ "rule": rule, "too_old": it.too_old, "surplus": it.surplus }))
            .collect();
        let dry_run = arguments.dry_run;
        text = json!({ "dry_run": dry_run, "rules": rules, "for_store_mb": by_size }).to_string();
        text.push('\n');
    } else {
        let would = if arguments.dry_run { "would go" } else { "went" };
        for (rule, it) in retention.rules.iter().zip(&matches) {
            text += &format!("{}: {} {would}\n", words(rule), found(it));
        }
        if let Some(bytes) = retention.store_bytes {
            let mb = bytes >> 20;
            text += &format!("store_mb = {mb}: about {} {would}\n", count(by_size, "event"));
        }
    }
    let _ = write!(std::io::stdout(), "{text}");
    Ok(ExitCode::SUCCESS)
}

fn found(matches: &RuleMatches) -> String {
    let RuleMatches { too_old, surplus, .. } = matches;
    match (too_old, surplus) {
        (old, 0) => count(*old, "event"),
        (0, surplus) => count(*surplus, "event"),
        (old, surplus) => format!("{} by age, {surplus} by count", count(*old, "event")),
    }
}

fn words(rule: &RetentionRule) -> String {
    let kinds = rule.kinds.iter().map(|range| match range {
        KindRange::One(kind) => kind.to_string(),
        KindRange::FromTo(first, last) => format!("{first} to {last}"),
    });
    let kinds: Vec<String> = kinds.collect();
    let mut text = match kinds.as_slice() {
        [] => "all kinds".to_owned(),
        kinds => format!("kinds {}", kinds.join(", ")),
    };
    if let Some(age) = rule.max_age_s {
        text += &format!(", max_age_s = {age}");
    }
    if let Some(kept) = rule.max_per_author {
        text += &format!(", max_per_author = {kept}");
    }
    text
}
