//! The kept sets, by filter: updated with every commit, built by one caller while others wait, and
//! evicted when their memory is needed.

use super::item_set::ItemSet;
use super::memory_reservation::Charged;
use super::tree::Tree;
use negsync_reconcile::Item;
use negsync_reconcile::RangeSet;
use negsync_store::{Change, Deadline, Filter, Step, StoreError};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Estimated memory of an item in a kept set. More items than fit are not scanned for.
const BYTES_AN_ITEM: usize = 44;

/// Recorded items that are applied under the lock.
const FEW_NOTED: usize = 512;

/// The room for the kept sets of filters, besides the set of all events.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct SetCacheSize {
    /// Maximum memory of the sets together, in bytes.
    pub memory_bytes: usize,
    /// Maximum bytes of the files of sets that are too large for this memory; 0 for none.
    pub file_bytes: u64,
}

impl SetCacheSize {
    /// Sets in memory alone, of this many bytes together.
    #[must_use]
    pub fn memory(memory_bytes: usize) -> Self {
        Self { memory_bytes, file_bytes: 0 }
    }

    /// With files of this many bytes together, for sets that are too large for the memory.
    #[must_use]
    pub fn files(self, file_bytes: u64) -> Self {
        Self { file_bytes, ..self }
    }
}

impl From<usize> for SetCacheSize {
    fn from(memory_bytes: usize) -> Self {
        Self::memory(memory_bytes)
    }
}

/// The contents of the catalog at one time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Statistics {
    /// Whether all events have been loaded.
    pub is_loaded: bool,
    /// The number of items in the sets of all events.
    pub items: usize,
    /// Their maximum memory, in bytes.
    pub bytes: usize,
    /// The number of items added or removed since the files were written; all items, if there are
    /// no files.
    pub since_files: usize,
    /// The number of kept sets of other filters.
    pub kept_sets: usize,
    /// Their maximum memory, in bytes.
    pub kept_bytes: usize,
    /// The bytes of the files of those that are too large for memory, and of such sets that only
    /// sessions hold.
    pub kept_file_bytes: u64,
}

/// All kept sets, by filter without times and limit.
pub(super) struct SetCache {
    state: Mutex<CacheState>,
    // Signalled when a set has been built, or its build failed.
    built: Condvar,
    // Maximum memory of the sets together, in bytes.
    memory_bytes: usize,
    // The filters of the sets that are never evicted. They do not count towards the maximum memory.
    resident: Vec<Filter>,
    // The memory of sets that are no longer kept.
    charged: Arc<Charged>,
}

struct CacheState {
    sets: HashMap<Filter, CacheEntry>,
    // Counts the uses of kept sets.
    uses: u64,
    // Counts how often all sets became invalid: a set that was scanned before is not kept.
    begun: u64,
}

enum CacheEntry {
    /// One caller is scanning. Commits are recorded meanwhile and applied to the result; their
    /// number is bounded by the duration of the scan.
    Building(Noted),
    Kept {
        set: Box<ItemSet>,
        last_use: u64,
        // Changes committed since its files began to be written.
        since_rewrite: Option<Noted>,
    },
}

impl CacheEntry {
    fn kept(set: ItemSet, last_use: u64) -> Self {
        Self::Kept { set: Box::new(set), last_use, since_rewrite: None }
    }
}

/// Items and whether they are in the set, by the last step that named them.
type Noted = BTreeMap<Item, bool>;

impl SetCache {
    /// A cache that keeps the `resident` sets, once their [`SetCache::resident_claims`] are
    /// settled, and other sets of `memory_bytes` together. Lookups of a resident set wait until it
    /// is settled.
    pub(super) fn new(memory_bytes: usize, resident: Vec<Filter>, charged: Arc<Charged>) -> Self {
        let building = |filter: &Filter| (filter.clone(), CacheEntry::Building(Noted::new()));
        let sets = resident.iter().map(building).collect();
        let state = CacheState { sets, uses: 0, begun: 0 };
        Self { state: Mutex::new(state), built: Condvar::new(), memory_bytes, resident, charged }
    }

    /// The filters of the sets that are never evicted.
    pub(super) fn resident(&self) -> &[Filter] {
        &self.resident
    }

    /// The claims of the resident sets. Called once.
    pub(super) fn resident_claims(&self) -> Vec<Claim<'_>> {
        let begun = self.lock().begun;
        self.resident.iter().map(|content| Claim { kept: self, content, begun }).collect()
    }

    /// The right to build a set, unless it is kept or being built.
    pub(super) fn claim<'kept>(&'kept self, content: &'kept Filter) -> Option<Claim<'kept>> {
        let mut state = self.lock();
        if state.sets.contains_key(content) {
            return None;
        }
        state.sets.insert(content.clone(), CacheEntry::Building(Noted::new()));
        Some(Claim { kept: self, content, begun: state.begun })
    }

    /// Whether any sets are kept besides the resident ones.
    pub(super) fn keeps_some(&self) -> bool {
        self.memory_bytes > 0
    }

    /// Maximum number of items of a set that is kept in memory.
    pub(super) fn most_items(&self, content: &Filter) -> usize {
        let is_resident = self.resident.contains(content);
        if is_resident { usize::MAX } else { self.memory_bytes / BYTES_AN_ITEM }
    }

    /// Replaces the first resident set by `items` and drops every other set.
    pub(super) fn replace(&self, items: Vec<Item>) {
        let set = ItemSet::from(Tree::from_unsorted(items));
        let kept = self.resident.first().cloned();
        let mut state = self.lock();
        state.begun += 1;
        state.sets.clear();
        state.sets.extend(kept.map(|content| (content, CacheEntry::kept(set, 0))));
        drop(state);
        self.built.notify_all();
    }

    /// Applies a commit to every set. Called before the replies to the commit's events.
    pub(super) fn apply(&self, change: &Change) {
        let mut state = self.lock();
        for (filter, entry) in &mut state.sets {
            match entry {
                CacheEntry::Building(noted) => note(noted, filter, change),
                CacheEntry::Kept { set, since_rewrite, .. } => {
                    let mut noted = Noted::new();
                    note(&mut noted, filter, change);
                    settle(set, &noted);
                    since_rewrite.iter_mut().for_each(|since| since.extend(&noted));
                }
            }
        }
        self.evict(&mut state);
    }

    /// Whether an item is in any of these sets.
    pub(super) fn contain(&self, contents: &[Filter], item: &Item) -> bool {
        let state = self.lock();
        let has = |content| state.set(content).is_some_and(|set| set.contains(item));
        contents.iter().any(has)
    }

    /// The sets in this order, all of the same commit, if all of them are kept.
    pub(super) fn sets(&self, contents: &[Filter]) -> Option<Vec<ItemSet>> {
        let state = self.lock();
        contents.iter().map(|content| state.set(content).cloned()).collect()
    }

    /// The resident sets, all of the same commit, to be written to files; empty if one is missing.
    /// Later commits are recorded until [`SetCache::finish_rewrite`].
    pub(super) fn begin_rewrite(&self) -> Vec<(Filter, ItemSet)> {
        let mut state = self.lock();
        if self.resident.iter().any(|content| state.set(content).is_none()) {
            return Vec::new();
        }
        let sets = self.resident.iter().filter_map(|content| {
            let CacheEntry::Kept { set, since_rewrite, .. } = state.sets.get_mut(content)? else {
                return None;
            };
            *since_rewrite = Some(Noted::new());
            Some((content.clone(), ItemSet::clone(set)))
        });
        sets.collect()
    }

    /// Replaces sets by those read from the files written from them. A set that has become invalid
    /// stays missing.
    pub(super) fn finish_rewrite(&self, fresh: Vec<(Filter, ItemSet)>) {
        for (content, mut fresh) in fresh {
            // Most recorded changes are applied without holding the lock.
            while let Some(noted) = self.take_noted(&content, FEW_NOTED) {
                settle(&mut fresh, &noted);
            }
            let mut state = self.lock();
            if let Some(CacheEntry::Kept { set, since_rewrite, .. }) = state.sets.get_mut(&content)
                && let Some(noted) = since_rewrite.take()
            {
                settle(&mut fresh, &noted);
                **set = fresh;
            }
        }
        for entry in self.lock().sets.values_mut() {
            if let CacheEntry::Kept { since_rewrite, .. } = entry {
                *since_rewrite = None;
            }
        }
    }

    /// The changes recorded for a set since its files began to be written, if they are more than
    /// `few`.
    fn take_noted(&self, content: &Filter, few: usize) -> Option<Noted> {
        match self.lock().sets.get_mut(content)? {
            CacheEntry::Kept { since_rewrite: Some(noted), .. } if noted.len() > few => {
                Some(std::mem::take(noted))
            }
            _ => None,
        }
    }

    /// Drops every resident set whose file can no longer be read; it can be claimed again. Returns
    /// whether there was one.
    pub(super) fn forget_unreadable(&self) -> bool {
        let mut state = self.lock();
        let is_lost = |content| state.set(content).is_some_and(|set| !set.is_readable());
        if !self.resident.iter().any(is_lost) {
            return false;
        }
        for content in &self.resident {
            state.sets.insert(content.clone(), CacheEntry::Building(Noted::new()));
        }
        true
    }

    /// The set, if it is kept. Counts as a use.
    pub(super) fn used(&self, content: &Filter) -> Option<ItemSet> {
        self.lock().used(content)
    }

    /// Like [`SetCache::used`], but waits while another caller builds the set.
    ///
    /// # Errors
    /// When the deadline passes before it is built.
    pub(super) fn look_up(
        &self,
        content: &Filter,
        deadline: &Deadline,
    ) -> Result<Option<ItemSet>, StoreError> {
        let mut state = self.lock();
        while let Some(CacheEntry::Building(_)) = state.sets.get(content) {
            state = deadline.wait(&self.state, &self.built, state)?;
        }
        Ok(state.used(content))
    }

    /// The current contents.
    pub(super) fn statistics(&self) -> Statistics {
        let state = self.lock();
        let is_loaded = self.resident.iter().all(|content| state.set(content).is_some());
        let mut statistics = Statistics { is_loaded, ..Statistics::default() };
        for (filter, entry) in &state.sets {
            match entry {
                CacheEntry::Kept { set, .. } if self.resident.contains(filter) => {
                    statistics.items += set.len();
                    statistics.bytes += set.memory_bytes();
                    statistics.since_files += set.changes();
                }
                CacheEntry::Kept { set, .. } => {
                    statistics.kept_sets += 1;
                    statistics.kept_bytes += set.memory_bytes();
                }
                CacheEntry::Building(_) => {}
            }
        }
        statistics
    }

    /// Ends the build of a set: keeps `built`, or drops the entry if there is none.
    fn finish(&self, content: &Filter, begun: u64, built: Option<ItemSet>) -> Option<ItemSet> {
        let mut built = built.map(|set| set.charged(self.charged.nothing()));
        let mut state = self.lock();
        if state.begun != begun {
            return None;
        }
        let entry = state.sets.remove(content);
        if let (Some(set), Some(CacheEntry::Building(noted))) = (&mut built, entry) {
            // The scan saw some of these commits and not others; each item's last step decides.
            settle(set, &noted);
            state.uses += 1;
            let kept = CacheEntry::kept(set.clone(), state.uses);
            state.sets.insert(content.clone(), kept);
            self.evict(&mut state);
        }
        drop(state);
        self.built.notify_all();
        built
    }

    /// Drops the least recently used sets until the others fit.
    fn evict(&self, state: &mut CacheState) {
        while self.others(state).map(|(_, set, _)| set.memory_bytes()).sum::<usize>()
            > self.memory_bytes
        {
            let oldest = self.others(state).min_by_key(|(_, _, last_use)| *last_use);
            let Some(oldest) = oldest.map(|(filter, ..)| filter.clone()) else { return };
            state.drop_kept(&oldest);
        }
    }

    /// Drops the least recently used set whose file nobody else uses. Returns whether there was one.
    pub(super) fn evict_file(&self) -> bool {
        let mut state = self.lock();
        let on_files = self.others(&state).filter(|(_, set, _)| set.alone_has_file());
        let oldest = on_files.min_by_key(|(_, _, last_use)| *last_use);
        let oldest = oldest.map(|(filter, ..)| filter.clone());
        oldest.iter().for_each(|filter| state.drop_kept(filter));
        oldest.is_some()
    }

    /// The kept sets that may be evicted, with their last uses.
    fn others<'state>(
        &'state self,
        state: &'state CacheState,
    ) -> impl Iterator<Item = (&'state Filter, &'state ItemSet, u64)> {
        state.sets.iter().filter_map(|(filter, entry)| match entry {
            CacheEntry::Kept { set, last_use, .. } if !self.resident.contains(filter) => {
                Some((filter, set.as_ref(), *last_use))
            }
            _ => None,
        })
    }

    fn lock(&self) -> MutexGuard<'_, CacheState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl CacheState {
    fn set(&self, content: &Filter) -> Option<&ItemSet> {
        match self.sets.get(content)? {
            CacheEntry::Kept { set, .. } => Some(set.as_ref()),
            CacheEntry::Building(_) => None,
        }
    }

    /// Drops a set; its memory counts as that of its sessions from now on.
    fn drop_kept(&mut self, filter: &Filter) {
        if let Some(CacheEntry::Kept { set, .. }) = self.sets.remove(filter) {
            set.charge_all();
        }
    }

    /// The kept set. Counts as a use. A set whose own file can no longer be read is dropped.
    fn used(&mut self, content: &Filter) -> Option<ItemSet> {
        if self.set(content).is_some_and(|set| set.has_own_file() && !set.is_readable()) {
            self.drop_kept(content);
        }
        match self.sets.get_mut(content)? {
            CacheEntry::Kept { set, last_use, .. } => {
                self.uses += 1;
                *last_use = self.uses;
                Some(ItemSet::clone(set))
            }
            _ => None,
        }
    }
}

/// The right to build a set. Dropping it releases waiting callers, even if the scan failed.
pub(super) struct Claim<'kept> {
    kept: &'kept SetCache,
    content: &'kept Filter,
    begun: u64,
}

impl Claim<'_> {
    /// The filter of the set.
    pub(super) fn content(&self) -> &Filter {
        self.content
    }

    /// Keeps the set after applying the changes committed meanwhile. Keeps nothing if `built` is
    /// `None`, or if all sets became invalid since the claim.
    pub(super) fn settle(self, built: Option<ItemSet>) -> Option<ItemSet> {
        let set = self.kept.finish(self.content, self.begun, built);
        std::mem::forget(self);
        set
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.kept.finish(self.content, self.begun, None);
    }
}

/// Records the effect of a change on the set of a filter without times.
fn note(noted: &mut Noted, filter: &Filter, change: &Change) {
    for step in &change.steps {
        match step {
            Step::Added(event) if filter.matches(event) => {
                noted.insert(event.item(), true);
            }
            Step::Added(_) | Step::Passed(_) => {}
            Step::Removed(item) => {
                noted.insert(*item, false);
            }
        }
    }
}

/// Applies recorded changes.
fn settle(set: &mut ItemSet, noted: &Noted) {
    let of = |wanted: bool| -> Vec<Item> {
        noted.iter().filter(|(_, is)| **is == wanted).map(|(item, _)| *item).collect()
    };
    set.remove_batch(&of(false));
    set.insert_batch(&of(true));
}
