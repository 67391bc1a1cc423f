//! Our side over a store: performs the machine's work on threads, in any order.

use super::super::Local;
use super::super::breakdown::{self, By, Rows};
use super::super::filter::{PeerFilter, Window};
use super::super::ingest::{self, FromPeer};
use super::super::machine::{Done, Id, Items, Loaded, Opening, Work};
use super::super::reason::Reason;
use super::{OurEvents, OurSide};
use crate::index::{Slice, SnapshotError, Subscriber, SubscriberError};
use crate::item::Item;
use crate::reconcile::{
    Difference, Initiator, InitiatorError, InitiatorOptions, InitiatorStep, RangeSet,
};
use crate::relay_url::RelayUrl;
use crate::store::{Change, Event, Filter, PeerTraits, Step, StoreError, SyncMark};
use nostr::{EventBuilder, JsonUtil};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// With at most this many of our items newer than the last proof, the peer's newer events are
/// requested at once.
const FEW_NEW_ITEMS: usize = 64;
/// A reading continues from the mark with an overlap, because events may reach a peer late: this
/// many of our newest events, or one in `OVERLAP_SHARE` of all, within `OVERLAP_S` seconds.
const OVERLAP_EVENTS: usize = 8;
const OVERLAP_SHARE: usize = 100;
const OVERLAP_S: u64 = 900;

/// Our side of a sync with one peer.
pub(super) struct Worker {
    local: Local,
    url: RelayUrl,
    /// The key under which the peer's state is recorded.
    peer_key: String,
    filter: PeerFilter,
    /// The second part of the key of the sync mark, in addition to the peer.
    mark_key: String,
    sessions: Mutex<HashMap<u64, Initiator<Slice>>>,
    /// The ids of events from the peer that are being stored; only if live events move in both
    /// directions.
    from_peer: Option<FromPeer>,
    /// Our commits, if they are passed on.
    changes: Option<tokio::sync::Mutex<Subscriber>>,
}

impl Worker {
    pub(super) fn new(
        local: &Local,
        url: &RelayUrl,
        filter: &PeerFilter,
        mark_key: String,
        live: bool,
    ) -> Self {
        Self {
            local: local.clone(),
            url: url.clone(),
            peer_key: url.key(),
            filter: filter.clone(),
            mark_key,
            sessions: Mutex::default(),
            from_peer: live.then(FromPeer::default),
            changes: live.then(|| local.sets.subscribe().into()),
        }
    }

    fn sessions(&self) -> MutexGuard<'_, HashMap<u64, Initiator<Slice>>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// New stored events that match, except those from the peer.
    fn of_change(&self, change: &Change) -> Vec<Loaded> {
        let mut events = Vec::new();
        for step in &change.steps {
            let (Step::Added(event) | Step::Passed(event)) = step else { continue };
            let id = event.item().id;
            let is_theirs = self.from_peer.as_ref().is_some_and(|it| it.remove(&id));
            if !is_theirs
                && self.filter.parsed().matches(event)
                && (self.local.moves_protected() || !event.is_protected())
            {
                let (kind, json) = (event.kind(), event.json().to_owned());
                events.push(Loaded { id, kind, json });
            }
        }
        events
    }

    fn try_perform(&self, work: Work) -> Result<Done, StoreError> {
        let store = &self.local.store;
        Ok(match work {
            Work::Recall => self.recall()?,
            Work::Open(opening) => self.open(opening)?,
            Work::Answer { session, payload } => self.answer(session, &payload)?,
            Work::Divide { session, window, cap } => self.divide(session, window, cap),
            Work::Forget { session } => {
                self.sessions().remove(&session);
                Done::Finished
            }
            Work::Compare { filter, theirs, by } => self.compare(&filter, &theirs, by)?,
            Work::Sort { by, ids } => {
                Done::Sorted(breakdown::of_ours(self.local.sets.source(), by, &ids)?)
            }
            Work::Kinds { ids } => self.kinds(&ids)?,
            Work::Count { subscription, filter, kinds } => {
                let all = self.set(filter.parsed())?.len() as u64;
                let of_kinds = match kinds.is_empty() {
                    true => 0,
                    false => self.set(filter.with_kinds(&kinds).parsed())?.len() as u64,
                };
                Done::Counted { subscription, all, of_kinds }
            }
            Work::Load { ids } => self.load(&ids)?,
            Work::RememberRefused(mut refused) => {
                // The machine knows the peer by the URL without secrets.
                for refused in refused.iter_mut().filter(|refused| !refused.peer.is_empty()) {
                    refused.peer.clone_from(&self.peer_key);
                }
                let banned = self.banned();
                for refused in &mut refused {
                    if refused.reason == Reason::Banned.name() {
                        refused.reason.clone_from(&banned);
                    }
                }
                store.remember_refused(refused)?;
                Done::Finished
            }
            Work::RememberMark(mark) => self.remember(
                "the sync mark",
                store.remember_mark(self.peer_key.clone(), self.mark_key.clone(), mark),
            ),
            Work::RememberTraits(traits) => self.remember(
                "the peer's traits",
                store.remember_traits(self.peer_key.clone(), traits),
            ),
            Work::Sign { challenge } => self.sign(&challenge),
            Work::Ingest { .. } | Work::Conclude { .. } => Done::Finished,
        })
    }

    /// A record that only shortens the next sync may fail to be written.
    fn remember(&self, what: &str, written: Result<(), StoreError>) -> Done {
        if let Err(error) = written {
            tracing::warn!(peer = %self.url, what, %error, "sync state not recorded: the next sync takes longer");
        }
        Done::Finished
    }

    fn recall(&self) -> Result<Done, StoreError> {
        let store = &self.local.store;
        let mark: SyncMark = store.sync_mark(&self.peer_key, &self.mark_key)?;
        let traits: PeerTraits = store.peer_traits(&self.peer_key)?;
        let overlap = match mark.read {
            Some(read) => self.overlap(read.to)?,
            None => None,
        };
        let kept = self.local.sets.source().retention_window(self.filter.parsed())?;
        Ok(Done::Recalled { mark, traits, overlap, kept })
    }

    /// The second from which a reading continues that has come to the second `to`.
    fn overlap(&self, to: u64) -> Result<Option<u64>, StoreError> {
        let set = self.set(self.filter.parsed())?;
        let known =
            to.checked_add(1).map_or(set.len(), |end| set.lower_bound(&Item::new(end, [0; 32])));
        let events = OVERLAP_EVENTS.max(known / OVERLAP_SHARE);
        let second = set.item(known.saturating_sub(events)).map(|item| item.created_at);
        let second = second.filter(|second| *second <= to).unwrap_or(to);
        Ok(Some(second.max(to.saturating_sub(OVERLAP_S))))
    }

    fn set(&self, filter: &Filter) -> Result<Slice, StoreError> {
        let set = self.local.sets.snapshot(std::slice::from_ref(filter), usize::MAX);
        set.map_err(|error| match error {
            SnapshotError::Store(error) => error,
            // No set is larger than the address space.
            _ => StoreError::Closed,
        })
    }

    fn open(&self, opening: Opening) -> Result<Done, StoreError> {
        let options = opening.initiator_options();
        let (session, rule, set) =
            (opening.session, opening.rule, self.set(opening.filter.parsed())?);
        let count = set.len();
        let newest = count.checked_sub(1).and_then(|last| set.item(last));
        let newest = newest.map_or(0, |item| item.created_at);
        // Events that existed when the sets were equal do not come again: neither those of that
        // second, nor those with a `created_at` in the future.
        let known = if newest > self.local.clock().now() { newest } else { 0 };
        let unknown = options.sync_mark.map(|second| second.max(known).saturating_add(1));
        let newer = |second: &u64| count - set.lower_bound(&Item::new(*second, [0; 32]));
        let ahead = unknown.filter(|second| newer(second) <= FEW_NEW_ITEMS);
        // The limits are within those of the protocol: see `Information`.
        let initiator = Initiator::new(set.clone(), options)
            .or_else(|_| Initiator::new(set, InitiatorOptions::default().rule(rule)));
        let mut initiator = initiator.map_err(|_| StoreError::Closed)?;
        let message = initiator.open();
        self.local.sets.check(initiator.set())?;
        self.sessions().insert(session, initiator);
        Ok(Done::Opened { session, message, items: Items { count, newest, ahead } })
    }

    fn answer(&self, session: u64, payload: &[u8]) -> Result<Done, StoreError> {
        // Taken out of the map, because reading an answer may take a while.
        let initiator = self.sessions().remove(&session);
        let Some(mut initiator) = initiator else { return Ok(Done::Finished) };
        let mut found = Difference::new();
        let next: Result<Option<Vec<u8>>, InitiatorError> =
            initiator.receive(payload, &mut found).map(|step| match step {
                InitiatorStep::Send(message) => Some(message),
                InitiatorStep::Done => None,
            });
        // A set of which a part could not be read shows no valid differences.
        self.local.sets.check(initiator.set())?;
        let unsettled_items = initiator.unsettled_items();
        self.sessions().insert(session, initiator);
        let mut remembered = self.remembered(&found.need)?;
        remembered.extend(self.remembered(&found.have)?);
        Ok(Done::Answered { session, found, remembered, unsettled_items, next })
    }

    /// The recorded reasons not to move ids. Those of an earlier ban list no longer count.
    fn remembered(&self, ids: &[Id]) -> Result<HashMap<Id, String>, StoreError> {
        let mut remembered = self.local.store.refused(&self.peer_key, ids)?;
        let (name, banned) = (Reason::Banned.name(), self.banned());
        remembered.retain(|_, reason| !reason.starts_with(name) || *reason == banned);
        for reason in remembered.values_mut().filter(|reason| **reason == banned) {
            name.clone_into(reason);
        }
        Ok(remembered)
    }

    /// The recorded reason for events that the current ban list refuses.
    fn banned(&self) -> String {
        let list = self.local.admission.moderation().current();
        format!("{} {:016x}", Reason::Banned.name(), list.fingerprint())
    }

    fn divide(&self, session: u64, window: Window, cap: Option<u64>) -> Done {
        let initiator = self.sessions().remove(&session);
        let parts = initiator.and_then(|it| window.divide(it.set(), cap, self.local.clock().now()));
        Done::Divided { window, parts }
    }

    fn compare(
        &self,
        filter: &PeerFilter,
        theirs: &HashSet<Id>,
        by: Option<By>,
    ) -> Result<Done, StoreError> {
        let set = self.set(filter.parsed())?;
        let mut have = Vec::new();
        set.for_each(0..set.len(), &mut |item| {
            if !theirs.contains(&item.id) {
                have.push(item.id);
            }
        });
        self.local.sets.check(&set)?;
        let remembered = self.remembered(&have)?;
        let rows = match by {
            Some(by) => breakdown::of_ours(self.local.sets.source(), by, &have)?,
            None => Rows::default(),
        };
        Ok(Done::Compared { have, remembered, rows })
    }

    fn kinds(&self, ids: &[Id]) -> Result<Done, StoreError> {
        let mut kinds = Vec::new();
        self.local.sets.source().events(ids, &mut |item, json| {
            kinds.extend(Event::parse(json).ok().map(|event| (item.id, event.kind())));
        })?;
        Ok(Done::Kinds(kinds))
    }

    fn load(&self, ids: &[Id]) -> Result<Done, StoreError> {
        let moves_protected = self.local.moves_protected();
        let mut events = Vec::with_capacity(ids.len());
        let mut protected = Vec::new();
        self.local.sets.source().events(ids, &mut |item, json| {
            let kind = super::super::message::page_event(json).map_or(0, |event| event.kind);
            if moves_protected || !is_protected(json) {
                events.push(Loaded { id: item.id, kind, json: json.to_owned() });
            } else {
                protected.push(item.id);
            }
        })?;
        Ok(Done::Loaded { events, protected })
    }

    /// NIP-42.
    fn sign(&self, challenge: &str) -> Done {
        let (Some(keys), Ok(relay)) =
            (&self.local.keys, nostr::RelayUrl::parse(&self.url.address()))
        else {
            return Done::Finished;
        };
        match EventBuilder::auth(challenge, relay).sign_with_keys(keys) {
            Ok(event) => Done::Signed { id: event.id.to_bytes(), json: event.as_json() },
            Err(error) => {
                tracing::warn!(%error, "a challenge could not be signed");
                Done::Finished
            }
        }
    }
}

impl OurSide for Worker {
    fn begin(self: Arc<Self>, work: Work) -> impl FnOnce() -> Done + Send {
        move || self.try_perform(work).unwrap_or_else(|error| Done::Failed(error.to_string()))
    }

    async fn ingest(&self, work: Work) -> Done {
        let Work::Ingest { subscription, asked, texts, bytes, live } = work else {
            return Done::Finished;
        };
        let (from_peer, url) = (self.from_peer.clone(), self.url.to_string());
        let events = ingest::settle(&self.local, &url, asked, texts, live, from_peer).await;
        if let Some(from_peer) = &self.from_peer {
            from_peer.settle(&events);
        }
        Done::Ingested { subscription, events, bytes }
    }

    async fn next_events(&self) -> OurEvents {
        let Some(changes) = &self.changes else { return std::future::pending().await };
        match changes.lock().await.recv().await {
            Ok(change) => OurEvents::New(self.of_change(&change)),
            Err(SubscriberError::Lagged) => {
                self.from_peer.iter().for_each(FromPeer::clear);
                OurEvents::Missed
            }
            Err(SubscriberError::Closed) => OurEvents::Closed,
        }
    }
}

/// NIP-70: whether only its author may publish the event. For most events a substring search
/// decides.
fn is_protected(json: &str) -> bool {
    json.contains(r#"["-""#) && Event::parse(json).is_ok_and(|event| event.is_protected())
}
