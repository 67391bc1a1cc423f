//! The simplest relay: a list of events, with the rules of the NIPs applied to one event at a time.
//! Unlike [`super::model::kept`] it takes the order of arrival and expiration into account.

use super::events::id_of;
use super::model::{address, answer, created_at, deletes, expires_at, kind, tags, vanishes};
use serde_json::Value;
use std::cmp::Reverse;

/// The answer to a published event.
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
    /// The answer in the OK of a relay.
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

    /// Whether subscribers get the event.
    pub fn is_live(self) -> bool {
        matches!(self, Self::Stored | Self::PassedOn)
    }
}

/// A relay whose only state is its stored events: a stored event keeps others out.
#[derive(Clone, Debug, Default)]
pub struct NaiveRelay {
    stored: Vec<Value>,
}

/// Order of versions (NIP-01): the later one wins, or, within a second, the one with the lower id.
type Age = (u64, Reverse<String>);

impl NaiveRelay {
    /// The stored events at this second.
    pub fn stored(&mut self, now: u64) -> &[Value] {
        self.stored.retain(|event| expires_at(event).is_none_or(|second| second > now));
        &self.stored
    }

    /// The answer to the filters at this second.
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
