//! Our side of `sync` and `diff`: the store, or a read-only view of it while another process writes
//! to it.

use super::batch_bytes;
use anyhow::Context;
use negsync::admission::Admission;
use negsync::config::Config;
use negsync::engine;
use negsync::index::{Index, Sets};
use negsync::store::{Batches, Reader, Store, StoreError};
use negsync::sync::Local;
use std::sync::Arc;
use tempfile::TempDir;

/// Our side, and the folder of recorded state if the store is read-only.
pub(super) struct OpenedLocal {
    pub(super) local: Local,
    // The folder is removed when this is dropped.
    _notes: Option<TempDir>,
}

impl OpenedLocal {
    /// Our side with its state in its own store.
    pub(super) fn of(local: Local) -> Self {
        Self { local, _notes: None }
    }
}

/// Our side with the configured store.
pub(super) fn open(config: Config) -> anyhow::Result<OpenedLocal> {
    let index = open_index(&config)?;
    Ok(OpenedLocal::of(Local::configured(index, Admission::start(config)?)?))
}

/// Like [`open`], for commands that move no events: also while a relay runs on the store.
pub(super) fn open_to_read(config: Config) -> anyhow::Result<OpenedLocal> {
    match open_index(&config) {
        Ok(index) => Ok(OpenedLocal::of(Local::configured(index, Admission::start(config)?)?)),
        Err(StoreError::InUse { .. }) => beside_writer(config),
        Err(error) => Err(error.into()),
    }
}

fn open_index(config: &Config) -> Result<Index, StoreError> {
    let batches = Batches::Long { bytes: batch_bytes() };
    let options = config.store_options().batches(batches);
    engine::open_index(config, options, config.index.cache_size())
}

fn beside_writer(config: Config) -> anyhow::Result<OpenedLocal> {
    tracing::debug!("another process writes to the store; reading beside it");
    let reader = Reader::open(&config.store.path, config.store.readers)?;
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    let notes = folder.path().join("notes.sqlite");
    let notes = Store::open(&notes, config.store_options(), Box::new(|_| {}))?;
    let local = Local::reading(Sets::reading(reader), Arc::new(notes), Admission::start(config)?)?;
    Ok(OpenedLocal { local, _notes: Some(folder) })
}
