//! What happens to an event that a peer sent: read, held against what was asked for and against
//! the limits, verified on the verifier's threads, put to the write policy, stored.

use super::Local;
use crate::admission::{self, Reason, Source, Verdict};
use crate::item::Item;
use crate::store::{Event, Filter, Origin, Outcome, VerifiedEvent};
use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::oneshot;

/// What a REQ asked for.
#[derive(Debug, Clone)]
pub(super) enum Asked {
    /// These ids.
    Ids(Arc<HashSet<[u8; 32]>>),
    /// Whatever matches.
    Matching(Arc<Filter>),
    /// Whatever matches, to be compared and not to be stored.
    Listing(Arc<Filter>),
    /// These ids, to be looked at and not to be stored.
    ListingIds(Arc<HashSet<[u8; 32]>>),
}

impl Asked {
    /// Whether an event of this id was asked for by it.
    fn names(&self, id: &[u8; 32]) -> bool {
        matches!(self, Self::Ids(ids) | Self::ListingIds(ids) if ids.contains(id))
    }

    fn accepts(&self, event: &Event) -> bool {
        match self {
            Self::Ids(ids) | Self::ListingIds(ids) => ids.contains(&event.item().id),
            Self::Matching(filter) | Self::Listing(filter) => filter.matches(event),
        }
    }
}

/// What became of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fate {
    Stored,
    Duplicate,
    /// It is new, and was only to be compared.
    Seen(Seen),
    Refused(Refusal),
    /// The store failed; nothing more can be kept.
    Failed(String),
}

/// What is to be known of an event that is not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) kind: u16,
    pub(super) pubkey: [u8; 32],
}

/// Why an event from a peer was not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Refusal {
    /// A newer version is stored.
    Superseded,
    /// Its author has deleted it.
    Deleted,
    /// Its author or addressee has vanished.
    Vanished,
    /// It has expired.
    Expired,
    /// It is passed on, never stored.
    Ephemeral,
    /// Only its author may publish it, or it is a repost that holds such an event (NIP-70).
    Protected,
    /// It is over a limit of this relay.
    OverLimits,
    /// It is no event, or its id or signature is wrong.
    Invalid,
    /// It was not asked for.
    Unasked,
    /// The connection breaks when it is asked for.
    Unreadable,
    /// The relay that keeps our events does not take it.
    NotTaken,
    /// The write policy does not want it.
    Unwanted,
}

impl Refusal {
    /// The reason as it is counted and remembered.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Superseded => "superseded",
            Self::Deleted => "deleted",
            Self::Vanished => "vanished",
            Self::Expired => "expired",
            Self::Ephemeral => "ephemeral",
            Self::Protected => "protected",
            Self::OverLimits => "over limits",
            Self::Invalid => "invalid",
            Self::Unasked => "not asked for",
            Self::Unreadable => "unreadable",
            Self::NotTaken => "refused by the relay",
            Self::Unwanted => "refused by the write policy",
        }
    }

    /// For how long, in seconds, the event need not be asked for again; `None` when that says
    /// nothing about the event.
    pub(super) fn term_s(self) -> Option<u64> {
        const DAY: u64 = 86_400;
        match self {
            Self::Superseded | Self::Deleted | Self::Vanished | Self::Expired | Self::Ephemeral => {
                Some(30 * DAY)
            }
            // What is configured changes, clocks advance and policies change.
            Self::Protected
            | Self::OverLimits
            | Self::Invalid
            | Self::Unreadable
            | Self::NotTaken
            | Self::Unwanted => Some(DAY),
            Self::Unasked => None,
        }
    }

    /// Whether the reason is this store's own and so holds whichever peer sends the event.
    pub(super) fn is_ours(self) -> bool {
        // A policy may go by the peer.
        !matches!(self, Self::Invalid | Self::Unasked | Self::Unreadable | Self::Unwanted)
    }
}

/// An event that has been dealt with.
#[derive(Debug, Clone)]
pub(super) struct Settled {
    /// `None` when it was not asked for or not even an event.
    pub(super) id: Option<[u8; 32]>,
    pub(super) created_at: u64,
    pub(super) fate: Fate,
}

impl Settled {
    fn of(item: Item, fate: Fate) -> Self {
        Self { id: Some(item.id), created_at: item.created_at, fate }
    }
}

/// The ids of events that are on their way from this peer into the store: their commits are not
/// sent back to it. An id leaves when its commit has been heard of.
#[derive(Debug, Clone, Default)]
pub(super) struct FromPeer(Arc<Mutex<HashSet<[u8; 32]>>>);

impl FromPeer {
    fn insert(&self, id: [u8; 32]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
    }

    /// Forgets the id and returns whether it was there.
    pub(super) fn remove(&self, id: &[u8; 32]) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(id)
    }

    pub(super) fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// Deals with events of the peer `url`: what came of each, in no order.
pub(super) async fn settle(
    local: &Local,
    url: &str,
    asked: Asked,
    texts: Vec<Box<str>>,
    from_peer: Option<FromPeer>,
) -> Vec<Settled> {
    let live = from_peer.is_some() && matches!(asked, Asked::Matching(_));
    let source = Source::Peer { url: url.to_owned(), live };
    let bytes = texts.iter().map(|text| text.len()).sum();
    let (admits, from) = (local.clone(), source.clone());
    let work = move || admit_all(&admits, &from, &asked, texts, from_peer.as_ref());
    let origin = Origin::Peer(url.into());
    let Some((events, mut settled)) = local.verifier.check(&origin, bytes, work).await else {
        // A panic, which the log has. Without a fate the session's accounts would not come out even.
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

/// Reads and verifies events; what needs no store is settled at once.
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
    /// Has events kept: in our own store, or by the relay that we work for.
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

/// What becomes of an event that the write policy does not accept.
fn refused(verdict: Verdict) -> Option<Fate> {
    match verdict {
        Verdict::Accept => None,
        Verdict::Reject(refusal) => Some(fate_of(&refusal)),
        Verdict::ShadowReject => Some(Fate::Refused(Refusal::Unwanted)),
    }
}

/// The fate of an event that the relay does not admit.
fn fate_of(refusal: &admission::Refusal) -> Fate {
    match refusal.reason {
        Reason::Malformed => Fate::Refused(Refusal::Invalid),
        Reason::OverLimits => Fate::Refused(Refusal::OverLimits),
        Reason::Protected => Fate::Refused(Refusal::Protected),
        Reason::NotAllowed | Reason::WritePolicy => Fate::Refused(Refusal::Unwanted),
        Reason::NoWritePolicy => Fate::Failed(refusal.text.clone()),
    }
}

/// Everything that comes before the store; `Err` is what is settled without it.
fn admit(
    local: &Local,
    source: &Source,
    asked: &Asked,
    text: &str,
) -> Result<VerifiedEvent, Settled> {
    let refuse = |id, created_at, refusal| Settled { id, created_at, fate: Fate::Refused(refusal) };
    let event = Event::parse(text).map_err(|error| {
        let mut id = [0; 32];
        let read =
            error.id.is_some_and(|hex| faster_hex::hex_decode(hex.as_bytes(), &mut id).is_ok());
        refuse((read && asked.names(&id)).then_some(id), 0, Refusal::Invalid)
    })?;
    let item = event.item();
    if !asked.accepts(&event) {
        return Err(refuse(None, item.created_at, Refusal::Unasked));
    }
    let settled = |fate| Settled::of(item, fate);
    // A look is far cheaper than a signature.
    if local.sets.contains(&item) {
        return Err(settled(Fate::Duplicate));
    }
    let seen = Seen { kind: event.kind(), pubkey: *event.pubkey() };
    if matches!(asked, Asked::Listing(_)) {
        return Err(settled(Fate::Seen(seen)));
    }
    let refuse = |refusal| refuse(Some(item.id), item.created_at, refusal);
    if matches!(asked, Asked::ListingIds(_)) {
        event.verify().map_err(|_| refuse(Refusal::Invalid))?;
        return Err(settled(Fate::Seen(seen)));
    }
    let checked = local.admission.check(&event, source);
    checked.map_err(|refusal| settled(fate_of(&refusal)))?;
    event.verify().map_err(|_| refuse(Refusal::Invalid))
}

fn fate(outcome: Outcome) -> Fate {
    match outcome {
        Outcome::Stored => Fate::Stored,
        Outcome::Duplicate => Fate::Duplicate,
        Outcome::Superseded => Fate::Refused(Refusal::Superseded),
        Outcome::Deleted => Fate::Refused(Refusal::Deleted),
        Outcome::DeletesTooMuch => Fate::Refused(Refusal::OverLimits),
        Outcome::Vanished => Fate::Refused(Refusal::Vanished),
        Outcome::Expired => Fate::Refused(Refusal::Expired),
        Outcome::PassedOn => Fate::Refused(Refusal::Ephemeral),
        Outcome::Failed(reason) => Fate::Failed(reason),
    }
}
