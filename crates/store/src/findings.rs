//! What a check finds, in the same words whichever engine keeps the store.

use crate::rules;
use negsync_nostr::kinds::Lifetime;
use negsync_nostr::{Event, TagKey, hex};
use std::collections::BTreeMap;

/// So many findings are described; all are counted.
pub(crate) const MOST_DESCRIBED: usize = 1_000;

/// What an operator has removed is stored.
pub const OPERATOR_REMOVED: &str = "the operator has removed it, and it is stored";
/// NIP-09: an event that a request names by its id is stored.
pub const DELETED_BY_ID: &str = "it was deleted by its id, and is stored";
/// NIP-09: a version that a request names by its address is stored.
pub const DELETED_BY_ADDRESS: &str = "it was deleted by its address, and is stored";
/// NIP-59: a gift wrap is stored that a recipient has deleted.
pub const DELETED_BY_RECIPIENT: &str = "its recipient has deleted it, and it is stored";
/// An id is kept out by a request that is gone.
pub const ID_WITHOUT_REQUEST: &str = "it is kept out by a request to delete that is not stored";
/// An address is kept out by a request that is gone.
pub const ADDRESS_WITHOUT_REQUEST: &str =
    "an address is kept out by a request to delete that is not stored";
/// NIP-62: an event of a key that has vanished is stored.
pub const AUTHOR_VANISHED: &str = "its author has vanished, and it is stored";
/// NIP-62: a gift wrap to a key that has vanished is stored.
pub const ADDRESSEE_VANISHED: &str = "its addressee has vanished, and it is stored";

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What is wrong: `file`, `event`, `signature`, `column`, `tag`, `rule` or `feed`.
    pub what: &'static str,
    /// The event's id, where it is about one.
    pub id: Option<[u8; 32]>,
    /// What is wrong with it, in words.
    pub detail: String,
}

/// What a check has seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// The events that were read.
    pub events: u64,
    /// The single-letter tags in the index.
    pub tags: u64,
    /// Events that have expired and that a relay removes when it starts. Nothing is wrong with that.
    pub expired: u64,
    /// Events of keys that have asked to vanish, which a relay is removing or goes on to remove when
    /// it starts. Nothing is wrong with that either.
    pub vanishing: u64,
    /// How often each kind of finding came up.
    pub found: BTreeMap<&'static str, u64>,
    /// The first thousand findings.
    pub findings: Vec<Finding>,
}

impl CheckReport {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.found.is_empty()
    }

    /// Counts a finding, and keeps it while there is room.
    pub fn find(&mut self, finding: Finding) {
        *self.found.entry(finding.what).or_default() += 1;
        if self.findings.len() < MOST_DESCRIBED {
            self.findings.push(finding);
        }
    }

    /// Notes that an event breaks a rule.
    pub fn find_broken_rule(&mut self, id: Option<[u8; 32]>, detail: impl Into<String>) {
        self.find(Finding { what: "rule", id, detail: detail.into() });
    }

    /// Notes that a tag of an event is not in the index.
    pub fn find_missing_tag(&mut self, id: Option<[u8; 32]>, key: TagKey) {
        self.find(Finding { what: "tag", id, detail: format!("{key:?} is not indexed") });
    }

    /// Looks at a tag in the index and the JSON of the event that it is of, `None` where that is not
    /// stored; notes a tag that the event does not have.
    pub fn look_at_indexed_tag(&mut self, id: Option<[u8; 32]>, key: &[u8], json: Option<&str>) {
        let detail = match json.map(Event::parse) {
            None => "is indexed under an event that is not stored",
            Some(Ok(event)) if event.tag_keys().iter().any(|has| has.as_bytes() == key) => return,
            Some(Ok(_)) => "is indexed and the event does not have it",
            // That the event is none has been said.
            Some(Err(_)) => return,
        };
        self.find(Finding { what: "tag", id, detail: format!("{} {detail}", hex::encode(key)) });
    }
}

/// Something that a stored request asks for and that is not kept out.
#[derive(Debug)]
pub enum Unfollowed<'request> {
    /// NIP-09: an event, by its id.
    Id(&'request [u8]),
    /// NIP-09: the versions of an address, by kind and `d` value.
    Address(u16, &'request str),
    /// NIP-62: the author, by a request to every relay.
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

/// Whether a request asks every relay to forget its author (NIP-62). A relay that it names by a URL is
/// not known to a check.
#[must_use]
pub fn asks_every_relay_to_vanish(event: &Event) -> bool {
    rules::vanishes_from(event, None)
}

/// An event's row as it stands, with the address as the engine keeps it.
#[derive(Debug)]
pub struct CheckedRow<Address> {
    /// The event's id.
    pub id: Vec<u8>,
    /// The author's key.
    pub pubkey: Vec<u8>,
    /// In seconds since 1970.
    pub created_at: i64,
    /// The event's kind.
    pub kind: i64,
    /// Under what versions of the event replace each other.
    pub address: Option<Address>,
    /// NIP-40: in seconds since 1970.
    pub expires_at: Option<i64>,
    /// The event.
    pub json: String,
}

impl<Address: PartialEq> CheckedRow<Address> {
    /// The event, unless the row holds none, and what the row gives away by itself. `address_of` says
    /// what the address of the event should be.
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
                // Its tags and what it asks for are looked at all the same.
                (Event::parse(&self.json).ok(), findings)
            }
        }
    }
}
