//! The sets that are kept, by filter: brought up to date with every commit, built by one caller while
//! others wait, and dropped when their memory is needed for others.

use super::item_set::ItemSet;
use super::memory_reservation::Charged;
use super::tree::Tree;
use negsync_reconcile::Item;
use negsync_reconcile::RangeSet;
use negsync_store::{Change, Deadline, Filter, Step, StoreError};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// What an item of a kept set takes, about; more items than fit are not even scanned for.
const BYTES_AN_ITEM: usize = 44;

/// So many commits' items are applied while others wait.
const FEW_NOTED: usize = 512;

/// What the catalog holds at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Statistics {
    /// Whether all events have been loaded.
    pub is_loaded: bool,
    /// Items of all events.
    pub items: usize,
    /// The memory that they take, at most.
    pub bytes: usize,
    /// Items that were added or removed since they were written to files; all, where they are on none.
    pub since_files: usize,
    /// Sets of other filters that are kept.
    pub kept_sets: usize,
    /// The memory that they take, at most.
    pub kept_bytes: usize,
}

/// All sets that are kept. A filter's times and limit are no part of what its set is kept under.
pub(super) struct SetCache {
    state: Mutex<CacheState>,
    // Signalled when a set has been built, or could not be.
    built: Condvar,
    // What the sets may take together, in bytes.
    memory_bytes: usize,
    // The filters of the sets that are never evicted, and beside that bound.
    resident: Vec<Filter>,
    // What sets take that are not kept any more.
    charged: Arc<Charged>,
}

struct CacheState {
    sets: HashMap<Filter, CacheEntry>,
    // Counts up with every use of a kept set.
    uses: u64,
    // Counts the times that all sets became void: what was scanned before is not kept.
    begun: u64,
}

enum CacheEntry {
    /// One caller scans; meanwhile commits are noted, to be applied to what it finds. They are as
    /// many as are made while one scan lasts.
    Building(Noted),
    Kept {
        set: Box<ItemSet>,
        last_use: u64,
        // What was committed since files began to be written of it.
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
    /// Keeps the `resident` sets, each from the moment its [`SetCache::resident_claims`] is settled,
    /// and others of `memory_bytes` together. Whoever asks for a resident one earlier waits.
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

    /// The most items that a set may have to be kept.
    pub(super) fn most_items(&self, content: &Filter) -> usize {
        let is_resident = self.resident.contains(content);
        if is_resident { usize::MAX } else { self.memory_bytes / BYTES_AN_ITEM }
    }

    /// Keeps `items` as the first of the resident sets and forgets every other set.
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

    /// Brings every set up to date. Called with each commit, before its outcomes are told.
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

    /// The sets, all of one moment and in this order, if all of them are kept.
    pub(super) fn sets(&self, contents: &[Filter]) -> Option<Vec<ItemSet>> {
        let state = self.lock();
        contents.iter().map(|content| state.set(content).cloned()).collect()
    }

    /// The resident sets, all of one moment, for files to be written of them; none where one is
    /// missing. What is committed from now on is noted until [`SetCache::finish_rewrite`].
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

    /// Goes on with sets that are on files, in the place of those that they were written of. A set
    /// of which there is none stays.
    pub(super) fn finish_rewrite(&self, fresh: Vec<(Filter, ItemSet)>) {
        for (content, mut fresh) in fresh {
            // Most of what was committed meanwhile is applied while nobody waits.
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

    /// What was noted of a set since files began to be written of it, if that is more than `few`.
    fn take_noted(&self, content: &Filter, few: usize) -> Option<Noted> {
        match self.lock().sets.get_mut(content)? {
            CacheEntry::Kept { since_rewrite: Some(noted), .. } if noted.len() > few => {
                Some(std::mem::take(noted))
            }
            _ => None,
        }
    }

    /// Forgets every resident set whose file cannot be read any more; they can be claimed again.
    /// Returns whether there is one.
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

    /// The set if it is kept, which is used by that.
    pub(super) fn used(&self, content: &Filter) -> Option<ItemSet> {
        self.lock().used(content)
    }

    /// As [`SetCache::used`]; waits while another caller builds it.
    ///
    /// # Errors
    /// When the deadline is over before it is built.
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

    /// What is kept now.
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

    /// Ends the building of a set: with its items it is kept, without it is forgotten.
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

    /// Drops least recently used sets until the rest fit.
    fn evict(&self, state: &mut CacheState) {
        loop {
            let kept = state.sets.iter().filter_map(|(filter, entry)| match entry {
                CacheEntry::Kept { set, last_use, .. } if !self.resident.contains(filter) => {
                    Some((*last_use, set.memory_bytes(), filter))
                }
                _ => None,
            });
            let mut total = 0;
            let mut oldest: Option<(u64, &Filter)> = None;
            for (last_use, bytes, filter) in kept {
                total += bytes;
                if oldest.is_none_or(|(use_then, _)| last_use < use_then) {
                    oldest = Some((last_use, filter));
                }
            }
            match oldest {
                Some((_, filter)) if total > self.memory_bytes => {
                    let filter = filter.clone();
                    if let Some(CacheEntry::Kept { set, .. }) = state.sets.remove(&filter) {
                        set.charge_all();
                    }
                }
                _ => return,
            }
        }
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

    /// The kept set, which is used by that.
    fn used(&mut self, content: &Filter) -> Option<ItemSet> {
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

/// The right to build a set. Frees those who wait for it even when its scan fails.
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

    /// Keeps this set, with what was committed meanwhile; without one, or where all sets became void
    /// since the claim, there is none.
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

/// Notes what a change does to the set of a filter without times.
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

/// Applies what was noted.
fn settle(set: &mut ItemSet, noted: &Noted) {
    let of = |wanted: bool| -> Vec<Item> {
        noted.iter().filter(|(_, is)| **is == wanted).map(|(item, _)| *item).collect()
    };
    set.remove_batch(&of(false));
    set.insert_batch(&of(true));
}
