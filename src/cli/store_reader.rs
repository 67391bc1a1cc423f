//! The store as read-only commands use it: beside any writer.

use negsync::config::Config;
use negsync::engine::{open_index, open_store};
use negsync::index::{SetCacheSize, Sets};
use negsync::store::{
    EventStore, Filter, Hit, Reader, Retention, RuleMatches, Selected, Selection, StoreError,
    StoreOptions, Undelete, UndeleteError,
};
use std::sync::Arc;

/// A store that is open for reading.
pub(super) enum StoreReader {
    /// An SQLite file.
    File(Reader),
    /// A database, which any number of programs may have open.
    Database(Arc<dyn EventStore>),
}

/// The options without the rules of retention: a command that reads must not put them in force.
fn read_options(config: &Config) -> StoreOptions {
    config.store_options().retention(None)
}

impl StoreReader {
    /// Opens the configured store, which must exist.
    pub(super) fn open(config: &Config) -> Result<Self, StoreError> {
        if config.store.url.is_empty() {
            return Ok(Self::File(Reader::open(&config.store.path, 1)?));
        }
        Ok(Self::Database(open_store(config, read_options(config))?))
    }

    pub(super) fn newest(&self, filter: &Filter) -> Result<Vec<Hit>, StoreError> {
        let filters = std::slice::from_ref(filter);
        match self {
            Self::File(reader) => reader.newest(filters, usize::MAX),
            Self::Database(store) => store.newest(filters, usize::MAX),
        }
    }

    pub(super) fn selected(&self, selection: &Selection) -> Result<Selected, StoreError> {
        match self {
            Self::File(reader) => reader.selected(selection),
            Self::Database(store) => store.selected(selection),
        }
    }

    pub(super) fn undeleted(&self, undelete: &Undelete) -> Result<Vec<[u8; 32]>, UndeleteError> {
        match self {
            Self::File(reader) => reader.undeleted(undelete),
            Self::Database(store) => store.undeleted(undelete),
        }
    }

    /// The sets over the store; `config` names it.
    pub(super) fn sets(&self, config: &Config) -> Result<Sets, StoreError> {
        match self {
            Self::File(reader) => Ok(Sets::reading(reader.clone())),
            Self::Database(_) => {
                Ok(open_index(config, read_options(config), SetCacheSize::memory(0))?
                    .sets()
                    .clone())
            }
        }
    }

    pub(super) fn preview(
        &self,
        retention: &Retention,
    ) -> Result<(Vec<RuleMatches>, u64), StoreError> {
        match self {
            Self::File(reader) => reader.preview(retention),
            Self::Database(store) => store.preview(retention),
        }
    }
}
