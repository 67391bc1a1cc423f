//! A relay in the plainest way: a list of events, and rules read off the NIPs one event at a time.
//! Unlike [`super::model::kept`] it knows in which order events came, and when they expired.

use super::events::id_of;
use super::model::{address, answer, created_at, expires_at, kind, tags};
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
    Expired,
}

impl Said {
    /// What the OK of a relay says.
    pub fn read(accepted: bool, text: &str) -> Option<Self> {
        Some(match (accepted, text) {
            (true, "") => Self::Stored,
            (true, "duplicate: already have this event") => Self::Duplicate,
            (true, "duplicate: a newer version is stored") => Self::Superseded,
            (false, "blocked: deleted by its author") => Self::Deleted,
            (false, "invalid: expiration: the event has expired") => Self::Expired,
            _ => return None,
        })
    }

    /// Whether subscribers hear of the event.
    pub fn is_live(self) -> bool {
        matches!(self, Self::Stored | Self::PassedOn)
    }
}

/// The relay.
#[derive(Clone, Debug, Default)]
pub struct NaiveRelay {
    stored: Vec<Value>,
    /// NIP-09: ids that authors have deleted.
    deleted: Vec<(Value, Value)>,
    /// NIP-09: addresses whose versions up to an age are gone.
    buried: Vec<(String, Age)>,
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
        if kind(event) != 5 && self.is_deleted(event) {
            return Said::Deleted;
        }
        if self.stored.iter().any(|other| id_of(other) == id_of(event)) {
            return Said::Duplicate;
        }
        if let Some(own) = address(event) {
            let rival = self.stored.iter().position(|other| address(other).as_ref() == Some(&own));
            match rival {
                Some(rival) if age(&self.stored[rival]) > age(event) => return Said::Superseded,
                Some(rival) => drop(self.stored.remove(rival)),
                None => {}
            }
        }
        self.stored.push(event.clone());
        if kind(event) == 5 {
            self.delete(event);
        }
        Said::Stored
    }

    fn is_deleted(&mut self, event: &Value) -> bool {
        if self.deleted.contains(&(event["id"].clone(), event["pubkey"].clone())) {
            // Whichever of the two came first, older versions go with it.
            if let Some(address) = address(event) {
                self.bury(&address, age(event));
            }
            return true;
        }
        address(event).is_some_and(|own| {
            self.buried.iter().any(|(address, until)| *address == own && age(event) <= *until)
        })
    }

    fn delete(&mut self, deletion: &Value) {
        let author = &deletion["pubkey"];
        for id in tags(deletion, "e") {
            let named = self.stored.iter().find(|event| event["id"] == *id).cloned();
            if let Some(event) = &named
                && (kind(event) == 5 || event["pubkey"] != *author)
            {
                continue;
            }
            match named.as_ref().and_then(address) {
                Some(address) => self.bury(&address, age(named.as_ref().unwrap())),
                None => self.stored.retain(|event| event["id"] != *id),
            }
            self.deleted.push((id.clone(), author.clone()));
        }
        for value in tags(deletion, "a") {
            let address = value.as_str().unwrap();
            if address.split(':').nth(1) == author.as_str() {
                // Of that second all versions: no id is as low as none.
                self.bury(address, (created_at(deletion), Reverse(String::new())));
            }
        }
    }

    fn bury(&mut self, gone: &str, until: Age) {
        let is_gone =
            |event: &Value| address(event).as_deref() == Some(gone) && age(event) <= until;
        self.stored.retain(|event| !is_gone(event));
        self.buried.push((gone.to_owned(), until));
    }
}

fn age(event: &Value) -> Age {
    (created_at(event), Reverse(id_of(event).to_owned()))
}
