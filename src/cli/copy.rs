//! `negsync copy`: copies all events of one store to another, of any engines.

use super::store_reader::StoreReader;
use super::{StoreArguments, batch_bytes, progress_bar};
use anyhow::{Context, bail, ensure};
use indicatif::ProgressBar;
use negsync::config::Config;
use negsync::engine::open_index;
use negsync::hex;
use negsync::index::{Index, SetCacheSize, Sets, Slice};
use negsync::item::Item;
use negsync::reconcile::RangeSet;
use negsync::store::{
    Batches, Event, EventStore, Filter, Origin, Outcome, Selection, Undelete, VerifiedEvent,
};
use serde_json::json;
use std::collections::HashSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, sync_channel};

pub(super) const EXAMPLES: &str = "Examples:
  negsync copy events.sqlite postgres://relay@db.example/events
  negsync copy postgres://relay@db.example/events events.sqlite --config /etc/negsync/relay.toml

Copied: every event, private kinds too, and with them what requests to delete (NIP-09) and to vanish (NIP-62)
keep out; the ids that `negsync delete` has removed. Not copied: the author, kind and time
of those, so that `undelete` finds them by id or --all alone; the ban list, which is a file; what syncs
remember of peers, which the next sync with each finds out anew; what [retention] has removed, whose
rules the new store applies by itself.";

/// Exit code when the stores differ at the end.
const DIFFERS: u8 = 2;
/// Events that are read and written at a time.
const CHUNK_EVENTS: usize = 1_000;
/// Maximum number of rounds: each copies events that arrived in the first store during the previous
/// one.
const MOST_ROUNDS: usize = 5;

#[derive(clap::Args)]
pub(super) struct CopyArguments {
    /// The store to read: an SQLite file, or postgres://USER@HOST/DATABASE. A relay may run on it.
    #[arg(value_name = "FROM")]
    from: PathBuf,
    /// The store to write; it is made when it is not there. What it has stays.
    #[arg(value_name = "TO")]
    to: PathBuf,
    /// The configuration of the relay: how the stores are opened, and its URL for requests to vanish.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print one JSON object instead of lines.
    #[arg(long)]
    json: bool,
}

impl CopyArguments {
    /// How a store is opened. Retention removes nothing while its events are moved.
    fn config_of(&self, store: &Path) -> anyhow::Result<Config> {
        let arguments = StoreArguments { config: self.config.clone(), store: Some(store.into()) };
        let mut config = arguments.config()?;
        config.retention = Config::default().retention;
        Ok(config)
    }
}

pub(super) fn run(arguments: &CopyArguments) -> anyhow::Result<ExitCode> {
    let (from, to) = (arguments.config_of(&arguments.from)?, arguments.config_of(&arguments.to)?);
    ensure!(from.store != to.store, "FROM and TO are one store");
    let reader = StoreReader::open(&from)?;
    let source = reader.sets(&from)?;
    let batches = Batches::Long { bytes: batch_bytes() };
    let target = open_index(&to, to.store_options().batches(batches), SetCacheSize::memory(0))?;
    let mut copying = Copying { reader, source, target, copied: 0, removed: HashSet::new() };
    for _ in 0..MOST_ROUNDS {
        if !copying.round()? {
            break;
        }
    }
    let Copying { reader, source, target, copied, removed } = copying;
    target.close();
    // The proof uses what another program would read.
    let written = StoreReader::open(&to)?;
    let removals_only_from = removals(&reader)?.difference(&removals(&written)?).count();
    let (source, written) = (everything(&source)?, everything(&written.sets(&to)?)?);
    let compared = StoreComparison::of(&source, &written, removals_only_from)?;
    let text = match arguments.json {
        true => compared.object(copied, removed.len()),
        false => compared.lines(copied, removed.len()),
    };
    let _ = writeln!(std::io::stdout(), "{text}");
    Ok(if compared.is_equal() { ExitCode::SUCCESS } else { ExitCode::from(DIFFERS) })
}

/// The source and the target of a copy.
struct Copying {
    reader: StoreReader,
    source: Sets,
    target: Index,
    /// The number of events that the target has stored.
    copied: u64,
    /// The ids removed by the operator that the target keeps out.
    removed: HashSet<[u8; 32]>,
}

impl Copying {
    /// Copies missing events and bans; returns whether there were any.
    fn round(&mut self) -> anyhow::Result<bool> {
        let removed: Vec<[u8; 32]> =
            removals(&self.reader)?.difference(&self.removed).copied().collect();
        let is_removed_more = !removed.is_empty();
        if is_removed_more {
            self.removed.extend(&removed);
            self.target.store().delete(&Selection { ids: removed, filter: None })?;
        }
        let new = copy(&self.source, &self.target)?;
        self.copied += new;
        Ok(new > 0 || is_removed_more)
    }
}

/// The ids that the operator removed and keeps out.
fn removals(reader: &StoreReader) -> anyhow::Result<HashSet<[u8; 32]>> {
    Ok(reader.undeleted(&Undelete::All)?.into_iter().collect())
}

/// Copies the missing events, and returns their number.
fn copy(source: &Sets, target: &Index) -> anyhow::Result<u64> {
    let missing = missing(&everything(source)?, &everything(target.sets())?)?;
    let bar = progress_bar(
        Some(missing.len() as u64),
        "{bar:40} {percent}% {human_pos} of {human_len} events, {eta} left",
    );
    let mut writing = Writing { store: &**target.store(), bar: &bar, under_way: None, stored: 0 };
    for ids in missing.chunks(CHUNK_EVENTS) {
        writing.submit(read(source, ids)?)?;
    }
    writing.settle()?;
    bar.finish_and_clear();
    Ok(writing.stored)
}

/// The ids of the first set that the second lacks, oldest first.
fn missing(first: &Slice, second: &Slice) -> anyhow::Result<Vec<[u8; 32]>> {
    let mut missing = Vec::new();
    first.for_each(0..first.len(), &mut |item| {
        if !contains(second, &item) {
            missing.push(item.id);
        }
    });
    first.check()?;
    second.check()?;
    Ok(missing)
}

fn contains(set: &Slice, item: &Item) -> bool {
    let (place, mut is_there) = (set.lower_bound(item), false);
    set.for_each(place..place.saturating_add(1).min(set.len()), &mut |found| {
        is_there = found == *item;
    });
    is_there
}

fn read(source: &Sets, ids: &[[u8; 32]]) -> anyhow::Result<Vec<VerifiedEvent>> {
    let (mut events, mut wrong) = (Vec::with_capacity(ids.len()), None);
    source.source().events(ids, &mut |item, json| match Event::parse(json) {
        // A store contains verified events only.
        Ok(event) => events.push(event.trust()),
        Err(error) => wrong = Some(format!("{}: {error}", hex::encode(&item.id))),
    })?;
    match wrong {
        Some(wrong) => bail!("the event {wrong}; `negsync check` says more"),
        None => Ok(events),
    }
}

/// The commits to the target: one is written while the next is read.
struct Writing<'copy> {
    store: &'copy dyn EventStore,
    bar: &'copy ProgressBar,
    under_way: Option<Receiver<Vec<Outcome>>>,
    stored: u64,
}

impl Writing<'_> {
    fn submit(&mut self, events: Vec<VerifiedEvent>) -> anyhow::Result<()> {
        self.settle()?;
        let (reply, outcomes) = sync_channel(1);
        self.store.submit(&Origin::Local, events, Box::new(move |done| drop(reply.send(done))));
        self.under_way = Some(outcomes);
        Ok(())
    }

    fn settle(&mut self) -> anyhow::Result<()> {
        let Some(outcomes) = self.under_way.take() else { return Ok(()) };
        let outcomes = outcomes.recv().context("the store gave no answer")?;
        self.bar.inc(outcomes.len() as u64);
        for outcome in outcomes {
            match outcome {
                Outcome::Stored => self.stored += 1,
                Outcome::Failed(reason) => bail!("an event could not be stored: {reason}"),
                // The comparison finds missing events.
                _ => {}
            }
        }
        Ok(())
    }
}

fn everything(sets: &Sets) -> anyhow::Result<Slice> {
    sets.snapshot(&[Filter::default()], usize::MAX).context("the store cannot be read")
}

/// The comparison of the stores, id by id.
struct StoreComparison {
    from: usize,
    to: usize,
    only_from: usize,
    only_to: usize,
    /// Ids removed by the operator that the second store does not keep out.
    removals_only_from: usize,
    /// NIP-77's fingerprint of all ids of the second store.
    fingerprint: String,
}

impl StoreComparison {
    fn of(from: &Slice, to: &Slice, removals_only_from: usize) -> anyhow::Result<Self> {
        let fingerprint = to.fingerprint(0..to.len());
        Ok(Self {
            from: from.len(),
            to: to.len(),
            only_from: missing(from, to)?.len(),
            only_to: missing(to, from)?.len(),
            removals_only_from,
            fingerprint: hex::encode(fingerprint.as_ref()),
        })
    }

    fn is_equal(&self) -> bool {
        self.only_from == 0 && self.only_to == 0 && self.removals_only_from == 0
    }

    fn object(&self, copied: u64, removed: usize) -> String {
        json!({
            "copied": copied,
            "removed_by_operator": removed,
            "from": self.from,
            "to": self.to,
            "only_from": self.only_from,
            "only_to": self.only_to,
            "removals_only_from": self.removals_only_from,
            "fingerprint": self.fingerprint,
            "equal": self.is_equal(),
        })
        .to_string()
    }

    fn lines(&self, copied: u64, removed: usize) -> String {
        let Self { to, only_from, only_to, removals_only_from, fingerprint, .. } = self;
        let compared = match self.is_equal() {
            true => {
                format!("equal: both stores hold the same {to} events, fingerprint {fingerprint}")
            }
            false => format!(
                "the stores differ: {only_from} events only in the first, {only_to} only in the second, \
                 {removals_only_from} removals only in the first\n\
                 Hint: what came to the first in the meantime is copied when this is run again; what the \
                 second alone has stays"
            ),
        };
        format!(
            "{copied} events copied, {removed} ids that the operator has removed\n\
             not copied: author, kind and time of removed ids, the ban list (a file), what syncs remember of peers, what retention has removed\n\
             {compared}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use negsync::store::Clock;

    fn open(store: &Path) -> (Config, Index) {
        let mut config = Config::default();
        config.store.path = store.to_owned();
        let index = open_index(&config, config.store_options(), SetCacheSize::memory(0)).unwrap();
        (config, index)
    }

    #[test]
    fn what_is_removed_during_a_copy_is_removed_from_both() {
        let folder = tempfile::tempdir().unwrap();
        let (from, first) = open(&folder.path().join("first.sqlite"));
        let (_, target) = open(&folder.path().join("second.sqlite"));
        let event = |id: &str| {
            let json = format!(
                r#"{{"id":"{}","pubkey":"{}","created_at":{},"kind":1,"tags":[],"content":"","sig":"{}"}}"#,
                id.repeat(64),
                "a".repeat(64),
                Clock::system().now(),
                "0".repeat(128)
            );
            Event::parse(&json).unwrap().trust()
        };
        first.store().publish(vec![event("1"), event("2")]).unwrap();
        let reader = StoreReader::open(&from).unwrap();
        let source = reader.sets(&from).unwrap();
        let mut copying = Copying { reader, source, target, copied: 0, removed: HashSet::new() };
        assert!(copying.round().unwrap());
        // One that was copied, and one that neither store has.
        let ids = vec![[0x11; 32], [0x33; 32]];
        first.store().delete(&Selection { ids: ids.clone(), filter: None }).unwrap();
        assert!(copying.round().unwrap());
        assert!(!copying.round().unwrap());
        assert_eq!(copying.copied, 2);
        let mut kept_out = copying.target.store().undeleted(&Undelete::All).unwrap();
        kept_out.sort_unstable();
        assert_eq!(kept_out, ids);
        assert_eq!(everything(copying.target.sets()).unwrap().len(), 1);
    }
}
