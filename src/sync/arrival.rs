//! What happens to an event that a peer sent: read, held against what was asked for and against
//! the limits, verified, stored. On the verifier's threads, many events at a time.

use super::Local;
use crate::item::Item;
use crate::policy::{Source, Verdict};
use crate::store::{Event, Filter, Origin, Outcome, VerifiedEvent, within_limits};
use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

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

/// Deals with events of the peer `url`, and calls `done` once all of them are settled.
pub(super) fn settle(
    local: &Local,
    url: &str,
    asked: &Asked,
    texts: Vec<Box<str>>,
    from_peer: Option<&FromPeer>,
    done: impl FnOnce(Vec<Settled>) + Send + 'static,
) {
    let mut settled = Vec::with_capacity(texts.len());
    let mut events = Vec::with_capacity(texts.len());
    for text in texts {
        match admit(local, asked, &text) {
            Ok(event) => {
                if let Some(from_peer) = from_peer {
                    from_peer.insert(event.item().id);
                }
                events.push(event);
            }
            Err(refused) => settled.push(refused),
        }
    }
    let is_live = from_peer.is_some() && matches!(asked, Asked::Matching(_));
    let (source, local) = (Source::peer(url, is_live), local.clone());
    let origin = Origin::Peer(url.into());
    local.policy.clone().judge(events, &source, move |judged| {
        let (mut items, mut events) = (Vec::new(), Vec::new());
        for (event, verdict) in judged {
            let item = event.item();
            match refused(&verdict) {
                None => {
                    items.push(item);
                    events.push(event);
                }
                Some(fate) => settled.push(Settled::of(item, fate)),
            }
        }
        if events.is_empty() {
            return done(settled);
        }
        local.keep(&origin, events, move |fates| {
            let fates = items.into_iter().zip(fates);
            settled.extend(fates.map(|(item, fate)| Settled::of(item, fate)));
            done(settled);
        });
    });
}

impl Local {
    /// Has events kept: in our own store, or by the relay that we work for.
    fn keep(
        &self,
        origin: &Origin,
        events: Vec<VerifiedEvent>,
        done: impl FnOnce(Vec<Fate>) + Send + 'static,
    ) {
        match &self.relay {
            Some(relay) => relay.submit(events, Box::new(done)),
            None => {
                let reply =
                    move |outcomes: Vec<Outcome>| done(outcomes.into_iter().map(fate).collect());
                self.store.submit(origin, events, Box::new(reply));
            }
        }
    }
}

/// What becomes of an event that the write policy does not accept.
fn refused(verdict: &Verdict) -> Option<Fate> {
    match verdict {
        Verdict::Accepted => None,
        Verdict::Refused(_) | Verdict::RefusedQuietly => Some(Fate::Refused(Refusal::Unwanted)),
        Verdict::Unknown => Some(Fate::Failed("the write policy does not answer".into())),
    }
}

/// Everything that comes before the store; `Err` is what is settled without it.
fn admit(local: &Local, asked: &Asked, text: &str) -> Result<VerifiedEvent, Settled> {
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
    if !local.protected && (event.is_protected() || event.holds_protected()) {
        return Err(refuse(Refusal::Protected));
    }
    let event = within_limits(event, &local.limits).map_err(|_| refuse(Refusal::OverLimits))?;
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
