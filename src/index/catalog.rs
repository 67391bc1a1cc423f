//! Which set answers a filter. The set of all events is always in memory; the set of any other
//! filter is built from a covering scan and, when it was costly, kept and brought up to date with
//! every commit, until memory is needed for others.

use super::slice::Slice;
use super::tree::Tree;
use crate::item::Item;
use crate::metrics::IndexMetrics;
use crate::reconcile::RangeSet;
use crate::store::{Change, EventSource, Filter, Step, StoreError};
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// A set of at most so many items is cheap to scan: it is built for the session and not kept.
const CHEAP_ITEMS: usize = 5_000;
/// What an item of a kept set takes, about; more items than fit are not even scanned for.
const BYTES_AN_ITEM: usize = 44;

/// So many items are gathered before any are left out again.
const TIDY_ITEMS: usize = 1_024;

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
    metrics: IndexMetrics,
}

/// What the catalog holds at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Whether the set of all events has been loaded.
    pub is_loaded: bool,
    /// Items of the set of all events.
    pub items: usize,
    /// The memory that it takes, at most.
    pub bytes: usize,
    /// Sets of other filters that are kept.
    pub kept_sets: usize,
    /// The memory that they take, at most.
    pub kept_bytes: usize,
}

struct State {
    // By filter without times and limit; the empty filter's set is never evicted.
    sets: HashMap<Filter, Entry>,
    // Counts up with every use of a kept set.
    uses: u64,
    // Counts the times that all sets became void: what was scanned before is not kept.
    begun: u64,
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
    /// A catalog whose kept sets take at most `memory_bytes`, beside the set of all events.
    pub fn new(memory_bytes: usize) -> Self {
        // Until `load` has run, whoever asks for the set of all events waits for it.
        let full = Entry::Building(Noted::new());
        let sets = HashMap::from([(Filter::default(), full)]);
        let state = State { sets, uses: 0, begun: 0 };
        Self {
            state: Mutex::new(state),
            built: Condvar::new(),
            memory_bytes,
            metrics: IndexMetrics::default(),
        }
    }

    /// Builds the set of all events. Called once, as soon as the store is open.
    ///
    /// # Errors
    /// When the scan fails.
    pub fn load(&self, source: &dyn EventSource) -> Result<(), StoreError> {
        let everything = Filter::default();
        let claim = Claim { catalog: self, content: &everything, begun: self.lock().begun };
        let _timer = self.metrics.build_s.start_timer();
        let items = scan_halves(source, &everything, usize::MAX)?;
        source.wait_until_told()?;
        claim.settle(items);
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
        self.evict(&mut state);
    }

    /// Whether the event is stored, as far as memory knows: `false` until the set of all events
    /// has been loaded.
    pub fn contains(&self, item: &Item) -> bool {
        match self.lock().sets.get(&Filter::default()) {
            Some(Entry::Kept { tree, .. }) => tree.contains(item),
            _ => false,
        }
    }

    /// As [`Catalog::snapshot`], of a set that is in memory; `None` of one that is not.
    ///
    /// # Errors
    /// When the set has more than `limit` items.
    pub fn kept(&self, filters: &[Filter], limit: usize) -> Result<Option<Slice>, SnapshotError> {
        let [filter] = filters else { return Ok(None) };
        let mut state = self.lock();
        state.uses += 1;
        let now = state.uses;
        let Some(Entry::Kept { tree, last_use }) = state.sets.get_mut(&filter.timeless()) else {
            return Ok(None);
        };
        *last_use = now;
        let slice = Slice::new(tree.clone(), filter.since, filter.until, filter.limit);
        if slice.len() > limit { Err(SnapshotError::TooLarge { limit }) } else { Ok(Some(slice)) }
    }

    /// What it measures.
    pub fn metrics(&self) -> &IndexMetrics {
        &self.metrics
    }

    /// What it holds now.
    pub fn statistics(&self) -> Statistics {
        let mut statistics = Statistics::default();
        for (filter, entry) in &self.lock().sets {
            let Entry::Kept { tree, .. } = entry else { continue };
            if *filter == Filter::default() {
                statistics.is_loaded = true;
                (statistics.items, statistics.bytes) = (tree.len(), tree.memory_bytes());
            } else {
                statistics.kept_sets += 1;
                statistics.kept_bytes += tree.memory_bytes();
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
        let slice = match filters {
            [filter] => self.slice(source, filter, limit)?,
            _ => {
                let _timer = self.metrics.build_s.start_timer();
                union(source, filters, limit)?
            }
        };
        if slice.len() > limit {
            return Err(SnapshotError::TooLarge { limit });
        }
        Ok(slice)
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
            None => {
                let _timer = self.metrics.build_s.start_timer();
                self.build(source, filter, &content, limit)?
            }
        };
        Ok(Slice::new(tree, filter.since, filter.until, filter.limit))
    }

    /// The set if it is kept. Waits while another caller builds it.
    fn look_up(&self, content: &Filter) -> Option<Tree> {
        let mut state = self.lock();
        state.uses += 1;
        let now = state.uses;
        loop {
            match state.sets.get_mut(content) {
                None => return None,
                Some(Entry::Kept { tree, last_use }) => {
                    *last_use = now;
                    return Some(tree.clone());
                }
                Some(Entry::Building(_)) => {
                    state = self.built.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }

    /// Builds the set of `filter`, and keeps that of its content when it is costly and fits.
    fn build(
        &self,
        source: &dyn EventSource,
        filter: &Filter,
        content: &Filter,
        limit: usize,
    ) -> Result<Tree, SnapshotError> {
        // The set of all events is always kept; it is missing only when it could not be loaded.
        let everything = *content == Filter::default();
        if !everything && let Some(items) = scan(source, filter, CHEAP_ITEMS)? {
            return Ok(Tree::from_unsorted(items));
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
                    if everything { usize::MAX } else { self.memory_bytes / BYTES_AN_ITEM };
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
        Ok(Tree::from_unsorted(items))
    }

    /// Ends the building of a set: with its items it is kept, without it is forgotten.
    fn finish(&self, content: &Filter, begun: u64, items: Option<Vec<Item>>) -> Option<Tree> {
        let mut tree = items.map(Tree::from_unsorted);
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
                Entry::Kept { tree, last_use } if *filter != Filter::default() => {
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
                    state.sets.remove(&filter);
                }
                _ => return,
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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

/// The union of what the filters select. It is scanned for the session, all of it at one moment:
/// sets that were kept one by one could be a commit apart.
fn union(
    source: &dyn EventSource,
    filters: &[Filter],
    limit: usize,
) -> Result<Slice, SnapshotError> {
    let mut union = Gathered::new(None, limit);
    // Of the filter being scanned, where only its newest are wanted.
    let mut newest = Gathered::new(None, limit);
    let mut scanned = usize::MAX;
    source.items(filters, &mut |place, item| {
        if place != scanned {
            let of_filter = filters.get(place).and_then(|filter| filter.limit);
            union.add(std::mem::replace(&mut newest, Gathered::new(of_filter, limit)));
            scanned = place;
        }
        let flow = match newest.newest {
            Some(_) => newest.push(item),
            None => union.push(item),
        };
        if union.over { ControlFlow::Break(()) } else { flow }
    })?;
    union.add(newest);
    let items = union.items().ok_or(SnapshotError::TooLarge { limit })?;
    Ok(Slice::new(Tree::from_unsorted(items), None, None, None))
}

/// Items of a scan: all of them up to a bound, or the newest. A scan can bring an item twice; it
/// counts once.
struct Gathered {
    items: Vec<Item>,
    // Only so many of the newest are wanted (NIP-01, `limit`).
    newest: Option<usize>,
    // More than so many are too many.
    most: usize,
    // When repeats, and items that are not wanted, are next looked for.
    tidy_at: usize,
    over: bool,
}

impl Gathered {
    fn new(newest: Option<usize>, most: usize) -> Self {
        // One more than the bound shows that it is exceeded.
        let newest = newest.map(|newest| newest.min(most.saturating_add(1)));
        let mut gathered = Self { items: Vec::new(), newest, most, tidy_at: 0, over: false };
        gathered.tidy();
        gathered
    }

    fn push(&mut self, item: Item) -> ControlFlow<()> {
        self.items.push(item);
        if self.items.len() >= self.tidy_at {
            self.tidy();
        }
        if self.over { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    /// Adds what another scan gathered.
    fn add(&mut self, mut other: Self) {
        other.tidy();
        let _ = other.items.into_iter().try_for_each(|item| self.push(item));
    }

    /// Leaves each item once, and of the newest no more than are wanted.
    fn tidy(&mut self) {
        self.items.sort_unstable_by_key(|item| (Reverse(item.created_at), item.id));
        self.items.dedup();
        self.items.truncate(self.newest.unwrap_or(usize::MAX));
        self.over = self.items.len() > self.most;
        let twice = self.items.len().saturating_mul(2).max(TIDY_ITEMS);
        self.tidy_at = match self.newest {
            Some(_) => twice,
            None => twice.max(self.most.saturating_add(1)),
        };
    }

    /// The items, some of them perhaps twice, or `None` when there are more than the bound.
    fn items(mut self) -> Option<Vec<Item>> {
        if self.newest.is_some() || self.items.len() > self.most {
            self.tidy();
        }
        (!self.over).then_some(self.items)
    }
}

/// The items of a filter, or `None` when there are more than `most`.
fn scan(
    source: &dyn EventSource,
    filter: &Filter,
    most: usize,
) -> Result<Option<Vec<Item>>, StoreError> {
    gather(source, filter, Gathered::new(None, most))
}

fn gather(
    source: &dyn EventSource,
    filter: &Filter,
    mut gathered: Gathered,
) -> Result<Option<Vec<Item>>, StoreError> {
    source.items(std::slice::from_ref(filter), &mut |_, item| gathered.push(item))?;
    Ok(gathered.items())
}

/// As [`scan`], on two threads. They see different states of the store: only for a set for which
/// commits are noted meanwhile.
fn scan_halves(
    source: &dyn EventSource,
    filter: &Filter,
    most: usize,
) -> Result<Option<Vec<Item>>, StoreError> {
    let Some(middle) = source.middle_second()?.filter(|middle| *middle > 0) else {
        return scan(source, filter, most);
    };
    let older = Filter { until: Some(middle - 1), ..filter.clone() };
    let newer = Filter { since: Some(middle), ..filter.clone() };
    std::thread::scope(|scope| {
        let newer = scope.spawn(|| scan(source, &newer, most));
        let older = scan(source, &older, most)?;
        let newer = newer.join().unwrap_or(Err(StoreError::Closed))?;
        Ok(older.zip(newer).and_then(|(mut items, newer)| {
            items.extend(newer);
            (items.len() <= most).then_some(items)
        }))
    })
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
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    /// A filter with a limit, thirty-two of them in one message, took the memory of all that
    /// matched.
    #[test]
    fn what_a_scan_gathers_is_bounded_by_what_is_wanted() {
        for seed in 0..20 {
            let mut rng = StdRng::seed_from_u64(seed);
            let mut item =
                || Item::new(rng.random_range(0..2_000), [rng.random_range(0..8_u8); 32]);
            let scanned: Vec<Item> = (0..20_000).map(|_| item()).collect();
            let mut all = scanned.clone();
            all.sort_unstable_by_key(|item| (Reverse(item.created_at), item.id));
            all.dedup();
            let most = rng.random_range(1..2 * all.len());
            let newest = [None, Some(rng.random_range(0..2 * all.len()))][rng.random_range(0..2)];
            let mut gathered = Gathered::new(newest, most);
            let mut held = 0;
            let _ = scanned.iter().try_for_each(|item| {
                let flow = gathered.push(*item);
                held = held.max(gathered.items.len());
                flow
            });
            let wanted = newest.unwrap_or(all.len()).min(all.len());
            let bound = 2 * newest.unwrap_or(usize::MAX).min(most + 1);
            assert!(held <= bound.max(TIDY_ITEMS), "seed {seed}: {held} of {bound}");
            let items = gathered.items().map(|mut items| {
                items.sort_unstable_by_key(|item| (Reverse(item.created_at), item.id));
                items.dedup();
                items
            });
            let expected = (wanted <= most).then(|| all[..wanted].to_vec());
            assert!(items == expected, "seed {seed}: newest {newest:?}, at most {most}");
        }
    }
}
