//! The relay's NIP-11 document.

use crate::config::Config;
use crate::moderation::{BanList, ListEntry};
use crate::store::RetentionRule;
use negsync_nostr::nip11::{RelayDocument, RelayLimitation, RetentionTerms};

/// The supported NIPs.
const SUPPORTED_NIPS: [u16; 11] = [1, 9, 11, 40, 42, 45, 59, 62, 67, 70, 77];

/// NIP-86; listed only if `moderation.operators` is set.
const MANAGEMENT: u16 = 86;

/// The NIP-11 document. Values from the ban list replace those of the configuration.
pub(super) fn document(config: &Config, bans: &BanList) -> RelayDocument {
    let mut document = configured(config);
    let last = |of: fn(&ListEntry) -> Option<&str>| bans.last(of).map(str::to_owned);
    let name = last(|entry| if let ListEntry::RelayName(it) = entry { Some(it) } else { None });
    let description =
        last(|entry| if let ListEntry::RelayDescription(it) = entry { Some(it) } else { None });
    let icon = last(|entry| if let ListEntry::RelayIcon(it) = entry { Some(it) } else { None });
    document.name = name.or(document.name);
    document.description = description.or(document.description);
    document.icon = icon.or(document.icon);
    document
}

fn configured(config: &Config) -> RelayDocument {
    let has_operators = !config.moderation.operators.is_empty();
    let nips = SUPPORTED_NIPS.into_iter().chain(has_operators.then_some(MANAGEMENT));
    let relay = &config.relay;
    let where_set = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
    let mut document = RelayDocument::default();
    document.name = Some(relay.name.clone());
    document.description = Some(relay.description.clone());
    document.banner = where_set(&relay.banner);
    document.icon = where_set(&relay.icon);
    document.pubkey = where_set(&relay.pubkey);
    document.contact = where_set(&relay.contact);
    document.supported_nips = Some(nips.collect());
    document.negentropy = Some(1);
    document.software = Some(env!("CARGO_PKG_HOMEPAGE").to_owned());
    document.version = Some(env!("CARGO_PKG_VERSION").to_owned());
    document.posting_policy = where_set(&relay.posting_policy);
    document.terms_of_service = where_set(&relay.terms_of_service);
    document.limitation = limitation(config);
    document.retention = config.retention.rules.iter().map(terms).collect();
    document
}

fn limitation(config: &Config) -> RelayLimitation {
    let limits = &config.limits;
    let number = |it: usize| u64::try_from(it).ok();
    let mut limitation = RelayLimitation::default();
    limitation.max_message_length = number(limits.longest_message());
    limitation.max_subscriptions = number(limits.subscriptions);
    limitation.max_filters = number(limits.filters);
    limitation.max_limit = number(limits.events_per_filter);
    limitation.default_limit = limitation.max_limit;
    limitation.max_subid_length = number(limits.subscription_id_chars);
    limitation.max_event_tags = number(limits.event_tags);
    limitation.max_content_length = number(limits.content_chars);
    limitation.created_at_lower_limit =
        Some(limits.created_at_behind_s).filter(|behind| *behind > 0);
    limitation.created_at_upper_limit = Some(limits.created_at_ahead_s);
    limitation.auth_required = Some(config.auth.required);
    limitation.payment_required = Some(false);
    limitation.restricted_writes = Some(!config.auth.publish_keys.is_empty());
    limitation
}

fn terms(rule: &RetentionRule) -> RetentionTerms {
    RetentionTerms {
        kinds: rule.kinds.clone(),
        time: rule.max_age_s,
        count: rule.max_per_author.map(u64::from),
    }
}
