//! Filters: refused with the faulty key, or parsed into a normal form with the same meaning as the
//! JSON.

use negsync::store::{Event, Filter, FilterError};
use serde_json::{Map, Value};
use std::sync::OnceLock;

pub fn target(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let filter = match Filter::parse(text) {
        Ok(filter) => filter,
        Err(error) => {
            let (FilterError::Invalid { key, .. } | FilterError::Unknown { key }) = &error else {
                panic!("{error}: names no key");
            };
            let shown = error.to_string();
            assert!(shown.len() <= 512, "{} bytes are said of {:.100}", shown.len(), key);
            return;
        }
    };
    let value: Value = serde_json::from_str(text).expect("a filter is JSON");
    let object = value.as_object().expect("a filter is an object");
    // The order of keys and values has no meaning, and neither have duplicates.
    assert_eq!(Filter::from_json(&Value::Object(reversed(object))), Ok(filter.clone()));
    assert!(filter.value_count() <= text.len());
    assert_eq!(filter.timeless().timeless(), filter.timeless());
    for (event, event_json) in events() {
        let matches = filter.matches(event);
        assert_eq!(matches, naive(object, event_json), "{text} on {event_json}");
        assert!(!matches || filter.timeless().matches(event));
        assert!(!matches || !filter.is_void());
    }
}

/// The same filter in reverse order and with duplicate values.
fn reversed(object: &Map<String, Value>) -> Map<String, Value> {
    let twice = |value: &Value| match value {
        Value::Array(list) => Value::Array(list.iter().rev().chain(list).cloned().collect()),
        other => other.clone(),
    };
    object.iter().rev().map(|(key, value)| (key.clone(), twice(value))).collect()
}

/// NIP-01, Filters, evaluated on the JSON.
fn naive(filter: &Map<String, Value>, event: &Value) -> bool {
    filter.iter().all(|(key, wanted)| match key.as_str() {
        "ids" => lists(wanted, &event["id"]),
        "authors" => lists(wanted, &event["pubkey"]),
        "kinds" => lists(wanted, &event["kind"]),
        "since" => event["created_at"].as_u64() >= second(wanted),
        "until" => event["created_at"].as_u64() <= second(wanted),
        "limit" => true,
        tag => {
            let tags = event["tags"].as_array().expect("tags");
            tags.iter().any(|own| own[0] == tag[1..] && lists_exactly(wanted, &own[1]))
        }
    })
}

/// The last second is that of SQLite's integers.
fn second(value: &Value) -> Option<u64> {
    value.as_u64().map(|second| second.min(i64::MAX as u64))
}

/// Ids and keys match in either case.
fn lists(list: &Value, value: &Value) -> bool {
    let same = |one: &Value| match (one.as_str(), value.as_str()) {
        (Some(one), Some(value)) => one.eq_ignore_ascii_case(value),
        _ => one.as_u64() == value.as_u64(),
    };
    list.as_array().expect("a list").iter().any(same)
}

fn lists_exactly(list: &Value, value: &Value) -> bool {
    value.is_string() && list.as_array().expect("a list").contains(value)
}

/// Events that match some of the corpus' filters.
fn events() -> &'static [(Event, Value)] {
    static EVENTS: OnceLock<Vec<(Event, Value)>> = OnceLock::new();
    EVENTS.get_or_init(|| {
        let key = "00000000000000000000000000000000000000000000000000000000000000ab";
        [
            (1, 1_700_000_000, r#"[["t","nostr"],["e","x"],["t"]]"#.to_owned()),
            (0, 0, "[]".to_owned()),
            (30_023, 1_700_000_100, format!(r#"[["d",""],["p","{key}"],["P","{key}"]]"#)),
            (65_535, i64::MAX as u64, r#"[["x","a value of more than thirty-two bytes"]]"#.into()),
        ]
        .into_iter()
        .enumerate()
        .map(|(number, (kind, created_at, tags))| {
            let json = format!(
                r#"{{"id":"{number:064x}","pubkey":"{key}","created_at":{created_at},"kind":{kind},"tags":{tags},"content":"","sig":"{}"}}"#,
                "0".repeat(128)
            );
            let value = serde_json::from_str(&json).expect("JSON");
            (Event::parse(&json).expect("an event"), value)
        })
        .collect()
    })
}
