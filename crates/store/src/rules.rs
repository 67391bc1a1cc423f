//! The effects of an accepted event on a store (NIP-01 replaceable and addressable events, NIP-09
//! deletion, NIP-40 expiration, NIP-62 vanishing), decided without SQL: an engine fetches
//! [`Known`], calls [`decide`], and applies the [`Decision`].
//!
//! Every rule has one form: a stored event keeps another one out. A newer version keeps out older
//! ones, a deletion request its targets, a request to vanish what its author wrote before. Whether
//! it does depends on these two events only, not on the history of the store. So two stores that
//! exchange all their events become equal, except for removals by an operator.

use negsync_nostr::Event;
use negsync_nostr::kinds::{ALL_RELAYS, AUTHENTICATION, DELETION, GIFT_WRAP, Lifetime, VANISH};
use negsync_nostr::relay_url::RelayName;
use negsync_reconcile::Item;

/// Maximum number of ids and addresses that one request may name, and that all requests of an
/// author may name together: about 75 MB of tombstones.
const NAMED_BY_A_REQUEST: usize = 10_000;
const NAMED_BY_AN_AUTHOR: u64 = 1_000_000;

/// The result of submitting an event to the store.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// Stored durably.
    Stored,
    /// The event was stored before.
    Duplicate,
    /// A newer version of the same replaceable or addressable event is stored.
    Superseded,
    /// Its author deleted it, or a recipient did if it is a gift wrap (NIP-09, NIP-59).
    Deleted,
    /// The relay's operator removed it.
    RemovedByOperator,
    /// The rules of retention refuse it (see [`Retention`](crate::Retention)).
    Retired,
    /// Its author has vanished, or an addressee if it is a gift wrap (NIP-62).
    Vanished,
    /// It names more targets than one request, or all requests of its author, may name.
    DeletesTooMuch,
    /// It expired before it arrived (NIP-40).
    Expired,
    /// It is ephemeral: passed on to subscriptions, never stored. An authentication event (NIP-42)
    /// is not passed on either.
    PassedOn,
    /// The database refused the batch; no event of it is stored.
    Failed(String),
}

/// The stored facts that affect one event.
#[derive(Debug, Clone, Copy, Default)]
pub struct Known {
    /// Whether an operator removed the event.
    pub removed_by_operator: bool,
    /// Whether the rules of retention refuse it.
    pub is_retired: bool,
    /// The second up to which the author has vanished; for a gift wrap, an addressee counts too.
    pub vanished_until: Option<u64>,
    /// Whether a stored deletion request of its author names its id; for a gift wrap, a request of
    /// a recipient counts too.
    pub deleted_by_id: bool,
    /// The second up to which deletion requests of its author keep out versions of its address.
    pub deleted_until: Option<u64>,
    /// The number of targets that stored deletion requests of its author name.
    pub named_by_author: u64,
    /// Whether the event is stored.
    pub is_stored: bool,
    /// The stored event of the same author, kind and address.
    pub predecessor: Option<Predecessor>,
}

/// The stored event that a replaceable or addressable event would replace.
#[derive(Debug, Clone, Copy)]
pub struct Predecessor {
    /// Its time and id.
    pub item: Item,
    /// Whether it counts as removed: it has expired or was deleted, and its removal is pending.
    pub is_gone: bool,
}

/// What the store does with an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Nothing is written.
    Refuse(Outcome),
    /// Nothing is written; subscriptions get the event.
    PassOn,
    /// It is stored already; a pending removal is cancelled.
    Keep,
    /// It is written after its predecessor is removed; if it is a request, it is followed.
    Store,
}

/// The decision about an event at the second `now`, given the stored facts.
#[must_use]
pub fn decide(event: &Event, known: &Known, now: u64) -> Decision {
    let created_at = event.item().created_at;
    let covers = |until: Option<u64>| until.is_some_and(|until| created_at <= until);
    if let Some(decision) = decide_unseen(event, now) {
        return decision;
    }
    if known.removed_by_operator {
        return Decision::Refuse(Outcome::RemovedByOperator);
    }
    if known.is_retired {
        return Decision::Refuse(Outcome::Retired);
    }
    if event.kind() != VANISH && covers(known.vanished_until) {
        return Decision::Refuse(Outcome::Vanished);
    }
    if !is_request(event.kind()) && (known.deleted_by_id || covers(known.deleted_until)) {
        return Decision::Refuse(Outcome::Deleted);
    }
    if event.kind() == DELETION && names_too_much(event, known.named_by_author) {
        return Decision::Refuse(Outcome::DeletesTooMuch);
    }
    if known.is_stored {
        return Decision::Keep;
    }
    match known.predecessor {
        Some(old) if !old.is_gone && !is_newer(event.item(), old.item) => {
            Decision::Refuse(Outcome::Superseded)
        }
        _ => Decision::Store,
    }
}

/// Like [`decide`], without stored facts; `None` if they are needed.
#[must_use]
pub fn decide_unseen(event: &Event, now: u64) -> Option<Decision> {
    if event.expires_at().is_some_and(|second| second <= now) {
        return Some(Decision::Refuse(Outcome::Expired));
    }
    match event.lifetime() {
        Lifetime::Ephemeral if event.kind() == AUTHENTICATION => {
            Some(Decision::Refuse(Outcome::PassedOn))
        }
        Lifetime::Ephemeral => Some(Decision::PassOn),
        _ => None,
    }
}

/// NIP-01: the newest version is kept; within a second, the one with the lowest id.
fn is_newer(new: Item, old: Item) -> bool {
    (new.created_at, std::cmp::Reverse(new.id)) > (old.created_at, std::cmp::Reverse(old.id))
}

/// Whether the request names more targets than may be kept out for its author.
fn names_too_much(request: &Event, named_by_author: u64) -> bool {
    let named = named(request);
    named > NAMED_BY_A_REQUEST || named_by_author.saturating_add(named as u64) > NAMED_BY_AN_AUTHOR
}

/// The number of targets that a deletion request names.
#[must_use]
pub fn named(request: &Event) -> usize {
    request.deleted_ids().len() + request.deleted_addresses().len()
}

/// Whether events of the kind request the removal of others: such a request cannot be deleted.
#[must_use]
pub fn is_request(kind: u16) -> bool {
    [DELETION, VANISH].contains(&kind)
}

/// Whether a request to vanish (NIP-62) names the relay `us`, or all relays.
#[must_use]
pub fn vanishes_from(request: &Event, us: Option<&RelayName>) -> bool {
    let names_us = |url: &String| url == ALL_RELAYS || us.is_some_and(|us| us.is(url));
    request.kind() == VANISH && request.tag_values("relay").iter().any(names_us)
}

/// Whether a deletion request of `requester` may remove an event that it names by id.
/// `is_recipient` is called only for gift wraps, which belong to their recipients (NIP-59).
pub fn may_delete(
    requester: &[u8; 32],
    author: &[u8; 32],
    kind: u16,
    is_recipient: impl FnOnce() -> bool,
) -> bool {
    !is_request(kind) && (author == requester || kind == GIFT_WRAP && is_recipient())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::seq::SliceRandom;
    use rand::{RngExt, SeedableRng};

    const NOW: u64 = 1_000;

    fn event(kind: u16, created_at: u64, id: u8, tags: &str) -> Event {
        let json = format!(
            r#"{{"id":"{}","pubkey":"{}","created_at":{created_at},"kind":{kind},"tags":{tags},"content":"","sig":"{}"}}"#,
            format!("{id:02x}").repeat(32),
            "a".repeat(64),
            "0".repeat(128)
        );
        Event::parse(&json).unwrap()
    }

    fn decided(event: &Event, known: Known) -> Decision {
        decide(event, &known, NOW)
    }

    #[test]
    fn the_first_rule_that_holds_decides() {
        let all = Known {
            removed_by_operator: true,
            is_retired: true,
            vanished_until: Some(10),
            deleted_by_id: true,
            deleted_until: Some(10),
            is_stored: true,
            ..Known::default()
        };
        let note = event(1, 10, 1, "[]");
        let refused = |known| match decided(&note, known) {
            Decision::Refuse(outcome) => Some(outcome),
            Decision::Keep => None,
            other => panic!("{other:?}"),
        };
        assert_eq!(refused(all), Some(Outcome::RemovedByOperator));
        let all = Known { removed_by_operator: false, ..all };
        assert_eq!(refused(all), Some(Outcome::Retired));
        let all = Known { is_retired: false, ..all };
        assert_eq!(refused(all), Some(Outcome::Vanished));
        let all = Known { vanished_until: Some(9), ..all };
        assert_eq!(refused(all), Some(Outcome::Deleted));
        let all = Known { deleted_by_id: false, ..all };
        assert_eq!(refused(all), Some(Outcome::Deleted));
        let all = Known { deleted_until: Some(9), ..all };
        assert_eq!(refused(all), None);
        assert_eq!(decided(&note, Known::default()), Decision::Store);
    }

    #[test]
    fn an_expired_or_ephemeral_event_is_not_looked_up() {
        let expired = event(1, 10, 1, r#"[["expiration","1000"]]"#);
        assert_eq!(decided(&expired, Known::default()), Decision::Refuse(Outcome::Expired));
        let due_later = event(1, 10, 1, r#"[["expiration","1001"]]"#);
        assert_eq!(decide_unseen(&due_later, NOW), None);
        assert_eq!(decide_unseen(&event(20_001, 10, 1, "[]"), NOW), Some(Decision::PassOn));
        let auth = decide_unseen(&event(AUTHENTICATION, 10, 1, "[]"), NOW);
        assert_eq!(auth, Some(Decision::Refuse(Outcome::PassedOn)));
    }

    #[test]
    fn requests_are_beyond_deletion_and_a_request_to_vanish_beyond_vanishing() {
        let known = Known { deleted_by_id: true, vanished_until: Some(10), ..Known::default() };
        assert_eq!(decided(&event(VANISH, 10, 1, "[]"), known), Decision::Store);
        let deletion = event(DELETION, 10, 1, "[]");
        assert_eq!(decided(&deletion, known), Decision::Refuse(Outcome::Vanished));
        let known = Known { vanished_until: None, ..known };
        assert_eq!(decided(&deletion, known), Decision::Store);
        let (author, other) = ([1; 32], [2; 32]);
        assert!(may_delete(&author, &author, 1, || false));
        assert!(!may_delete(&author, &author, DELETION, || true));
        assert!(!may_delete(&other, &author, 1, || true));
        assert!(may_delete(&other, &author, GIFT_WRAP, || true));
    }

    #[test]
    fn an_author_may_have_so_much_named_and_no_more() {
        let request = event(DELETION, 10, 1, &format!(r#"[["e","{}"]]"#, "0".repeat(64)));
        let with = |named_by_author| Known { named_by_author, ..Known::default() };
        assert_eq!(decided(&request, with(NAMED_BY_AN_AUTHOR - 1)), Decision::Store);
        let refused = Decision::Refuse(Outcome::DeletesTooMuch);
        assert_eq!(decided(&request, with(NAMED_BY_AN_AUTHOR)), refused);
    }

    #[test]
    fn the_newest_version_is_left_whatever_the_order() {
        let seed = rand::random();
        println!("seed {seed}");
        let mut rng = StdRng::seed_from_u64(seed);
        for _ in 0..200 {
            let mut versions: Vec<Event> =
                (1..=6).map(|id| event(0, rng.random_range(1..4), id, "[]")).collect();
            let newest = versions.iter().map(Event::item).reduce(|one, other| {
                let is_newer = one.created_at > other.created_at
                    || one.created_at == other.created_at && one.id < other.id;
                if is_newer { one } else { other }
            });
            versions.shuffle(&mut rng);
            let mut stored: Option<Item> = None;
            for version in &versions {
                let predecessor = stored.map(|item| Predecessor { item, is_gone: false });
                let known = Known { predecessor, ..Known::default() };
                if decided(version, known) == Decision::Store {
                    stored = Some(version.item());
                }
            }
            assert_eq!(stored, newest);
            // A predecessor that counts as removed keeps nothing out.
            let gone = newest.map(|item| Predecessor { item, is_gone: true });
            let known = Known { predecessor: gone, ..Known::default() };
            assert_eq!(decided(&versions[0], known), Decision::Store);
        }
    }
}
