//! What the operator does not want: banned keys, events, words and addresses, kinds that are refused,
//! and what the relay says of itself (NIP-86). All of it stands in one file of lines beside the store,
//! which commands, HTTP and an editor change alike, and which is in force as soon as it has changed.

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
    /// A line of it is wrong.
    #[error("{path}, line {line}: {source}", path = path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong.
        source: EntryError,
    },
}

/// The list in force. Clones share it.
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
    /// The list of a configuration: `moderation.file`, or the store's name with `.bans` at its end.
    ///
    /// # Errors
    /// When the file is there and cannot be read, or a line of it is wrong.
    pub fn configured(config: &Config) -> Result<Self, ModerationError> {
        Self::open(&path(config))
    }

    /// The list in the file at `path`; a file that is not there is an empty list.
    ///
    /// # Errors
    /// As [`Moderation::configured`].
    pub fn open(path: &Path) -> Result<Self, ModerationError> {
        let stamp = Stamp::of(path);
        let list = Arc::new(BanList::parse(&file::read(path)?, path)?);
        Ok(Self { path: path.into(), current: Arc::new(ArcSwap::from_pointee((stamp, list))) })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The list as the file has it now. Looks whether the file has changed, which takes about a
    /// microsecond. A file that cannot be used is named in the log, and the list stays as it was.
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
                tracing::info!(%file, entries, "ban list read anew");
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

    /// Adds entries, each in the place of those that [`ListEntry::replaces`] it.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub fn add(&self, added: &[ListEntry]) -> Result<(), ModerationError> {
        self.edit(|kept| !added.iter().any(|entry| entry.replaces(kept)), added)
    }

    /// Takes out the entries that `is_meant` names, and returns how many they were.
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

/// Where the list of a configuration is.
fn path(config: &Config) -> PathBuf {
    if !config.moderation.file.as_os_str().is_empty() {
        return config.moderation.file.clone();
    }
    config.store.file_beside(".bans")
}
