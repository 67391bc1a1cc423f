//! The part of a filter that the rules of retention keep; a sync need not request the rest.

use super::{Retention, floors, is_removed_by_size};
use crate::Filter;
use rusqlite::Connection;

/// Maximum number of kinds that are kept longer than the others.
const MOST_AGELESS: usize = 100;

/// The part of a filter that rules of age and size keep: nothing older than a second, except for
/// some kinds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetentionWindow {
    /// The first second of which events of all kinds are kept.
    pub since: u64,
    /// Kinds of which older events are kept too.
    pub ageless_kinds: Vec<u16>,
}

impl Retention {
    /// The window that the rules keep of a filter at the second `now`. The rule of size has removed
    /// everything up to `floor`. `None` if the rules keep no window of time.
    #[must_use]
    pub fn window(&self, filter: &Filter, floor: u64, now: u64) -> Option<RetentionWindow> {
        if self.is_empty() || filter.ids.is_some() || filter.limit.is_some() {
            return None;
        }
        let (mut since, mut ageless_kinds) = (None, Vec::new());
        let mut look = |kind: u16| {
            let by_size = (floor > 0 && is_removed_by_size(kind)).then(|| floor + 1);
            match self.oldest(kind, now).max(by_size) {
                Some(oldest) => since = Some(since.map_or(oldest, |since: u64| since.min(oldest))),
                None => ageless_kinds.push(kind),
            }
            ageless_kinds.len() <= MOST_AGELESS
        };
        match &filter.kinds {
            Some(kinds) => kinds.iter().all(|kind| look(*kind)),
            None => (0..=u16::MAX).all(&mut look),
        };
        let since = since.filter(|since| filter.since.is_none_or(|own| own < *since))?;
        // Nothing would be left of a filter that ends before it.
        let is_empty = ageless_kinds.is_empty() && filter.until.is_some_and(|until| until < since);
        let is_window = ageless_kinds.len() <= MOST_AGELESS && !is_empty;
        is_window.then_some(RetentionWindow { since, ageless_kinds })
    }
}

/// Like [`Retention::window`], by the rules of the store.
pub(crate) fn window(
    connection: &Connection,
    filter: &Filter,
    now: u64,
) -> rusqlite::Result<Option<RetentionWindow>> {
    let (rules, floor) = floors::load(connection)?;
    Ok(rules.window(filter, floor, now))
}

#[cfg(test)]
mod tests {
    use super::super::{KindRange, RetentionRule};
    use super::*;

    const NOW: u64 = 1_000_000;

    fn rule(kinds: Vec<KindRange>, max_age_s: Option<u64>) -> RetentionRule {
        RetentionRule { kinds, max_age_s, ..RetentionRule::default() }
    }

    fn windowed(rules: Vec<RetentionRule>, floor: u64, filter: &str) -> Option<(u64, Vec<u16>)> {
        let filter = Filter::parse(filter).unwrap();
        let window = Retention { rules, store_bytes: None }.window(&filter, floor, NOW)?;
        Some((window.since, window.ageless_kinds))
    }

    #[test]
    fn the_longest_age_counts_and_requests_have_none() {
        let all = || vec![rule(vec![], Some(1_000))];
        let both = || vec![rule(vec![], Some(1_000)), rule(vec![KindRange::One(7)], Some(10))];
        let some = || vec![rule(vec![KindRange::FromTo(1, 9)], Some(1_000))];
        for (rules, floor, filter, expected) in [
            (all(), 0, "{}", Some((999_000, vec![5, 62]))),
            (both(), 0, "{}", Some((999_000, vec![5, 62]))),
            (both(), 0, r#"{"kinds":[7]}"#, Some((999_990, vec![]))),
            (both(), 0, r#"{"kinds":[1,5,7]}"#, Some((999_000, vec![5]))),
            (some(), 0, r#"{"kinds":[5]}"#, Some((999_000, vec![]))),
            (all(), 999_500, "{}", Some((999_501, vec![5, 62]))),
            (all(), 998_000, r#"{"kinds":[1]}"#, Some((999_000, vec![]))),
            // The filter's own window is narrower.
            (all(), 0, r#"{"since":999500}"#, None),
            (all(), 0, r#"{"since":998000}"#, Some((999_000, vec![5, 62]))),
            (all(), 0, r#"{"kinds":[1],"until":5000}"#, None),
            // Most kinds are kept forever, or no kind of the filter has a maximum age.
            (some(), 0, "{}", None),
            (all(), 0, r#"{"kinds":[5]}"#, None),
            (vec![], 0, "{}", None),
            // The filter is not a window of time.
            (all(), 0, r#"{"limit":5}"#, None),
        ] {
            assert_eq!(windowed(rules, floor, filter), expected, "{floor} {filter}");
        }
    }
}
