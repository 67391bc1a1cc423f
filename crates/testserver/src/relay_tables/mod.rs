//! The tables in which other relays store events on PostgreSQL, and the statements with which they
//! write.

mod nostr_rs_relay;
mod nostream;

use serde_json::Value;

/// A relay whose tables are supported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RelayTables {
    /// nostream 3.
    Nostream,
    /// nostr-rs-relay, schema 5.
    NostrRsRelay,
}

impl RelayTables {
    /// Every relay.
    pub const ALL: [Self; 2] = [Self::Nostream, Self::NostrRsRelay];

    /// The table of events.
    pub fn events(self) -> &'static str {
        match self {
            Self::Nostream => "events",
            Self::NostrRsRelay => "event",
        }
    }

    /// The statements that create the tables.
    pub fn schema(self) -> &'static str {
        match self {
            Self::Nostream => include_str!("nostream.sql"),
            Self::NostrRsRelay => include_str!("nostr_rs_relay.sql"),
        }
    }

    /// The transactions in which the relay stores an event by its own rules; each is a list of
    /// statements.
    pub fn publish(self, event: &Value) -> Vec<String> {
        match self {
            Self::Nostream => nostream::publish(event),
            Self::NostrRsRelay => vec![nostr_rs_relay::publish(event)],
        }
    }

    /// The relay's periodic clean-up: removes events that expired by the second `now` and, if the
    /// relay has such a rule, deleted events and events made before the second `before`.
    pub fn clean_up(self, now: u64, before: u64) -> String {
        match self {
            Self::Nostream => nostream::clean_up(now, before),
            Self::NostrRsRelay => nostr_rs_relay::clean_up(now),
        }
    }

    /// The query for the JSON of all events that the relay shows at the second `now`.
    pub fn shown(self, now: u64) -> String {
        match self {
            Self::Nostream => nostream::shown(now),
            Self::NostrRsRelay => nostr_rs_relay::shown(now),
        }
    }
}

fn is_replaceable(kind: u64) -> bool {
    matches!(kind, 0 | 3 | 41 | 10_000..20_000)
}

fn is_addressable(kind: u64) -> bool {
    matches!(kind, 30_000..40_000)
}

fn kind_of(event: &Value) -> u64 {
    event["kind"].as_u64().unwrap()
}

/// The tags with a value.
fn tags(event: &Value) -> impl Iterator<Item = (&str, &str)> {
    event["tags"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|tag| Some((tag.get(0)?.as_str()?, tag.get(1)?.as_str()?)))
}

fn first<'event>(event: &'event Value, name: &str) -> Option<&'event str> {
    tags(event).find(|tag| tag.0 == name).map(|tag| tag.1)
}

/// The second at which the event expires, as SQL.
fn expires_at(event: &Value) -> Option<u64> {
    first(event, "expiration")?.parse().ok()
}

fn bytes(event: &Value, field: &str) -> String {
    format!("'\\x{}'::bytea", event[field].as_str().unwrap())
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}
