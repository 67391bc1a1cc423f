//! Filters (NIP-01, Filters): parsed strictly, kept in one normal form.

use crate::event::Event;
use crate::hex;
use crate::tag_key::TagKey;
use negsync_reconcile::Item;
use serde_json::{Map, Value};

/// A filter in its normal form: every list is sorted and has no duplicates, so that filters with
/// the same meaning compare equal. An empty list matches nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Filter {
    /// Event ids; an event matches any of them.
    pub ids: Option<Vec<[u8; 32]>>,
    /// Authors' public keys; an event matches any of them.
    pub authors: Option<Vec<[u8; 32]>>,
    /// Kinds; an event matches any of them.
    pub kinds: Option<Vec<u16>>,
    /// One list for each tag letter, ordered by letter. An event must match one key of each list.
    pub tags: Vec<Vec<TagKey>>,
    /// The lowest `created_at` that matches, in seconds.
    pub since: Option<u64>,
    /// The highest `created_at` that matches, in seconds.
    pub until: Option<u64>,
    /// The maximum number of events: the newest ones that match.
    pub limit: Option<usize>,
    /// Kinds that do not match, sorted; scans for this filter skip them. Cannot be set in JSON: the
    /// relay sets it for viewers who may not see these kinds.
    pub without_kinds: Vec<u16>,
}

/// Why a filter is invalid, by key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FilterError {
    /// A value is malformed.
    #[error("{key}: {expected}")]
    Invalid {
        /// The filter's key.
        key: String,
        /// The form of a valid value.
        expected: &'static str,
    },
    /// An unknown key. Ignoring it would widen the result.
    #[error("{key}: not a filter key of this relay{}", meant_instead(key))]
    Unknown {
        /// The key, shortened if it is long.
        key: String,
    },
}

/// Characters of an unknown key that an error shows.
const SHOWN_KEY_CHARS: usize = 40;

impl Filter {
    /// A filter that matches the events with these ids, given in any order.
    #[must_use]
    pub fn of_ids(ids: &[[u8; 32]]) -> Self {
        let mut ids = ids.to_vec();
        ids.sort_unstable();
        ids.dedup();
        Self { ids: Some(ids), ..Self::default() }
    }

    /// Parses a filter from its JSON object.
    ///
    /// # Errors
    /// [`FilterError`] names the first key that is malformed or unknown.
    pub fn from_json(value: &Value) -> Result<Self, FilterError> {
        let object: &Map<String, Value> =
            value.as_object().ok_or_else(|| invalid("filter", OBJECT))?;
        let mut filter = Self::default();
        let mut tags = Vec::new();
        for (key, value) in object {
            match key.as_str() {
                "ids" => filter.ids = Some(list(key, value, HEX_32, hex_32)?),
                "authors" => filter.authors = Some(list(key, value, HEX_32, hex_32)?),
                "kinds" => filter.kinds = Some(list(key, value, KINDS, kind)?),
                "since" => filter.since = Some(seconds(key, value)?),
                "until" => filter.until = Some(seconds(key, value)?),
                "limit" => filter.limit = Some(limit(key, value)?),
                _ => tags.push(tag_list(key, value)?),
            }
        }
        // Sorted by letter, so that the order of the keys in the JSON makes no difference.
        tags.sort_unstable_by_key(|(letter, _)| *letter);
        filter.tags = tags.into_iter().map(|(_, keys)| keys).collect();
        Ok(filter)
    }

    /// Parses a filter from its JSON text.
    ///
    /// # Errors
    /// As [`Filter::from_json`]; text that is not JSON is reported under the key `filter`.
    pub fn parse(text: &str) -> Result<Self, FilterError> {
        let value = serde_json::from_str(text).map_err(|_| invalid("filter", "is not JSON"))?;
        Self::from_json(&value)
    }

    /// Whether the event matches everything but `limit`.
    #[must_use]
    pub fn matches(&self, event: &Event) -> bool {
        self.matches_time(&event.item())
            && self.takes_kind(event.kind())
            && holds(&self.authors, event.pubkey())
            && holds(&self.ids, &event.item().id)
            && self.tags.iter().all(|keys| have_common(keys, event.tag_keys()))
    }

    /// Whether events of the kind can match.
    #[must_use]
    pub fn takes_kind(&self, kind: u16) -> bool {
        holds(&self.kinds, &kind) && self.without_kinds.binary_search(&kind).is_err()
    }

    /// Whether the item's time lies between `since` and `until`, both included.
    #[must_use]
    pub fn matches_time(&self, item: &Item) -> bool {
        self.since.is_none_or(|since| item.created_at >= since)
            && self.until.is_none_or(|until| item.created_at <= until)
    }

    /// Whether nothing can match: a list is empty, or `since` is after `until`.
    pub fn is_void(&self) -> bool {
        let empty = |list: &Option<Vec<_>>| list.as_ref().is_some_and(Vec::is_empty);
        empty(&self.ids)
            || empty(&self.authors)
            || self.kinds.as_ref().is_some_and(Vec::is_empty)
            || self.tags.iter().any(Vec::is_empty)
            || matches!((self.since, self.until), (Some(since), Some(until)) if since > until)
    }

    /// The filter without `since`, `until` and `limit`.
    #[must_use]
    pub fn timeless(&self) -> Self {
        Self { since: None, until: None, limit: None, ..self.clone() }
    }

    /// The total number of values in the filter's lists.
    pub fn value_count(&self) -> usize {
        let count = |list: &Option<Vec<_>>| list.as_ref().map_or(0, Vec::len);
        count(&self.ids)
            + count(&self.authors)
            + self.kinds.as_ref().map_or(0, Vec::len)
            + self.tags.iter().map(Vec::len).sum::<usize>()
    }
}

const OBJECT: &str = "must be a JSON object, such as {\"kinds\":[1]}";
const HEX_32: &str = "must be an array of strings of 64 hex digits each, not npub or note";
const KINDS: &str = "must be an array of whole numbers from 0 to 65535";

/// Whether the sorted list contains the value. A missing list contains every value.
fn holds<T: Ord>(list: &Option<Vec<T>>, value: &T) -> bool {
    list.as_ref().is_none_or(|list| list.binary_search(value).is_ok())
}

/// Whether two sorted lists have a common value. Each value of the shorter list is searched for in
/// the longer one, so the cost stays low for a long filter and for an event with many tags.
fn have_common<T: Ord>(one: &[T], other: &[T]) -> bool {
    let (short, long) = if one.len() <= other.len() { (one, other) } else { (other, one) };
    short.iter().any(|value| long.binary_search(value).is_ok())
}

/// A hint for an unknown key: the key that was probably meant. It follows the error.
fn meant_instead(key: &str) -> String {
    match key {
        "id" | "author" | "kind" => format!("; it is {key}s, with an array"),
        "tags" => "; tags are asked for by letter, as #t or #p".to_owned(),
        _ if matches!(key.as_bytes(), [letter] if letter.is_ascii_alphabetic()) => {
            format!("; it is #{key}, with an array")
        }
        _ => String::new(),
    }
}

fn invalid(key: &str, expected: &'static str) -> FilterError {
    FilterError::Invalid { key: key.to_owned(), expected }
}

fn list<T: Ord>(
    key: &str,
    value: &Value,
    expected: &'static str,
    read: impl Fn(&Value) -> Option<T>,
) -> Result<Vec<T>, FilterError> {
    let mut list = value
        .as_array()
        .and_then(|values| values.iter().map(read).collect::<Option<Vec<T>>>())
        .ok_or_else(|| invalid(key, expected))?;
    list.sort_unstable();
    list.dedup();
    Ok(list)
}

fn hex_32(value: &Value) -> Option<[u8; 32]> {
    hex::decode_array(value.as_str()?)
}

fn kind(value: &Value) -> Option<u16> {
    value.as_u64().and_then(|number| u16::try_from(number).ok())
}

fn seconds(key: &str, value: &Value) -> Result<u64, FilterError> {
    // SQLite's integers are signed, so no stored event is newer than the largest signed number.
    value
        .as_u64()
        .map(|number| number.min(i64::MAX as u64))
        .ok_or_else(|| invalid(key, "must be a whole number of seconds, 0 or more"))
}

fn limit(key: &str, value: &Value) -> Result<usize, FilterError> {
    value
        .as_u64()
        .and_then(|number| usize::try_from(number).ok())
        .ok_or_else(|| invalid(key, "must be a whole number, 0 or more"))
}

fn tag_list(key: &str, value: &Value) -> Result<(u8, Vec<TagKey>), FilterError> {
    match key.as_bytes() {
        [b'#', letter] if letter.is_ascii_alphabetic() => {
            let keys = list(key, value, "must be an array of strings", |value| {
                Some(TagKey::new(*letter, value.as_str()?))
            })?;
            Ok((*letter, keys))
        }
        _ => Err(FilterError::Unknown { key: key.chars().take(SHOWN_KEY_CHARS).collect() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_that_mean_the_same_compare_equal() {
        let a = Filter::parse(r##"{"kinds":[7,1,1],"#p":["b","a"],"#e":["x"]}"##);
        let b = Filter::parse(r##"{"#e":["x"],"#p":["a","b","a"],"kinds":[1,7]}"##);
        assert_eq!(a, b);
        assert!(a.is_ok_and(|filter| !filter.is_void()));
    }

    #[test]
    fn a_bad_filter_is_refused_by_key() {
        for (text, key) in [
            ("[]", "filter"),
            ("{", "filter"),
            (r#"{"ids":["ab"]}"#, "ids"),
            (r#"{"authors":"x"}"#, "authors"),
            (r#"{"kinds":[65536]}"#, "kinds"),
            (r#"{"kinds":[-1]}"#, "kinds"),
            (r#"{"since":-1}"#, "since"),
            (r#"{"until":"now"}"#, "until"),
            (r#"{"limit":1.5}"#, "limit"),
            (r##"{"#p":[1]}"##, "#p"),
            (r##"{"#pp":["x"]}"##, "#pp"),
            (r#"{"search":"x"}"#, "search"),
        ] {
            let error = Filter::parse(text).expect_err(text).to_string();
            assert!(error.starts_with(&format!("{key}: ")), "{text}: {error}");
        }
    }
}
