//! Downloads events by id: chooses the next ids to request, and handles the replies.

use super::ledger::IdState;
use super::link::ALONE_AFTER;
use super::patience::missed;
use super::{Asked, Id, Information, Loss, Machine, Settled, sorted};
use crate::prefix::Prefix;
use crate::sync::filter::PeerFilter;
use crate::sync::message;
use crate::sync::reason::Reason;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// Maximum number of concurrent REQs.
const REQS_IN_FLIGHT: usize = 8;
/// Maximum number of ids in one REQ.
const IDS_PER_REQ: usize = 500;
/// Length of a REQ without its ids; each id takes 67 bytes.
const REQ_BYTES: usize = 1_024;
const ID_BYTES: usize = 67;
/// Factor by which fewer ids are requested after an unanswered REQ.
const LESS: usize = 8;
/// Requests for an id that does not come, each with fewer other ids.
const MOST_TRIES: u8 = 4;
/// With more ids queued, the reconciliation pauses.
pub(super) const MOST_QUEUED_IDS: usize = 1_000_000;
/// Ids in a row that the peer lists but does not send, after which it is given up.
const MOST_FRUITLESS: usize = 10_000;

/// The ids to request, and the current REQs.
#[derive(Debug)]
pub(super) struct Download {
    /// Requested together.
    queue: VecDeque<Id>,
    /// Did not come before: requested again with fewer other ids.
    again: VecDeque<(Id, u8)>,
    under_way: HashMap<String, Request>,
    ids_per_req: usize,
    reqs_in_flight: usize,
    requests: u64,
    /// The subscription that runs ahead of the reconciliation, and needed ids that may come with
    /// it.
    ahead: Option<(String, Vec<Id>)>,
    came_ahead: HashSet<Id>,
    fruitless: usize,
}

#[derive(Debug)]
struct Request {
    number: u64,
    asked: Asked,
    /// For a REQ by ids: those that have not come.
    missing: HashSet<Id>,
    count: usize,
    tries: u8,
    /// Events that are being checked or stored.
    unsettled: usize,
    has_ended: bool,
    deadline: Option<Duration>,
}

impl Download {
    pub(super) fn new(information: &Information) -> Self {
        let by_message = information.message_bytes.saturating_sub(REQ_BYTES) / ID_BYTES;
        let ids_per_req = IDS_PER_REQ.min(information.events_per_req).min(by_message).max(1);
        // Leaves room for a live subscription and one that runs ahead.
        let subscriptions = information.subscriptions.saturating_sub(2);
        Self {
            queue: VecDeque::new(),
            again: VecDeque::new(),
            under_way: HashMap::new(),
            ids_per_req,
            reqs_in_flight: REQS_IN_FLIGHT.min(subscriptions).max(1),
            requests: 0,
            ahead: None,
            came_ahead: HashSet::new(),
            fruitless: 0,
        }
    }

    /// Adds an id to request; `losses` makes it suspect.
    pub(super) fn add(&mut self, id: Id, losses: u8) {
        match &mut self.ahead {
            Some((_, held)) => held.push(id),
            None if self.came_ahead.contains(&id) => {}
            None if losses > 0 => self.again.push_back((id, losses.min(ALONE_AFTER))),
            None => self.queue.push_back(id),
        }
    }

    /// Whether nothing is left to request or to wait for.
    pub(super) fn is_idle(&self) -> bool {
        self.queue.is_empty()
            && self.again.is_empty()
            && self.under_way.is_empty()
            && self.ahead.is_none()
    }

    /// The number of ids that are not settled.
    pub(super) fn unsettled(&self) -> usize {
        let asked: usize = self.under_way.values().map(|request| request.missing.len()).sum();
        let held = self.ahead.as_ref().map_or(0, |(_, held)| held.len());
        self.queue.len() + self.again.len() + held + asked
    }

    /// The number of ids that were requested and have not come.
    pub(super) fn asked_for(&self) -> usize {
        let waiting = self.under_way.values().filter(|request| !request.has_ended);
        waiting.map(|request| request.missing.len()).sum()
    }

    /// The request that events of `subscription` are checked against; `None` if there is no such
    /// subscription.
    pub(super) fn asked(&self, subscription: &str) -> Option<Asked> {
        self.under_way.get(subscription).filter(|it| !it.has_ended).map(|it| it.asked.clone())
    }

    /// The ids that the peer was probably sending when the connection was lost: those of the oldest
    /// REQ, because REQs are answered in order.
    pub(super) fn at_fault(&self) -> Vec<Id> {
        let unfinished = self.under_way.values().filter(|request| !request.has_ended);
        let oldest = unfinished.min_by_key(|request| request.number);
        oldest.map_or_else(Vec::new, |request| sorted(request.missing.iter().copied()))
    }

    pub(super) fn deadline(&self) -> Option<Duration> {
        let waiting = self.under_way.values().filter(|request| !request.has_ended);
        waiting.filter_map(|request| request.deadline).min()
    }

    pub(super) fn extend(&mut self, until: Duration) {
        for request in self.under_way.values_mut() {
            request.deadline = request.deadline.map(|at| at.max(until));
        }
    }

    pub(super) fn shorten(&mut self, until: Duration) {
        for request in self.under_way.values_mut() {
            request.deadline = request.deadline.map(|at| at.min(until));
        }
    }

    /// Whether the oldest REQ, if it has several ids, is still without an answer.
    pub(super) fn is_unanswered(&self) -> bool {
        let unfinished = self.under_way.values().filter(|request| !request.has_ended);
        let oldest = unfinished.min_by_key(|request| request.number);
        oldest.is_some_and(|it| it.count > 1 && it.unsettled == 0 && it.missing.len() == it.count)
    }

    /// REQs by ids without any answer.
    pub(super) fn unanswered(&self) -> impl Iterator<Item = String> {
        let waits = |request: &Request| {
            !request.has_ended && request.unsettled == 0 && request.missing.len() == request.count
        };
        self.under_way.iter().filter(move |(_, it)| waits(it)).map(|(name, _)| name.clone())
    }

    pub(super) fn ids_per_req(&self) -> usize {
        self.ids_per_req
    }

    /// Limits the ids of a REQ to the number of events that the peer sends.
    pub(super) fn limit_ids(&mut self, most: usize) {
        self.ids_per_req = self.ids_per_req.min(most).max(1);
    }

    /// Reduces the number of concurrent REQs.
    pub(super) fn slow_down(&mut self) {
        self.reqs_in_flight = (self.reqs_in_flight / 2).max(1);
    }

    /// Counts events of `subscription` that are being checked.
    pub(super) fn arrived(&mut self, subscription: &str, events: usize) {
        if let Some(request) = self.under_way.get_mut(subscription) {
            request.unsettled += events;
        }
    }

    /// The next ids to request, with the number of earlier requests.
    fn next(&mut self) -> Option<(Vec<Id>, u8)> {
        if !self.queue.is_empty() {
            let count = self.ids_per_req.min(self.queue.len());
            return Some((self.queue.drain(..count).collect(), 0));
        }
        let (_, tries) = self.again.front().copied()?;
        // Halves, quarters and then single ids.
        let most = if tries >= ALONE_AFTER { 1 } else { (self.ids_per_req >> tries).max(1) };
        let alike = self.again.iter().take_while(|(_, other)| *other == tries).count();
        let count = most.min(alike);
        Some((self.again.drain(..count).map(|(id, _)| id).collect(), tries))
    }
}

impl Machine {
    /// Sends as many REQs as are allowed at a time.
    pub(super) fn advance_download(&mut self) {
        while self.on.download.under_way.len() < self.on.download.reqs_in_flight
            && let Some((ids, tries)) = self.on.download.next()
        {
            let subscription = self.subscription();
            self.send(message::req_ids(&subscription, &ids));
            for id in &ids {
                self.ledger.set(id, IdState::UnderWay);
            }
            let missing: HashSet<Id> = ids.into_iter().collect();
            let ids = Arc::new(missing.clone());
            let looks = self.settings.dry_run;
            let filter = Arc::clone(&self.matching);
            let asked =
                if looks { Asked::ListingIds(ids, filter) } else { Asked::Ids(ids, filter) };
            self.begin_request(subscription, asked, missing, tries);
        }
    }

    fn begin_request(&mut self, name: String, asked: Asked, missing: HashSet<Id>, tries: u8) {
        let deadline = Some(self.patience());
        let download = &mut self.on.download;
        download.requests += 1;
        let request = Request {
            number: download.requests,
            asked,
            count: missing.len(),
            missing,
            tries,
            unsettled: 0,
            has_ended: false,
            deadline,
        };
        download.under_way.insert(name, request);
    }

    /// Requests the newest events before the reconciliation shows which are needed: if we have few
    /// events that are as new, nearly all of them will be. Ids found meanwhile wait for it.
    pub(super) fn ask_ahead(&mut self, filter: &PeerFilter) {
        let subscription = self.subscription();
        self.send(message::req(&subscription, filter));
        self.on.download.ahead = Some((subscription.clone(), Vec::new()));
        let asked = Asked::Matching(Arc::new(filter.parsed().clone()));
        self.begin_request(subscription, asked, HashSet::new(), 0);
    }

    /// Records an event of `subscription`: its REQ is being answered.
    pub(super) fn download_moves(&mut self, subscription: &str) {
        let until = self.patience();
        if let Some(request) = self.on.download.under_way.get_mut(subscription) {
            request.deadline = Some(until);
        }
    }

    /// Records events of `subscription` that were stored or refused.
    pub(super) fn download_settled(&mut self, subscription: &str, events: &[Settled]) {
        let download = &mut self.on.download;
        let is_ahead = download.ahead.as_ref().is_some_and(|(name, _)| name == subscription);
        let mut again = 0;
        if let Some(request) = download.under_way.get_mut(subscription) {
            request.unsettled = request.unsettled.saturating_sub(events.len());
            for id in events.iter().filter_map(|event| event.id) {
                let is_first = if is_ahead {
                    download.came_ahead.insert(id)
                } else {
                    request.missing.remove(&id)
                };
                again += u32::from(!is_first);
                download.fruitless = 0;
            }
        }
        self.needless(again);
        self.finish_request(subscription);
    }

    /// EOSE or CLOSED: no more events of `subscription` will come.
    pub(super) fn download_ended(&mut self, subscription: &str) {
        if let Some(request) = self.on.download.under_way.get_mut(subscription) {
            request.has_ended = true;
            self.rate_pauses = 0;
            self.answered();
        }
        self.finish_request(subscription);
    }

    /// Handles unanswered REQs by ids: closes the connection, and requests fewer ids at a time on
    /// the next one.
    pub(super) fn ids_not_answered(&mut self) {
        self.ask_less();
        self.leave_silent("a REQ by ids");
    }

    pub(super) fn ask_less(&mut self) {
        self.most_ids = (self.on.download.ids_per_req / LESS).max(1);
    }

    /// CLOSED of a REQ by ids. Logged once.
    pub(super) fn download_refused(&mut self, subscription: &str, text: &str) {
        let prefix = message::prefix(text);
        let waits_for_auth = self.waits_for_auth(prefix);
        if waits_for_auth || prefix == Some(Prefix::RateLimited) {
            if let Some(request) = self.on.download.under_way.remove(subscription) {
                // The number of earlier requests still counts.
                let again = sorted(request.missing).into_iter().map(|id| (id, request.tries));
                match request.tries {
                    0 => self.on.download.queue.extend(again.map(|(id, _)| id)),
                    _ => self.on.download.again.extend(again),
                }
                self.end_ahead(subscription);
            }
            if waits_for_auth {
                self.auth_required(text);
            } else {
                self.on.download.slow_down();
                self.pause_for_rate(text);
            }
            return;
        }
        self.on.download.slow_down();
        let reason = if text.is_empty() { "without a reason" } else { text };
        if self.refusal.replace(reason.to_owned()).is_none() {
            self.note(format!("the peer refuses a download: {reason}"));
        }
        if message::prefix(text).is_some_and(Prefix::is_final) {
            self.refuse_downloads(subscription);
        }
        self.download_ended(subscription);
    }

    /// Gives up on downloads: the peer sends nothing by id.
    fn refuse_downloads(&mut self, subscription: &str) {
        let download = &mut self.on.download;
        let mut ids: Vec<Id> = download.queue.drain(..).collect();
        ids.extend(download.again.drain(..).map(|(id, _)| id));
        if let Some(request) = download.under_way.get_mut(subscription) {
            ids.extend(request.missing.drain());
        }
        for id in ids {
            self.stay(id, Reason::NotSent);
        }
    }

    /// Requests missing events again, once a REQ is over and all its events are settled.
    fn finish_request(&mut self, subscription: &str) {
        let download = &mut self.on.download;
        let is_over = |request: &Request| request.has_ended && request.unsettled == 0;
        if !download.under_way.get(subscription).is_some_and(is_over) {
            return;
        }
        let Some(request) = download.under_way.remove(subscription) else { return };
        let came = request.count - request.missing.len();
        let tries = request.tries + 1;
        if came > 0 && !request.missing.is_empty() && request.tries == 0 {
            download.limit_ids(came.max(20));
        }
        // Fewer ids would not help, because no event came at all.
        let is_hopeless = tries >= MOST_TRIES || (tries >= 3 && came == 0);
        if came == 0 {
            download.fruitless += request.missing.len();
        }
        let fruitless = download.fruitless;
        if is_hopeless {
            for id in sorted(request.missing) {
                self.stay(id, Reason::NotSent);
            }
        } else {
            download.again.extend(sorted(request.missing).into_iter().map(|id| (id, tries)));
        }
        self.end_ahead(subscription);
        if fruitless >= MOST_FRUITLESS {
            let reason = format!(
                "no progress: the peer lists events and sends none; of the last {fruitless} that it \
                 was asked for none came"
            );
            self.leave(Loss::Final(reason, None));
        }
    }

    /// Requests the ids that waited for the REQ that ran ahead, unless their events came.
    fn end_ahead(&mut self, subscription: &str) {
        if let Some((_, held)) = self.on.download.ahead.take_if(|(name, _)| name == subscription) {
            for id in held {
                let losses = self.ledger.get(&id).map_or(0, |entry| entry.losses);
                self.on.download.add(id, losses);
            }
        }
    }

    pub(super) fn take_download_time(&mut self) {
        let now = self.now;
        let waiting = self.on.download.under_way.iter_mut().filter(|(_, it)| !it.has_ended);
        let mut late = waiting.filter(|(_, it)| it.deadline.is_some());
        if late.any(|(_, it)| missed(now, &mut it.deadline)) {
            self.ids_not_answered();
        }
    }
}
