//! An event as the store and the relay handle it. Its JSON is parsed once into the facts that rules
//! and indexes need; the JSON itself is stored and sent.

mod error;
mod fields;

pub use error::EventError;
pub use fields::has_tags;

use crate::hex;
use crate::kinds::{GIFT_WRAP, Lifetime, REPOSTS};
use crate::signature;
use crate::tag_key::TagKey;
use fields::{EventFields, TagText};
use negsync_reconcile::Item;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::ops::Range;

/// A well-formed event with an unchecked id and signature.
#[derive(Debug)]
pub struct Event {
    item: Item,
    pubkey: [u8; 32],
    kind: u16,
    signature: [u8; 64],
    json: String,
    // Positions of the tags and the content in `json`.
    tags_at: Range<usize>,
    content_at: Range<usize>,
    tag_count: usize,
    content_chars: usize,
    tag_keys: Vec<TagKey>,
    expires_at: Option<u64>,
    address: Option<String>,
    deletes: Option<Box<Deletes>>,
    is_protected: bool,
}

/// NIP-09: the targets of a deletion request.
#[derive(Debug, Default)]
struct Deletes {
    ids: Vec<[u8; 32]>,
    addresses: Vec<(u16, String)>,
}

/// An event with a valid id and signature, or one from a trusted source. The store takes no other.
#[derive(Debug)]
pub struct VerifiedEvent(Event);

/// Rows that an event without tags writes: one in the table and one in each of five indexes.
const EVENT_ROWS: usize = 6;
/// Bytes of JSON that take as long to write as one index row.
const BYTES_OF_A_ROW: usize = 1_024;

impl Event {
    /// Parses an event from its JSON object, without checking id or signature.
    ///
    /// # Errors
    /// [`EventError`] names the field that is missing or malformed.
    pub fn parse(json: &str) -> Result<Self, EventError> {
        // serde would also accept an array of the field values.
        if !json.trim_start().starts_with('{') {
            return Err(error::explain(json, None));
        }
        serde_json::from_str::<EventFields<'_>>(json)
            .map_err(|error| Some(error.to_string()))
            .and_then(|fields| fields.into_event().ok_or(None))
            .map_err(|error| error::explain(json, error))
    }

    /// Like [`Event::parse`], for an event that another relay has stored. Some relays accept tags
    /// without a name; these have no meaning and are dropped.
    #[must_use]
    pub fn parse_stored(json: &str) -> Option<Self> {
        if let Ok(event) = Self::parse(json) {
            return Some(event);
        }
        let mut value: serde_json::Value = serde_json::from_str(json).ok()?;
        let tags = value.get_mut("tags")?.as_array_mut()?;
        tags.retain(|tag| tag.as_array().is_none_or(|tag| !tag.is_empty()));
        Self::parse(&value.to_string()).ok()
    }

    /// The claimed id of an event given as JSON, in lower-case hex. The rest is not validated.
    #[must_use]
    pub fn claimed_id(json: &str) -> Option<String> {
        error::claimed_id(json)
    }

    /// Checks the id against the content and the signature against the author.
    ///
    /// # Errors
    /// [`EventError`] says which of the two is wrong.
    pub fn verify(self) -> Result<VerifiedEvent, EventError> {
        let reason = if !self.id_is_hash() {
            "id: is not the hash of the event"
        } else if !signature::is_valid(&self.signature, &self.item.id, &self.pubkey) {
            "sig: does not match the event and its pubkey"
        } else {
            return Ok(VerifiedEvent(self));
        };
        Err(EventError { id: Some(self.id_hex()), reason: reason.into() })
    }

    /// NIP-01: the id is the SHA-256 of the other fields in a canonical form. The stored JSON has
    /// tags and content in that form already.
    fn hash(&self) -> [u8; 32] {
        let json = |range: &Range<usize>| self.json.get(range.clone()).unwrap_or_default();
        let mut hash = Sha256::new();
        hash.update(br#"[0,""#);
        hash.update(hex::encode(&self.pubkey));
        hash.update(format!(r#"",{},{},"#, self.item.created_at, self.kind));
        for part in [json(&self.tags_at), ",", json(&self.content_at), "]"] {
            hash.update(part);
        }
        hash.finalize().into()
    }

    /// Whether the id is the hash of the other fields (NIP-01). The signature is not checked.
    #[must_use]
    pub fn id_is_hash(&self) -> bool {
        self.hash() == self.item.id
    }

    /// Marks the event as verified because its source has verified it (`import --no-verify`).
    #[must_use]
    pub fn trust(self) -> VerifiedEvent {
        VerifiedEvent(self)
    }

    /// The creation time and the id.
    #[must_use]
    pub fn item(&self) -> Item {
        self.item
    }

    /// The id in lower-case hex.
    #[must_use]
    pub fn id_hex(&self) -> String {
        hex::encode(&self.item.id)
    }

    /// The author's public key.
    #[must_use]
    pub fn pubkey(&self) -> &[u8; 32] {
        &self.pubkey
    }

    /// The kind.
    #[must_use]
    pub fn kind(&self) -> u16 {
        self.kind
    }

    /// The event as it is stored and sent: one JSON object without white space between its parts.
    #[must_use]
    pub fn json(&self) -> &str {
        &self.json
    }

    /// The keys of all single-letter tags, sorted, each once.
    #[must_use]
    pub fn tag_keys(&self) -> &[TagKey] {
        &self.tag_keys
    }

    /// Estimated cost of writing or removing the event, in rows of tables and indexes.
    #[must_use]
    pub fn weight(&self) -> usize {
        let deletes = self.deletes.as_ref().map_or(0, |it| it.ids.len() + it.addresses.len());
        EVENT_ROWS + self.tag_keys.len() + deletes + self.json.len() / BYTES_OF_A_ROW
    }

    /// Estimated memory of the event, in bytes.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let ids = self.deletes.as_ref().map_or(0, |it| size_of_val(it.ids.as_slice()));
        size_of::<Self>() + self.json.capacity() + size_of_val(self.tag_keys.as_slice()) + ids
    }

    /// NIP-40: the second at which the event expires.
    #[must_use]
    pub fn expires_at(&self) -> Option<u64> {
        self.expires_at
    }

    /// NIP-59: the public keys of a gift wrap's recipients; empty for any other event.
    pub fn recipients(&self) -> impl Iterator<Item = [u8; 32]> {
        let keys = if self.kind == GIFT_WRAP { self.tag_keys.as_slice() } else { &[] };
        keys.iter().filter(|key| key.letter() == b'p').filter_map(TagKey::raw_hex)
    }

    /// The lifetime of the event's kind.
    #[must_use]
    pub fn lifetime(&self) -> Lifetime {
        Lifetime::of(self.kind)
    }

    /// The part of the address beside author and kind: the `d` tag's value of an addressable event,
    /// empty for a replaceable one, `None` for all others.
    #[must_use]
    pub fn address(&self) -> Option<&str> {
        self.address.as_deref()
    }

    /// The number of tags.
    #[must_use]
    pub fn tag_count(&self) -> usize {
        self.tag_count
    }

    /// The second elements of all tags named `name`. Parses the tags on each call; for names that
    /// are rarely read.
    #[must_use]
    pub fn tag_values(&self, name: &str) -> Vec<String> {
        let tags = self.json.get(self.tags_at.clone()).unwrap_or_default();
        let tags: Vec<Vec<TagText<'_>>> = serde_json::from_str(tags).unwrap_or_default();
        let value = |tag: &Vec<TagText<'_>>| match tag.as_slice() {
            [tag_name, value, ..] if tag_name.0 == name => Some(value.0.clone().into_owned()),
            _ => None,
        };
        tags.iter().filter_map(value).collect()
    }

    /// NIP-70: whether only the author may publish the event.
    #[must_use]
    pub fn is_protected(&self) -> bool {
        self.is_protected
    }

    /// NIP-70: whether the event is a repost (NIP-18) that embeds a protected event, which is not
    /// allowed.
    pub fn holds_protected(&self) -> bool {
        if !REPOSTS.contains(&self.kind) {
            return false;
        }
        let content = self.json.get(self.content_at.clone()).unwrap_or_default();
        let Ok(content) = serde_json::from_str::<TagText<'_>>(content) else { return false };
        let Ok(Value::Object(reposted)) = serde_json::from_str(&content.0) else { return false };
        let tags = reposted.get("tags").and_then(Value::as_array);
        tags.is_some_and(|tags| tags.iter().any(|tag| tag.get(0).is_some_and(|name| name == "-")))
    }

    /// The content. Parses it on each call; for rare use.
    #[must_use]
    pub fn content(&self) -> String {
        let content = self.json.get(self.content_at.clone()).unwrap_or_default();
        serde_json::from_str(content).unwrap_or_default()
    }

    /// The length of the content in characters, as NIP-11 counts them.
    #[must_use]
    pub fn content_chars(&self) -> usize {
        self.content_chars
    }

    /// NIP-09: the ids that a deletion request names.
    #[must_use]
    pub fn deleted_ids(&self) -> &[[u8; 32]] {
        self.deletes.as_ref().map_or(&[], |deletes| &deletes.ids)
    }

    /// NIP-09: the kinds and `d` values of the author's own addresses that a deletion request
    /// names.
    #[must_use]
    pub fn deleted_addresses(&self) -> &[(u16, String)] {
        self.deletes.as_ref().map_or(&[], |deletes| &deletes.addresses)
    }
}

impl VerifiedEvent {
    /// The event without the mark that it is verified.
    #[must_use]
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
