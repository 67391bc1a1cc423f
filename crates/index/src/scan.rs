//! The catalog's reads from the store: the items of a set, at most as many as are wanted.

use super::item_set::ItemSet;
use super::tree::Tree;
use negsync_reconcile::{Item, RangeSet};
use negsync_store::{EventSource, Filter, SourceSnapshot, StoreError, View};
use std::cmp::Reverse;
use std::ops::ControlFlow;

/// Items that are collected before duplicates and surplus items are removed.
const TIDY_ITEMS: usize = 1_024;

/// Events of a part of a large scan: one in this many of the items that memory is provided for. Two
/// parts are in memory at a time, and the events of a part match other filters, too.
const SCAN_PARTS: usize = 8;
const LEAST_PART: usize = 1_024;
const MOST_PART: usize = 524_288;
/// A part may have this many times as many items: events of one second are not parted, and private
/// events are not counted.
const MOST_OF_PART: usize = 2;

/// The union of the views, or `None` if it has more than `limit` items. It is scanned for the
/// session in one snapshot, because kept sets could be a commit apart.
pub(super) fn union(
    source: &dyn EventSource,
    views: &[View],
    limit: usize,
) -> Result<Option<Tree>, StoreError> {
    let parts = views.iter().enumerate();
    let parts = parts.flat_map(|(place, view)| view.parts().map(move |part| (place, part.clone())));
    let (places, parts): (Vec<usize>, Vec<Filter>) = parts.unzip();
    let mut union = Gathered::new(None, limit);
    // The newest items of the current view, if the view has a limit.
    let mut newest = Gathered::new(None, limit);
    let mut scanned = None;
    source.items(&parts, &mut |part, item| {
        let place = places.get(part);
        if place != scanned {
            let of_view = place.and_then(|place| views.get(*place)).and_then(View::limit);
            union.add(std::mem::replace(&mut newest, Gathered::new(of_view, limit)));
            scanned = place;
        }
        let flow = match newest.newest {
            Some(_) => newest.push(item),
            None => union.push(item),
        };
        if union.over { ControlFlow::Break(()) } else { flow }
    })?;
    union.add(newest);
    let items = union.items();
    Ok(items.map(Tree::from_unsorted))
}

/// The items of a scan: all up to a bound, or the newest. A scan may return an item twice; it
/// counts once.
pub(super) struct Gathered {
    items: Vec<Item>,
    // Number of the newest items that are wanted (NIP-01, `limit`).
    newest: Option<usize>,
    // Maximum number of items.
    most: usize,
    // Number of items at which duplicates and surplus items are removed next.
    tidy_at: usize,
    over: bool,
}

impl Gathered {
    pub(super) fn new(newest: Option<usize>, most: usize) -> Self {
        // One item more than the bound shows that it is exceeded.
        let newest = newest.map(|newest| newest.min(most.saturating_add(1)));
        let mut gathered = Self { items: Vec::new(), newest, most, tidy_at: 0, over: false };
        gathered.tidy();
        gathered
    }

    pub(super) fn push(&mut self, item: Item) -> ControlFlow<()> {
        self.items.push(item);
        if self.items.len() >= self.tidy_at {
            self.tidy();
        }
        if self.over { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    /// Collects items that match any of the filters, until there are too many.
    pub(super) fn take<'filter>(
        &mut self,
        moment: &dyn SourceSnapshot,
        filters: impl IntoIterator<Item = &'filter Filter>,
    ) -> Result<(), StoreError> {
        for filter in filters {
            if !self.over {
                moment.items(filter, &mut |item| self.push(item))?;
            }
        }
        Ok(())
    }

    /// Adds the items of another scan.
    fn add(&mut self, mut other: Self) {
        other.tidy();
        let _ = other.items.into_iter().try_for_each(|item| self.push(item));
    }

    /// Removes duplicates, and keeps only the wanted number of the newest.
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

    /// The items, which may contain duplicates, or `None` if there are more than the bound.
    pub(super) fn items(mut self) -> Option<Vec<Item>> {
        if self.newest.is_some() || self.items.len() > self.most {
            self.tidy();
        }
        (!self.over).then_some(self.items)
    }
}

/// The items of a filter, or `None` if there are more than `most`.
pub(super) fn scan(
    source: &dyn EventSource,
    filter: &Filter,
    most: usize,
) -> Result<Option<Vec<Item>>, StoreError> {
    gather(source, filter, Gathered::new(None, most))
}

pub(super) fn gather(
    source: &dyn EventSource,
    filter: &Filter,
    mut gathered: Gathered,
) -> Result<Option<Vec<Item>>, StoreError> {
    source.items(std::slice::from_ref(filter), &mut |_, item| gathered.push(item))?;
    Ok(gathered.items())
}

/// The tree of a filter's items, scanned in two halves on two threads if a second one is available.
/// The threads see different states of the store, so use it only for a set whose commits are
/// recorded meanwhile. Each half is freed as soon as the tree has it, so the scan needs no more
/// memory than the tree.
pub(super) fn scan_to_tree(
    source: &dyn EventSource,
    filter: &Filter,
    most: usize,
) -> Result<Option<Tree>, StoreError> {
    let Some(middle) = source.middle_second()?.filter(|middle| *middle > 0) else {
        return Ok(scan(source, filter, most)?.map(Tree::from_unsorted));
    };
    let [older, newer] = scan_both(source, &cut(filter, middle), most)?;
    let halves = older.zip(newer).filter(|(older, newer)| older.len() + newer.len() <= most);
    Ok(halves.map(|(older, newer)| Tree::from_parts([older, newer])))
}

/// The part of a filter before a second, which is not 0, and the rest.
fn cut(filter: &Filter, second: u64) -> [Filter; 2] {
    let older = Filter { until: Some(second - 1), ..filter.clone() };
    [older, Filter { since: Some(second), ..filter.clone() }]
}

/// The items of two filters, of each `None` if there are more than `most`; on two threads if a
/// second one is available.
fn scan_both(
    source: &dyn EventSource,
    [one, other]: &[Filter; 2],
    most: usize,
) -> Result<[Option<Vec<Item>>; 2], StoreError> {
    std::thread::scope(|scope| {
        let scan_other = || scan(source, other, most);
        let thread = std::thread::Builder::new().spawn_scoped(scope, scan_other);
        let one = scan(source, one, most)?;
        let other = match thread {
            Ok(thread) => thread.join().unwrap_or(Err(StoreError::Closed))?,
            Err(_) => scan_other()?,
        };
        Ok([one, other])
    })
}

/// The parts in which a large set is scanned.
pub(super) struct Parts {
    /// The seconds at which they are cut, ascending.
    seconds: Vec<u64>,
    /// Maximum number of items of a part.
    most: usize,
}

impl Parts {
    /// Parts of about as many events of `all`, for a memory of `items`.
    pub(super) fn of(all: &ItemSet, items: usize) -> Self {
        let events = (items / SCAN_PARTS).clamp(LEAST_PART, MOST_PART);
        let ranks = (events..all.len()).step_by(events);
        let mut seconds: Vec<u64> =
            ranks.filter_map(|rank| Some(all.item(rank)?.created_at)).collect();
        seconds.dedup();
        Self { seconds, most: MOST_OF_PART * events }
    }
}

/// Gives `take` the items of a filter without times in order, part by part. Two parts are in memory
/// at a time. As with [`scan_to_tree`], each part sees another state of the store. Returns whether
/// all items were given: not if a part has too many, or if `take` breaks off.
pub(super) fn scan_in_parts(
    source: &dyn EventSource,
    filter: &Filter,
    Parts { seconds, most }: &Parts,
    take: &mut dyn FnMut(Vec<Item>) -> ControlFlow<()>,
) -> Result<bool, StoreError> {
    let mut parts = Vec::new();
    let mut rest = filter.clone();
    for second in seconds.iter().filter(|second| **second > 0) {
        let [older, newer] = cut(&rest, *second);
        parts.push(older);
        rest = newer;
    }
    parts.push(rest);
    for pair in parts.chunks(2) {
        let scanned = match pair {
            [one, other] => scan_both(source, &[one.clone(), other.clone()], *most)?.into(),
            _ => {
                pair.iter().map(|part| scan(source, part, *most)).collect::<Result<Vec<_>, _>>()?
            }
        };
        for part in scanned {
            let Some(mut items) = part else { return Ok(false) };
            items.sort_unstable();
            items.dedup();
            if take(items).is_break() {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    /// Thirty-two filters with a limit in one message took the memory of all matching items.
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
