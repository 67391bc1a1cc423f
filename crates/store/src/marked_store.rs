//! The interface by which the index keeps its sets in files between starts.

use crate::{EventSource, MarkName, StoreError};
use negsync_reconcile::Item;

/// A store that records additions and removals since a *mark*. Index files bear the name of their
/// mark. A file may be of any time after its mark, because changes since the mark can be applied
/// twice.
pub trait MarkedStore: EventSource {
    /// The marks of `of` since which all changes are known, latest first.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn standing_marks(&self, of: &[MarkName]) -> Result<Vec<MarkName>, StoreError>;

    /// Calls `removed` with each item removed since a mark, and then `added` with each item added
    /// since that is still stored, and its kind. Returns false, without any call, if the mark does
    /// not exist or more than about `most` events would have to be read.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn since_index_mark(
        &self,
        name: &MarkName,
        most: usize,
        removed: &mut dyn FnMut(Item),
        added: &mut dyn FnMut(Item, u16),
    ) -> Result<bool, StoreError>;

    /// Creates a mark for index files, and returns its name. `take` is called once all commits
    /// before the mark are published, and takes the sets for the files. The mark stands once it is
    /// kept: no copy of the store in which it stands lacks a commit of these sets.
    ///
    /// # Errors
    /// When the store cannot be written or is closed.
    fn begin_index_mark(&self, take: &mut dyn FnMut()) -> Result<MarkName, StoreError>;

    /// Keeps this mark and drops every other one, with the changes recorded for the others.
    ///
    /// # Errors
    /// As [`MarkedStore::begin_index_mark`].
    fn keep_index_mark(&self, name: Option<MarkName>) -> Result<(), StoreError>;

    /// The number of commits since a mark, if the engine counts marks in commits; otherwise 0.
    fn commits_since_index_mark(&self, name: &MarkName) -> u64;
}
