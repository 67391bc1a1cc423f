//! The path of an event from a peer: parsed, checked against the request and the limits, verified
//! on the verifier's threads, passed to the write policy, stored.

use super::Local;
use super::machine::{Asked, Fate, Seen, Settled};
use super::reason::Reason;
use crate::admission::{self, Judgement, RefusalReason, Source};
use crate::hex;
use crate::item::Item;
use crate::store::{Event, Origin, Outcome, VerifiedEvent};
use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::oneshot;

impl Asked {
    /// Whether an event with this id was requested.
    pub(super) fn names(&self, id: &[u8; 32]) -> bool {
        match self {
            Self::Ids(ids, _) | Self::ListingIds(ids, _) => ids.contains(id),
            // Any id on a page or of a subscription was requested.
            Self::Matching(_) | Self::Listing(_) => true,
        }
    }

    /// Why an event was not requested; with its id, if it has one.
    pub(super) fn refusal(&self, event: &Event) -> Settled {
        let Item { id, created_at, .. } = event.item();
        let (id, reason) = match self {
            Self::Ids(ids, _) | Self::ListingIds(ids, _) if ids.contains(&id) => {
                (Some(id), Reason::OutsideFilter)
            }
            _ => (None, Reason::NotAskedFor),
        };
        Settled { id, created_at, fate: Fate::Refused(reason) }
    }

    pub(super) fn accepts(&self, event: &Event) -> bool {
        match self {
            Self::Ids(ids, filter) | Self::ListingIds(ids, filter) => {
                ids.contains(&event.item().id) && filter.matches(event)
            }
            Self::Matching(filter) | Self::Listing(filter) => filter.matches(event),
        }
    }
}

impl Settled {
    pub(super) fn of(item: Item, fate: Fate) -> Self {
        Self { id: Some(item.id), created_at: item.created_at, fate }
    }
}

/// The ids of events from this peer that are being stored: their commits are not sent back to it.
/// An id is removed when its commit arrives.
#[derive(Debug, Clone, Default)]
pub(super) struct FromPeer(Arc<Mutex<HashSet<[u8; 32]>>>);

impl FromPeer {
    fn insert(&self, id: [u8; 32]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
    }

    /// Removes the id, and returns whether it was there.
    pub(super) fn remove(&self, id: &[u8; 32]) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(id)
    }

    /// Removes the ids of events that were not stored.
    pub(super) fn settle(&self, events: &[Settled]) {
        for event in events.iter().filter(|event| event.fate != Fate::Stored) {
            if let Some(id) = &event.id {
                self.remove(id);
            }
        }
    }

    pub(super) fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// Processes events of the peer `url`. Returns the fate of each, in no order.
pub(super) async fn settle(
    local: &Local,
    url: &str,
    asked: Asked,
    texts: Vec<Box<str>>,
    live: bool,
    from_peer: Option<FromPeer>,
) -> Vec<Settled> {
    let source = Source::Peer { url: url.to_owned(), live };
    let bytes = texts.iter().map(|text| text.len()).sum();
    let (admits, from) = (local.clone(), source.clone());
    let work = move || admit_all(&admits, &from, &asked, texts, from_peer.as_ref());
    let origin = Origin::Peer(url.into());
    let Some((events, mut settled)) = local.verifier.check(&origin, bytes, work).await else {
        // After a panic, which is logged: without a fate for each event the session's counts would
        // not add up.
        return vec![Settled {
            id: None,
            created_at: 0,
            fate: Fate::Failed("a check failed".into()),
        }];
    };
    let verdicts = local.admission.judge(&events, &source).await;
    let (mut items, mut accepted) = (Vec::new(), Vec::new());
    for (event, verdict) in events.into_iter().zip(verdicts) {
        let item = event.item();
        match refused(verdict) {
            None => {
                items.push(item);
                accepted.push(event);
            }
            Some(fate) => settled.push(Settled::of(item, fate)),
        }
    }
    if !accepted.is_empty() {
        let fates = items.into_iter().zip(local.keep(&origin, accepted).await);
        settled.extend(fates.map(|(item, fate)| Settled::of(item, fate)));
    }
    settled
}

/// Parses and verifies events. Events that do not need the store are settled at once.
fn admit_all(
    local: &Local,
    source: &Source,
    asked: &Asked,
    texts: Vec<Box<str>>,
    from_peer: Option<&FromPeer>,
) -> (Vec<VerifiedEvent>, Vec<Settled>) {
    let mut settled = Vec::with_capacity(texts.len());
    let mut events = Vec::with_capacity(texts.len());
    for text in texts {
        match admit(local, source, asked, &text) {
            Ok(event) => {
                if let Some(from_peer) = from_peer {
                    from_peer.insert(event.item().id);
                }
                events.push(event);
            }
            Err(refused) => settled.push(refused),
        }
    }
    (events, settled)
}

impl Local {
    /// Stores events in our own store, or sends them to the relay that we work for.
    async fn keep(&self, origin: &Origin, events: Vec<VerifiedEvent>) -> Vec<Fate> {
        let Some(relay) = &self.relay else {
            return self.store.put(origin, events).await.into_iter().map(fate).collect();
        };
        let count = events.len();
        let (done, fates) = oneshot::channel();
        relay.submit(events, Box::new(move |fates| drop(done.send(fates))));
        let lost = |_| vec![Fate::Failed("the handing over has ended".to_owned()); count];
        fates.await.unwrap_or_else(lost)
    }
}

/// The fate of an event that the write policy does not accept.
fn refused(verdict: Judgement) -> Option<Fate> {
    match verdict {
        Judgement::Accept => None,
        Judgement::Reject(refusal) => Some(fate_of(&refusal)),
        Judgement::ShadowReject => Some(Fate::Refused(Reason::RefusedByPolicy)),
    }
}

/// The fate of an event that the relay does not admit.
fn fate_of(refusal: &admission::Refusal) -> Fate {
    match refusal.reason {
        RefusalReason::Malformed => Fate::Refused(Reason::Invalid),
        RefusalReason::OverLimits => Fate::Refused(Reason::OverLimits),
        RefusalReason::Protected => Fate::Refused(Reason::Protected),
        RefusalReason::Banned => Fate::Refused(Reason::Banned),
        RefusalReason::NotAllowed | RefusalReason::WritePolicy => {
            Fate::Refused(Reason::RefusedByPolicy)
        }
        RefusalReason::NoWritePolicy => Fate::Failed(refusal.text.clone()),
    }
}

/// All checks before the store; `Err` settles the event without it.
fn admit(
    local: &Local,
    source: &Source,
    asked: &Asked,
    text: &str,
) -> Result<VerifiedEvent, Settled> {
    let refuse = |id, created_at, reason| Settled { id, created_at, fate: Fate::Refused(reason) };
    let event = Event::parse(text).map_err(|error| {
        let id = error.id.as_deref().and_then(hex::decode_array);
        refuse(id.filter(|id| asked.names(id)), 0, Reason::Invalid)
    })?;
    let item = event.item();
    if !asked.accepts(&event) {
        return Err(asked.refusal(&event));
    }
    let settled = |fate| Settled::of(item, fate);
    // A lookup is far cheaper than a signature check.
    if local.sets.contains(&item) {
        return Err(settled(Fate::Duplicate));
    }
    let seen = Seen { kind: event.kind(), pubkey: *event.pubkey() };
    if matches!(asked, Asked::Listing(_)) {
        return Err(settled(Fate::Seen(seen)));
    }
    let refuse = |reason| refuse(Some(item.id), item.created_at, reason);
    if matches!(asked, Asked::ListingIds(..)) {
        event.verify().map_err(|_| refuse(Reason::Invalid))?;
        return Err(settled(Fate::Seen(seen)));
    }
    let checked = local.admission.check(&event, source);
    checked.map_err(|refusal| settled(fate_of(&refusal)))?;
    event.verify().map_err(|_| refuse(Reason::Invalid))
}

fn fate(outcome: Outcome) -> Fate {
    match outcome {
        Outcome::Stored => Fate::Stored,
        Outcome::Duplicate => Fate::Duplicate,
        Outcome::Superseded => Fate::Refused(Reason::Superseded),
        Outcome::Deleted => Fate::Refused(Reason::Deleted),
        Outcome::RemovedByOperator => Fate::Refused(Reason::RemovedByOperator),
        Outcome::Retired => Fate::Refused(Reason::Retired),
        Outcome::DeletesTooMuch => Fate::Refused(Reason::OverLimits),
        Outcome::Vanished => Fate::Refused(Reason::Vanished),
        Outcome::Expired => Fate::Refused(Reason::Expired),
        Outcome::PassedOn => Fate::Refused(Reason::Ephemeral),
        Outcome::Failed(reason) => Fate::Failed(reason),
        other => Fate::Failed(format!("the store answered {other:?}")),
    }
}
