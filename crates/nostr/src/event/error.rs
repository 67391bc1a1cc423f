//! Errors of events: the field that is missing or malformed.

use crate::hex;
use serde::Deserialize;
use serde_json::Value;
use std::borrow::Cow;

/// Why an event is malformed or invalid. The text names the field; it is sent after `invalid: `.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
#[non_exhaustive]
pub struct EventError {
    /// The id that the event claims, in lower-case hex, when one could be read.
    pub id: Option<String>,
    /// The field and its fault.
    pub reason: String,
}

/// The id alone, read from JSON that cannot be parsed as a whole: it has an invalid character or
/// number, or is nested too deeply.
#[derive(Deserialize)]
struct Id<'json> {
    #[serde(borrow)]
    id: Cow<'json, str>,
}

/// See [`Event::claimed_id`](super::Event::claimed_id).
pub(super) fn claimed_id(json: &str) -> Option<String> {
    let Id { id } = serde_json::from_str(json).ok()?;
    hex::decode_array(&id).map(|id: [u8; 32]| hex::encode(&id))
}

/// Finds the field that makes `json` no event. The cost falls on malformed input only.
pub(super) fn explain(json: &str, error: Option<String>) -> EventError {
    let object = match serde_json::from_str::<Value>(json) {
        Ok(Value::Object(object)) => object,
        Ok(_) => return EventError { id: None, reason: "event: must be a JSON object".into() },
        Err(error) => {
            let error = error.to_string();
            // An event is one line; where the line number matters it is reported separately.
            let error = error.replace(" at line 1 column ", " at byte ");
            let reason = format!("event: not JSON: {error}");
            return EventError { id: claimed_id(json), reason };
        }
    };
    let is_hex = |text: &str, digits: usize| {
        text.len() == digits && text.bytes().all(|digit| digit.is_ascii_hexdigit())
    };
    let check =
        |field: &str, is_right: &dyn Fn(&Value) -> bool, expected: &str| match object.get(field) {
            None => Some(format!("{field}: missing")),
            Some(value) if is_right(value) => None,
            Some(_) => Some(format!("{field}: must be {expected}")),
        };
    let hex = |field: &str, digits: usize| {
        let is_right = |value: &Value| value.as_str().is_some_and(|text| is_hex(text, digits));
        check(field, &is_right, &format!("{digits} hex digits"))
    };
    let number = |field: &str, most: u64| {
        let is_right = |value: &Value| value.as_u64().is_some_and(|number| number <= most);
        check(field, &is_right, &format!("a whole number from 0 to {most}"))
    };
    let tags = |value: &Value| value.as_array().is_some_and(|tags| tags.iter().all(is_tag));
    let reason = hex("id", 64)
        .or_else(|| hex("pubkey", 64))
        .or_else(|| number("created_at", i64::MAX as u64))
        .or_else(|| number("kind", u64::from(u16::MAX)))
        .or_else(|| check("tags", &tags, "an array of non-empty arrays of strings"))
        .or_else(|| check("content", &Value::is_string, "a string"))
        .or_else(|| hex("sig", 128))
        .unwrap_or_else(|| format!("event: {}", error.unwrap_or_default()));
    let id = object.get("id").and_then(Value::as_str).filter(|text| is_hex(text, 64));
    EventError { id: id.map(str::to_ascii_lowercase), reason }
}

fn is_tag(value: &Value) -> bool {
    value.as_array().is_some_and(|tag| !tag.is_empty() && tag.iter().all(Value::is_string))
}
