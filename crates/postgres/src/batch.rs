//! Decides the effects of a batch of events in memory: applies [`negsync_store::rules`] to the
//! contents of the database and to the effects of earlier events of the batch.

use negsync_nostr::hex;
use negsync_nostr::kinds::{DELETION, GIFT_WRAP, VANISH};
use negsync_nostr::relay_url::RelayName;
use negsync_nostr::{Event, TagKey};
use negsync_reconcile::Item;
use negsync_store::rules::{self, Decision, Known, Outcome, Predecessor};
use negsync_store::{Retention, Step};
use sha2::{Digest, Sha256};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// An event id or a public key.
pub(crate) type Bytes = [u8; 32];

/// The address under which versions of an event replace each other: a hash of author, kind and `d`
/// value.
pub(crate) fn address_hash(author: &Bytes, kind: u16, d: &str) -> Bytes {
    let mut hash = Sha256::new();
    hash.update(author);
    hash.update(kind.to_be_bytes());
    hash.update(d.as_bytes());
    hash.finalize().into()
}

/// Like [`address_hash`], for an event that is replaceable or addressable.
pub(crate) fn address_of(event: &Event) -> Option<Bytes> {
    event.address().map(|d| address_hash(event.pubkey(), event.kind(), d))
}

/// The fields of a stored event that rules need.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub(crate) item: Item,
    pub(crate) author: Bytes,
    pub(crate) kind: u16,
    pub(crate) address: Option<Bytes>,
    pub(crate) expires_at: Option<u64>,
}

/// The stored facts that affect the events of a batch.
#[derive(Debug, Default)]
pub(crate) struct BatchFacts {
    stored: HashMap<Bytes, Stored>,
    by_address: HashMap<Bytes, Bytes>,
    /// The time of the latest request, by the id it names and its author.
    pub(crate) tombstones: HashMap<(Bytes, Bytes), u64>,
    /// The time up to which an address is deleted, and the author of the request, by address.
    pub(crate) address_tombstones: HashMap<Bytes, (u64, Bytes)>,
    pub(crate) named: HashMap<Bytes, u64>,
    pub(crate) vanished: HashMap<Bytes, u64>,
    pub(crate) removed_by_operator: HashSet<Bytes>,
    /// The rules of retention, and by author and kind the newest event that they have removed as
    /// surplus.
    pub(crate) retention: Retention,
    pub(crate) floors: HashMap<(Bytes, u16), Item>,
    /// Stored gift wraps, each with a recipient that requests its deletion.
    pub(crate) addressed: HashSet<(Bytes, Bytes)>,
}

impl BatchFacts {
    pub(crate) fn add(&mut self, stored: Stored) {
        if let Some(address) = stored.address {
            self.by_address.insert(address, stored.item.id);
        }
        self.stored.insert(stored.item.id, stored);
    }

    pub(crate) fn stored(&self, id: &Bytes) -> Option<&Stored> {
        self.stored.get(id)
    }

    /// Whether the rules of retention refuse an event at the second `now`.
    fn is_retired(&self, event: &Event, now: u64) -> bool {
        let (item, kind) = (event.item(), event.kind());
        let is_too_old = self.retention.oldest(kind, now).is_some_and(|at| item.created_at < at);
        let floor = || self.floors.get(&(*event.pubkey(), kind));
        is_too_old
            || self.retention.per_author(kind).is_some()
                && floor().is_some_and(|floor| item <= *floor)
    }

    fn remove(&mut self, id: &Bytes) -> Option<Stored> {
        let stored = self.stored.remove(id)?;
        if let Some(address) = stored.address {
            self.by_address.remove(&address);
        }
        Some(stored)
    }
}

/// The queries of a batch.
#[derive(Debug, Default)]
pub(crate) struct Questions {
    pub(crate) ids: Vec<Bytes>,
    /// Those of `ids` that are in the batch, and not only named by requests.
    pub(crate) came: Vec<Bytes>,
    pub(crate) addresses: Vec<Bytes>,
    /// Pairs of an id and a key whose requests may keep the id out.
    pub(crate) deletable: (Vec<Bytes>, Vec<Bytes>),
    /// Authors of deletion requests.
    pub(crate) deleters: Vec<Bytes>,
    /// Authors, and recipients of gift wraps.
    pub(crate) people: Vec<Bytes>,
    /// Authors, each with a kind.
    pub(crate) author_kinds: (Vec<Bytes>, Vec<i32>),
}

impl Questions {
    pub(crate) fn of(events: &[Arc<Event>]) -> Self {
        let mut questions = Self::default();
        for event in events {
            let (id, author) = (event.item().id, *event.pubkey());
            questions.ids.push(id);
            questions.came.push(id);
            questions.author_kinds.0.push(author);
            questions.author_kinds.1.push(event.kind().into());
            questions.addresses.extend(address_of(event));
            for key in std::iter::once(author).chain(event.recipients()) {
                questions.deletable.0.push(id);
                questions.deletable.1.push(key);
                questions.people.push(key);
            }
            if event.kind() == DELETION {
                questions.deleters.push(author);
                questions.ids.extend(event.deleted_ids());
                let named = event.deleted_addresses().iter();
                let named = named.map(|(kind, d)| address_hash(&author, *kind, d));
                questions.addresses.extend(named);
            }
        }
        questions
    }
}

/// The stored gift wraps that requests of a batch name, each with the author of the request.
pub(crate) fn named_wraps(events: &[Arc<Event>], facts: &BatchFacts) -> Vec<(Item, Bytes)> {
    let mut wraps = Vec::new();
    for request in events.iter().filter(|event| event.kind() == DELETION) {
        for id in request.deleted_ids() {
            let wrap = facts.stored(id).filter(|stored| stored.kind == GIFT_WRAP);
            wraps.extend(wrap.map(|wrap| (wrap.item, *request.pubkey())));
        }
    }
    wraps
}

/// The changes of a batch.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// The events to write, by id.
    pub(crate) added: HashMap<Bytes, Arc<Event>>,
    /// Events stored before the batch that are to be removed.
    pub(crate) removed: Vec<Item>,
    /// Those of `removed` that deletion requests name.
    pub(crate) deleted: Vec<Bytes>,
    /// Vanishing keys, each with the second up to which it vanishes.
    pub(crate) vanished: HashMap<Bytes, u64>,
    /// The steps, in order.
    pub(crate) steps: Vec<Step>,
    /// The outcome of each event, in order.
    pub(crate) outcomes: Vec<Outcome>,
}

impl Changes {
    /// Whether nothing has to be written.
    pub(crate) fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty() && self.vanished.is_empty()
    }
}

/// Decides each event in order, at the second `now`.
pub(crate) fn decide(
    events: &[Arc<Event>],
    facts: BatchFacts,
    us: Option<&RelayName>,
    now: u64,
) -> Changes {
    let mut batch = BatchDecider { facts, changes: Changes::default(), us, now };
    for event in events {
        let outcome = batch.take(event);
        batch.changes.outcomes.push(outcome);
    }
    batch.changes
}

struct BatchDecider<'relay> {
    facts: BatchFacts,
    changes: Changes,
    us: Option<&'relay RelayName>,
    now: u64,
}

impl BatchDecider<'_> {
    fn take(&mut self, event: &Arc<Event>) -> Outcome {
        let decision = rules::decide_unseen(event, self.now)
            .unwrap_or_else(|| rules::decide(event, &self.known(event), self.now));
        match decision {
            Decision::Refuse(outcome) => outcome,
            Decision::PassOn => {
                self.changes.steps.push(Step::Passed(Arc::clone(event)));
                Outcome::PassedOn
            }
            Decision::Keep => Outcome::Duplicate,
            Decision::Store => {
                self.store(event);
                Outcome::Stored
            }
        }
    }

    fn known(&self, event: &Event) -> Known {
        let (facts, id) = (&self.facts, event.item().id);
        let mut people = std::iter::once(*event.pubkey()).chain(event.recipients());
        let deleted_by_id = people.any(|key| facts.tombstones.contains_key(&(id, key)));
        let people = std::iter::once(*event.pubkey()).chain(event.recipients());
        let address = address_of(event);
        let by_address = |address: &Bytes| facts.stored(facts.by_address.get(address)?);
        let is_gone = |old: &Stored| old.expires_at.is_some_and(|second| second <= self.now);
        Known {
            removed_by_operator: facts.removed_by_operator.contains(&id),
            is_retired: facts.is_retired(event, self.now),
            vanished_until: people.filter_map(|key| facts.vanished.get(&key).copied()).max(),
            deleted_by_id,
            deleted_until: address
                .and_then(|address| facts.address_tombstones.get(&address))
                .map(|(until, _)| *until),
            named_by_author: facts.named.get(event.pubkey()).copied().unwrap_or_default(),
            is_stored: facts.stored(&id).is_some(),
            predecessor: address
                .as_ref()
                .and_then(by_address)
                .map(|old| Predecessor { item: old.item, is_gone: is_gone(old) }),
        }
    }

    fn store(&mut self, event: &Arc<Event>) {
        let address = address_of(event);
        if let Some(old) = address.and_then(|address| self.facts.by_address.get(&address).copied())
        {
            self.remove(&old);
        }
        self.facts.add(Stored {
            item: event.item(),
            author: *event.pubkey(),
            kind: event.kind(),
            address,
            expires_at: event.expires_at(),
        });
        self.changes.added.insert(event.item().id, Arc::clone(event));
        if event.kind() == DELETION {
            self.follow_deletion(event);
        }
        if rules::vanishes_from(event, self.us) {
            self.follow_vanishing(event);
        }
        self.changes.steps.push(Step::Added(Arc::clone(event)));
    }

    fn delete(&mut self, id: &Bytes) {
        if !self.changes.added.contains_key(id) {
            self.changes.deleted.push(*id);
        }
        self.remove(id);
    }

    fn remove(&mut self, id: &Bytes) {
        let Some(stored) = self.facts.remove(id) else { return };
        if self.changes.added.remove(id).is_none() {
            self.changes.removed.push(stored.item);
        }
        self.changes.steps.push(Step::Removed(stored.item));
    }

    fn follow_deletion(&mut self, request: &Event) {
        let (author, made) = (*request.pubkey(), request.item().created_at);
        let named = self.facts.named.entry(author).or_default();
        *named = named.saturating_add(rules::named(request) as u64);
        for id in request.deleted_ids() {
            let latest = self.facts.tombstones.entry((*id, author)).or_insert(made);
            *latest = made.max(*latest);
            let is_recipient = || self.is_recipient(id, &author);
            let may_delete = self.facts.stored(id).is_some_and(|stored| {
                rules::may_delete(&author, &stored.author, stored.kind, is_recipient)
            });
            if may_delete {
                self.delete(id);
            }
        }
        for (kind, d) in request.deleted_addresses() {
            let address = address_hash(&author, *kind, d);
            let until = self.facts.address_tombstones.entry(address).or_insert((made, author));
            until.0 = made.max(until.0);
            let version = self.facts.by_address.get(&address).copied();
            let is_older = |id: &Bytes| {
                self.facts.stored(id).is_some_and(|stored| stored.item.created_at <= made)
            };
            if let Some(id) = version.filter(is_older) {
                self.delete(&id);
            }
        }
    }

    /// NIP-59: whether a gift wrap is addressed to the key.
    fn is_recipient(&self, id: &Bytes, key: &Bytes) -> bool {
        match self.changes.added.get(id) {
            Some(wrap) => wrap.recipients().any(|recipient| recipient == *key),
            None => self.facts.addressed.contains(&(*id, *key)),
        }
    }

    /// NIP-62: the key's deletion requests lose their effect. Its events are removed after the
    /// batch.
    fn follow_vanishing(&mut self, request: &Event) {
        let (author, made) = (*request.pubkey(), request.item().created_at);
        let until = self.facts.vanished.entry(author).or_insert(made);
        *until = made.max(*until);
        let until = *until;
        self.changes.vanished.insert(author, until);
        self.facts.tombstones.retain(|(_, by), made| *by != author || *made > until);
        self.facts.address_tombstones.retain(|_, (made, by)| *by != author || *made > until);
    }
}

/// The `p` tag that names a key.
pub(crate) fn addressed_to(key: &Bytes) -> TagKey {
    let hex = hex::encode(key);
    TagKey::new(b'p', &hex)
}

/// Whether the event is a request to vanish, for any relay.
pub(crate) fn asks_to_vanish(event: &Event) -> bool {
    event.kind() == VANISH
}
