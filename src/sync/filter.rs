//! The filter of a sync, as it is sent to the peer and as the store reads it, and the time windows
//! into which it can be divided.

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
    // The part that our own retention keeps; nothing else is requested.
    kept: Option<RetentionWindow>,
}

impl PeerFilter {
    /// Parses a filter from its JSON text.
    ///
    /// # Errors
    /// [`FilterError`] names the first key that is malformed or unknown.
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

    /// The text under which the sync mark is recorded.
    pub(super) fn text(&self) -> String {
        Value::Object(self.json.clone()).to_string()
    }

    /// The filter's own window.
    pub(super) fn window(&self) -> Window {
        Window { since: self.parsed.since, until: self.parsed.until }
    }

    /// The filter, restricted to the part that our retention keeps.
    pub(super) fn keeping(&self, kept: Option<RetentionWindow>) -> Self {
        Self { kept, ..self.clone() }
    }

    /// The second from which our retention keeps all matching events.
    pub(super) fn kept_since(&self) -> Option<u64> {
        self.kept.as_ref().map(|kept| kept.since)
    }

    /// The filters and windows to request for a part of the filter's window, newest first: all of
    /// it, or the part that our retention keeps.
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

    /// The filter, restricted to a window.
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

    /// The filter with a limit: only the newest events.
    pub(super) fn newest(&self, limit: usize) -> Self {
        let mut narrow = self.clone();
        let limit = self.parsed.limit.map_or(limit, |own| own.min(limit));
        narrow.json.insert("limit".to_owned(), Value::from(limit));
        narrow.parsed.limit = Some(limit);
        narrow
    }

    /// The filter, restricted to these kinds.
    pub(super) fn with_kinds(&self, kinds: &[u16]) -> Self {
        let mut narrow = self.clone();
        narrow.json.insert("kinds".to_owned(), Value::from(kinds.to_vec()));
        narrow.reread()
    }

    /// The filter, restricted to these authors.
    pub(super) fn with_authors(&self, authors: &[[u8; 32]]) -> Self {
        let mut narrow = self.clone();
        let hex: Vec<String> = authors.iter().map(|key| hex::encode(key)).collect();
        narrow.json.insert("authors".to_owned(), Value::from(hex));
        narrow.reread()
    }

    /// The number of values in the longest list; 0 without a list.
    pub(super) fn longest_list(&self) -> usize {
        self.json.values().filter_map(Value::as_array).map(Vec::len).max().unwrap_or(0)
    }

    /// Divides the filter into parts whose union it is, none with a list of more than `most`
    /// values.
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

    /// Parses the filter again after a list in its JSON was cut.
    fn reread(mut self) -> Self {
        if let Ok(parsed) = Filter::from_json(&Value::Object(self.json.clone())) {
            self.parsed = parsed;
        }
        self
    }
}

/// A time window, both ends included, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Window {
    /// The first second; `None` if unbounded.
    pub since: Option<u64>,
    /// The last second; `None` if unbounded.
    pub until: Option<u64>,
}

/// Events with an earlier `created_at` get a window of their own.
pub(super) const FIRST_EVENTS: u64 = 1_577_836_800;

impl Window {
    /// Divides the window into parts that hold at most about `cap` items each, estimated from
    /// `ours`; at least two parts. `None` if it is a single second.
    pub(super) fn divide(self, ours: &Slice, cap: Option<u64>, now: u64) -> Option<Vec<Self>> {
        let first = self.since.unwrap_or(0);
        let last = self.until.unwrap_or(now.max(first.saturating_add(1)));
        if first >= last {
            return None;
        }
        let cap = cap.and_then(|cap| usize::try_from(cap).ok()).filter(|cap| *cap > 1);
        // Half the cap, because the peer has more events than we know of.
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

/// Maximum number of parts into which a window is divided at a time.
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
