//! Events from the peer: which to ask for next, and what became of those that were asked for.

use super::arrival::{Asked, Settled};
use super::information::Information;
use super::message;
use super::peer::{Peer, PeerError};
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

/// The most REQs at a time.
const REQS_IN_FLIGHT: usize = 8;
/// The most ids that one REQ asks for.
const IDS_PER_REQ: usize = 500;
/// How long a subscription id is, brackets and verb included; an id takes 67 bytes.
const REQ_BYTES: usize = 1_024;
const ID_BYTES: usize = 67;
/// How often an id is asked for that does not come, in ever smaller company.
const MOST_TRIES: u8 = 4;
/// After so many times an id is asked for alone.
pub(super) const ALONE_AFTER: u8 = 3;
/// Above so many ids to ask for, reconciliation waits.
pub(super) const MOST_QUEUED_IDS: usize = 1_000_000;

/// The subscription that runs ahead of the reconciliation, see [`Download::ask_ahead`].
const AHEAD: &str = "ahead";

/// The ids to ask for and the REQs under way.
pub(super) struct Download {
    // Asked for together.
    queue: VecDeque<[u8; 32]>,
    // Did not come before: asked for again, fewer at a time.
    again: VecDeque<([u8; 32], u8)>,
    // Asked for when connections were lost, and how suspect that makes them.
    suspects: HashMap<[u8; 32], u8>,
    under_way: HashMap<String, Request>,
    ids_per_req: usize,
    reqs_in_flight: usize,
    reqs: u64,
    // Events are to be looked at and not to be stored.
    only_looks: bool,
    // Ids that are needed but may come with what was asked for ahead.
    held: Option<Vec<[u8; 32]>>,
    came_ahead: HashSet<[u8; 32]>,
}

struct Request {
    number: u64,
    asked: Asked,
    // Of a REQ by ids: those that have not come.
    missing: HashSet<[u8; 32]>,
    tries: u8,
    // Events that are being checked or stored.
    unsettled: usize,
    ended: bool,
}

/// What a REQ that is over has left.
pub(super) struct Unsent {
    /// Ids that the peer has been asked for often enough.
    pub(super) ids: Vec<[u8; 32]>,
}

impl Download {
    /// `suspects` were asked for when connections were lost: they are asked for in small company.
    pub(super) fn new(
        information: &Information,
        suspects: HashMap<[u8; 32], u8>,
        only_looks: bool,
    ) -> Self {
        let by_message = information.message_bytes.saturating_sub(REQ_BYTES) / ID_BYTES;
        let ids_per_req = IDS_PER_REQ.min(information.events_per_req).min(by_message).max(1);
        // One subscription may be live, one ahead.
        let subscriptions = information.subscriptions.saturating_sub(2);
        Self {
            queue: VecDeque::new(),
            again: VecDeque::new(),
            suspects,
            under_way: HashMap::new(),
            ids_per_req,
            reqs_in_flight: REQS_IN_FLIGHT.min(subscriptions).max(1),
            reqs: 0,
            only_looks,
            held: None,
            came_ahead: HashSet::new(),
        }
    }

    /// Ids to ask for.
    pub(super) fn add(&mut self, ids: Vec<[u8; 32]>) {
        match &mut self.held {
            Some(held) => held.extend(ids),
            None => {
                for id in ids {
                    if self.came_ahead.contains(&id) {
                        continue;
                    }
                    match self.suspects.get(&id) {
                        Some(losses) => self.again.push_back((id, (*losses).min(ALONE_AFTER))),
                        None => self.queue.push_back(id),
                    }
                }
            }
        }
    }

    /// Whether nothing is left to ask for or to wait for.
    pub(super) fn is_idle(&self) -> bool {
        self.queue.is_empty()
            && self.again.is_empty()
            && self.under_way.is_empty()
            && self.held.is_none()
    }

    /// Whether the peer owes an answer.
    pub(super) fn is_waiting(&self) -> bool {
        self.under_way.values().any(|request| !request.ended)
    }

    /// Ids that are not settled.
    pub(super) fn unsettled(&self) -> usize {
        let asked: usize = self.under_way.values().map(|request| request.missing.len()).sum();
        let held = self.held.as_ref().map_or(0, Vec::len);
        self.queue.len() + self.again.len() + held + asked
    }

    /// Ids that the peer has been asked for and has not sent.
    pub(super) fn asked_for(&self) -> usize {
        let waiting = self.under_way.values().filter(|request| !request.ended);
        waiting.map(|request| request.missing.len()).sum()
    }

    /// What events of `subscription` are compared with; `None` when there is none of that name.
    pub(super) fn asked(&self, subscription: &str) -> Option<Asked> {
        self.under_way.get(subscription).filter(|it| !it.ended).map(|it| it.asked.clone())
    }

    /// The ids that the peer was about to send when the connection was lost: those of the oldest
    /// REQ, because REQs are answered in order.
    pub(super) fn at_fault(&self) -> Vec<[u8; 32]> {
        let unfinished = self.under_way.values().filter(|request| !request.ended);
        let oldest = unfinished.min_by_key(|request| request.number);
        oldest.map_or_else(Vec::new, |request| request.missing.iter().copied().collect())
    }

    /// Asks for what is newest before the reconciliation has told what is needed: where little of
    /// ours is as new, nearly all of it will be. Ids that are found meanwhile wait for it.
    pub(super) fn ask_ahead(
        &mut self,
        peer: &Peer,
        filter: &super::PeerFilter,
    ) -> Result<(), PeerError> {
        peer.send(message::req(AHEAD, filter))?;
        self.held = Some(Vec::new());
        let asked = Asked::Matching(Arc::new(filter.parsed().clone()));
        self.begin(AHEAD.to_owned(), asked, HashSet::new(), 0);
        Ok(())
    }

    /// Sends as many REQs as may be under way.
    pub(super) fn advance(&mut self, peer: &Peer) -> Result<(), PeerError> {
        while self.under_way.len() < self.reqs_in_flight {
            let (ids, tries) = if !self.queue.is_empty() {
                let count = self.ids_per_req.min(self.queue.len());
                (self.queue.drain(..count).collect::<Vec<_>>(), 0)
            } else if let Some((_, tries)) = self.again.front().copied() {
                // Halves, quarters and then one by one.
                let most =
                    if tries >= ALONE_AFTER { 1 } else { (self.ids_per_req >> tries).max(1) };
                let alike = self.again.iter().take_while(|(_, other)| *other == tries).count();
                let count = most.min(alike);
                (self.again.drain(..count).map(|(id, _)| id).collect(), tries)
            } else {
                return Ok(());
            };
            self.reqs += 1;
            let subscription = format!("get{}", self.reqs);
            peer.send(message::req_ids(&subscription, &ids))?;
            let missing: HashSet<[u8; 32]> = ids.into_iter().collect();
            let ids = Arc::new(missing.clone());
            let asked = if self.only_looks { Asked::ListingIds(ids) } else { Asked::Ids(ids) };
            self.begin(subscription, asked, missing, tries);
        }
        Ok(())
    }

    fn begin(&mut self, name: String, asked: Asked, missing: HashSet<[u8; 32]>, tries: u8) {
        let request =
            Request { number: self.reqs, asked, missing, tries, unsettled: 0, ended: false };
        self.under_way.insert(name, request);
    }

    /// Events of `subscription` have come and are being checked.
    pub(super) fn arrived(&mut self, subscription: &str, events: usize) {
        if let Some(request) = self.under_way.get_mut(subscription) {
            request.unsettled += events;
        }
    }

    /// Events of `subscription` have been stored or refused. Returns also how many of them had come
    /// before.
    pub(super) fn settled(&mut self, subscription: &str, events: &[Settled]) -> (Unsent, u32) {
        let mut again = 0;
        if let Some(request) = self.under_way.get_mut(subscription) {
            request.unsettled = request.unsettled.saturating_sub(events.len());
            for id in events.iter().filter_map(|event| event.id) {
                let is_first = if subscription == AHEAD {
                    self.came_ahead.insert(id)
                } else {
                    request.missing.remove(&id)
                };
                again += u32::from(!is_first);
            }
        }
        (self.finish(subscription), again)
    }

    /// EOSE or CLOSED: no more events of `subscription` will come.
    pub(super) fn ended(&mut self, subscription: &str) -> Unsent {
        if let Some(request) = self.under_way.get_mut(subscription) {
            request.ended = true;
        }
        self.finish(subscription)
    }

    /// The peer does not serve so many REQs at a time.
    pub(super) fn slow_down(&mut self) {
        self.reqs_in_flight = (self.reqs_in_flight / 2).max(1);
    }

    /// Asks again for what did not come, once a REQ is over and all its events are settled.
    fn finish(&mut self, subscription: &str) -> Unsent {
        let mut unsent = Unsent { ids: Vec::new() };
        let over = |request: &Request| request.ended && request.unsettled == 0;
        if !self.under_way.get(subscription).is_some_and(over) {
            return unsent;
        }
        if let Some(request) = self.under_way.remove(subscription) {
            let tries = request.tries + 1;
            if tries >= MOST_TRIES {
                unsent.ids.extend(request.missing);
            } else {
                self.again.extend(request.missing.into_iter().map(|id| (id, tries)));
            }
        }
        if subscription == AHEAD
            && let Some(held) = self.held.take()
        {
            self.add(held);
        }
        unsent
    }
}
