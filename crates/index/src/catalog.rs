//! Chooses the set that answers a filter for a viewer. The sets of all events are always in memory,
//! private kinds apart. The set of any other filter is built by a covering scan and, if that was
//! costly, kept.

use super::item_set::ItemSet;
use super::memory_reservation::Charged;
use super::oversized::Oversized;
use super::scan::{Gathered, Parts, gather, scan, scan_to_tree, union};
use super::set_cache::{SetCache, Statistics};
use super::set_files::SetFiles;
use super::slice::Slice;
use super::tree::Tree;
use crate::metrics::IndexMetrics;
use negsync_reconcile::Item;
use negsync_reconcile::RangeSet;
use negsync_store::{Change, EventSource, Filter, PrivateKinds, StoreError, View, Viewer};
use std::cell::Cell;
use std::sync::Arc;

/// A set of at most this many items is cheap to scan: it is built for the session and not kept.
const CHEAP_ITEMS: usize = 5_000;

/// Why a filter has no set.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The set has more items than a session allows.
    #[error("the set has more than {limit} items")]
    TooLarge {
        /// Maximum number of items in a set.
        limit: usize,
    },
    /// The scan failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The catalog of sets.
pub struct Catalog {
    kept: SetCache,
    metrics: IndexMetrics,
    // The memory of sets that are not kept.
    charged: Arc<Charged>,
    // The files of kept sets that are too large for memory, if there may be any.
    files: Option<SetFiles>,
    oversized: Oversized,
}

impl std::fmt::Debug for Catalog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Catalog").finish_non_exhaustive()
    }
}

impl Catalog {
    /// A catalog whose kept sets take at most `memory_bytes` in addition to all events.
    #[must_use]
    pub fn new(memory_bytes: usize, private: &PrivateKinds) -> Self {
        let everything = Filter::default();
        let resident = if private.as_slice().is_empty() {
            vec![everything]
        } else {
            vec![private.public_part(&everything), private.private_part(&everything)]
        };
        Self::keeping(memory_bytes, resident)
    }

    /// Like [`Catalog::new`], for a store that publishes only public events: events of private
    /// kinds are found by scans alone.
    #[must_use]
    pub fn of_public(memory_bytes: usize, private: &PrivateKinds) -> Self {
        Self::keeping(memory_bytes, vec![private.public_part(&Filter::default())])
    }

    /// A catalog that keeps no sets: each is scanned for.
    pub(super) fn scanning() -> Self {
        Self::keeping(0, Vec::new())
    }

    fn keeping(memory_bytes: usize, resident: Vec<Filter>) -> Self {
        let charged = Arc::<Charged>::default();
        let kept = SetCache::new(memory_bytes, resident, Arc::clone(&charged));
        let (metrics, oversized) = (IndexMetrics::default(), Oversized::default());
        Self { kept, metrics, charged, files: None, oversized }
    }

    /// With files for kept sets that are too large for memory, unless no sets are kept.
    pub(super) fn with_files(self, files: Option<SetFiles>) -> Self {
        let files = files.filter(|_| self.kept.keeps_some());
        Self { files, ..self }
    }

    /// Builds the sets of all events. Called once, as soon as the store is open.
    ///
    /// # Errors
    /// When a scan fails.
    pub fn load(&self, source: &dyn EventSource) -> Result<(), StoreError> {
        self.load_from(source, |_| Ok(None)).map(|_| ())
    }

    /// Like [`Catalog::load`], but takes the sets from `files` if it has all of them. Returns
    /// whether it had.
    ///
    /// # Errors
    /// When a scan fails, and those of `files`.
    pub(super) fn load_from(
        &self,
        source: &dyn EventSource,
        files: impl FnOnce(&[Filter]) -> Result<Option<Vec<ItemSet>>, StoreError>,
    ) -> Result<bool, StoreError> {
        let _timer = self.metrics.build_s.start_timer();
        let claims = self.kept.resident_claims();
        if let Some(sets) = files(self.kept.resident())? {
            source.wait_until_published()?;
            claims.into_iter().zip(sets).for_each(|(claim, set)| drop(claim.settle(Some(set))));
            return Ok(true);
        }
        for claim in claims {
            let tree = scan_to_tree(source, claim.content(), usize::MAX)?;
            source.wait_until_published()?;
            claim.settle(tree.map(ItemSet::from));
        }
        Ok(false)
    }

    /// Builds those sets of all events that are missing, by scans.
    ///
    /// # Errors
    /// When a scan fails.
    pub(super) fn load_missing(&self, source: &dyn EventSource) -> Result<(), StoreError> {
        for content in self.kept.resident() {
            if self.kept.look_up(content, source.deadline())?.is_none()
                && let Some(claim) = self.kept.claim(content)
            {
                let tree = scan_to_tree(source, content, usize::MAX)?;
                source.wait_until_published()?;
                claim.settle(tree.map(ItemSet::from));
            }
        }
        Ok(())
    }

    /// The sets of all events, if they are loaded.
    pub(super) fn resident_sets(&self) -> Option<Vec<ItemSet>> {
        self.kept.sets(self.kept.resident())
    }

    /// See [`SetCache::begin_rewrite`].
    pub(super) fn begin_rewrite(&self) -> Vec<(Filter, ItemSet)> {
        self.kept.begin_rewrite()
    }

    /// See [`SetCache::finish_rewrite`].
    pub(super) fn finish_rewrite(&self, fresh: Vec<(Filter, ItemSet)>) {
        self.kept.finish_rewrite(fresh);
    }

    /// See [`SetCache::forget_unreadable`].
    pub(super) fn forget_unreadable(&self) -> bool {
        self.kept.forget_unreadable()
    }

    /// Replaces the public set by `items` and drops every other set, because the store is another
    /// one now.
    pub fn replace(&self, items: Vec<Item>) {
        self.oversized.clear();
        self.kept.replace(items);
    }

    /// The public set, unless it is being loaded.
    pub fn public(&self) -> Option<ItemSet> {
        self.kept.sets(self.public_content())?.pop()
    }

    fn public_content(&self) -> &[Filter] {
        self.kept.resident().get(..1).unwrap_or_default()
    }

    /// Applies a commit to every kept set. Called before the replies to the commit's events.
    pub fn apply(&self, change: &Change) {
        self.kept.apply(change);
    }

    /// Whether the sets in memory have the item: `false` until all events are loaded.
    pub fn contains(&self, item: &Item) -> bool {
        self.kept.contain(self.kept.resident(), item)
    }

    /// Like [`Catalog::contains`], for public events only.
    pub fn shows(&self, item: &Item) -> bool {
        self.kept.contain(self.public_content(), item)
    }

    /// Like [`Catalog::snapshot_for`], for a set in memory. `None` if the set is not in memory, or
    /// if the viewer may also see private events of it.
    ///
    /// # Errors
    /// When the set has more than `limit` items.
    pub fn kept_for(
        &self,
        viewer: &Viewer,
        filters: &[Filter],
        limit: usize,
    ) -> Result<Option<Slice>, SnapshotError> {
        let [filter] = filters else { return Ok(None) };
        let View { public: filter, own } = viewer.view(filter);
        if !own.is_empty() {
            return Ok(None);
        }
        let kept = self.kept.used(&filter.timeless());
        let slice = |set| Slice::new(set, filter.since, filter.until, filter.limit);
        kept.map(|set| whole(slice(set), limit)).transpose()
    }

    /// The metrics of the catalog.
    pub fn metrics(&self) -> &IndexMetrics {
        &self.metrics
    }

    /// The memory of sets that are not kept but still in use, in bytes.
    pub fn session_bytes(&self) -> usize {
        self.charged.bytes()
    }

    /// Accounts for the memory of a set that is not kept.
    fn not_kept(&self, tree: Tree) -> ItemSet {
        let bytes = tree.memory_bytes();
        tree.charged(self.charged.of(bytes)).into()
    }

    /// The current contents.
    pub fn statistics(&self) -> Statistics {
        let kept_file_bytes = self.files.as_ref().map_or(0, SetFiles::bytes);
        Statistics { kept_file_bytes, ..self.kept.statistics() }
    }

    /// The complete current set of the items that match any of the filters. Blocks while it is
    /// built.
    ///
    /// # Errors
    /// When the set has more than `limit` items or cannot be read; it is never truncated.
    pub fn snapshot(
        &self,
        source: &dyn EventSource,
        filters: &[Filter],
        limit: usize,
    ) -> Result<Slice, SnapshotError> {
        let whole: Vec<View> = filters.iter().cloned().map(View::whole).collect();
        self.snapshot_of(source, &whole, limit)
    }

    /// Like [`Catalog::snapshot`], restricted to events that the viewer may see.
    ///
    /// # Errors
    /// As [`Catalog::snapshot`].
    pub fn snapshot_for(
        &self,
        source: &dyn EventSource,
        viewer: &Viewer,
        filters: &[Filter],
        limit: usize,
    ) -> Result<Slice, SnapshotError> {
        // Where the private events have a tree of their own, who sees all needs no scan of them.
        if viewer.sees_all() && self.kept.resident().len() == 2 {
            return self.snapshot(source, filters, limit);
        }
        let views: Vec<View> = filters.iter().map(|filter| viewer.view(filter)).collect();
        match views.as_slice() {
            [view] if !view.own.is_empty() => {
                whole(self.slice_with_own(source, view, limit)?, limit)
            }
            _ => self.snapshot_of(source, &views, limit),
        }
    }

    fn snapshot_of(
        &self,
        source: &dyn EventSource,
        views: &[View],
        limit: usize,
    ) -> Result<Slice, SnapshotError> {
        let slice = match views {
            [View { public, own }] if own.is_empty() => self.slice(source, public, limit)?,
            _ => {
                let _timer = self.metrics.build_s.start_timer();
                let tree = union(source, views, limit)?.ok_or(SnapshotError::TooLarge { limit })?;
                Slice::new(self.not_kept(tree), None, None, None)
            }
        };
        whole(slice, limit)
    }

    fn slice(
        &self,
        source: &dyn EventSource,
        filter: &Filter,
        limit: usize,
    ) -> Result<Slice, SnapshotError> {
        let content = filter.timeless();
        if filter.is_void() {
            return Ok(Slice::new(Tree::new(), None, None, None));
        }
        let set = match self.kept.look_up(&content, source.deadline())? {
            Some(set) => set,
            None => match self.joined(source, filter, &content)? {
                Some(set) => set,
                None => {
                    let _timer = self.metrics.build_s.start_timer();
                    self.build(source, filter, &content, limit)?
                }
            },
        };
        Ok(Slice::new(set, filter.since, filter.until, filter.limit))
    }

    /// The public and the private events in one set, within the filter's times, if the filter
    /// matches all events; `None` for any other filter.
    fn joined(
        &self,
        source: &dyn EventSource,
        filter: &Filter,
        content: &Filter,
    ) -> Result<Option<ItemSet>, StoreError> {
        let resident @ [public, private] = self.kept.resident() else { return Ok(None) };
        if *content != Filter::default() {
            return Ok(None);
        }
        // Waits until both are loaded, and then takes both from the same commit.
        for content in [public, private] {
            if self.kept.look_up(content, source.deadline())?.is_none() {
                return Ok(None);
            }
        }
        let Some(mut sets) = self.kept.sets(resident) else { return Ok(None) };
        sets.sort_by_key(ItemSet::len);
        let (Some(mut most), Some(fewest)) = (sets.pop(), sets.pop()) else { return Ok(None) };
        let fewest = Slice::new(fewest, filter.since, filter.until, None);
        most.insert_batch(&fewest.to_vec());
        fewest.check()?;
        Ok(Some(most))
    }

    /// The kept set of a view's public part, joined with a scan of its private parts: both of the
    /// same commit.
    fn slice_with_own(
        &self,
        source: &dyn EventSource,
        view: &View,
        limit: usize,
    ) -> Result<Slice, SnapshotError> {
        let public = &view.public;
        let content = public.timeless();
        let cheap = || Gathered::new(None, CHEAP_ITEMS);
        let set = match self.read_at_commit(source, view, &content, &cheap, limit)? {
            Some(set) => set,
            None => {
                // Keeps the set from now on, if it fits.
                self.slice(source, public, limit)?;
                let all = || Gathered::new(view.limit(), limit);
                self.read_at_commit(source, view, &content, &all, limit)?
                    .ok_or(SnapshotError::TooLarge { limit })?
            }
        };
        Ok(Slice::new(set, public.since, public.until, public.limit))
    }

    /// The view's items at one commit. If no set of its public part is kept, all items are
    /// collected in `all`; `None` if they exceed the limit.
    fn read_at_commit(
        &self,
        source: &dyn EventSource,
        view: &View,
        content: &Filter,
        all: &dyn Fn() -> Gathered,
        limit: usize,
    ) -> Result<Option<ItemSet>, StoreError> {
        let (kept, mut found) = (Cell::new(None), None);
        let beside =
            || if content.is_void() { Some(ItemSet::default()) } else { self.kept.used(content) };
        source.read_at_commit(&mut || kept.set(beside()), &mut |moment| {
            found = match kept.take() {
                Some(mut set) => {
                    let mut own = Gathered::new(view.limit(), limit);
                    own.take(moment, &view.own)?;
                    own.items().map(|items| {
                        set.insert_batch(&items);
                        set
                    })
                }
                None => {
                    let mut all = all();
                    all.take(moment, view.parts())?;
                    all.items().map(|items| self.not_kept(Tree::from_unsorted(items)))
                }
            };
            Ok(())
        })?;
        Ok(found)
    }

    /// Builds the set of `filter`, and keeps the set of its content if it is costly and fits.
    fn build(
        &self,
        source: &dyn EventSource,
        filter: &Filter,
        content: &Filter,
        limit: usize,
    ) -> Result<ItemSet, SnapshotError> {
        // The sets of all events are always kept; one is missing only if it could not be loaded.
        let is_resident = self.kept.resident().contains(content);
        if !is_resident && let Some(items) = scan(source, filter, CHEAP_ITEMS)? {
            return Ok(self.not_kept(Tree::from_unsorted(items)));
        }
        let is_oversized = self.oversized.contains(content, source.clock().now());
        let kept = if is_oversized { None } else { self.keep(source, content)? };
        if let Some(set) = kept {
            return Ok(set);
        }
        // Too large to keep: built for this session only, or refused above the session's limit.
        let items = gather(source, filter, Gathered::new(filter.limit, limit))?
            .ok_or(SnapshotError::TooLarge { limit })?;
        Ok(self.not_kept(Tree::from_unsorted(items)))
    }
}

impl Catalog {
    /// Builds the set of a filter without times and keeps it; `None` if it is too large to keep.
    fn keep(
        &self,
        source: &dyn EventSource,
        content: &Filter,
    ) -> Result<Option<ItemSet>, StoreError> {
        let Some(claim) = self.kept.claim(content) else {
            // Another caller was faster; its set may turn out too large to be kept.
            return self.kept.look_up(content, source.deadline());
        };
        let most = self.kept.most_items(content);
        let events = self.public().map_or(0, |all| all.len());
        let set = match &self.files {
            Some(files) if events > most => self.scan_to_file(source, files, content, most)?,
            _ => scan_to_tree(source, content, most)?.map(ItemSet::from),
        };
        if set.is_none() {
            self.oversized.note(content, source.clock().now());
        }
        // A commit that the scan saw in part must be recorded completely.
        source.wait_until_published()?;
        Ok(claim.settle(set))
    }

    /// Scans for a set that may be too large for memory, by way of a file: a set of at most
    /// `most_in_memory` items is then a tree again. `None` if it is too large to keep.
    fn scan_to_file(
        &self,
        source: &dyn EventSource,
        files: &SetFiles,
        content: &Filter,
        most_in_memory: usize,
    ) -> Result<Option<ItemSet>, StoreError> {
        let parts = Parts::of(&self.public().unwrap_or_default(), most_in_memory);
        let file = files.scan(source, content, &parts, &|| self.kept.evict_file())?;
        let Some(set) = file.map(ItemSet::from) else {
            // There is no room for a file, or too many events are of one second.
            return Ok(scan_to_tree(source, content, most_in_memory)?.map(ItemSet::from));
        };
        if set.len() > most_in_memory {
            return Ok(Some(set));
        }
        let mut items = Vec::with_capacity(set.len());
        set.for_each(0..set.len(), &mut |item| items.push(item));
        Ok(set.is_readable().then(|| Tree::from_sorted(items).into()))
    }
}

/// Refuses a set that is too large, or that could not be read.
fn whole(slice: Slice, limit: usize) -> Result<Slice, SnapshotError> {
    slice.check()?;
    if slice.len() > limit { Err(SnapshotError::TooLarge { limit }) } else { Ok(slice) }
}
