//! Reading an event from its JSON, and writing it in its stored form.

use super::{Deletes, Event};
use crate::hex;
use crate::kinds::{DELETION, Lifetime, VANISH};
use crate::tag_key::TagKey;
use negsync_reconcile::Item;
use serde::Deserialize;
use std::borrow::Cow;
use std::fmt::Write;
use std::ops::Range;

/// The seven fields (NIP-01, Events and signatures), as far as they can be borrowed.
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

/// A string inside a list, which serde borrows only under a name of its own.
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
    pub(super) fn into_event(self) -> Option<Event> {
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
