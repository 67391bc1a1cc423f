//! The methods (NIP-86), which change or list the entries of the ban list.

use super::super::RelayState;
use super::authorization::Caller;
use crate::config::Network;
use crate::hex;
use crate::moderation::{ListEntry, Moderation};
use crate::store::{Selection, Undelete};
use nostr::{EventId, PublicKey};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::error::Error;

/// The supported methods.
const METHODS: [&str; 26] = [
    "banpubkey",
    "unbanpubkey",
    "listbannedpubkeys",
    "allowpubkey",
    "unallowpubkey",
    "listallowedpubkeys",
    "banevent",
    "unbanevent",
    "listbannedevents",
    "allowevent",
    "unallowevent",
    "listallowedevents",
    "changerelayname",
    "changerelaydescription",
    "changerelayicon",
    "allowkind",
    "disallowkind",
    "listallowedkinds",
    "listdisallowedkinds",
    "blockip",
    "unblockip",
    "listblockedips",
    "assignmethod",
    "unassignmethod",
    "listmethodassignees",
    "supportedmethods",
];

/// Maximum length of a text, in characters.
const MOST_CHARS: usize = 4_096;

/// Performs a method. Blocks.
///
/// # Errors
/// The fault of the parameters, or the reason for a failure.
pub(super) fn call(
    relay: &RelayState,
    caller: &Caller,
    method: &str,
    params: &[Value],
) -> Result<Value, String> {
    let list = relay.admission.moderation();
    let reason = || reason(params);
    match method {
        "supportedmethods" => {
            let others = METHODS.into_iter().filter(|name| *name != "supportedmethods");
            return Ok(others.filter(|name| caller.may_call(name)).collect());
        }
        "listbannedpubkeys" => return Ok(listed(list, banned_key)),
        "listallowedpubkeys" => return Ok(allowed_keys(relay)),
        "listbannedevents" => return Ok(listed(list, banned_event)),
        "listallowedevents" => return Ok(listed(list, allowed_event)),
        "listmethodassignees" => return Ok(assignees(list)),
        "assignmethod" | "unassignmethod" => return assign(list, method, params),
        "listblockedips" => return Ok(listed(list, blocked_ip)),
        "listallowedkinds" => return Ok(listed(list, allowed_kind)),
        "listdisallowedkinds" => return Ok(listed(list, refused_kind)),
        "banpubkey" => add(list, ListEntry::Key(key(params)?, reason()?))?,
        "unbanpubkey" => {
            let key = key(params)?;
            remove(list, |entry| matches!(entry, ListEntry::Key(it, _) if *it == key))?;
        }
        "allowpubkey" => add(list, ListEntry::AllowKey(key(params)?, reason()?))?,
        "unallowpubkey" => {
            let key = key(params)?;
            remove(list, |entry| matches!(entry, ListEntry::AllowKey(it, _) if *it == key))?;
        }
        "banevent" => ban_event(relay, event(params)?, reason()?)?,
        "unbanevent" => unban_event(relay, event(params)?)?,
        "allowevent" => allow_event(relay, event(params)?, reason()?)?,
        "unallowevent" => {
            let id = event(params)?;
            remove(list, |entry| matches!(entry, ListEntry::AllowEvent(it, _) if *it == id))?;
        }
        "changerelayname" => change(list, ListEntry::RelayName(text(params)?))?,
        "changerelaydescription" => change(list, ListEntry::RelayDescription(text(params)?))?,
        "changerelayicon" => change(list, ListEntry::RelayIcon(text(params)?))?,
        "allowkind" => allow_kind(list, kind(params)?)?,
        "disallowkind" => add(list, ListEntry::RefuseKind(kind(params)?))?,
        "blockip" => add(list, ListEntry::Ip(network(params)?, reason()?))?,
        "unblockip" => {
            let network = network(params)?;
            remove(list, |entry| matches!(entry, ListEntry::Ip(it, _) if *it == network))?;
        }
        _ => {
            return Err("the method is not supported; supportedmethods lists those that are".into());
        }
    }
    Ok(Value::Bool(true))
}

/// Bans the event, and removes it if it is stored.
fn ban_event(relay: &RelayState, id: [u8; 32], reason: String) -> Result<(), String> {
    add(relay.admission.moderation(), ListEntry::Event(id, reason))?;
    let selection = Selection { ids: vec![id], filter: None };
    relay.index.store().delete(&selection).map_err(failed)?;
    Ok(())
}

fn unban_event(relay: &RelayState, id: [u8; 32]) -> Result<(), String> {
    let list = relay.admission.moderation();
    remove(list, |entry| matches!(entry, ListEntry::Event(it, _) if *it == id))?;
    let_in(relay, id)
}

/// Accepts the event even if its author, kind or words are banned.
fn allow_event(relay: &RelayState, id: [u8; 32], reason: String) -> Result<(), String> {
    add(relay.admission.moderation(), ListEntry::AllowEvent(id, reason))?;
    let_in(relay, id)
}

/// Lifts the ban of a removed event.
fn let_in(relay: &RelayState, id: [u8; 32]) -> Result<(), String> {
    let undelete = Undelete::Selection(Selection { ids: vec![id], filter: None });
    relay.index.store().undelete(&undelete).map_err(failed)?;
    Ok(())
}

/// Assigns a method to a key, or takes it away. As the NIP requires, errors are in the result.
fn assign(list: &Moderation, verb: &str, params: &[Value]) -> Result<Value, String> {
    let key = key(params)?;
    let method = params.get(1).and_then(Value::as_str).unwrap_or_default();
    if !METHODS.contains(&method) {
        return Ok(json!([false, "the second parameter is no method that is supported"]));
    }
    let entry = ListEntry::AllowMethod(key, method.to_owned());
    if verb == "assignmethod" {
        add(list, entry)?;
        return Ok(json!([true, format!("the key may call {method}")]));
    }
    remove(list, |kept| *kept == entry)?;
    Ok(json!([true, format!("the key may no longer call {method}")]))
}

/// The keys with assigned methods, without the operators.
fn assignees(list: &Moderation) -> Value {
    let mut methods_of: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for entry in list.current().entries() {
        if let ListEntry::AllowMethod(key, method) = entry {
            methods_of.entry(hex::encode(key)).or_default().push(method.clone());
        }
    }
    let object = |(pubkey, methods)| json!({ "pubkey": pubkey, "methods": methods });
    methods_of.into_iter().map(object).collect()
}

/// Allows a kind: removes its refusal if there is one, otherwise adds it to the list of allowed
/// kinds.
fn allow_kind(list: &Moderation, kind: u16) -> Result<(), String> {
    let is_refused = list.current().entries().contains(&ListEntry::RefuseKind(kind));
    if is_refused {
        return remove(list, |entry| *entry == ListEntry::RefuseKind(kind));
    }
    add(list, ListEntry::AllowKind(kind))
}

fn add(list: &Moderation, entry: ListEntry) -> Result<(), String> {
    list.add(&[entry]).map_err(failed)
}

fn remove(list: &Moderation, is_meant: impl Fn(&ListEntry) -> bool) -> Result<(), String> {
    list.remove(is_meant).map(|_| ()).map_err(failed)
}

/// Changes the relay's own description; an empty text removes the change.
fn change(list: &Moderation, entry: ListEntry) -> Result<(), String> {
    match &entry {
        ListEntry::RelayName(text)
        | ListEntry::RelayDescription(text)
        | ListEntry::RelayIcon(text)
            if text.trim().is_empty() =>
        {
            remove(list, |kept| entry.replaces(kept))
        }
        _ => add(list, entry),
    }
}

fn failed(error: impl Error) -> String {
    tracing::error!(%error, "management request failed");
    error.to_string()
}

fn listed(list: &Moderation, object: fn(&ListEntry) -> Option<Value>) -> Value {
    list.current().entries().iter().filter_map(object).collect()
}

fn banned_key(entry: &ListEntry) -> Option<Value> {
    let ListEntry::Key(key, reason) = entry else { return None };
    Some(json!({ "pubkey": hex::encode(key), "reason": reason }))
}

/// The keys of the list, and those of the configuration.
fn allowed_keys(relay: &RelayState) -> Value {
    let of_entry = |entry: &ListEntry| match entry {
        ListEntry::AllowKey(key, reason) => {
            Some(json!({ "pubkey": hex::encode(key), "reason": reason }))
        }
        _ => None,
    };
    let configured: Vec<String> = relay.config().auth.publish_keys.clone().into();
    let configured =
        configured.into_iter().map(|key| json!({ "pubkey": key, "reason": "auth.publish_keys" }));
    let list = relay.admission.moderation().current();
    list.entries().iter().filter_map(of_entry).chain(configured).collect()
}

fn banned_event(entry: &ListEntry) -> Option<Value> {
    let ListEntry::Event(id, reason) = entry else { return None };
    Some(json!({ "id": hex::encode(id), "reason": reason }))
}

fn allowed_event(entry: &ListEntry) -> Option<Value> {
    let ListEntry::AllowEvent(id, reason) = entry else { return None };
    Some(json!({ "id": hex::encode(id), "reason": reason }))
}

fn blocked_ip(entry: &ListEntry) -> Option<Value> {
    let ListEntry::Ip(network, reason) = entry else { return None };
    Some(json!({ "ip": network.to_string(), "reason": reason }))
}

fn allowed_kind(entry: &ListEntry) -> Option<Value> {
    let ListEntry::AllowKind(kind) = entry else { return None };
    Some(json!(kind))
}

fn refused_kind(entry: &ListEntry) -> Option<Value> {
    let ListEntry::RefuseKind(kind) = entry else { return None };
    Some(json!(kind))
}

fn first(params: &[Value]) -> &str {
    params.first().and_then(Value::as_str).unwrap_or_default()
}

fn key(params: &[Value]) -> Result<[u8; 32], String> {
    PublicKey::parse(first(params))
        .map(|key| key.to_bytes())
        .map_err(|_| "the first parameter is no public key of 64 hex digits".to_owned())
}

fn event(params: &[Value]) -> Result<[u8; 32], String> {
    EventId::parse(first(params))
        .map(|id| id.to_bytes())
        .map_err(|_| "the first parameter is no event id of 64 hex digits".to_owned())
}

fn kind(params: &[Value]) -> Result<u16, String> {
    let number = params.first().and_then(Value::as_u64);
    number
        .and_then(|number| u16::try_from(number).ok())
        .ok_or_else(|| "the first parameter is no kind from 0 to 65535".to_owned())
}

fn network(params: &[Value]) -> Result<Network, String> {
    first(params).parse().map_err(|_| "the first parameter is no IP address or network".to_owned())
}

fn text(params: &[Value]) -> Result<String, String> {
    let text = params.first().and_then(Value::as_str).ok_or("the first parameter is no text")?;
    short(text)
}

/// The optional reason.
fn reason(params: &[Value]) -> Result<String, String> {
    match params.get(1) {
        None | Some(Value::Null) => Ok(String::new()),
        Some(Value::String(reason)) => short(reason),
        Some(_) => Err("the reason is no text".to_owned()),
    }
}

fn short(text: &str) -> Result<String, String> {
    if text.chars().count() > MOST_CHARS {
        return Err(format!("the text is longer than {MOST_CHARS} characters"));
    }
    Ok(text.to_owned())
}
