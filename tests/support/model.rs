//! The expected contents and answers of a relay, computed directly from the JSON.

use super::events::id_of;
use serde_json::Value;
use std::cmp::Reverse;
use std::collections::BTreeSet;

/// The events of `events` that remain, in any order of arrival (NIP-01, NIP-09, NIP-40, NIP-62), if
/// no version is deleted by its id that may have replaced another one: for those see
/// [`super::naive`].
pub fn kept(events: &[Value], now: u64) -> Vec<Value> {
    kept_by(events, now, "ws://127.0.0.1")
}

/// Like [`kept`], for a relay with this URL (NIP-62).
pub fn kept_by(events: &[Value], now: u64, us: &str) -> Vec<Value> {
    let us = negsync::relay_url::RelayUrl::parse(us).unwrap().name();
    let names_us = |url: &Value| url == "ALL_RELAYS" || us.is(url.as_str().unwrap());
    let requests: Vec<&Value> = events
        .iter()
        .filter(|event| kind(event) == 62 && tags(event, "relay").any(names_us))
        .collect();
    let living: Vec<&Value> = events
        .iter()
        .filter(|event| !requests.iter().any(|request| vanishes(request, event)))
        .filter(|event| !(20_000..30_000).contains(&kind(event)))
        .filter(|event| expires_at(event).is_none_or(|second| second > now))
        .collect();
    let deletions: Vec<&Value> = living.iter().filter(|e| kind(e) == 5).copied().collect();
    let undeleted: Vec<&Value> = living
        .iter()
        .copied()
        .filter(|event| !deletions.iter().any(|deletion| deletes(deletion, event)))
        .collect();
    let is_newest = |event: &Value| {
        address(event).is_none_or(|own| {
            let rivals = undeleted.iter().filter(|other| address(other).as_ref() == Some(&own));
            rivals.max_by_key(|other| (created_at(other), Reverse(id_of(other)))).map(|e| id_of(e))
                == Some(id_of(event))
        })
    };
    let mut kept: Vec<Value> =
        undeleted.iter().filter(|event| is_newest(event)).map(|event| (*event).clone()).collect();
    kept.sort_by_key(|event| id_of(event).to_owned());
    kept.dedup();
    kept
}

/// The events that answer the filters, each filter with its own limit: newest first; within a
/// second the lowest id first.
pub fn answer<'events>(filters: &[Value], events: &'events [Value]) -> Vec<&'events Value> {
    let mut union: Vec<&Value> = filters.iter().flat_map(|filter| select(filter, events)).collect();
    order(&mut union);
    union.dedup_by_key(|event| id_of(event));
    union
}

/// The events that a client authenticated with `keys` may see.
pub fn visible(events: &[Value], private_kinds: &[u16], keys: &[String]) -> Vec<Value> {
    let is_own = |value: &Value| keys.iter().any(|key| value == key.as_str());
    let sees = |event: &&Value| {
        !private_kinds.iter().any(|private| kind(event) == u64::from(*private))
            || is_own(&event["pubkey"])
            || tags(event, "p").any(is_own)
    };
    events.iter().filter(sees).cloned().collect()
}

/// The public events of a relay with the default configuration.
pub fn public(events: &[Value]) -> Vec<Value> {
    visible(events, &negsync::config::AuthConfig::default().private_kinds, &[])
}

/// The ids of events.
pub fn ids<'events>(events: impl IntoIterator<Item = &'events Value>) -> BTreeSet<String> {
    events.into_iter().map(|event| id_of(event).to_owned()).collect()
}

/// NIP-01; ignores `limit`.
pub fn matches(filter: &Value, event: &Value) -> bool {
    filter.as_object().unwrap().iter().all(|(key, wanted)| match key.as_str() {
        "ids" => lists(wanted, &event["id"]),
        "authors" => lists(wanted, &event["pubkey"]),
        "kinds" => lists(wanted, &event["kind"]),
        "since" => created_at(event) >= wanted.as_u64().unwrap(),
        "until" => created_at(event) <= wanted.as_u64().unwrap(),
        "limit" => true,
        tag => tags(event, &tag[1..]).any(|value| lists(wanted, value)),
    })
}

fn select<'events>(filter: &Value, events: &'events [Value]) -> Vec<&'events Value> {
    let mut found: Vec<&Value> = events.iter().filter(|event| matches(filter, event)).collect();
    order(&mut found);
    let limit = filter.get("limit").map_or(usize::MAX, |limit| limit.as_u64().unwrap() as usize);
    found.truncate(limit);
    found
}

fn order(events: &mut [&Value]) {
    events.sort_by_key(|event| (Reverse(created_at(event)), id_of(event).to_owned()));
}

fn lists(list: &Value, value: &Value) -> bool {
    list.as_array().unwrap().contains(value)
}

pub fn kind(event: &Value) -> u64 {
    event["kind"].as_u64().unwrap()
}

pub fn created_at(event: &Value) -> u64 {
    event["created_at"].as_u64().unwrap()
}

/// The values of the tags of a name.
pub fn tags<'event>(
    event: &'event Value,
    name: &'event str,
) -> impl Iterator<Item = &'event Value> {
    let tags = event["tags"].as_array().unwrap().iter();
    tags.filter(move |tag| tag[0] == name && tag[1].is_string()).map(|tag| &tag[1])
}

pub fn expires_at(event: &Value) -> Option<u64> {
    // NIP-62: a request to vanish is permanent.
    if kind(event) == 62 {
        return None;
    }
    tags(event, "expiration").next().and_then(|value| value.as_str()?.parse().ok())
}

/// The address: the author, the kind and, for addressable events, `d`.
pub fn address(event: &Value) -> Option<String> {
    let d = match kind(event) {
        0 | 3 | 10_000..20_000 => "",
        30_000..40_000 => tags(event, "d").next().map_or("", |value| value.as_str().unwrap()),
        _ => return None,
    };
    Some(format!("{}:{}:{d}", kind(event), event["pubkey"].as_str().unwrap()))
}

/// Whether a request to vanish that names this relay keeps the event out: it is the author's event,
/// or a gift wrap to the author.
pub fn vanishes(request: &Value, event: &Value) -> bool {
    kind(event) != 62
        && created_at(event) <= created_at(request)
        && (event["pubkey"] == request["pubkey"] || is_wrap_to(&request["pubkey"], event))
}

/// Whether a deletion keeps the event out: by its id, or by its address.
pub fn deletes(deletion: &Value, event: &Value) -> bool {
    if [5, 62].contains(&kind(event)) {
        return false;
    }
    let is_own = deletion["pubkey"] == event["pubkey"];
    let by_id = tags(deletion, "e").any(|value| *value == event["id"]);
    let by_address = address(event).is_some_and(|address| {
        created_at(event) <= created_at(deletion)
            && tags(deletion, "a").any(|value| *value == address.as_str())
    });
    (by_id && (is_own || is_wrap_to(&deletion["pubkey"], event))) || (is_own && by_address)
}

/// NIP-59: a gift wrap belongs to the recipients in its `p` tags.
fn is_wrap_to(key: &Value, event: &Value) -> bool {
    kind(event) == 1_059 && tags(event, "p").any(|recipient| recipient == key)
}
