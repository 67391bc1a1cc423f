//! `negsync ban` and `negsync unban`

use super::StoreArguments;
use super::delete;
use super::operator_request::{event_id, follow};
use super::store_reader::StoreReader;
use anyhow::bail;
use clap::ArgGroup;
use negsync::config::{Config, Network};
use negsync::control::{Choice, ControlRequest};
use negsync::hex;
use negsync::moderation::{ListEntry, Moderation};
use negsync::store::Selection;
use nostr::nips::nip19::{FromBech32, Nip19};
use nostr::{EventId, PublicKey};
use serde_json::json;
use std::io::Write;
use std::process::ExitCode;

pub(super) const EXAMPLES: &str = "Examples:
  negsync ban npub1... --reason 'sends the same note a thousand times' --config /etc/negsync/relay.toml
  negsync ban npub1... --delete
  negsync ban note1... --store events.sqlite
  negsync ban --word 'buy followers' --ip 192.0.2.0/24
  negsync unban npub1...

64 hex digits are a key, or an event where the store has one of this id; --key and --event say which.
Stored events stay unless --delete is given. A running relay follows at once.";

/// What is banned, or is no longer.
#[derive(clap::Args)]
#[command(group(ArgGroup::new("banned").args(["named", "keys", "events", "words", "networks"]).required(true).multiple(true)))]
struct BannedArguments {
    /// Keys and events: npub1..., nprofile1..., note1..., nevent1..., or 64 hex digits.
    #[arg(value_name = "KEY|ID")]
    named: Vec<String>,
    /// An author, by public key.
    #[arg(long = "key", value_name = "KEY", value_parser = public_key)]
    keys: Vec<PublicKey>,
    /// An event, by id.
    #[arg(long = "event", value_name = "ID", value_parser = event_id)]
    events: Vec<EventId>,
    /// A text that no content may have, in capitals or not.
    #[arg(long = "word", value_name = "TEXT")]
    words: Vec<String>,
    /// An address or network (192.0.2.0/24) whose clients are refused.
    #[arg(long = "ip", value_name = "ADDRESS")]
    networks: Vec<Network>,
    #[command(flatten)]
    store: StoreArguments,
    /// Print one JSON object instead of lines.
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
pub(super) struct BanArguments {
    #[command(flatten)]
    banned: BannedArguments,
    /// Why, for yourself: nobody else is told.
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    /// Remove the stored events of the keys, and the events, as `negsync delete` does.
    #[arg(long)]
    delete: bool,
}

#[derive(clap::Args)]
pub(super) struct UnbanArguments {
    #[command(flatten)]
    banned: BannedArguments,
}

/// The meaning of a `KEY|ID`.
enum Named {
    Key(PublicKey),
    Event(EventId),
}

impl BannedArguments {
    /// The selected entries, each with the reason.
    fn entries(&self, config: &Config, reason: &str) -> anyhow::Result<Vec<ListEntry>> {
        let reason = || reason.to_owned();
        let key = |key: &PublicKey| ListEntry::Key(key.to_bytes(), reason());
        let event = |id: &EventId| ListEntry::Event(id.to_bytes(), reason());
        let mut entries = Vec::new();
        for text in &self.named {
            entries.push(match named(text, config)? {
                Named::Key(it) => key(&it),
                Named::Event(it) => event(&it),
            });
        }
        entries.extend(self.keys.iter().map(key));
        entries.extend(self.events.iter().map(event));
        entries.extend(self.networks.iter().map(|network| ListEntry::Ip(*network, reason())));
        for word in &self.words {
            if word.trim().is_empty() {
                bail!("--word: the text is empty, and every content has it");
            }
            entries.push(ListEntry::Word(word.trim().to_owned()));
        }
        Ok(entries)
    }
}

pub(super) fn ban(arguments: &BanArguments) -> anyhow::Result<ExitCode> {
    let config = arguments.banned.store.config()?;
    let entries = arguments.banned.entries(&config, &arguments.reason)?;
    let moderation = Moderation::configured(&config)?;
    moderation.add(&entries)?;
    let stored = stored(&entries);
    let is_there = !config.store.url.is_empty() || config.store.path.exists();
    let removed = match (&stored, arguments.delete && is_there) {
        (Some(choice), true) => Some(follow(&config, &ControlRequest::Delete(choice.clone()))?),
        _ => None,
    };
    let kept = match (&stored, arguments.delete || !is_there) {
        (Some(choice), false) => count_stored(&config, choice),
        _ => None,
    };
    let file = moderation.path().display();
    let mut text = String::new();
    if arguments.banned.json {
        let lines: Vec<String> = entries.iter().map(ToString::to_string).collect();
        let removed = removed.map_or(0, |report| report.removed);
        text =
            json!({ "file": file.to_string(), "banned": lines, "removed": removed, "kept": kept })
                .to_string()
                + "\n";
    } else {
        for entry in &entries {
            text += &format!("banned: {entry}\n");
        }
        if let Some(report) = removed {
            text += &delete::sentence(&report, false);
        }
        if let Some(kept) = kept.filter(|kept| *kept > 0) {
            let kept = delete::count(kept, "stored event");
            text += &format!("{kept} kept and served. Hint: --delete removes what is stored\n");
        }
    }
    let _ = write!(std::io::stdout(), "{text}");
    Ok(ExitCode::SUCCESS)
}

pub(super) fn unban(arguments: &UnbanArguments) -> anyhow::Result<ExitCode> {
    let config = arguments.banned.store.config()?;
    let entries = arguments.banned.entries(&config, "")?;
    let moderation = Moderation::configured(&config)?;
    let is_meant = |kept: &ListEntry| {
        entries.iter().any(|entry| match (entry, kept) {
            (_, ListEntry::AllowKey(..) | ListEntry::AllowEvent(..)) => false,
            // The hex digits of an event that is not stored look like those of a key.
            (ListEntry::Key(one, _), ListEntry::Event(other, _)) => one == other,
            _ => entry.replaces(kept),
        })
    };
    let unbanned = moderation.remove(is_meant)?;
    let text = match arguments.banned.json {
        true => json!({ "file": moderation.path().display().to_string(), "unbanned": unbanned })
            .to_string(),
        false if unbanned == 0 => format!("nothing of it is in {}", moderation.path().display()),
        false => format!(
            "{} taken out; what was deleted with --delete comes back after `negsync undelete`",
            delete::count(unbanned as u64, "ban")
        ),
    };
    let _ = writeln!(std::io::stdout(), "{text}");
    Ok(ExitCode::SUCCESS)
}

/// The stored events that the entries affect, by key and by id; `None` if the entries have neither.
fn stored(entries: &[ListEntry]) -> Option<Choice> {
    let (mut authors, mut ids) = (Vec::new(), Vec::new());
    for entry in entries {
        match entry {
            ListEntry::Key(key, _) => authors.push(hex::encode(key)),
            ListEntry::Event(id, _) => ids.push(hex::encode(id)),
            _ => {}
        }
    }
    let filter = (!authors.is_empty()).then(|| json!({ "authors": authors }).to_string());
    (filter.is_some() || !ids.is_empty()).then_some(Choice { ids, filter })
}

/// The number of these events that are stored; `None` if the store cannot be read.
fn count_stored(config: &Config, choice: &Choice) -> Option<u64> {
    let reader = StoreReader::open(config).ok()?;
    Some(reader.selected(&choice.selection().ok()?).ok()?.stored)
}

/// Determines whether a text is a key or an event.
fn named(text: &str, config: &Config) -> anyhow::Result<Named> {
    match Nip19::from_bech32(text) {
        Ok(Nip19::Pubkey(key)) => return Ok(Named::Key(key)),
        Ok(Nip19::Profile(profile)) => return Ok(Named::Key(profile.public_key)),
        Ok(Nip19::EventId(id)) => return Ok(Named::Event(id)),
        Ok(Nip19::Event(event)) => return Ok(Named::Event(event.event_id)),
        _ => {}
    }
    let Ok(id) = EventId::from_hex(text) else {
        bail!("{text:?} is no key and no event id: give npub1..., note1... or 64 hex digits");
    };
    let is_key = PublicKey::from_hex(text).is_ok_and(|key| key.xonly().is_ok());
    if is_key && !is_stored(&id, config) {
        return Ok(Named::Key(PublicKey::from_hex(text)?));
    }
    Ok(Named::Event(id))
}

fn is_stored(id: &EventId, config: &Config) -> bool {
    let selection = Selection { ids: vec![id.to_bytes()], filter: None };
    let selected = StoreReader::open(config).and_then(|it| it.selected(&selection));
    selected.is_ok_and(|selected| selected.stored > 0)
}

fn public_key(text: &str) -> Result<PublicKey, String> {
    PublicKey::parse(text)
        .map_err(|_| format!("{text:?} is no public key: give npub1... or 64 hex digits"))
}
