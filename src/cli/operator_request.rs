//! The common parts of `delete`, `undelete` and `ban --delete`: the selection of events, and the
//! request to a relay that runs on the store.

use anyhow::Context;
use negsync::config::Config;
use negsync::control::{self, Choice, ControlError, ControlReport, ControlRequest};
use negsync::engine::open_store;
use negsync::store::{Filter, StoreError};
use nostr::EventId;
use nostr::nips::nip19::{FromBech32, Nip19};

/// Which events are meant.
#[derive(clap::Args)]
pub(super) struct ChoiceArguments {
    /// The events with these ids: 64 hex digits, note1... or nevent1..., whether they are stored or not.
    #[arg(long = "id", value_name = "ID", num_args = 1.., value_parser = event_id)]
    pub(super) ids: Vec<EventId>,
    /// The events that match this NIP-01 filter.
    #[arg(long, value_name = "JSON")]
    pub(super) filter: Option<String>,
}

impl ChoiceArguments {
    pub(super) fn choice(&self) -> anyhow::Result<Choice> {
        if let Some(filter) = &self.filter {
            Filter::parse(filter).context("--filter")?;
        }
        let ids = self.ids.iter().map(|id| id.to_hex()).collect();
        Ok(Choice { ids, filter: self.filter.clone() })
    }
}

/// Parses an id in any common form.
pub(super) fn event_id(text: &str) -> Result<EventId, String> {
    let named = || match Nip19::from_bech32(text) {
        Ok(Nip19::EventId(id)) => Some(id),
        Ok(Nip19::Event(event)) => Some(event.event_id),
        _ => None,
    };
    EventId::from_hex(text).ok().or_else(named).ok_or_else(|| {
        format!("{text:?} is no event id: give 64 hex digits, note1... or nevent1...")
    })
}

/// Performs a request on the store, or sends it to the relay that runs there.
pub(super) fn follow(config: &Config, request: &ControlRequest) -> anyhow::Result<ControlReport> {
    let path = &config.store.path;
    if config.store.url.is_empty() {
        // Opening a missing store would create it.
        std::fs::metadata(path)
            .with_context(|| format!("cannot open the store {}", path.display()))?;
    }
    match open_store(config, config.store_options()) {
        Ok(store) => {
            let done = control::perform(&*store, request);
            store.close();
            Ok(done?)
        }
        Err(in_use @ StoreError::InUse { .. }) => match control::ask(path, request) {
            Err(unreachable @ ControlError::Unreachable { .. }) => {
                Err(anyhow::Error::new(in_use).context(unreachable.to_string()))
            }
            asked => Ok(asked?),
        },
        Err(error) => Err(error.into()),
    }
}
