//! Moderation by the operator: banned keys, events, words and addresses, refused kinds, and the
//! relay's name, description and icon (NIP-86). All of it is in one text file beside the store.
//! Commands, HTTP requests and editors may change the file; a change takes effect at once.

mod entry;
mod file;
mod list;

pub use entry::{EntryError, ListEntry};
pub use list::BanList;

use crate::config::Config;
use arc_swap::ArcSwap;
use file::Stamp;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModerationError {
    /// It cannot be read or written.
    #[error("cannot use the ban list {path}: {source}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A line is invalid.
    #[error("{path}, line {line}: {source}", path = path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// The fault.
        source: EntryError,
    },
}

/// The current list. Clones share it.
#[derive(Clone)]
pub struct Moderation {
    path: Arc<Path>,
    current: Arc<ArcSwap<(Stamp, Arc<BanList>)>>,
}

impl std::fmt::Debug for Moderation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Moderation").finish_non_exhaustive()
    }
}

impl Moderation {
    /// The list of a configuration: `moderation.file`, or the store's path with `.bans` appended.
    ///
    /// # Errors
    /// [`ModerationError`] when the file exists but cannot be read, or has an invalid line.
    pub fn configured(config: &Config) -> Result<Self, ModerationError> {
        Self::open(&path(config))
    }

    /// The list in the file at `path`; a missing file is an empty list.
    ///
    /// # Errors
    /// As [`Moderation::configured`].
    pub fn open(path: &Path) -> Result<Self, ModerationError> {
        let stamp = Stamp::of(path);
        let list = Arc::new(BanList::parse(&file::read(path)?, path)?);
        Ok(Self { path: path.into(), current: Arc::new(ArcSwap::from_pointee((stamp, list))) })
    }

    /// The path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The current list. Checks whether the file has changed, which takes about a microsecond. If
    /// the new file is invalid, the error is logged and the previous list stays in force.
    pub fn current(&self) -> Arc<BanList> {
        let current = self.current.load();
        let stamp = Stamp::of(&self.path);
        if current.0 == stamp {
            return Arc::clone(&current.1);
        }
        let read = file::read(&self.path).and_then(|text| BanList::parse(&text, &self.path));
        let list = match read {
            Ok(list) => {
                let (file, entries) = (self.path.display(), list.entries().len());
                tracing::info!(%file, entries, "ban list reloaded");
                Arc::new(list)
            }
            Err(error) => {
                tracing::error!(%error, "ban list not read: the last one stays in force");
                Arc::clone(&current.1)
            }
        };
        self.current.store(Arc::new((stamp, Arc::clone(&list))));
        list
    }

    /// Adds entries; each replaces the entries that it [`ListEntry::replaces`].
    ///
    /// # Errors
    /// [`ModerationError`] when the file cannot be read or written.
    pub fn add(&self, added: &[ListEntry]) -> Result<(), ModerationError> {
        self.edit(|kept| !added.iter().any(|entry| entry.replaces(kept)), added)
    }

    /// Removes the entries that `is_meant` selects, and returns their number.
    ///
    /// # Errors
    /// As [`Moderation::add`].
    pub fn remove(&self, is_meant: impl Fn(&ListEntry) -> bool) -> Result<usize, ModerationError> {
        let before = self.current().entries().len();
        self.edit(|kept| !is_meant(kept), &[])?;
        Ok(before.saturating_sub(self.current().entries().len()))
    }

    fn edit(
        &self,
        keeps: impl Fn(&ListEntry) -> bool,
        added: &[ListEntry],
    ) -> Result<(), ModerationError> {
        file::edit(&self.path, |text| BanList::edited(text, &self.path, keeps, added))?;
        self.current();
        Ok(())
    }
}

/// The path of a configuration's list.
fn path(config: &Config) -> PathBuf {
    if !config.moderation.file.as_os_str().is_empty() {
        return config.moderation.file.clone();
    }
    config.store.file_beside(".bans")
}
