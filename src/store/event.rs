//! An event as the store and the relay handle it: parsed once, with the JSON
//! that will be sent and the facts that rules and indexes ask for.

use super::signature;
use super::tag_key::TagKey;
use crate::item::Item;
use nostr::JsonUtil;
use serde_json::Value;

/// A well-formed event whose id and signature nobody has checked yet.
#[derive(Debug)]
pub struct Event {
    parsed: nostr::Event,
    json: String,
    tag_keys: Vec<TagKey>,
    expires_at: Option<u64>,
}

/// An event whose id and signature are right (or were checked before): the only kind that
/// the store takes.
#[derive(Debug)]
pub struct VerifiedEvent(Event);

/// Why an event is not one. The text names the field and ends up behind `invalid: `.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct EventError {
    /// The id that the event claims, in lower-case hex, when one could be read.
    pub id: Option<String>,
    /// The field and what is wrong with it.
    pub reason: String,
}

/// How long an event lives, by its kind (NIP-01, Kinds).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifetime {
    /// Kept as it is.
    Regular,
    /// Only the newest of an author and kind is kept.
    Replaceable,
    /// Only the newest of an author, kind and `d` tag is kept.
    Addressable,
    /// Passed on, never stored.
    Ephemeral,
}

impl Lifetime {
    /// The lifetime of a kind.
    pub fn of(kind: u16) -> Self {
        match kind {
            0 | 3 | 10_000..20_000 => Self::Replaceable,
            20_000..30_000 => Self::Ephemeral,
            30_000..40_000 => Self::Addressable,
            _ => Self::Regular,
        }
    }
}

impl Event {
    /// Reads an event from its JSON object, without checking id or signature.
    ///
    /// # Errors
    /// Names the field that is missing or malformed.
    pub fn parse(json: &str) -> Result<Self, EventError> {
        let parsed = nostr::Event::from_json(json).map_err(|error| explain(json, &error))?;
        // SQLite's integers are signed.
        if i64::try_from(parsed.created_at.as_secs()).is_err() {
            return Err(EventError {
                id: Some(parsed.id.to_hex()),
                reason: "created_at: too large for a time".into(),
            });
        }
        Ok(Self::from_parsed(parsed))
    }

    fn from_parsed(parsed: nostr::Event) -> Self {
        let mut tag_keys: Vec<TagKey> = parsed
            .tags
            .iter()
            .filter_map(|tag| match tag.as_slice() {
                [name, value, ..] => TagKey::of_tag(name, value),
                _ => None,
            })
            .collect();
        tag_keys.sort_unstable();
        tag_keys.dedup();
        // NIP-40: the tag holds seconds since the epoch; what is no number expires nothing.
        let expires_at = first_tag_value(&parsed, "expiration").and_then(|text| text.parse().ok());
        Self { json: parsed.as_json(), parsed, tag_keys, expires_at }
    }

    /// Checks the id against the content and the signature against the author.
    ///
    /// # Errors
    /// Says which of the two is wrong.
    pub fn verify(self) -> Result<VerifiedEvent, EventError> {
        let wrong = |event: &Self, reason: &str| EventError {
            id: Some(event.parsed.id.to_hex()),
            reason: reason.into(),
        };
        if !self.parsed.verify_id() {
            return Err(wrong(&self, "id: is not the hash of the event"));
        }
        if !signature::is_valid(&self.parsed) {
            return Err(wrong(&self, "sig: does not match the event and its pubkey"));
        }
        Ok(VerifiedEvent(self))
    }

    /// Takes the event as verified because its source already did so (`import --no-verify`).
    pub fn trust(self) -> VerifiedEvent {
        VerifiedEvent(self)
    }

    /// When the event was made and its id.
    pub fn item(&self) -> Item {
        Item::new(self.parsed.created_at.as_secs(), self.parsed.id.to_bytes())
    }

    /// The id in lower-case hex.
    pub fn id_hex(&self) -> String {
        self.parsed.id.to_hex()
    }

    /// The author's public key.
    pub fn pubkey(&self) -> &[u8; 32] {
        self.parsed.pubkey.as_bytes()
    }

    /// The kind.
    pub fn kind(&self) -> u16 {
        self.parsed.kind.as_u16()
    }

    /// The event as it is stored and sent: one JSON object, no white space between its parts.
    pub fn json(&self) -> &str {
        &self.json
    }

    /// The keys of all single-letter tags, sorted, each once.
    pub fn tag_keys(&self) -> &[TagKey] {
        &self.tag_keys
    }

    /// NIP-40: the second from which the event is gone.
    pub fn expires_at(&self) -> Option<u64> {
        self.expires_at
    }

    /// How long the event lives.
    pub fn lifetime(&self) -> Lifetime {
        Lifetime::of(self.kind())
    }

    /// What makes the event replace its predecessor beside author and kind: the `d` tag's value
    /// of an addressable event, nothing of a replaceable one; `None` for all others.
    pub fn address(&self) -> Option<&str> {
        match self.lifetime() {
            Lifetime::Addressable => Some(first_tag_value(&self.parsed, "d").unwrap_or("")),
            Lifetime::Replaceable => Some(""),
            Lifetime::Regular | Lifetime::Ephemeral => None,
        }
    }

    /// How many tags the event has.
    pub fn tag_count(&self) -> usize {
        self.parsed.tags.len()
    }

    /// NIP-09: the ids that the event's `e` tags ask to delete.
    pub fn deleted_ids(&self) -> impl Iterator<Item = [u8; 32]> {
        tag_values(&self.parsed, "e")
            .filter_map(|value| nostr::EventId::from_hex(value).ok())
            .map(|id| id.to_bytes())
    }

    /// NIP-09: the kinds and `d` values of the author's own addresses that the event's `a` tags
    /// ask to delete. Addresses of other authors are left out.
    pub fn deleted_addresses(&self) -> impl Iterator<Item = (u16, String)> {
        let own = self.parsed.pubkey.to_hex();
        tag_values(&self.parsed, "a").filter_map(move |value| {
            let mut parts = value.splitn(3, ':');
            let kind = parts.next()?.parse().ok()?;
            let is_own = parts.next()? == own;
            is_own.then(|| (kind, parts.next().unwrap_or("").to_owned()))
        })
    }
}

impl VerifiedEvent {
    /// The event itself.
    pub fn into_inner(self) -> Event {
        self.0
    }
}

impl std::ops::Deref for VerifiedEvent {
    type Target = Event;

    fn deref(&self) -> &Event {
        &self.0
    }
}

fn tag_values<'event>(
    event: &'event nostr::Event,
    name: &'static str,
) -> impl Iterator<Item = &'event str> {
    event.tags.iter().filter_map(move |tag| match tag.as_slice() {
        [tag_name, value, ..] if tag_name == name => Some(value.as_str()),
        _ => None,
    })
}

fn first_tag_value<'event>(event: &'event nostr::Event, name: &'static str) -> Option<&'event str> {
    tag_values(event, name).next()
}

/// Finds the field that kept `json` from being an event. Only malformed input pays for it.
fn explain(json: &str, error: &dyn std::fmt::Display) -> EventError {
    let object = match serde_json::from_str::<Value>(json) {
        Ok(Value::Object(object)) => object,
        Ok(_) => return EventError { id: None, reason: "event: must be a JSON object".into() },
        Err(error) => {
            return EventError { id: None, reason: format!("event: not JSON: {error}") };
        }
    };
    let hex = |field: &str, digits: usize| match object.get(field) {
        None => Some(format!("{field}: missing")),
        Some(Value::String(text))
            if text.len() == digits && text.bytes().all(|c| c.is_ascii_hexdigit()) =>
        {
            None
        }
        Some(_) => Some(format!("{field}: must be {digits} hex digits")),
    };
    let number = |field: &str, most: u64| match object.get(field) {
        None => Some(format!("{field}: missing")),
        Some(value) if value.as_u64().is_some_and(|number| number <= most) => None,
        Some(_) => Some(format!("{field}: must be a whole number from 0 to {most}")),
    };
    let tags = || match object.get("tags") {
        None => Some("tags: missing".to_owned()),
        Some(Value::Array(tags)) if tags.iter().all(is_tag) => None,
        Some(_) => Some("tags: must be an array of non-empty arrays of strings".to_owned()),
    };
    let content = || match object.get("content") {
        None => Some("content: missing".to_owned()),
        Some(Value::String(_)) => None,
        Some(_) => Some("content: must be a string".to_owned()),
    };
    let reason = hex("id", 64)
        .or_else(|| hex("pubkey", 64))
        .or_else(|| number("created_at", i64::MAX as u64))
        .or_else(|| number("kind", u64::from(u16::MAX)))
        .or_else(tags)
        .or_else(content)
        .or_else(|| hex("sig", 128))
        .unwrap_or_else(|| format!("event: {error}"));
    let id = object
        .get("id")
        .and_then(Value::as_str)
        .filter(|text| text.len() == 64 && text.bytes().all(|c| c.is_ascii_hexdigit()))
        .map(str::to_ascii_lowercase);
    EventError { id, reason }
}

fn is_tag(value: &Value) -> bool {
    value.as_array().is_some_and(|tag| !tag.is_empty() && tag.iter().all(Value::is_string))
}
