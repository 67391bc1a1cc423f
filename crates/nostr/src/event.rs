//! An event as the store and the relay handle it: read once from its JSON into the facts that
//! rules and indexes ask for, and the JSON that is stored and sent.

use crate::hex;
use crate::kinds::{DELETION, GIFT_WRAP, Lifetime, REPOSTS, VANISH};
use crate::signature;
use crate::tag_key::TagKey;
use negsync_reconcile::Item;
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::fmt::Write;
use std::ops::Range;

/// A well-formed event whose id and signature nobody has checked yet.
#[derive(Debug)]
pub struct Event {
    item: Item,
    pubkey: [u8; 32],
    kind: u16,
    signature: [u8; 64],
    json: String,
    // Where in `json` the tags and the content stand.
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

/// NIP-09: what a deletion request names.
#[derive(Debug, Default)]
struct Deletes {
    ids: Vec<[u8; 32]>,
    addresses: Vec<(u16, String)>,
}

/// An event whose id and signature are right (or were checked before): the only kind that
/// the store takes.
#[derive(Debug)]
pub struct VerifiedEvent(Event);

/// Why an event is not one. The text names the field and ends up behind `invalid: `.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
#[non_exhaustive]
pub struct EventError {
    /// The id that the event claims, in lower-case hex, when one could be read.
    pub id: Option<String>,
    /// The field and what is wrong with it.
    pub reason: String,
}

/// An event without tags is a row of the table and of five indexes.
const EVENT_ROWS: usize = 6;
/// So many bytes of JSON take as long to write as a row of an index.
const BYTES_OF_A_ROW: usize = 1_024;

/// The seven fields (NIP-01, Events and signatures), as far as they can be borrowed.
#[derive(Deserialize)]
struct EventFields<'json> {
    #[serde(borrow)]
    id: Cow<'json, str>,
    #[serde(borrow)]
    pubkey: Cow<'json, str>,
    created_at: u64,
    kind: u16,
    #[serde(borrow)]
    tags: Vec<Vec<TagText<'json>>>,
    #[serde(borrow)]
    content: Cow<'json, str>,
    #[serde(borrow)]
    sig: Cow<'json, str>,
}

/// A string inside a list, which serde borrows only under a name of its own.
#[derive(Deserialize, serde::Serialize)]
#[serde(transparent)]
struct TagText<'json>(#[serde(borrow)] Cow<'json, str>);

/// The tags alone; the other fields are passed over.
#[derive(Deserialize)]
struct TagsOnly<'json> {
    #[serde(borrow)]
    tags: Vec<Vec<TagText<'json>>>,
}

/// Whether an event, given as JSON, has one of the keys of each list. Lists that were found are taken
/// out. Each list is sorted and of one letter.
pub fn has_tags(json: &str, lists: &mut Vec<&[TagKey]>) -> bool {
    let Ok(TagsOnly { tags }) = serde_json::from_str(json) else { return false };
    for tag in &tags {
        let [name, value, ..] = tag.as_slice() else { continue };
        // Only a key that is looked for is made: a long value is hashed for it.
        let is_wanted =
            |list: &&[TagKey]| list.first().is_some_and(|key| name.0.as_bytes() == [key.letter()]);
        if lists.iter().any(is_wanted)
            && let Some(key) = TagKey::of_tag(&name.0, &value.0)
        {
            lists.retain(|list| list.binary_search(&key).is_err());
        }
        if lists.is_empty() {
            break;
        }
    }
    lists.is_empty()
}

impl EventFields<'_> {
    fn tag_values<'event>(&'event self, name: &'static str) -> impl Iterator<Item = &'event str> {
        self.tags.iter().filter_map(move |tag| match tag.as_slice() {
            [tag_name, value, ..] if tag_name.0 == name => Some(value.0.as_ref()),
            _ => None,
        })
    }

    fn tag_keys(&self) -> Vec<TagKey> {
        let keys = self.tags.iter().filter_map(|tag| match tag.as_slice() {
            [name, value, ..] => TagKey::of_tag(&name.0, &value.0),
            _ => None,
        });
        let mut keys: Vec<TagKey> = keys.collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }

    fn address(&self) -> Option<String> {
        match Lifetime::of(self.kind) {
            Lifetime::Addressable => Some(self.tag_values("d").next().unwrap_or("").to_owned()),
            Lifetime::Replaceable => Some(String::new()),
            Lifetime::Regular | Lifetime::Ephemeral => None,
        }
    }

    /// Addresses of other authors are left out, and kinds that have none.
    fn deletes(&self) -> Deletes {
        let addresses = self.tag_values("a").filter_map(|value| {
            let mut parts = value.splitn(3, ':');
            let kind = parts.next()?.parse().ok()?;
            let is_own = parts.next()?.eq_ignore_ascii_case(&self.pubkey);
            let has_address =
                matches!(Lifetime::of(kind), Lifetime::Replaceable | Lifetime::Addressable);
            (is_own && has_address).then(|| (kind, parts.next().unwrap_or("").to_owned()))
        });
        Deletes {
            ids: self.tag_values("e").filter_map(hex::decode_array).collect(),
            addresses: addresses.collect(),
        }
    }

    /// Checks the fields and derives what is asked of an event later. `None` when a field has the
    /// wrong form.
    fn into_event(self) -> Option<Event> {
        let id = hex::decode_array(&self.id)?;
        let pubkey = hex::decode_array(&self.pubkey)?;
        let signature = hex::decode_array(&self.sig)?;
        // SQLite's integers are signed. A tag without a name is none.
        if i64::try_from(self.created_at).is_err() || self.tags.iter().any(Vec::is_empty) {
            return None;
        }
        let (json, tags_at, content_at) = self.to_json(&id, &pubkey, &signature)?;
        // NIP-40: the tag holds seconds since the epoch; what is no number expires nothing. A
        // request to vanish has to hold for good (NIP-62).
        let expires_at = match self.kind {
            VANISH => None,
            _ => self.tag_values("expiration").next().and_then(|text| text.parse().ok()),
        };
        Some(Event {
            item: Item::new(self.created_at, id),
            pubkey,
            kind: self.kind,
            signature,
            json,
            tags_at,
            content_at,
            tag_count: self.tags.len(),
            content_chars: self.content.chars().count(),
            tag_keys: self.tag_keys(),
            expires_at,
            address: self.address(),
            deletes: (self.kind == DELETION).then(|| Box::new(self.deletes())),
            is_protected: self.tags.iter().any(|tag| tag.first().is_some_and(|t| t.0 == "-")),
        })
    }

    /// The event in its stored form, the fields in NIP-01's order and no white space between
    /// them, and where in it the tags and the content stand.
    fn to_json(
        &self,
        id: &[u8; 32],
        pubkey: &[u8; 32],
        signature: &[u8; 64],
    ) -> Option<(String, Range<usize>, Range<usize>)> {
        let mut json = String::with_capacity(400 + self.content.len() + 90 * self.tags.len());
        json.push_str(r#"{"id":""#);
        hex::append(id, &mut json);
        json.push_str(r#"","pubkey":""#);
        hex::append(pubkey, &mut json);
        write!(json, r#"","created_at":{},"kind":{},"tags":"#, self.created_at, self.kind).ok()?;
        let mut json = json.into_bytes();
        let tags_start = json.len();
        serde_json::to_writer(&mut json, &self.tags).ok()?;
        let tags_at = tags_start..json.len();
        json.extend_from_slice(br#","content":"#);
        let content_start = json.len();
        serde_json::to_writer(&mut json, &self.content).ok()?;
        let content_at = content_start..json.len();
        let mut json = String::from_utf8(json).ok()?;
        json.push_str(r#","sig":""#);
        hex::append(signature, &mut json);
        json.push_str(r#""}"#);
        Some((json, tags_at, content_at))
    }
}

impl Event {
    /// Reads an event from its JSON object, without checking id or signature.
    ///
    /// # Errors
    /// Names the field that is missing or malformed.
    pub fn parse(json: &str) -> Result<Self, EventError> {
        // An array of the fields' values in order would do for serde.
        if !json.trim_start().starts_with('{') {
            return Err(explain(json, None));
        }
        serde_json::from_str::<EventFields<'_>>(json)
            .map_err(|error| Some(error.to_string()))
            .and_then(|fields| fields.into_event().ok_or(None))
            .map_err(|error| explain(json, error))
    }

    /// As [`Event::parse`], of an event that another relay has stored: some take tags without a name, which
    /// mean nothing.
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

    /// The id that JSON claims to be an event's, in lower-case hex, without a look at the rest.
    #[must_use]
    pub fn claimed_id(json: &str) -> Option<String> {
        let Id { id } = serde_json::from_str(json).ok()?;
        hex::decode_array(&id).map(|id: [u8; 32]| hex::encode(&id))
    }

    /// Checks the id against the content and the signature against the author.
    ///
    /// # Errors
    /// Says which of the two is wrong.
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

    /// NIP-01: the id is the SHA-256 of the other fields, written in one canonical way. Tags and
    /// content already stand in the event's JSON that way.
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

    /// Whether the id is the hash of the rest (NIP-01), without a look at the signature.
    #[must_use]
    pub fn id_is_hash(&self) -> bool {
        self.hash() == self.item.id
    }

    /// Takes the event as verified because its source already did so (`import --no-verify`).
    #[must_use]
    pub fn trust(self) -> VerifiedEvent {
        VerifiedEvent(self)
    }

    /// When the event was made and its id.
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

    /// The event as it is stored and sent: one JSON object, no white space between its parts.
    #[must_use]
    pub fn json(&self) -> &str {
        &self.json
    }

    /// The keys of all single-letter tags, sorted, each once.
    #[must_use]
    pub fn tag_keys(&self) -> &[TagKey] {
        &self.tag_keys
    }

    /// What it takes to write the event or to remove it, in rows of tables and indexes, about.
    #[must_use]
    pub fn weight(&self) -> usize {
        let deletes = self.deletes.as_ref().map_or(0, |it| it.ids.len() + it.addresses.len());
        EVENT_ROWS + self.tag_keys.len() + deletes + self.json.len() / BYTES_OF_A_ROW
    }

    /// The memory that the event takes, in bytes, about.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let ids = self.deletes.as_ref().map_or(0, |it| size_of_val(it.ids.as_slice()));
        size_of::<Self>() + self.json.capacity() + size_of_val(self.tag_keys.as_slice()) + ids
    }

    /// NIP-40: the second from which the event is gone.
    #[must_use]
    pub fn expires_at(&self) -> Option<u64> {
        self.expires_at
    }

    /// NIP-59: the recipients of a gift wrap, by their public keys; none of any other event.
    pub fn recipients(&self) -> impl Iterator<Item = [u8; 32]> {
        let keys = if self.kind == GIFT_WRAP { self.tag_keys.as_slice() } else { &[] };
        keys.iter().filter(|key| key.letter() == b'p').filter_map(TagKey::raw_hex)
    }

    /// How long the event lives.
    #[must_use]
    pub fn lifetime(&self) -> Lifetime {
        Lifetime::of(self.kind)
    }

    /// What makes the event replace its predecessor beside author and kind: the `d` tag's value
    /// of an addressable event, nothing of a replaceable one; `None` for all others.
    #[must_use]
    pub fn address(&self) -> Option<&str> {
        self.address.as_deref()
    }

    /// How many tags the event has.
    #[must_use]
    pub fn tag_count(&self) -> usize {
        self.tag_count
    }

    /// The second elements of the tags of a name. Reads the tags anew: for names that are seldom
    /// asked for.
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

    /// NIP-70: whether only its author may publish the event.
    #[must_use]
    pub fn is_protected(&self) -> bool {
        self.is_protected
    }

    /// NIP-70: whether the event reposts (NIP-18) a protected one and holds it, which it must not.
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

    /// The content. Reads it anew: for those who seldom ask.
    #[must_use]
    pub fn content(&self) -> String {
        let content = self.json.get(self.content_at.clone()).unwrap_or_default();
        serde_json::from_str(content).unwrap_or_default()
    }

    /// How many characters the content has, as NIP-11 counts them.
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
    /// The event itself.
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

/// The one field that is looked for in JSON that cannot be read as a whole: with a character or a
/// number that does not exist, or nested too deeply.
#[derive(Deserialize)]
struct Id<'json> {
    #[serde(borrow)]
    id: Cow<'json, str>,
}

/// Finds the field that kept `json` from being an event. Only malformed input pays for it.
fn explain(json: &str, error: Option<String>) -> EventError {
    let object = match serde_json::from_str::<Value>(json) {
        Ok(Value::Object(object)) => object,
        Ok(_) => return EventError { id: None, reason: "event: must be a JSON object".into() },
        Err(error) => {
            let error = error.to_string();
            // An event is one line, which has a number of its own where that matters.
            let error = error.replace(" at line 1 column ", " at byte ");
            let reason = format!("event: not JSON: {error}");
            return EventError { id: Event::claimed_id(json), reason };
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
