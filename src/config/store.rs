//! `[store]` and `[index]`: the storage of events, its durability, and the memory for sets.

use super::DatabaseUrl;
use super::section::section;
use crate::index::SetCacheSize;
use crate::store::Synchronous;
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use std::path::PathBuf;

section! {
    /// `[store]`
    pub struct StoreConfig {
        /// The SQLite file.
        #[serde(deserialize_with = "store_path")]
        pub path: PathBuf => Restart,
        /// The PostgreSQL database instead of the file; empty for none.
        pub url: DatabaseUrl => Restart,
        /// The durability of acknowledged events.
        pub synchronous: Synchronous => Restart,
        /// Maximum number of concurrent reading connections.
        pub readers: usize where 1..=256 => Restart,
        /// The writer's page cache.
        pub cache_mb: usize where 1..=65_536 => Restart,
        /// The length at which the write-ahead log is moved into the file.
        pub wal_mb: usize where 1..=65_536 => Restart,
    }
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            path: PathBuf::from("negsync.sqlite"),
            url: DatabaseUrl::default(),
            synchronous: Synchronous::Full,
            readers: 16,
            cache_mb: 256,
            wal_mb: 256,
        }
    }
}

impl StoreConfig {
    /// The name of the store for display, without a password.
    pub fn name(&self) -> String {
        if self.url.is_empty() { self.path.display().to_string() } else { self.url.to_string() }
    }

    /// The path of a file beside the store: its path with `ending` appended; in the working
    /// directory, if the store is a database.
    pub fn file_beside(&self, ending: &str) -> PathBuf {
        let store = if self.url.is_empty() { self.path.as_os_str() } else { "negsync".as_ref() };
        let mut name = store.to_owned();
        name.push(ending);
        name.into()
    }
}

section! {
    /// `[index]`
    pub struct IndexConfig {
        /// Memory for cached sets.
        pub memory_mb: usize where 0..=1_048_576 => Restart,
        /// The disk for the files of cached sets that are too large for this memory.
        pub set_files_mb: u64 where 0..=1_048_576 => Restart,
        /// The folder for index files of a database; empty for none.
        pub folder: PathBuf => Restart,
    }
}

impl Default for IndexConfig {
    fn default() -> Self {
        Self { memory_mb: 256, set_files_mb: 1_024, folder: PathBuf::new() }
    }
}

impl IndexConfig {
    /// The room for cached sets.
    #[must_use]
    pub fn cache_size(&self) -> SetCacheSize {
        SetCacheSize::memory(self.memory_mb << 20).files(self.set_files_mb << 20)
    }
}

fn store_path<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    let path = PathBuf::deserialize(deserializer)?;
    if path.to_str().is_some_and(|text| text.contains("://")) {
        return Err(D::Error::custom("must name a file; a database goes into url"));
    }
    let is_named = !path.as_os_str().is_empty();
    is_named.then_some(path).ok_or_else(|| D::Error::custom("must name a file"))
}
