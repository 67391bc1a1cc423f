//! Which events are synced: a filter as it is sent to the peer and as the store reads it, and the
//! windows of time that it can be divided into.

use crate::hex;
use crate::index::Slice;
use crate::reconcile::RangeSet;
use crate::store::{Filter, FilterError, RetentionWindow};
use serde_json::{Map, Value};

/// A NIP-01 filter that keeps its JSON.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PeerFilter {
    json: Map<String, Value>,
    parsed: Filter,
    // What is left of it by our own retention; the rest is asked for no more.
    kept: Option<RetentionWindow>,
}

impl PeerFilter {
    /// Reads a filter from its JSON text.
    ///
    /// # Errors
    /// Names the first key that is malformed or unknown.
    pub fn parse(text: &str) -> Result<Self, FilterError> {
        let parsed = Filter::parse(text)?;
        let json = match serde_json::from_str(text) {
            Ok(Value::Object(json)) => json,
            _ => Map::new(),
        };
        Ok(Self { json, parsed, kept: None })
    }

    /// The filter as JSON.
    pub fn json(&self) -> &Map<String, Value> {
        &self.json
    }

    /// The filter as the store reads it.
    pub fn parsed(&self) -> &Filter {
        &self.parsed
    }

    /// The text that the filter is remembered under.
    pub(super) fn text(&self) -> String {
        Value::Object(self.json.clone()).to_string()
    }

    /// The filter's own window.
    pub(super) fn window(&self) -> Window {
        Window { since: self.parsed.since, until: self.parsed.until }
    }

    /// The filter, of which our retention keeps this much.
    pub(super) fn keeping(&self, kept: Option<RetentionWindow>) -> Self {
        Self { kept, ..self.clone() }
    }

    /// The second from which our retention keeps everything that matches.
    pub(super) fn kept_since(&self) -> Option<u64> {
        self.kept.as_ref().map(|kept| kept.since)
    }

    /// The filter and what is to be asked for of a part of its window, the newest first: all of it, or what
    /// our retention keeps.
    pub(super) fn parts(&self, window: Window) -> Vec<(Self, Window)> {
        let whole = self.keeping(None);
        let Some(RetentionWindow { since, ageless_kinds }) = &self.kept else {
            return vec![(whole, window)];
        };
        let newer = Window { since: window.since.max(Some(*since)), ..window };
        let last = since.saturating_sub(1);
        let older = Window { until: Some(window.until.map_or(last, |it| it.min(last))), ..window };
        let mut parts = Vec::new();
        if newer.until.is_none_or(|until| newer.since <= Some(until)) {
            parts.push((whole.clone(), newer));
        }
        if !ageless_kinds.is_empty() && older.since.unwrap_or(0) < *since {
            parts.push((whole.with_kinds(ageless_kinds), older));
        }
        parts
    }

    /// The filter for a part of its window.
    pub(super) fn within(&self, window: Window) -> Self {
        let mut narrow = self.clone();
        for (key, second) in [("since", window.since), ("until", window.until)] {
            match second {
                Some(second) => narrow.json.insert(key.to_owned(), Value::from(second)),
                None => narrow.json.remove(key),
            };
        }
        (narrow.parsed.since, narrow.parsed.until) = (window.since, window.until);
        narrow
    }

    /// The filter with the newest so many events only.
    pub(super) fn newest(&self, limit: usize) -> Self {
        let mut narrow = self.clone();
        let limit = self.parsed.limit.map_or(limit, |own| own.min(limit));
        narrow.json.insert("limit".to_owned(), Value::from(limit));
        narrow.parsed.limit = Some(limit);
        narrow
    }

    /// The filter with these kinds only.
    pub(super) fn with_kinds(&self, kinds: &[u16]) -> Self {
        let mut narrow = self.clone();
        narrow.json.insert("kinds".to_owned(), Value::from(kinds.to_vec()));
        narrow.reread()
    }

    /// The filter with these authors only.
    pub(super) fn with_authors(&self, authors: &[[u8; 32]]) -> Self {
        let mut narrow = self.clone();
        let hex: Vec<String> = authors.iter().map(|key| hex::encode(key)).collect();
        narrow.json.insert("authors".to_owned(), Value::from(hex));
        narrow.reread()
    }

    /// How many values the longest list has; 0 without a list.
    pub(super) fn longest_list(&self) -> usize {
        self.json.values().filter_map(Value::as_array).map(Vec::len).max().unwrap_or(0)
    }

    /// The filter in parts whose union it is, none of which has a list of more than `most` values.
    pub(super) fn split_values(&self, most: usize) -> Vec<Self> {
        let most = most.max(1);
        let long = self.json.iter().find_map(|(key, value)| {
            let values = value.as_array().filter(|values| values.len() > most)?;
            Some((key.clone(), values.clone()))
        });
        let Some((key, values)) = long else { return vec![self.clone()] };
        let part = |values: &[Value]| {
            let mut part = self.clone();
            part.json.insert(key.clone(), Value::from(values.to_vec()));
            part.reread().split_values(most)
        };
        values.chunks(most).flat_map(part).collect()
    }

    /// The filter as its JSON says, of which a list was cut.
    fn reread(mut self) -> Self {
        if let Ok(parsed) = Filter::from_json(&Value::Object(self.json.clone())) {
            self.parsed = parsed;
        }
        self
    }
}

/// A window of time, both ends included, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Window {
    /// The first second; none where there is no first.
    pub since: Option<u64>,
    /// The last second; none where there is no last.
    pub until: Option<u64>,
}

/// No Nostr event is older: what claims to be gets a window of its own.
pub(super) const FIRST_EVENTS: u64 = 1_577_836_800;

impl Window {
    /// The window in parts that hold at most about `cap` items each, going by `ours`; at least
    /// two. `None` when it is a single second.
    pub(super) fn divide(self, ours: &Slice, cap: Option<u64>, now: u64) -> Option<Vec<Self>> {
        let first = self.since.unwrap_or(0);
        let last = self.until.unwrap_or(now.max(first.saturating_add(1)));
        if first >= last {
            return None;
        }
        let cap = cap.and_then(|cap| usize::try_from(cap).ok()).filter(|cap| *cap > 1);
        // Half the cap, because the peer has more than we know of.
        let parts = cap.map_or(2, |cap| ours.len() / (cap / 2).max(1) + 1).clamp(2, MOST_PARTS);
        let mut starts: Vec<u64> = (1..parts)
            .filter_map(|part| ours.item(ours.len().saturating_mul(part) / parts))
            .map(|item| item.created_at)
            .filter(|second| (first + 1..=last).contains(second))
            .collect();
        starts.dedup();
        if starts.is_empty() {
            let floor =
                if first < FIRST_EVENTS && FIRST_EVENTS < last { FIRST_EVENTS } else { first };
            starts = vec![floor + (last - floor).div_ceil(2)];
            if floor > first {
                starts.insert(0, floor);
            }
            starts.dedup();
        }
        let mut windows = Vec::with_capacity(starts.len() + 1);
        let mut since = self.since;
        for start in starts {
            windows.push(Self { since, until: Some(start - 1) });
            since = Some(start);
        }
        windows.push(Self { since, until: self.until });
        Some(windows)
    }
}

/// The most parts that a window is divided into at a time.
const MOST_PARTS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::Tree;
    use crate::item::Item;
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    #[test]
    fn parts_cover_the_window_once_and_each_is_smaller() {
        for seed in 0..200 {
            let mut rng = StdRng::seed_from_u64(seed);
            let now = 1_700_000_000;
            let items = (0..rng.random_range(0..300))
                .map(|_| Item::new(now - rng.random_range(0..2_000), rng.random()));
            let ours = Tree::from_unsorted(items.collect());
            let since = rng.random_bool(0.5).then(|| now - rng.random_range(0..2_000));
            let until = rng.random_bool(0.5).then(|| now - rng.random_range(0..500));
            let window = Window { since, until };
            let slice = Slice::new(ours, since, until, None);
            let cap = rng.random_bool(0.5).then(|| rng.random_range(0..100));
            let Some(parts) = window.divide(&slice, cap, now) else {
                assert!(since.unwrap_or(0) >= until.unwrap_or(now), "seed {seed}");
                continue;
            };
            assert!(parts.len() >= 2, "seed {seed}");
            assert_eq!(parts[0].since, since, "seed {seed}");
            assert_eq!(parts[parts.len() - 1].until, until, "seed {seed}");
            for pair in parts.windows(2) {
                assert_eq!(pair[0].until.map(|until| until + 1), pair[1].since, "seed {seed}");
                assert!(pair[0].since <= pair[0].until, "seed {seed}");
            }
        }
    }
}
