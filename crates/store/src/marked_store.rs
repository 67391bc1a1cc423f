//! What the index needs of a store to keep its sets on files from one start to the next.

use crate::{EventSource, MarkName, StoreError};
use negsync_reconcile::Item;

/// A store that can say what was added and removed since a *mark*, a moment that files of the index bear
/// the name of. A file may be of any moment after its mark: what came since can be applied twice.
pub trait MarkedStore: EventSource {
    /// Those of these marks from which on everything is known, the latest first.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn standing_marks(&self, of: &[MarkName]) -> Result<Vec<MarkName>, StoreError>;

    /// Calls `removed` with what was removed since a mark, and then `added` with what is there of
    /// what was added since, and its kind. `false` when the mark does not stand, or about more than
    /// `most` events would have to be read: then neither is called.
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

    /// Makes a mark for files of the index, and returns its name once all commits before it are
    /// published. What the sets hold from now on can be written under that name.
    ///
    /// # Errors
    /// When the store cannot be written or is closed.
    fn begin_index_mark(&self) -> Result<MarkName, StoreError>;

    /// Drops every mark but this one, and what was noted for others.
    ///
    /// # Errors
    /// As [`MarkedStore::begin_index_mark`].
    fn keep_index_mark(&self, name: Option<MarkName>) -> Result<(), StoreError>;

    /// How many commits there were since a mark, where a mark stands for a number of commits alone;
    /// otherwise 0.
    fn commits_since_index_mark(&self, name: &MarkName) -> u64;
}
