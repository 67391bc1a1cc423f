//! Reads a peer that does not reconcile: all matching events, newest first, page by page (NIP-01,
//! REQ). Our events that are not on the pages are those that the peer lacks.

mod count;
mod marks;
mod page;

use super::count_hints::CountHints;
use super::ledger::{IdState, Side};
use super::page_plan::{PagePlan, Unseen};
use super::patience::{MOST_SILENCE, missed};
use super::{Asked, Id, Machine};
use crate::sync::breakdown::{Breakdown, Rows};
use crate::sync::filter::Window;
use crate::sync::message;
use count::CountState;
use page::PageUnderWay;
use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// Old events after the end of their page, after which the peer's EOSE is no longer trusted.
const MOST_LATE: u32 = 3;

/// The reading and its current page. It outlives connections.
#[derive(Debug, Default)]
pub(super) struct Reading {
    pub(super) plan: Option<PagePlan>,
    page: Option<PageUnderWay>,
    /// Whether everything is read, by this reading and an interrupted one before it.
    is_whole: bool,
    /// The second from which this reading proves something, if it does not read everything.
    pub(super) since: Option<u64>,
    /// The number of times the peer postponed a page.
    failures: u32,
    idle_pages: u32,
    saved_down_to: Option<u64>,
    /// Ids of malformed events, which other pages may show again.
    unreadable: HashSet<Id>,
    /// The last ended pages, and the number of events that came for them afterwards.
    ended: VecDeque<(String, Asked)>,
    late: u32,
    /// The COUNT that is asked for when no page showed any event.
    count: CountState,
    pub(super) hints: CountHints,
    /// The connection of the first page, and the number of events on all pages.
    pub(super) began_on: Option<u32>,
    pub(super) events: usize,
    /// Whether the peer left a page unanswered.
    pub(super) fell_silent: bool,
}

impl Reading {
    pub(super) fn is_idle(&self) -> bool {
        self.page.is_none()
            && self.plan.as_ref().is_none_or(PagePlan::is_done)
            && !matches!(self.count, CountState::Asked(..))
            && self.hints.is_idle()
    }

    pub(super) fn deadline(&self) -> Option<Duration> {
        let count = match &self.count {
            CountState::Asked(_, deadline) => *deadline,
            _ => None,
        };
        let page = self.page.as_ref().filter(|page| page.hint.is_none());
        let deadlines = [page.and_then(|page| page.deadline), count, self.hints.deadline()];
        deadlines.into_iter().flatten().min()
    }

    pub(super) fn extend(&mut self, until: Duration) {
        if let Some(page) = &mut self.page {
            page.deadline = page.deadline.map(|at| at.max(until));
        }
    }

    pub(super) fn shorten(&mut self, until: Duration) {
        if let Some(page) = &mut self.page {
            page.deadline = page.deadline.map(|at| at.min(until));
        }
        if let CountState::Asked(_, deadline) = &mut self.count {
            *deadline = deadline.map(|at| at.min(until));
        }
        self.hints.shorten(until);
    }

    /// Requests the current page again on the next connection.
    pub(super) fn connection_lost(&mut self) {
        self.page = None;
        if matches!(self.count, CountState::Asked(..)) {
            self.count = CountState::Answered;
        }
        self.hints.end();
    }

    /// Whether the current page is still without an answer.
    pub(super) fn is_unanswered(&self) -> bool {
        self.page.as_ref().is_some_and(|page| page.hint.is_none() && page.ids.is_empty())
    }

    /// The current page, if nothing has come for it.
    pub(super) fn unanswered_page(&self) -> Option<String> {
        let page = self.page.as_ref().filter(|_| self.is_unanswered());
        page.map(|page| page.subscription.clone())
    }

    /// The request that events of `subscription` are checked against; `None` if it is not the
    /// current page.
    pub(super) fn asked(&self, subscription: &str) -> Option<Asked> {
        let page = self.page.as_ref().filter(|it| it.subscription == subscription)?;
        page.hint.is_none().then(|| page.asked.clone())
    }

    /// The request that events of an ended page are checked against.
    pub(super) fn asked_before(&self, subscription: &str) -> Option<Asked> {
        let ended = self.ended.iter().find(|(name, _)| name == subscription);
        ended.map(|(_, asked)| asked.clone())
    }

    /// Whether the peer sends events after EOSE.
    pub(super) fn ends_early(&self) -> bool {
        self.late >= MOST_LATE
    }

    /// Counts events that are being checked.
    pub(super) fn arrived(&mut self, subscription: &str, events: usize) {
        if let Some(page) = self.page.as_mut().filter(|it| it.subscription == subscription) {
            page.unsettled += events;
        }
    }

    pub(super) fn gaps(&self) -> &[Unseen] {
        self.plan.as_ref().map_or(&[], |plan| &plan.gaps)
    }

    pub(super) fn unreadable(&self) -> u64 {
        self.unreadable.len() as u64
    }

    /// Whether no page has shown any event.
    pub(super) fn showed_nothing(&self) -> bool {
        self.plan.as_ref().is_some_and(|plan| plan.newest().is_none())
    }

    /// Whether this reading alone shows all of the peer's events.
    pub(super) fn is_whole(&self) -> bool {
        self.is_whole && self.since.is_none()
    }

    pub(super) fn is_counted(&self) -> bool {
        self.count != CountState::Unasked
    }
}

impl Machine {
    /// Begins to read: new events since the mark, the rest of an interrupted reading, or
    /// everything.
    pub(super) fn begin_reading(&mut self, whole: bool) {
        let window = self.settings.filter.window();
        let now = self.now.unix_s;
        let keeps_marks = self.keeps_marks();
        let mark = self.mark.read.filter(|mark| keeps_marks && !whole && mark.to >= mark.from);
        let is_due = |whole_at: u64| now >= whole_at.saturating_add(self.settings.full_interval_s);
        let newest =
            |since: u64| Window { since: Some(since.max(window.since.unwrap_or(0))), ..window };
        let overlap = self.overlap;
        let (windows, is_whole, since) = match mark {
            Some(mark) if mark.from == 0 && is_due(mark.whole_at) => (vec![window], true, None),
            Some(mark) if mark.from == 0 => {
                let since = overlap.unwrap_or(mark.to);
                (vec![newest(since)], false, Some(since))
            }
            // Continues an interrupted complete reading.
            Some(mark) => {
                let rest = Window { until: Some(mark.from - 1), ..window };
                let since = overlap.unwrap_or(mark.to);
                (vec![newest(since), rest], true, Some(since))
            }
            None => (vec![window], true, None),
        };
        let largest = self.traits.largest_page as usize;
        let sizes = (largest, self.information.max_limit);
        let plan = PagePlan::new(&self.settings.filter, &windows, sizes, now);
        let end = since.filter(|_| self.information.counts && !is_whole).unwrap_or(0);
        let hints = CountHints::about(self.asked_since(), end, self.chance());
        self.reading = Reading { plan: Some(plan), is_whole, since, hints, ..Reading::default() };
    }

    /// The second from which all matching events are requested.
    fn asked_since(&self) -> u64 {
        let filter = &self.settings.filter;
        filter.window().since.max(filter.kept_since()).unwrap_or(0)
    }

    /// Whether to record how far was read: not in a sync that only compares, and not for a filter
    /// with a limit, whose range moves with new events.
    fn keeps_marks(&self) -> bool {
        !self.settings.dry_run && self.settings.filter.parsed().limit.is_none()
    }

    pub(super) fn advance_reading(&mut self) {
        let is_reading = self.round.as_ref().is_some_and(|round| round.is_read);
        if !is_reading {
            return;
        }
        self.save_mark();
        if self.reading.page.is_some() {
            return;
        }
        // Events that the previous page showed to be missing are sent first: the mark covers both
        // directions.
        let is_moving = !self.on.upload.is_idle() || !self.on.second_look.is_idle();
        if is_moving || !self.on.reconciling.is_idle() {
            return;
        }
        if self.reading.plan.as_ref().is_some_and(PagePlan::begins_anew) && !self.begin_anew() {
            return;
        }
        let most = self.information.events_per_req;
        let Some(plan) = &mut self.reading.plan else { return };
        let Some(filter) = plan.next(most) else {
            self.advance_count_hints();
            return self.ask_count();
        };
        let matching = Arc::new(filter.parsed().clone());
        let stores = self.settings.direction.is_down() && !self.settings.dry_run;
        let asked = if stores { Asked::Matching(matching) } else { Asked::Listing(matching) };
        let subscription = self.subscription();
        self.send(message::req(&subscription, &filter));
        let deadline = Some(self.patience());
        self.reading.page = Some(PageUnderWay {
            subscription,
            asked,
            events: Vec::new(),
            ids: HashSet::new(),
            foreign: 0,
            rows: Rows::default(),
            unsettled: 0,
            hint: None,
            deadline,
        });
    }

    /// Drops differences from questions that no longer prove anything. Returns false while a page
    /// is being compared, which comes first.
    fn begin_anew(&mut self) -> bool {
        if self.working > 0 {
            return false;
        }
        if let Some(plan) = &mut self.reading.plan {
            plan.begin();
        }
        self.take_mark_back();
        let (looks, by) = (self.settings.dry_run, self.settings.by);
        if let Some(round) = &mut self.round {
            self.ledger.withdraw(|entry| {
                let was_excused = matches!(entry.state, IdState::Excused(_));
                looks || entry.round == round.number && was_excused && entry.side == Side::Ours
            });
            if looks {
                (round.have, round.need, round.opened, round.reopened) = (0, 0, 0, 0);
                round.breakdown = by.map(Breakdown::new);
            }
        }
        true
    }

    pub(super) fn take_reading_time(&mut self) {
        let now = self.now;
        if let CountState::Asked(_, deadline) = &mut self.reading.count
            && missed(now, deadline)
        {
            self.take_count(None);
        }
        self.take_count_hints_time();
        let waiting = self.reading.page.as_mut().filter(|page| page.hint.is_none());
        let Some(page) = waiting else { return };
        if !missed(now, &mut page.deadline) {
            return;
        }
        let Some(page) = self.reading.page.take() else { return };
        self.send(message::close(&page.subscription));
        if !page.ids.is_empty() && self.silence.total < MOST_SILENCE {
            self.silence.questions += 1;
            self.count_silence();
            return self.take_part(page);
        }
        if let Some(plan) = &mut self.reading.plan {
            plan.not_answered();
        }
        if self.limit_was_refused {
            self.ask_for_fewer();
        }
        self.reading.fell_silent = true;
        self.leave_silent("a page");
    }

    /// Records the rest of a reading that ends early as unseen.
    pub(super) fn keep_unseen(&mut self) {
        if let Some(plan) = &mut self.reading.plan {
            plan.give_up("the sync ended before it was read");
            self.report.not_seen = plan.gaps.clone();
            self.report.unreadable = self.reading.unreadable();
        }
    }
}
