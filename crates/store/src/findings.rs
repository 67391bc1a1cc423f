//! The findings of a check, worded the same for every engine.

use crate::rules;
use negsync_nostr::kinds::Lifetime;
use negsync_nostr::{Event, TagKey, hex};
use std::collections::BTreeMap;

/// Maximum number of findings that are described; all are counted.
pub(crate) const MOST_DESCRIBED: usize = 1_000;

/// An event that the operator removed is stored.
pub const OPERATOR_REMOVED: &str = "the operator has removed it, and it is stored";
/// NIP-09: an event that a request names by id is stored.
pub const DELETED_BY_ID: &str = "it was deleted by its id, and is stored";
/// NIP-09: a version that a request names by address is stored.
pub const DELETED_BY_ADDRESS: &str = "it was deleted by its address, and is stored";
/// NIP-59: a gift wrap that a recipient deleted is stored.
pub const DELETED_BY_RECIPIENT: &str = "its recipient has deleted it, and it is stored";
/// An id is kept out, but its request is not stored.
pub const ID_WITHOUT_REQUEST: &str = "it is kept out by a request to delete that is not stored";
/// An address is kept out, but its request is not stored.
pub const ADDRESS_WITHOUT_REQUEST: &str =
    "an address is kept out by a request to delete that is not stored";
/// NIP-62: an event of a vanished key is stored.
pub const AUTHOR_VANISHED: &str = "its author has vanished, and it is stored";
/// NIP-62: a gift wrap to a vanished key is stored.
pub const ADDRESSEE_VANISHED: &str = "its addressee has vanished, and it is stored";

/// One fault in a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The kind of fault: `file`, `event`, `signature`, `column`, `tag`, `rule` or `feed`.
    pub what: &'static str,
    /// The id of the affected event, if there is one.
    pub id: Option<[u8; 32]>,
    /// A description of the fault.
    pub detail: String,
}

/// The result of a check.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// The number of checked events.
    pub events: u64,
    /// The number of single-letter tags in the index.
    pub tags: u64,
    /// The number of expired events that the relay will remove when it starts. They are not faults.
    pub expired: u64,
    /// The number of events of vanished keys that the relay is removing, or will remove when it
    /// starts. They are not faults.
    pub vanishing: u64,
    /// The number of findings of each kind.
    pub found: BTreeMap<&'static str, u64>,
    /// The first thousand findings.
    pub findings: Vec<Finding>,
}

impl CheckReport {
    /// Whether there are no findings.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.found.is_empty()
    }

    /// Counts a finding, and keeps it if there is room.
    pub fn find(&mut self, finding: Finding) {
        *self.found.entry(finding.what).or_default() += 1;
        if self.findings.len() < MOST_DESCRIBED {
            self.findings.push(finding);
        }
    }

    /// Records that an event breaks a rule.
    pub fn find_broken_rule(&mut self, id: Option<[u8; 32]>, detail: impl Into<String>) {
        self.find(Finding { what: "rule", id, detail: detail.into() });
    }

    /// Records that a tag of an event is missing from the index.
    pub fn find_missing_tag(&mut self, id: Option<[u8; 32]>, key: TagKey) {
        self.find(Finding { what: "tag", id, detail: format!("{key:?} is not indexed") });
    }

    /// Checks a row of the tag index against the JSON of its event (`None` if the event is not
    /// stored). Records a tag that the event does not have.
    pub fn look_at_indexed_tag(&mut self, id: Option<[u8; 32]>, key: &[u8], json: Option<&str>) {
        let detail = match json.map(Event::parse) {
            None => "is indexed under an event that is not stored",
            Some(Ok(event)) if event.tag_keys().iter().any(|has| has.as_bytes() == key) => return,
            Some(Ok(_)) => "is indexed and the event does not have it",
            // The invalid event is reported elsewhere.
            Some(Err(_)) => return,
        };
        self.find(Finding { what: "tag", id, detail: format!("{} {detail}", hex::encode(key)) });
    }
}

/// A target of a stored request that is not kept out.
#[derive(Debug)]
pub enum Unfollowed<'request> {
    /// NIP-09: an event, by its id.
    Id(&'request [u8]),
    /// NIP-09: the versions of an address, by kind and `d` value.
    Address(u16, &'request str),
    /// NIP-62: the author, by a request to all relays.
    Author,
}

impl Unfollowed<'_> {
    /// The detail of the finding.
    #[must_use]
    pub fn detail(&self) -> String {
        match self {
            Self::Id(id) => {
                format!("deletes event {}, and that is not kept out", hex::encode(id))
            }
            Self::Address(kind, d) => {
                format!("deletes {d:?} of kind {kind}, and that is not kept out")
            }
            Self::Author => "asks every relay to forget its author, who is not kept out".into(),
        }
    }
}

/// Whether the event asks all relays to remove its author's events (NIP-62). A check does not know
/// which relay URLs are ours.
#[must_use]
pub fn asks_every_relay_to_vanish(event: &Event) -> bool {
    rules::vanishes_from(event, None)
}

/// The row of an event, with the address as the engine stores it.
#[derive(Debug)]
pub struct CheckedRow<Address> {
    /// The event's id.
    pub id: Vec<u8>,
    /// The author's public key.
    pub pubkey: Vec<u8>,
    /// Seconds since the Unix epoch.
    pub created_at: i64,
    /// The event's kind.
    pub kind: i64,
    /// The address, if the kind has one: versions with the same address replace each other.
    pub address: Option<Address>,
    /// NIP-40: seconds since the Unix epoch.
    pub expires_at: Option<i64>,
    /// The event as JSON.
    pub json: String,
}

impl<Address: PartialEq> CheckedRow<Address> {
    /// Checks the row by itself. Returns the event, unless the row does not hold one, and the
    /// findings. `address_of` computes the expected address.
    pub fn examine(
        &self,
        address_of: impl Fn(&Event) -> Option<Address>,
    ) -> (Option<Event>, Vec<Finding>) {
        let id = self.id.as_slice().try_into().ok();
        let mut findings = Vec::new();
        let mut find = |what, detail| findings.push(Finding { what, id, detail });
        let event = match Event::parse(&self.json) {
            Ok(event) => event,
            Err(error) => {
                find("event", error.reason);
                return (None, findings);
            }
        };
        let expires_at = event.expires_at().map(|second| i64::try_from(second).unwrap_or(i64::MAX));
        let columns = [
            ("id", self.id == event.item().id),
            ("pubkey", self.pubkey == event.pubkey()),
            ("created_at", self.created_at == event.item().created_at as i64),
            ("kind", self.kind == i64::from(event.kind())),
            ("address", self.address == address_of(&event)),
            ("expires_at", self.expires_at == expires_at),
            ("json", self.json == event.json()),
        ];
        for (column, is_right) in columns {
            if !is_right {
                find("column", format!("{column}: is not what the event says"));
            }
        }
        if event.lifetime() == Lifetime::Ephemeral {
            find("rule", "an ephemeral event is stored".into());
        }
        match event.verify() {
            Ok(event) => (Some(event.into_inner()), findings),
            Err(error) => {
                find("signature", error.reason);
                // The tags and targets of such an event are checked nevertheless.
                (Event::parse(&self.json).ok(), findings)
            }
        }
    }
}
