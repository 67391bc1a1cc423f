//! The messages between a client and a relay, from the client's side (NIP-01, NIP-42, NIP-77).

use super::filter::PeerFilter;
use super::machine::{Hint, PageEvent};
use crate::hex;
use crate::prefix::Prefix;
use serde_json::value::RawValue;
use serde_json::{Value, json};

/// Maximum number of characters that are kept of a peer's text.
const WORDS_CHARS: usize = 200;

/// A message of the peer, as far as a sync uses it.
#[derive(Debug)]
pub(super) enum PeerMessage<'text> {
    /// An unparsed event for a subscription.
    Event { subscription: String, json: &'text str },
    /// The end of a subscription's stored events; NIP-67 says whether there are more.
    Eose { subscription: String, hint: Hint },
    /// The peer ended a subscription.
    Closed { subscription: String, text: String },
    /// NIP-45: the number of matching events; `None` if the peer only estimates it.
    Count { subscription: String, count: Option<u64> },
    /// The result for an event that was sent; some relays leave out the id in a refusal.
    Ok { id: Option<[u8; 32]>, accepted: bool, text: String },
    /// Text for people.
    Notice(String),
    /// NIP-42: a challenge to sign.
    Auth(String),
    /// NIP-77: the responder's message.
    NegMsg { id: String, payload: Vec<u8> },
    /// NIP-77: the session ended; `cap` is the maximum number of items that the peer accepts.
    NegErr { id: String, text: String, cap: Option<u64> },
    /// Anything else.
    Unknown,
}

/// Parses a message; a malformed one is [`PeerMessage::Unknown`].
pub(super) fn parse(text: &str) -> PeerMessage<'_> {
    let Ok(elements) = serde_json::from_str::<Vec<&RawValue>>(text) else {
        return PeerMessage::Unknown;
    };
    let string = |place: usize| {
        elements.get(place).and_then(|raw| serde_json::from_str::<String>(raw.get()).ok())
    };
    let text_at = |place: usize| string(place).map(|text| one_line(&text)).unwrap_or_default();
    let read = || {
        Some(match string(0)?.as_str() {
            "EVENT" => {
                PeerMessage::Event { subscription: string(1)?, json: elements.get(2)?.get() }
            }
            "EOSE" => PeerMessage::Eose { subscription: string(1)?, hint: hint(elements.get(2)) },
            "CLOSED" => PeerMessage::Closed { subscription: string(1)?, text: text_at(2) },
            "OK" => PeerMessage::Ok {
                id: named(&string(1)?)?,
                accepted: serde_json::from_str(elements.get(2)?.get()).ok()?,
                text: text_at(3),
            },
            "COUNT" => {
                let told: Value = serde_json::from_str(elements.get(2)?.get()).ok()?;
                let count = told["count"].as_u64().filter(|_| told["approximate"] != true);
                PeerMessage::Count { subscription: string(1)?, count }
            }
            "NOTICE" => PeerMessage::Notice(text_at(1)),
            "AUTH" => PeerMessage::Auth(string(1)?),
            "NEG-MSG" => PeerMessage::NegMsg {
                id: string(1)?,
                // Malformed hex becomes an empty message, which is malformed too.
                payload: hex::decode(&string(2)?).unwrap_or_default(),
            },
            "NEG-ERR" => PeerMessage::NegErr {
                id: string(1)?,
                text: text_at(2),
                cap: elements.get(3).and_then(|raw| serde_json::from_str(raw.get()).ok()),
            },
            _ => return None,
        })
    };
    read().unwrap_or(PeerMessage::Unknown)
}

/// The machine-readable prefix of a refusal. Some relays write it in capitals, with other hyphens
/// or, for rate limits and authentication, without a colon.
pub(super) fn prefix(text: &str) -> Option<Prefix> {
    let exact = Prefix::of(text);
    exact.or_else(|| {
        let plain = text.trim_start().to_lowercase().replace([' ', '_'], "-");
        let bare = [Prefix::RateLimited, Prefix::AuthRequired];
        let word = plain.split_once(':').map_or("", |(word, _)| word);
        let named = Prefix::ALL.into_iter().find(|prefix| prefix.as_str() == word);
        named.or_else(|| bare.into_iter().find(|prefix| plain.starts_with(prefix.as_str())))
    })
}

/// NIP-67: the hints beside EOSE, in a list or on their own.
fn hint(element: Option<&&RawValue>) -> Hint {
    let value = element.and_then(|raw| serde_json::from_str::<Value>(raw.get()).ok());
    let says = |value: &Value, word: &str| {
        value == word || value.as_array().is_some_and(|words| words.iter().any(|it| it == word))
    };
    match value {
        Some(value) if says(&value, "more") => Hint::More,
        Some(value) if says(&value, "finish") => Hint::Finish,
        _ => Hint::None,
    }
}

/// Id and time of an event, as far as they can be parsed.
pub(super) fn page_event(json: &str) -> Option<PageEvent> {
    #[derive(serde::Deserialize)]
    struct Head<'text> {
        #[serde(borrow)]
        id: std::borrow::Cow<'text, str>,
        created_at: Value,
        #[serde(default)]
        kind: Value,
        #[serde(default, borrow)]
        pubkey: std::borrow::Cow<'text, str>,
    }
    let head: Head<'_> = serde_json::from_str(json).ok()?;
    let second = match &head.created_at {
        Value::Number(number) => number.as_u64().or_else(|| number.as_f64().map(|it| it as u64)),
        Value::String(text) => text.parse().ok(),
        _ => None,
    };
    // The store rejects later seconds.
    let second = second.filter(|second| i64::try_from(*second).is_ok());
    let kind = head.kind.as_u64().and_then(|kind| u16::try_from(kind).ok());
    Some(PageEvent {
        id: hex::decode_array(&head.id)?,
        created_at: second?,
        kind: kind.unwrap_or_default(),
        pubkey: hex::decode_array(&head.pubkey).unwrap_or_default(),
        is_ours: false,
    })
}

/// A peer's text for logs, reports and terminals: shortened, without line breaks and control
/// characters.
pub(super) fn one_line(text: &str) -> String {
    let shown = text.chars().take(WORDS_CHARS);
    shown.map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// NIP-01, REQ.
pub(super) fn req(subscription: &str, filter: &PeerFilter) -> String {
    json!(["REQ", subscription, filter.json()]).to_string()
}

/// NIP-01, REQ for events by id.
pub(super) fn req_ids(subscription: &str, ids: &[[u8; 32]]) -> String {
    let ids: Vec<String> = ids.iter().map(|id| hex::encode(id)).collect();
    json!(["REQ", subscription, { "ids": ids }]).to_string()
}

/// NIP-45, COUNT.
pub(super) fn count(subscription: &str, filter: &PeerFilter) -> String {
    json!(["COUNT", subscription, filter.json()]).to_string()
}

/// NIP-01, CLOSE.
pub(super) fn close(subscription: &str) -> String {
    json!(["CLOSE", subscription]).to_string()
}

/// NIP-01, EVENT, around JSON as it is stored.
pub(super) fn event(json: &str) -> String {
    format!(r#"["EVENT",{json}]"#)
}

/// NIP-42, AUTH.
pub(super) fn auth(json: &str) -> String {
    format!(r#"["AUTH",{json}]"#)
}

/// NIP-77, Initial message.
pub(super) fn neg_open(id: &str, filter: &PeerFilter, payload: &[u8]) -> String {
    json!(["NEG-OPEN", id, filter.json(), hex::encode(payload)]).to_string()
}

/// NIP-77, Subsequent messages.
pub(super) fn neg_msg(id: &str, payload: &[u8]) -> String {
    json!(["NEG-MSG", id, hex::encode(payload)]).to_string()
}

/// NIP-77, Close message.
pub(super) fn neg_close(id: &str) -> String {
    json!(["NEG-CLOSE", id]).to_string()
}

/// The id of an OK; `None` inside if it is empty.
fn named(text: &str) -> Option<Option<[u8; 32]>> {
    if text.is_empty() { Some(None) } else { hex::decode_array(text).map(Some) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_by_size_carries_the_cap() {
        let text = r#"["NEG-ERR","n1","blocked: too many query results",500000]"#;
        let PeerMessage::NegErr { id, text, cap } = parse(text) else { panic!("not a NEG-ERR") };
        assert_eq!((id.as_str(), cap), ("n1", Some(500_000)));
        assert!(text.starts_with("blocked: "));
    }

    #[test]
    fn a_peers_words_are_one_short_line() {
        let words = format!("a\u{1b}[2J\n{}", "x".repeat(100_000));
        let notice = json!(["NOTICE", words]).to_string();
        let PeerMessage::Notice(text) = parse(&notice) else { panic!("not a NOTICE") };
        assert!(text.starts_with("a [2J xxx") && text.chars().count() == WORDS_CHARS, "{text}");
        let closed = json!(["CLOSED", "s", words]).to_string();
        assert!(matches!(parse(&closed), PeerMessage::Closed { text: cut, .. } if cut == text));
    }

    #[test]
    fn a_refusal_is_understood_in_other_spellings() {
        for (text, expected) in [
            ("rate-limited: slow", Some(Prefix::RateLimited)),
            ("Rate limited", Some(Prefix::RateLimited)),
            ("RATE_LIMITED: x", Some(Prefix::RateLimited)),
            ("AUTH-REQUIRED", Some(Prefix::AuthRequired)),
            ("Blocked: not you", Some(Prefix::Blocked)),
            ("blocked by the operator", None),
            ("not today", None),
            ("", None),
        ] {
            assert_eq!(prefix(text), expected, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_unknown() {
        for text in ["", "{}", "[]", "[1]", r#"["OK","ab",true]"#, r#"["EVENT"]"#, r#"["X",1]"#] {
            assert!(matches!(parse(text), PeerMessage::Unknown), "{text}");
        }
    }
}
