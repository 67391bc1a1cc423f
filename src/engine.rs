//! Opens the configured store with its engine: an SQLite file, or a database on a PostgreSQL server
//! that several relays share.

use crate::config::Config;
use crate::index::{Index, SetCacheSize};
use crate::store::{CheckReport, EventStore, Store, StoreError, StoreOptions, check};
use std::sync::Arc;

/// Opens the store with its sets; `size` is the room for kept ones. Blocks.
///
/// # Errors
/// [`StoreError`] when the store cannot be opened, or this program was built without its engine.
pub fn open_index(
    config: &Config,
    options: StoreOptions,
    size: SetCacheSize,
) -> Result<Index, StoreError> {
    if config.store.url.is_empty() {
        return Index::open(&config.store.path, options, size);
    }
    database::open_index(config, options, size)
}

/// Opens the store without sets. Blocks.
///
/// # Errors
/// As [`open_index`].
pub fn open_store(
    config: &Config,
    options: StoreOptions,
) -> Result<Arc<dyn EventStore>, StoreError> {
    if config.store.url.is_empty() {
        return Ok(Arc::new(Store::open(&config.store.path, options, Box::new(|_| {}))?));
    }
    database::open_store(config.store.url.expose(), options)
}

/// Checks the store. `progress` gets the number of checked events and the total. Blocks.
///
/// # Errors
/// [`StoreError`] when the store does not exist or cannot be read.
pub fn check_store(
    config: &Config,
    progress: impl FnMut(u64, u64),
) -> Result<CheckReport, StoreError> {
    if config.store.url.is_empty() {
        return check(&config.store.path, progress);
    }
    database::check(config.store.url.expose(), progress)
}

#[cfg(feature = "postgres")]
mod database {
    use super::{
        Arc, CheckReport, Config, EventStore, Index, SetCacheSize, StoreError, StoreOptions,
    };
    use negsync_postgres::{Address, PostgresStore};

    pub(super) fn open_index(
        config: &Config,
        options: StoreOptions,
        size: SetCacheSize,
    ) -> Result<Index, StoreError> {
        let address = Address::parse(config.store.url.expose())?;
        let (folder, private) = (&config.index.folder, options.private_kinds.clone());
        if folder.as_os_str().is_empty() {
            return Index::over(size.memory_bytes, &private, |listener| {
                Ok(Arc::new(PostgresStore::open(&address, options, listener)?))
            });
        }
        Index::over_files(folder, size, &private, |listener| {
            Ok(Arc::new(PostgresStore::open_unread(&address, options, listener)?))
        })
    }

    pub(super) fn check(
        url: &str,
        progress: impl FnMut(u64, u64),
    ) -> Result<CheckReport, StoreError> {
        negsync_postgres::check(&Address::parse(url)?, progress)
    }

    pub(super) fn open_store(
        url: &str,
        options: StoreOptions,
    ) -> Result<Arc<dyn EventStore>, StoreError> {
        Ok(Arc::new(PostgresStore::open_without_sets(&Address::parse(url)?, options)?))
    }
}

#[cfg(not(feature = "postgres"))]
mod database {
    use super::{
        Arc, CheckReport, Config, EventStore, Index, SetCacheSize, StoreError, StoreOptions,
    };

    const LEFT_OUT: StoreError = StoreError::Unsupported {
        what: "a database on PostgreSQL",
        instead: "this negsync was built without it; build one with the feature `postgres`",
    };

    pub(super) fn check(_: &str, _: impl FnMut(u64, u64)) -> Result<CheckReport, StoreError> {
        Err(LEFT_OUT)
    }

    pub(super) fn open_index(
        _: &Config,
        _: StoreOptions,
        _: SetCacheSize,
    ) -> Result<Index, StoreError> {
        Err(LEFT_OUT)
    }

    pub(super) fn open_store(_: &str, _: StoreOptions) -> Result<Arc<dyn EventStore>, StoreError> {
        Err(LEFT_OUT)
    }
}
