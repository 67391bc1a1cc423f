//! The relay information document (NIP-11).

use crate::kinds::KindRange;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

/// The information document of a relay, for reading and writing. A field that is absent, or that
/// has the wrong type in a document that is read, is `None`: one malformed field does not affect
/// the others.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct RelayDocument {
    /// The relay's name.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The relay's purpose, in plain text.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The URL of a wide picture.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub banner: Option<String>,
    /// The URL of a square picture.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub icon: Option<String>,
    /// The operator's public key, in lower-case hex.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub pubkey: Option<String>,
    /// A URI by which the operator can be contacted.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub contact: Option<String>,
    /// The NIPs that the relay supports.
    #[serde(deserialize_with = "numbers", skip_serializing_if = "Option::is_none")]
    pub supported_nips: Option<Vec<u16>>,
    /// The version of the negentropy protocol, as strfry and its clients announce it.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub negentropy: Option<u64>,
    /// The URL of the relay's software.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub software: Option<String>,
    /// The version of the software.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The URL of the posting policy.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub posting_policy: Option<String>,
    /// The URL of the terms of service.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub terms_of_service: Option<String>,
    /// The relay's limits.
    #[serde(deserialize_with = "object")]
    pub limitation: RelayLimitation,
    /// Retention by kind; empty if the relay states none.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Vec::is_empty")]
    pub retention: Vec<RetentionTerms>,
}

/// NIP-11, Server Limitations.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct RelayLimitation {
    /// Maximum length of a message, in bytes.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub max_message_length: Option<u64>,
    /// Maximum number of subscriptions of a connection.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub max_subscriptions: Option<u64>,
    /// Maximum number of filters of a subscription.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub max_filters: Option<u64>,
    /// Maximum number of events returned for a filter.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub max_limit: Option<u64>,
    /// Number of events returned for a filter without a limit.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub default_limit: Option<u64>,
    /// Maximum length of a subscription id, in characters.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub max_subid_length: Option<u64>,
    /// Maximum number of tags of an event.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub max_event_tags: Option<u64>,
    /// Maximum length of an event's content, in characters.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub max_content_length: Option<u64>,
    /// How far in the past an event's `created_at` may be, in seconds.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub created_at_lower_limit: Option<u64>,
    /// How far in the future an event's `created_at` may be, in seconds.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub created_at_upper_limit: Option<u64>,
    /// Whether a client must authenticate before any other message (NIP-42).
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub auth_required: Option<bool>,
    /// Whether the relay requires payment.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub payment_required: Option<bool>,
    /// Whether publishing is restricted.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub restricted_writes: Option<bool>,
}

/// NIP-11, Event Retention: how long events of some kinds are kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetentionTerms {
    /// The kinds; empty for all kinds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kinds: Vec<KindRange>,
    /// Retention time, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<u64>,
    /// Maximum number of events.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
}

impl RelayDocument {
    /// Parses a document. JSON other than an object yields an empty document.
    ///
    /// # Errors
    /// The bytes are not JSON.
    pub fn read(json: &[u8]) -> Result<Self, serde_json::Error> {
        let value: Value = serde_json::from_slice(json)?;
        object(value)
    }

    /// Whether the relay lists a NIP; `None` if it has no list.
    #[must_use]
    pub fn supports(&self, nip: u16) -> Option<bool> {
        self.supported_nips.as_ref().map(|nips| nips.contains(&nip))
    }
}

fn lenient<'de, D: Deserializer<'de>, T: DeserializeOwned + Default>(
    from: D,
) -> Result<T, D::Error> {
    Ok(T::deserialize(Value::deserialize(from)?).unwrap_or_default())
}

/// Like [`lenient`], for a struct. serde would also accept an array.
fn object<'de, D: Deserializer<'de>, T: DeserializeOwned + Default>(
    from: D,
) -> Result<T, D::Error> {
    let value = Value::deserialize(from)?;
    let object = value.is_object().then(|| T::deserialize(value).ok()).flatten();
    Ok(object.unwrap_or_default())
}

/// A list of NIPs; elements that are not NIPs are dropped.
fn numbers<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Vec<u16>>, D::Error> {
    let list: Option<Vec<Value>> = lenient(from)?;
    let number = |value: Value| value.as_u64().and_then(|number| u16::try_from(number).ok());
    Ok(list.map(|list| list.into_iter().filter_map(number).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(value: &Value) -> RelayDocument {
        RelayDocument::read(value.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn what_is_written_is_read() {
        let nothing = serde_json::to_value(RelayDocument::default()).unwrap();
        assert_eq!(nothing, json!({ "limitation": {} }));
        let kinds = vec![KindRange::One(7), KindRange::FromTo(30_000, 39_999)];
        let document = RelayDocument {
            name: Some("a \"name\"".into()),
            supported_nips: Some(vec![1, 77]),
            limitation: RelayLimitation {
                max_limit: Some(500),
                auth_required: Some(false),
                ..Default::default()
            },
            retention: vec![RetentionTerms { kinds, time: None, count: Some(3) }],
            ..Default::default()
        };
        let written = serde_json::to_value(&document).unwrap();
        assert_eq!(written["retention"], json!([{ "kinds": [7, [30_000, 39_999]], "count": 3 }]));
        assert_eq!(read(&written), document);
    }

    #[test]
    fn a_field_that_is_wrong_costs_no_other() {
        let document = read(&json!({
            "name": 7,
            "description": "kept",
            "supported_nips": [1, "9", -1, 70_000, 1.5, null, 77],
            "limitation": { "max_limit": -1, "max_subscriptions": "10", "max_filters": 4 },
            "retention": [{ "kinds": "all" }],
            "posting_policy": null,
            "anything": { "else": [] },
        }));
        let expected = RelayDocument {
            description: Some("kept".into()),
            supported_nips: Some(vec![1, 77]),
            limitation: RelayLimitation { max_filters: Some(4), ..Default::default() },
            ..Default::default()
        };
        assert_eq!(document, expected);
        assert_eq!((document.supports(77), document.supports(9)), (Some(true), Some(false)));
    }

    #[test]
    fn what_is_no_document_says_nothing() {
        for value in [json!([]), json!(["a name"]), json!("text"), json!(null), json!(1)] {
            assert_eq!(read(&value), RelayDocument::default(), "{value}");
            let document = read(&json!({ "limitation": value, "supported_nips": {} }));
            assert_eq!((document.supports(1), document), (None, RelayDocument::default()));
        }
        let twice = br#"{"name":"first","name":"second"}"#;
        assert_eq!(RelayDocument::read(twice).unwrap().name.as_deref(), Some("second"));
        assert!(RelayDocument::read(b"<html>").is_err());
    }
}
