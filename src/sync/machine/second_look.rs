//! Requests sent events by id from a peer that is read, to see whether it kept them. Events that
//! were being sent when a connection was lost are requested before they are sent again.

use super::ledger::{IdState, Side};
use super::patience::missed;
use super::{Id, Machine, sorted};
use crate::prefix::Prefix;
use crate::sync::message;
use crate::sync::reason::Reason;
use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

/// Maximum number of concurrent REQs.
const REQS_IN_FLIGHT: usize = 4;
/// Repetitions for an id that does not come.
const MOST_TRIES: u8 = 2;
/// Some relays answer the same filter from a cache for a second.
const CACHED: Duration = Duration::from_millis(1_500);

#[derive(Debug, Default)]
pub(super) struct SecondLook {
    /// Ids to request, each with the number of earlier requests.
    queue: VecDeque<(Id, u8)>,
    under_way: HashMap<String, Look>,
    /// The round whose sent events were requested.
    round: u32,
}

#[derive(Debug)]
struct Look {
    missing: HashSet<Id>,
    asked: usize,
    tries: u8,
    deadline: Option<Duration>,
}

impl SecondLook {
    /// Requests the ids of events that were sent on a lost connection and had no OK.
    pub(super) fn ask_first(&mut self, ids: Vec<Id>) {
        self.queue.extend(ids.into_iter().map(|id| (id, 0)));
    }

    pub(super) fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.under_way.is_empty()
    }

    pub(super) fn deadline(&self) -> Option<Duration> {
        self.under_way.values().filter_map(|look| look.deadline).min()
    }

    pub(super) fn extend(&mut self, until: Duration) {
        for look in self.under_way.values_mut() {
            look.deadline = look.deadline.map(|at| at.max(until));
        }
    }

    pub(super) fn shorten(&mut self, until: Duration) {
        for look in self.under_way.values_mut() {
            look.deadline = look.deadline.map(|at| at.min(until));
        }
    }

    /// Whether a REQ with more than one id is without an answer.
    pub(super) fn is_unanswered(&self) -> bool {
        self.under_way.values().any(|look| look.asked > 1 && look.missing.len() == look.asked)
    }

    /// REQs without any answer.
    pub(super) fn unanswered(&self) -> impl Iterator<Item = String> {
        let waiting = self.under_way.iter().filter(|(_, look)| look.missing.len() == look.asked);
        waiting.map(|(name, _)| name.clone())
    }

    pub(super) fn is_about(&self, subscription: &str) -> bool {
        self.under_way.contains_key(subscription)
    }
}

impl Machine {
    pub(super) fn advance_second_look(&mut self) {
        let Some(round) = &self.round else { return };
        if !round.is_read || self.settings.dry_run {
            return;
        }
        let number = round.number;
        let all_is_sent = self.reading.is_idle() && self.on.upload.is_idle() && self.working == 0;
        if all_is_sent && self.on.second_look.is_idle() && self.on.second_look.round != number {
            self.on.second_look.round = number;
            let unproven = |state: IdState| {
                matches!(
                    state,
                    IdState::Accepted | IdState::Duplicate | IdState::Stays(Reason::NotAnswered)
                )
            };
            let sent =
                self.ledger.iter().filter(|(_, it)| it.side == Side::Ours && unproven(it.state));
            let mut sent: Vec<(Id, u8)> = sent.map(|(id, _)| (*id, 0)).collect();
            sent.sort_unstable();
            self.on.second_look.queue = sent.into();
        }
        while self.on.second_look.under_way.len() < REQS_IN_FLIGHT
            && let Some((_, tries)) = self.on.second_look.queue.front().copied()
        {
            let look = &mut self.on.second_look;
            let alike = look.queue.iter().take_while(|(_, other)| *other == tries).count();
            let count = alike.min(self.on.download.ids_per_req());
            let ids: Vec<Id> = look.queue.drain(..count).map(|(id, _)| id).collect();
            let subscription = self.subscription();
            self.send(message::req_ids(&subscription, &ids));
            let deadline = Some(self.patience());
            let look =
                Look { asked: ids.len(), missing: ids.into_iter().collect(), tries, deadline };
            self.on.second_look.under_way.insert(subscription, look);
        }
    }

    /// Records that the peer shows an event.
    pub(super) fn looked_at(&mut self, subscription: &str, id: &Id) {
        let until = self.patience();
        let Some(look) = self.on.second_look.under_way.get_mut(subscription) else { return };
        look.deadline = Some(until);
        if look.missing.remove(id) {
            self.answered();
            self.on.advanced = true;
            self.ledger.set(id, IdState::Shown);
        } else {
            self.needless(1);
        }
    }

    /// Whether the event was sent to the peer, which shows it now in reply to any request.
    pub(super) fn shown_late(&mut self, json: &str) -> bool {
        let Some(event) = message::page_event(json) else { return false };
        let state =
            self.ledger.get(&event.id).filter(|it| it.side == Side::Ours).map(|it| it.state);
        let is_sent = matches!(
            state,
            Some(IdState::Accepted | IdState::Duplicate | IdState::Shown)
                | Some(IdState::Stays(Reason::NotAnswered))
        );
        if is_sent {
            self.needless(1);
            self.ledger.set(&event.id, IdState::Shown);
        }
        is_sent
    }

    /// EOSE: missing events are requested once more, after a pause.
    pub(super) fn look_ended(&mut self, subscription: &str) {
        let Some(look) = self.on.second_look.under_way.remove(subscription) else { return };
        self.rate_pauses = 0;
        self.answered();
        self.send(message::close(subscription));
        let came = look.asked - look.missing.len();
        let may_be_cut = came > 0 && !look.missing.is_empty();
        if may_be_cut {
            // The peer may limit the events of a REQ.
            self.on.download.limit_ids(came);
        }
        for id in sorted(look.missing) {
            match self.ledger.get(&id).map(|entry| entry.state) {
                Some(IdState::Unconfirmed) if !may_be_cut => self.send_unconfirmed(id),
                Some(IdState::Unconfirmed) => self.on.second_look.queue.push_back((id, 1)),
                // Asked again with fewer others.
                _ if may_be_cut && look.tries > 0 => {
                    self.on.second_look.queue.push_back((id, look.tries));
                }
                _ if look.tries < MOST_TRIES => {
                    self.on.second_look.queue.push_back((id, look.tries + 1));
                    self.on.not_before = Some(self.now.at + CACHED);
                }
                None | Some(IdState::Stays(Reason::NotAnswered) | IdState::Shown) => {}
                Some(_) if self.reading.ends_early() => self.stay(id, Reason::NotAnswered),
                Some(_) => self.not_shown(id),
            }
        }
    }

    /// Sends an event again: the connection was lost while it was being sent, and the peer does not
    /// show it.
    fn send_unconfirmed(&mut self, id: Id) {
        self.ledger.set(&id, IdState::Open);
        self.send_open(id);
    }

    /// Queues an event to send; earlier lost connections make it suspect.
    pub(super) fn send_open(&mut self, id: Id) {
        let losses = self.ledger.get(&id).map_or(0, |entry| entry.losses);
        self.on.upload.add(id, losses);
    }

    /// CLOSED.
    pub(super) fn look_refused(&mut self, subscription: &str, text: &str) {
        let Some(look) = self.on.second_look.under_way.remove(subscription) else { return };
        let prefix = message::prefix(text);
        let waits_for_auth = self.waits_for_auth(prefix);
        if waits_for_auth || prefix == Some(Prefix::RateLimited) {
            let again = sorted(look.missing).into_iter().map(|id| (id, look.tries));
            self.on.second_look.queue.extend(again);
            if waits_for_auth {
                self.auth_required(text);
            } else {
                self.pause_for_rate(text);
            }
            return;
        }
        if !message::prefix(text).is_some_and(Prefix::is_final) && look.tries < MOST_TRIES {
            let again = sorted(look.missing).into_iter().map(|id| (id, look.tries + 1));
            self.on.second_look.queue.extend(again);
            self.on.not_before = Some(self.now.at + CACHED);
            return;
        }
        self.refusal.get_or_insert_with(|| text.to_owned());
        for id in sorted(look.missing) {
            match self.ledger.get(&id).map(|entry| entry.state) {
                Some(IdState::Unconfirmed) => self.send_unconfirmed(id),
                _ => self.stay(id, Reason::NotAnswered),
            }
        }
    }

    pub(super) fn take_second_look_time(&mut self) {
        let now = self.now;
        let look = &mut self.on.second_look;
        if look.under_way.values_mut().any(|it| missed(now, &mut it.deadline)) {
            self.ids_not_answered();
        }
    }
}
