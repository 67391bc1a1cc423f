//! Reads an event from its JSON, and writes its stored form.

use super::{Deletes, Event};
use crate::hex;
use crate::kinds::{DELETION, Lifetime, VANISH};
use crate::tag_key::TagKey;
use negsync_reconcile::Item;
use serde::Deserialize;
use std::borrow::Cow;
use std::fmt::Write;
use std::ops::Range;

/// The seven fields (NIP-01, Events and signatures), borrowed from the JSON where possible.
#[derive(Deserialize)]
pub(super) struct EventFields<'json> {
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

/// A string inside a list: serde borrows it only inside a type of its own.
#[derive(Deserialize, serde::Serialize)]
#[serde(transparent)]
pub(super) struct TagText<'json>(#[serde(borrow)] pub(super) Cow<'json, str>);

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

    /// The targets of a deletion request. Addresses of other authors, and addresses of kinds that
    /// have none, are left out.
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

    /// Checks the fields and derives the facts that rules and indexes need. `None` when a field is
    /// malformed.
    pub(super) fn into_event(self) -> Option<Event> {
        let id = hex::decode_array(&self.id)?;
        let pubkey = hex::decode_array(&self.pubkey)?;
        let signature = hex::decode_array(&self.sig)?;
        // SQLite's integers are signed. A tag without a name is malformed.
        if i64::try_from(self.created_at).is_err() || self.tags.iter().any(Vec::is_empty) {
            return None;
        }
        let (json, tags_at, content_at) = self.to_json(&id, &pubkey, &signature)?;
        // NIP-40: the tag holds seconds since the epoch; any other value is ignored. A request to
        // vanish is permanent (NIP-62).
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

    /// The stored form of the event, and the positions of its tags and content. The fields are in
    /// NIP-01's order without white space between them.
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

/// Only the tags; the other fields are skipped.
#[derive(Deserialize)]
struct TagsOnly<'json> {
    #[serde(borrow)]
    tags: Vec<Vec<TagText<'json>>>,
}

/// Whether an event, given as JSON, has a key of each list. Removes the lists that were found. Each
/// list must be sorted and hold keys of one letter.
pub fn has_tags(json: &str, lists: &mut Vec<&[TagKey]>) -> bool {
    let Ok(TagsOnly { tags }) = serde_json::from_str(json) else { return false };
    for tag in &tags {
        let [name, value, ..] = tag.as_slice() else { continue };
        // Only keys of wanted letters are made, because a long value has to be hashed.
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
