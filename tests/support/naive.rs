//! A relay in the plainest way: a list of events, and rules read off the NIPs one event at a time.
//! Unlike [`super::model::kept`] it knows in which order events came, and when they expired.

use super::events::id_of;
use super::model::{address, answer, created_at, deletes, expires_at, kind, tags, vanishes};
use serde_json::Value;
use std::cmp::Reverse;

/// What is said of an event that was published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    Stored,
    PassedOn,
    Duplicate,
    Superseded,
    Deleted,
    Vanished,
    Expired,
}

impl Said {
    /// What the OK of a relay says.
    pub fn read(accepted: bool, text: &str) -> Option<Self> {
        Some(match (accepted, text) {
            (true, "") => Self::Stored,
            (true, "duplicate: already have this event") => Self::Duplicate,
            (false, "replaced: have newer event") => Self::Superseded,
            (false, "blocked: deleted by its author") => Self::Deleted,
            (false, "blocked: its author or addressee has vanished") => Self::Vanished,
            (false, "invalid: expiration: the event has expired") => Self::Expired,
            _ => return None,
        })
    }

    /// Whether subscribers hear of the event.
    pub fn is_live(self) -> bool {
        matches!(self, Self::Stored | Self::PassedOn)
    }
}

/// The relay: no more than what it has stored. What is kept out is kept out by a stored event.
#[derive(Clone, Debug, Default)]
pub struct NaiveRelay {
    stored: Vec<Value>,
}

/// Of two versions the one of the greater age wins (NIP-01): later, or of one second the lower id.
type Age = (u64, Reverse<String>);

impl NaiveRelay {
    /// What is stored at this second.
    pub fn stored(&mut self, now: u64) -> &[Value] {
        self.stored.retain(|event| expires_at(event).is_none_or(|second| second > now));
        &self.stored
    }

    /// What answers the filters at this second.
    pub fn answer(&mut self, filters: &[Value], now: u64) -> Vec<Value> {
        answer(filters, self.stored(now)).into_iter().cloned().collect()
    }

    pub fn publish(&mut self, event: &Value, now: u64) -> Said {
        self.stored(now);
        if expires_at(event).is_some_and(|second| second <= now) {
            return Said::Expired;
        }
        if (20_000..30_000).contains(&kind(event)) {
            return Said::PassedOn;
        }
        let by_any = |keeps_out: fn(&Value, &Value) -> bool| {
            self.stored.iter().any(|stored| keeps_out(stored, event))
        };
        if by_any(keeps_out_vanished) {
            return Said::Vanished;
        }
        if by_any(keeps_out_deleted) {
            return Said::Deleted;
        }
        if by_any(|stored, event| id_of(stored) == id_of(event)) {
            return Said::Duplicate;
        }
        if by_any(keeps_out_older) {
            return Said::Superseded;
        }
        self.stored.retain(|stored| {
            ![keeps_out_vanished, keeps_out_deleted, keeps_out_older]
                .iter()
                .any(|keeps_out| keeps_out(event, stored))
        });
        self.stored.push(event.clone());
        Said::Stored
    }
}

fn keeps_out_vanished(stored: &Value, event: &Value) -> bool {
    let is_request = kind(stored) == 62 && tags(stored, "relay").any(|url| url == "ALL_RELAYS");
    is_request && vanishes(stored, event)
}

fn keeps_out_deleted(stored: &Value, event: &Value) -> bool {
    kind(stored) == 5 && deletes(stored, event)
}

fn keeps_out_older(stored: &Value, event: &Value) -> bool {
    let own = address(event);
    own.is_some() && address(stored) == own && age(stored) > age(event)
}

fn age(event: &Value) -> Age {
    (created_at(event), Reverse(id_of(event).to_owned()))
}
