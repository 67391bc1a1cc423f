//! Which set answers a filter. All events are always in memory, those of private kinds in a tree
//! of their own; the set of any other filter is built from a covering scan and, when it was costly,
//! kept and brought up to date with every commit, until memory is needed for others.

use super::awaited::{AtCommit, Awaited};
use super::charge::Charged;
use super::scan::{Gathered, gather, scan, scan_halves, union};
use super::slice::Slice;
use super::tree::Tree;
use crate::item::Item;
use crate::metrics::IndexMetrics;
use crate::reconcile::RangeSet;
use crate::store::{
    Change, EventSource, Filter, PrivateKinds, Step, Store, StoreError, View, Viewer,
};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// A set of at most so many items is cheap to scan: it is built for the session and not kept.
const CHEAP_ITEMS: usize = 5_000;
/// What an item of a kept set takes, about; more items than fit are not even scanned for.
const BYTES_AN_ITEM: usize = 44;

/// Why there is no set for a filter.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The set has more items than a session may have.
    #[error("the set has more than {limit} items")]
    TooLarge {
        /// The most items that a set may have.
        limit: usize,
    },
    /// The scan failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The catalog of sets.
pub struct Catalog {
    state: Mutex<State>,
    // Signalled when a set has been built, or could not be.
    built: Condvar,
    // What kept sets may take together, in bytes.
    memory_bytes: usize,
    // The filters whose sets, together all events, are never evicted: one for everybody's, and one
    // for those of private kinds where there are such kinds.
    resident: Vec<Filter>,
    metrics: IndexMetrics,
    // What sets take that are not kept.
    charged: Arc<Charged>,
}

/// What the catalog holds at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Whether all events have been loaded.
    pub is_loaded: bool,
    /// Items of all events.
    pub items: usize,
    /// The memory that they take, at most.
    pub bytes: usize,
    /// Sets of other filters that are kept.
    pub kept_sets: usize,
    /// The memory that they take, at most.
    pub kept_bytes: usize,
}

struct State {
    // By filter without times and limit.
    sets: HashMap<Filter, Entry>,
    // Counts up with every use of a kept set.
    uses: u64,
    // Counts the times that all sets became void: what was scanned before is not kept.
    begun: u64,
    // The number of the last commit that the kept sets show.
    applied: u64,
    // Those who wait for a set as it is after a commit.
    awaited: Vec<Awaited>,
}

enum Entry {
    /// One caller scans; meanwhile commits are noted, to be applied to what it finds. They are as
    /// many as are made while one scan lasts.
    Building(Noted),
    Kept {
        tree: Tree,
        last_use: u64,
    },
}

/// Items and whether they are in the set, by the last step that named them.
type Noted = BTreeMap<Item, bool>;

impl Catalog {
    /// A catalog whose kept sets take at most `memory_bytes`, beside all events.
    pub fn new(memory_bytes: usize, private: &PrivateKinds) -> Self {
        let everything = Filter::default();
        let resident = if private.as_slice().is_empty() {
            vec![everything]
        } else {
            vec![private.public_part(&everything), private.private_part(&everything)]
        };
        // Until `load` has run, whoever asks for them waits.
        let building = |filter: &Filter| (filter.clone(), Entry::Building(Noted::new()));
        let sets = resident.iter().map(building).collect();
        let state = State { sets, uses: 0, begun: 0, applied: 0, awaited: Vec::new() };
        Self {
            state: Mutex::new(state),
            built: Condvar::new(),
            memory_bytes,
            resident,
            metrics: IndexMetrics::default(),
            charged: Arc::default(),
        }
    }

    /// Builds the sets of all events. Called once, as soon as the store is open.
    ///
    /// # Errors
    /// When a scan fails.
    pub fn load(&self, source: &dyn EventSource) -> Result<(), StoreError> {
        let _timer = self.metrics.build_s.start_timer();
        let begun = self.lock().begun;
        let claim = |content| Claim { catalog: self, content, begun };
        let claims: Vec<Claim<'_>> = self.resident.iter().map(claim).collect();
        for claim in claims {
            let items = scan_halves(source, claim.content, usize::MAX)?;
            source.wait_until_told()?;
            claim.settle(items);
        }
        Ok(())
    }

    /// Takes `items` for the set of all events and forgets every other set: the store is another
    /// one now.
    pub fn replace(&self, items: Vec<Item>) {
        let tree = Tree::from_unsorted(items);
        let mut state = self.lock();
        state.begun += 1;
        state.sets.clear();
        state.sets.insert(Filter::default(), Entry::Kept { tree, last_use: 0 });
        drop(state);
        self.built.notify_all();
    }

    /// The set of all events, unless it is being loaded.
    pub fn everything(&self) -> Option<Tree> {
        match self.lock().sets.get(&Filter::default()) {
            Some(Entry::Kept { tree, .. }) => Some(tree.clone()),
            _ => None,
        }
    }

    /// Brings every kept set up to date. Called with each commit, before its outcomes are told.
    pub fn apply(&self, change: &Change) {
        let mut state = self.lock();
        for (filter, entry) in &mut state.sets {
            match entry {
                Entry::Building(noted) => note(noted, filter, change),
                Entry::Kept { tree, .. } => {
                    let mut noted = Noted::new();
                    note(&mut noted, filter, change);
                    settle(tree, &noted);
                }
            }
        }
        // A change that follows no commit has no number.
        state.applied = state.applied.max(change.number);
        state.answer_awaited();
        self.evict(&mut state);
    }

    /// Whether the event is stored, as far as memory knows: `false` until all events have been
    /// loaded.
    pub fn contains(&self, item: &Item) -> bool {
        let state = self.lock();
        self.resident.iter().any(|content| state.has(content, item))
    }

    /// As [`Catalog::contains`], and everybody may know.
    pub fn shows(&self, item: &Item) -> bool {
        let state = self.lock();
        self.resident.first().is_some_and(|content| state.has(content, item))
    }

    /// As [`Catalog::snapshot_for`], of a set that is in memory; `None` of one that is not, and of
    /// one that has some of the viewer's own besides.
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
        let kept = self.lock().used(&filter.timeless());
        let slice = |tree| Slice::new(tree, filter.since, filter.until, filter.limit);
        kept.map(|tree| whole(slice(tree), limit)).transpose()
    }

    /// What it measures.
    pub fn metrics(&self) -> &IndexMetrics {
        &self.metrics
    }

    /// The memory of sets that are not kept and that somebody answers from, in bytes.
    pub fn session_bytes(&self) -> usize {
        self.charged.bytes()
    }

    /// Counts a set that is not kept.
    fn not_kept(&self, tree: Tree) -> Tree {
        let bytes = tree.memory_bytes();
        tree.charged(self.charged.of(bytes))
    }

    /// What it holds now.
    pub fn statistics(&self) -> Statistics {
        let state = self.lock();
        let is_loaded = self.resident.iter().all(|content| state.tree(content).is_some());
        let mut statistics = Statistics { is_loaded, ..Statistics::default() };
        for (filter, entry) in &state.sets {
            match entry {
                Entry::Kept { tree, .. } if self.resident.contains(filter) => {
                    statistics.items += tree.len();
                    statistics.bytes += tree.memory_bytes();
                }
                Entry::Kept { tree, .. } => {
                    statistics.kept_sets += 1;
                    statistics.kept_bytes += tree.memory_bytes();
                }
                Entry::Building(_) => {}
            }
        }
        statistics
    }

    /// The complete set of the items that match any of the filters, as it is now. Blocks while it
    /// is being built.
    ///
    /// # Errors
    /// When the set has more than `limit` items or cannot be read; it is never cut.
    pub fn snapshot(
        &self,
        source: &dyn EventSource,
        filters: &[Filter],
        limit: usize,
    ) -> Result<Slice, SnapshotError> {
        let whole: Vec<View> = filters.iter().cloned().map(View::whole).collect();
        self.snapshot_of(source, &whole, limit)
    }

    /// As [`Catalog::snapshot`], of the events that the viewer may see and no others.
    ///
    /// # Errors
    /// As [`Catalog::snapshot`].
    pub fn snapshot_for(
        &self,
        store: &Store,
        viewer: &Viewer,
        filters: &[Filter],
        limit: usize,
    ) -> Result<Slice, SnapshotError> {
        let views: Vec<View> = filters.iter().map(|filter| viewer.view(filter)).collect();
        match views.as_slice() {
            [view] if !view.own.is_empty() => {
                whole(self.slice_with_own(store, view, limit)?, limit)
            }
            _ => self.snapshot_of(store, &views, limit),
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
        let tree = match self.look_up(&content) {
            Some(tree) => tree,
            None => match self.joined(filter, &content) {
                Some(tree) => tree,
                None => {
                    let _timer = self.metrics.build_s.start_timer();
                    self.build(source, filter, &content, limit)?
                }
            },
        };
        Ok(Slice::new(tree, filter.since, filter.until, filter.limit))
    }

    /// Of all events, the public ones and the private ones in one tree, as far as the filter's
    /// times reach; `None` for any other filter.
    fn joined(&self, filter: &Filter, content: &Filter) -> Option<Tree> {
        let [public, private] = self.resident.as_slice() else { return None };
        if *content != Filter::default() {
            return None;
        }
        // Waits for them to be loaded, and then takes both at one moment.
        self.look_up(public)?;
        self.look_up(private)?;
        let (public, private) = {
            let state = self.lock();
            (state.tree(public)?.clone(), state.tree(private)?.clone())
        };
        let (mut most, fewest) =
            if public.len() < private.len() { (private, public) } else { (public, private) };
        let fewest = Slice::new(fewest, filter.since, filter.until, None);
        let items: Vec<Item> = fewest.iter_range(0..fewest.len()).copied().collect();
        most.insert_batch(&items);
        Some(most)
    }

    /// The public part of a view from the set that is kept of it, and the client's own from a
    /// scan: both of the same commit.
    fn slice_with_own(
        &self,
        store: &Store,
        view: &View,
        limit: usize,
    ) -> Result<Slice, SnapshotError> {
        let public = &view.public;
        let content = public.timeless();
        let cheap = Gathered::new(None, CHEAP_ITEMS);
        let tree = match self.at_one_commit(store, view, &content, cheap, limit)? {
            Some(tree) => tree,
            None => {
                // So that it is kept from now on, where it can be.
                self.slice(store, public, limit)?;
                let all = Gathered::new(view.limit(), limit);
                self.at_one_commit(store, view, &content, all, limit)?
                    .ok_or(SnapshotError::TooLarge { limit })?
            }
        };
        Ok(Slice::new(tree, public.since, public.until, public.limit))
    }

    /// The view's items at one commit. Where no set of its public part is kept, all are gathered
    /// in `all`; `None` when they are too many.
    fn at_one_commit(
        &self,
        store: &Store,
        view: &View,
        content: &Filter,
        mut all: Gathered,
        limit: usize,
    ) -> Result<Option<Tree>, StoreError> {
        store.reader().at_one_commit(
            |number| self.kept_at(content, number),
            |kept, moment| {
                let Some(mut tree) = kept.tree() else {
                    all.take(moment, view.parts())?;
                    return Ok(all.items().map(|items| self.not_kept(Tree::from_unsorted(items))));
                };
                let mut own = Gathered::new(view.limit(), limit);
                own.take(moment, &view.own)?;
                Ok(own.items().map(|items| {
                    tree.insert_batch(&items);
                    tree
                }))
            },
        )
    }

    /// The kept set as it is after the commit, which is the last one. Does not wait.
    fn kept_at(&self, content: &Filter, number: u64) -> AtCommit {
        if content.is_void() {
            return AtCommit::Known(Some(Tree::new()));
        }
        let mut state = self.lock();
        if state.applied >= number {
            return AtCommit::Known(state.used(content));
        }
        let (awaited, at_commit) = Awaited::new(content.clone(), number);
        state.awaited.push(awaited);
        at_commit
    }

    /// The set if it is kept. Waits while another caller builds it.
    fn look_up(&self, content: &Filter) -> Option<Tree> {
        let mut state = self.lock();
        while let Some(Entry::Building(_)) = state.sets.get(content) {
            state = self.built.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.used(content)
    }

    /// Builds the set of `filter`, and keeps that of its content when it is costly and fits.
    fn build(
        &self,
        source: &dyn EventSource,
        filter: &Filter,
        content: &Filter,
        limit: usize,
    ) -> Result<Tree, SnapshotError> {
        // The sets of all events are always kept; one is missing only when it could not be loaded.
        let is_resident = self.resident.contains(content);
        if !is_resident && let Some(items) = scan(source, filter, CHEAP_ITEMS)? {
            return Ok(self.not_kept(Tree::from_unsorted(items)));
        }
        {
            let mut state = self.lock();
            if state.sets.contains_key(content) {
                drop(state);
                // Another caller was faster; its set may turn out too large to be kept.
                if let Some(tree) = self.look_up(content) {
                    return Ok(tree);
                }
            } else {
                state.sets.insert(content.clone(), Entry::Building(Noted::new()));
                let begun = state.begun;
                drop(state);
                let claim = Claim { catalog: self, content, begun };
                let keepable =
                    if is_resident { usize::MAX } else { self.memory_bytes / BYTES_AN_ITEM };
                let items = scan_halves(source, content, keepable)?;
                // What the scan saw half of has to be noted whole.
                source.wait_until_told()?;
                if let Some(tree) = claim.settle(items) {
                    return Ok(tree);
                }
            }
        }
        // Too large to keep: for this session alone, and not at all above the session's limit.
        let items = gather(source, filter, Gathered::new(filter.limit, limit))?
            .ok_or(SnapshotError::TooLarge { limit })?;
        Ok(self.not_kept(Tree::from_unsorted(items)))
    }

    /// Ends the building of a set: with its items it is kept, without it is forgotten.
    fn finish(&self, content: &Filter, begun: u64, items: Option<Vec<Item>>) -> Option<Tree> {
        let built = |items| Tree::from_unsorted(items).charged(self.charged.nothing());
        let mut tree = items.map(built);
        let mut state = self.lock();
        if state.begun != begun {
            return None;
        }
        let entry = state.sets.remove(content);
        if let (Some(tree), Some(Entry::Building(noted))) = (&mut tree, entry) {
            // The scan saw some of these commits and not others; each item's last step decides.
            settle(tree, &noted);
            state.uses += 1;
            let kept = Entry::Kept { tree: tree.clone(), last_use: state.uses };
            state.sets.insert(content.clone(), kept);
            self.evict(&mut state);
        }
        drop(state);
        self.built.notify_all();
        tree
    }

    /// Drops least recently used sets until the rest fit.
    fn evict(&self, state: &mut State) {
        loop {
            let kept = state.sets.iter().filter_map(|(filter, entry)| match entry {
                Entry::Kept { tree, last_use } if !self.resident.contains(filter) => {
                    Some((*last_use, tree.memory_bytes(), filter))
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
                    if let Some(Entry::Kept { tree, .. }) = state.sets.remove(&filter) {
                        tree.charge_all();
                    }
                }
                _ => return,
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Refuses a set that is too large.
fn whole(slice: Slice, limit: usize) -> Result<Slice, SnapshotError> {
    if slice.len() > limit { Err(SnapshotError::TooLarge { limit }) } else { Ok(slice) }
}

impl State {
    fn tree(&self, content: &Filter) -> Option<&Tree> {
        match self.sets.get(content)? {
            Entry::Kept { tree, .. } => Some(tree),
            Entry::Building(_) => None,
        }
    }

    fn has(&self, content: &Filter, item: &Item) -> bool {
        self.tree(content).is_some_and(|tree| tree.contains(item))
    }

    /// The kept set, which is used by that.
    fn used(&mut self, content: &Filter) -> Option<Tree> {
        match self.sets.get_mut(content)? {
            Entry::Kept { tree, last_use } => {
                self.uses += 1;
                *last_use = self.uses;
                Some(tree.clone())
            }
            _ => None,
        }
    }

    /// Gives those who wait for this commit what they wait for.
    fn answer_awaited(&mut self) {
        for awaited in std::mem::take(&mut self.awaited) {
            if awaited.number > self.applied {
                self.awaited.push(awaited);
            } else {
                let tree = self.used(&awaited.content);
                awaited.answer(tree);
            }
        }
    }
}

/// Frees those who wait for a set even when its scan fails.
struct Claim<'catalog> {
    catalog: &'catalog Catalog,
    content: &'catalog Filter,
    begun: u64,
}

impl Claim<'_> {
    fn settle(self, items: Option<Vec<Item>>) -> Option<Tree> {
        let tree = self.catalog.finish(self.content, self.begun, items);
        std::mem::forget(self);
        tree
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.catalog.finish(self.content, self.begun, None);
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
fn settle(tree: &mut Tree, noted: &Noted) {
    let of = |wanted: bool| -> Vec<Item> {
        noted.iter().filter(|(_, is)| **is == wanted).map(|(item, _)| *item).collect()
    };
    tree.remove_batch(&of(false));
    tree.insert_batch(&of(true));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A set that is evicted while somebody answers from it is still there.
    #[test]
    fn a_set_counts_once_it_is_kept_no_more_until_nobody_holds_it() {
        let charged: Arc<Charged> = Arc::default();
        let items = (0..10_000).map(|second| Item::new(second, [1; 32]));
        let kept = Tree::from_sorted(items).charged(charged.nothing());
        let mut held = kept.clone();
        held.insert_batch(&[Item::new(20_000, [1; 32])]);
        assert_eq!(charged.bytes(), 0);
        kept.charge_all();
        drop(kept);
        assert!(charged.bytes() >= 400_000);
        let slice = Slice::new(held, Some(5), None, None);
        assert!(charged.bytes() >= 400_000);
        drop(slice);
        assert_eq!(charged.bytes(), 0);
    }
}
