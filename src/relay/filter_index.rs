//! Finds the filters that an event may match: an inverted index from ids, authors, tag keys and
//! kinds to filters. The cost of a lookup depends on the filters that the event meets, not on the
//! number of all filters.

use crate::store::{Event, Filter, TagKey};
use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

/// Filters, each with its owner.
///
/// A filter is indexed under each value of one of its lists, the one that is probably the most
/// selective. A value is stored as a keyed hash of 64 bits. Values with the same hash only produce
/// a candidate that does not match: the filter itself decides about every candidate.
pub(super) struct FilterIndex<T> {
    hasher: RandomState,
    // (hash of a value, slot of a filter): 24 bytes a value; removed without a search.
    postings: BTreeSet<(u64, u32)>,
    slots: Vec<Option<FilterEntry<T>>>,
    free: Vec<u32>,
    lookups: u64,
}

struct FilterEntry<T> {
    filter: Arc<Filter>,
    owner: T,
    // The last lookup that met it: a filter is a candidate only once.
    met_by: u64,
}

/// The state of a lookup.
pub(super) struct Lookup {
    number: u64,
    keys: Vec<u64>,
    // The next key, and the first of its remaining slots.
    key: usize,
    slot: u32,
}

/// The values under which a filter can be indexed.
#[derive(Hash)]
enum FilterKey<'value> {
    /// A filter without lists: a candidate for every event.
    Everything,
    Id([u8; 32]),
    Author(&'value [u8; 32]),
    Kind(u16),
    Tag(&'value TagKey),
}

impl<T> Default for FilterIndex<T> {
    fn default() -> Self {
        Self {
            hasher: RandomState::new(),
            postings: BTreeSet::new(),
            slots: Vec::new(),
            free: Vec::new(),
            lookups: 0,
        }
    }
}

impl<T> FilterIndex<T> {
    /// Adds a filter; returns its slot.
    pub(super) fn insert(&mut self, filter: Arc<Filter>, owner: T) -> u32 {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            // Cannot overflow: each filter takes more than a hundred bytes of memory.
            u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
        });
        for key in keys_of_filter(&filter) {
            self.postings.insert((self.hasher.hash_one(key), slot));
        }
        if let Some(place) = self.slots.get_mut(slot as usize) {
            *place = Some(FilterEntry { filter, owner, met_by: 0 });
        }
        slot
    }

    /// Removes the filter in a slot.
    pub(super) fn remove(&mut self, slot: u32) {
        let Some(entry) = self.slots.get_mut(slot as usize).and_then(Option::take) else { return };
        for key in keys_of_filter(&entry.filter) {
            self.postings.remove(&(self.hasher.hash_one(key), slot));
        }
        self.free.push(slot);
        debug_assert!(self.free.len() < self.slots.len() || self.postings.is_empty());
    }

    /// Every owner, once for each of its filters.
    pub(super) fn owners(&self) -> impl Iterator<Item = &T> {
        self.slots.iter().flatten().map(|entry| &entry.owner)
    }

    /// Begins a lookup.
    pub(super) fn lookup(&mut self, event: &Event) -> Lookup {
        self.lookups += 1;
        let keys = keys_of_event(event).map(|key| self.hasher.hash_one(key)).collect();
        Lookup { number: self.lookups, keys, key: 0, slot: 0 }
    }

    /// Continues a lookup: visits candidates, each once, and examines at most `most` postings and
    /// keys. Returns whether it is complete.
    pub(super) fn visit(
        &mut self,
        lookup: &mut Lookup,
        most: usize,
        mut candidate: impl FnMut(&Filter, &T),
    ) -> bool {
        let Self { postings, slots, .. } = self;
        let mut left = most;
        while let Some(key) = lookup.keys.get(lookup.key).copied() {
            if left == 0 {
                return false;
            }
            for (_, slot) in postings.range((key, lookup.slot)..=(key, u32::MAX)) {
                if left == 0 {
                    lookup.slot = *slot;
                    return false;
                }
                left -= 1;
                let Some(Some(entry)) = slots.get_mut(*slot as usize) else { continue };
                if entry.met_by != lookup.number {
                    entry.met_by = lookup.number;
                    candidate(&entry.filter, &entry.owner);
                }
            }
            (lookup.key, lookup.slot) = (lookup.key + 1, 0);
            left = left.saturating_sub(1);
        }
        true
    }
}

/// The values of the list that is probably the most selective: ids, else the shortest of authors
/// and tags, else kinds.
fn keys_of_filter(filter: &Filter) -> Vec<FilterKey<'_>> {
    if filter.is_void() {
        return Vec::new();
    }
    if let Some(ids) = &filter.ids {
        return ids.iter().copied().map(FilterKey::Id).collect();
    }
    let tags = filter.tags.iter().min_by_key(|keys| keys.len());
    match (&filter.authors, tags) {
        (Some(authors), Some(keys)) if keys.len() < authors.len() => tag_keys(keys),
        (Some(authors), _) => authors.iter().map(FilterKey::Author).collect(),
        (None, Some(keys)) => tag_keys(keys),
        (None, None) => match &filter.kinds {
            Some(kinds) => kinds.iter().copied().map(FilterKey::Kind).collect(),
            None => vec![FilterKey::Everything],
        },
    }
}

fn tag_keys(keys: &[TagKey]) -> Vec<FilterKey<'_>> {
    keys.iter().map(FilterKey::Tag).collect()
}

fn keys_of_event(event: &Event) -> impl Iterator<Item = FilterKey<'_>> {
    [
        FilterKey::Everything,
        FilterKey::Id(event.item().id),
        FilterKey::Author(event.pubkey()),
        FilterKey::Kind(event.kind()),
    ]
    .into_iter()
    .chain(event.tag_keys().iter().map(FilterKey::Tag))
}
