//! What the relay says of itself (NIP-11).

use crate::config::Config;
use crate::moderation::{BanList, ListEntry};
use crate::store::RetentionRule;
use serde_json::{Value, json};

/// What the relay does, by NIP: only what is true.
const SUPPORTED_NIPS: [u16; 11] = [1, 9, 11, 40, 42, 45, 59, 62, 67, 70, 77];

/// NIP-86, where somebody may manage the relay.
const MANAGEMENT: u16 = 86;

/// The NIP-11 document. What the ban list says of the relay stands in place of the configuration.
pub(super) fn document(config: &Config, bans: &BanList) -> Value {
    let mut document = configured(config);
    let last = |of: fn(&ListEntry) -> Option<&str>| bans.last(of).map(Value::from);
    let changed = [
        ("name", last(|entry| if let ListEntry::RelayName(it) = entry { Some(it) } else { None })),
        (
            "description",
            last(|it| if let ListEntry::RelayDescription(it) = it { Some(it) } else { None }),
        ),
        ("icon", last(|it| if let ListEntry::RelayIcon(it) = it { Some(it) } else { None })),
    ];
    for (key, value) in changed {
        if let Some(value) = value {
            document[key] = value;
        }
    }
    document
}

fn configured(config: &Config) -> Value {
    let has_operators = !config.moderation.operators.is_empty();
    let nips = SUPPORTED_NIPS.into_iter().chain(has_operators.then_some(MANAGEMENT));
    let limits = &config.limits;
    let mut document = json!({
        "name": config.relay.name,
        "description": config.relay.description,
        "software": env!("CARGO_PKG_HOMEPAGE"),
        "version": env!("CARGO_PKG_VERSION"),
        "supported_nips": nips.collect::<Vec<u16>>(),
        // The version of the negentropy protocol, as strfry and its clients announce it.
        "negentropy": 1,
        "limitation": {
            "max_message_length": limits.longest_message(),
            "max_subscriptions": limits.subscriptions,
            "max_filters": limits.filters,
            "max_limit": limits.events_per_filter,
            "default_limit": limits.events_per_filter,
            "max_subid_length": limits.subscription_id_chars,
            "max_event_tags": limits.event_tags,
            "max_content_length": limits.content_chars,
            "created_at_upper_limit": limits.created_at_ahead_s,
            "auth_required": config.auth.required,
            "payment_required": false,
            "restricted_writes": !config.auth.publish_keys.is_empty(),
        },
    });
    if !config.retention.rules.is_empty() {
        document["retention"] = config.retention.rules.iter().map(retention).collect();
    }
    if limits.created_at_behind_s > 0 {
        let behind = limits.created_at_behind_s;
        document["limitation"]["created_at_lower_limit"] = Value::from(behind);
    }
    let relay = &config.relay;
    for (key, value) in [
        ("contact", &relay.contact),
        ("pubkey", &relay.pubkey),
        ("icon", &relay.icon),
        ("banner", &relay.banner),
        ("posting_policy", &relay.posting_policy),
        ("terms_of_service", &relay.terms_of_service),
    ] {
        if !value.is_empty()
            && let Some(document) = document.as_object_mut()
        {
            document.insert(key.to_owned(), Value::from(value.as_str()));
        }
    }
    document
}

/// A rule in the words of NIP-11, Event Retention.
fn retention(rule: &RetentionRule) -> Value {
    let mut kept = json!({});
    if !rule.kinds.is_empty() {
        kept["kinds"] = json!(rule.kinds);
    }
    if let Some(time) = rule.max_age_s {
        kept["time"] = json!(time);
    }
    if let Some(count) = rule.max_per_author {
        kept["count"] = json!(count);
    }
    kept
}
