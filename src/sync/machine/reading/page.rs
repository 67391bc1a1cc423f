//! The current page: its events, its end, and other replies of the peer.

use super::super::ledger::{IdState, Side};
use super::super::page_plan::{Hint, Page, PageEvent};
use super::super::{Asked, Fate, Id, Loss, Machine, Seen, Settled, Work};
use super::MOST_LATE;
use crate::prefix::Prefix;
use crate::sync::breakdown::Rows;
use crate::sync::message;
use crate::sync::reason::Reason;
use std::collections::HashSet;
use std::time::Duration;

/// Maximum number of events on a page, whatever limit the peer announces.
const MOST_PAGE_EVENTS: usize = 1_000_000;
/// Requests for a page that the peer postpones.
const MOST_FAILURES: u32 = 5;
/// The pause before such a page is requested again.
const PUT_OFF: Duration = Duration::from_secs(1);
/// Factor by which fewer events are requested from a peer that refuses a limit; and the minimum.
const FEWER: usize = 5;
const FEWEST_EVENTS: usize = 20;
/// Pages in a row without anything new, after which the rest is left unseen.
const MOST_IDLE_PAGES: u32 = 10_000;
/// Ended pages that are remembered, because more events may come for them.
const MOST_ENDED: usize = 8;
/// The hint for a peer that refuses the filter permanently.
const NARROWER: &str = "name what to sync with --filter, for example '{\"kinds\":[0,1,3]}'";

#[derive(Debug)]
pub(super) struct PageUnderWay {
    pub(super) subscription: String,
    pub(super) asked: Asked,
    pub(super) events: Vec<PageEvent>,
    pub(super) ids: HashSet<Id>,
    pub(super) foreign: u64,
    /// Events that only the peer has, if differences are to be listed.
    pub(super) rows: Rows,
    pub(super) unsettled: usize,
    pub(super) hint: Option<Hint>,
    pub(super) deadline: Option<Duration>,
}

impl Machine {
    /// Handles an event of a page; events come in page order.
    pub(in super::super) fn page_event(&mut self, subscription: &str, json: &str) {
        let until = self.patience();
        let event = message::page_event(json);
        let is_ours = event.is_some_and(|event| {
            self.ledger.get(&event.id).is_some_and(|entry| entry.side == Side::Ours)
        });
        let Some(page) = self.reading.page.as_mut().filter(|it| it.subscription == subscription)
        else {
            return;
        };
        page.deadline = Some(until);
        let (Asked::Matching(filter) | Asked::Listing(filter)) = &page.asked else { return };
        match event {
            Some(event)
                if filter.since.is_none_or(|since| since <= event.created_at)
                    && filter.until.is_none_or(|until| event.created_at <= until)
                    && filter.takes_kind(event.kind) =>
            {
                if page.ids.insert(event.id) {
                    page.events.push(PageEvent { is_ours, ..event });
                }
            }
            _ => page.foreign += 1,
        }
    }

    /// Handles an event for a page that has ended. A newly published event may come then; if older
    /// ones come, pages without them prove nothing.
    pub(in super::super) fn late_event(&mut self, subscription: String, asked: Asked, json: &str) {
        self.needless(1);
        let event = message::page_event(json);
        let Some(plan) = &mut self.reading.plan else { return };
        if event.is_some_and(|event| plan.is_old(&event)) {
            self.reading.late += 1;
            if self.reading.late == MOST_LATE {
                let window = self.settings.filter.window();
                plan.gap(window, None, "the peer shows events after the end of a page");
            }
        }
        self.arrived(subscription, asked, json);
    }

    /// Handles events of a page that were stored or refused.
    pub(in super::super) fn page_settled(&mut self, subscription: &str, events: &[Settled]) {
        let page = self.reading.page.as_mut().filter(|page| page.subscription == subscription);
        let Some(page) = page else { return };
        page.unsettled = page.unsettled.saturating_sub(events.len());
        if page.events.len() > MOST_PAGE_EVENTS {
            let reason = format!("the peer answers a REQ with over {MOST_PAGE_EVENTS} events");
            return self.leave(Loss::Gone(reason));
        }
        let invalid = events.iter().filter(|event| event.fate == Fate::Refused(Reason::Invalid));
        self.reading.unreadable.extend(invalid.filter_map(|event| event.id));
        self.finish_page();
    }

    /// Records an event that only the peer has, in a sync that takes nothing from it.
    pub(in super::super) fn seen(&mut self, event: &Settled, seen: Seen) {
        let found_at = self.found_at();
        let Some(round) = &mut self.round else { return };
        if round.breakdown.as_mut().is_some_and(|breakdown| breakdown.looked_at(event, seen)) {
            return;
        }
        let Some(id) = event.id else { return };
        if self.ledger.get(&id).is_some_and(|entry| entry.round == found_at.round) {
            return;
        }
        if let (Some(breakdown), Some(page)) = (&round.breakdown, &mut self.reading.page) {
            page.rows.add_theirs(breakdown.by, event.created_at, seen);
        }
        round.need += 1;
        let state = if self.settings.direction.is_down() {
            IdState::Open
        } else {
            IdState::Excused(Reason::NotToDownload)
        };
        self.ledger.find(id, Side::Peers, state, found_at);
    }

    /// EOSE of a page.
    pub(in super::super) fn page_ended(&mut self, subscription: &str, hint: Hint) {
        let page = self.reading.page.as_mut().filter(|it| it.subscription == subscription);
        let Some(page) = page.filter(|page| page.hint.is_none()) else { return };
        page.hint = Some(hint);
        let ended = (page.subscription.clone(), page.asked.clone());
        if self.reading.ended.len() >= MOST_ENDED {
            self.reading.ended.pop_front();
        }
        self.reading.ended.push_back(ended);
        self.reading.failures = 0;
        (self.rate_pauses, self.limit_was_refused) = (0, false);
        self.answered();
        self.send(message::close(subscription));
        self.finish_page();
    }

    /// CLOSED of a page. Returns whether it was a page.
    pub(in super::super) fn page_refused(&mut self, subscription: &str, text: &str) -> bool {
        if self.counted(subscription, None) {
            return true;
        }
        let is_it =
            |page: &mut PageUnderWay| page.subscription == subscription && page.hint.is_none();
        let Some(page) = self.reading.page.take_if(is_it) else { return false };
        let prefix = message::prefix(text);
        match prefix {
            _ if self.waits_for_auth(prefix) => {
                self.answered();
                self.auth_required(text);
                return true;
            }
            Some(Prefix::RateLimited) => {
                if let Some(plan) = &mut self.reading.plan {
                    plan.is_limited = true;
                }
                self.pause_for_rate(text);
                return true;
            }
            _ => self.answered(),
        }
        self.reading.failures += 1;
        let text = if text.is_empty() { "without a reason" } else { text };
        if prefix.is_some_and(Prefix::is_final) {
            if text.contains("limit") && self.ask_for_fewer() {
                return true;
            }
            let reason = format!("the peer refuses to be read: {text}");
            self.leave(Loss::Final(reason, Some(self.hint_of_refusal(prefix, NARROWER))));
        } else if self.reading.failures > MOST_FAILURES {
            self.leave(Loss::Gone(format!("the peer does not answer REQ: {text}")));
        } else if page.ids.is_empty() {
            self.on.not_before = Some(self.now.at + PUT_OFF);
        } else {
            self.take_part(page);
        }
        true
    }

    /// Takes a page that came in part. Its end is not trusted: there is more.
    pub(super) fn take_part(&mut self, mut page: PageUnderWay) {
        page.hint = Some(Hint::More);
        self.reading.page = Some(page);
        self.finish_page();
    }

    /// Reduces the events requested for each page. Returns `false` if they are few already.
    pub(super) fn ask_for_fewer(&mut self) -> bool {
        let fewer = (self.information.events_per_req / FEWER).max(FEWEST_EVENTS);
        let is_fewer = fewer < self.information.events_per_req;
        self.information.events_per_req = fewer;
        self.limit_was_refused = false;
        is_fewer
    }

    /// Compares a complete page with our events, and continues with older events.
    fn finish_page(&mut self) {
        let is_over = |page: &mut PageUnderWay| page.hint.is_some() && page.unsettled == 0;
        let Some(page) = self.reading.page.take_if(is_over) else { return };
        self.reading.began_on.get_or_insert(self.connections);
        self.reading.events += page.events.len();
        let Some(plan) = &mut self.reading.plan else { return };
        self.report.round_trips += 1;
        self.on.advanced = true;
        let largest = plan.largest;
        let hint = page.hint.unwrap_or(Hint::None);
        let shown = plan.take(Page { events: page.events, hint, foreign: page.foreign });
        let grew = plan.largest > largest;
        self.reading.idle_pages = if shown.is_some() { 0 } else { self.reading.idle_pages + 1 };
        if self.reading.idle_pages > MOST_IDLE_PAGES {
            let window = self.settings.filter.window();
            plan.abandon(window, "too many pages that prove nothing");
        }
        if grew {
            self.traits.largest_page = plan.largest as u64;
            self.remember_traits();
        }
        if let Some(round) = &mut self.round
            && let Some(breakdown) = &mut round.breakdown
        {
            breakdown.merge(page.rows);
        }
        if let Some(shown) = shown {
            let (filter, theirs) = (shown.filter, shown.theirs);
            self.begin_work(Work::Compare { filter, theirs, by: self.settings.by });
        }
    }
}
