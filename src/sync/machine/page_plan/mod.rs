//! The plan of a reading: the pages to request so that all of a peer's events are read, and the
//! proof that each page gives.
//!
//! A page counts as the newest events of its filter only if its events come in that order. It then
//! shows its window down to the second in which it ends; that second is part of the next page. A
//! second that may hold more than a page is split by kind, then by author. A range that no split
//! can prove is a gap ([`Unseen`]).

mod doubts;
mod page;
mod part;
mod split;
mod until;

pub use page::Unseen;
pub(crate) use page::{Hint, Page, PageEvent, ShownPart};

use super::Id;
use crate::sync::filter::{PeerFilter, Window};
use doubts::UNCUT_EVENTS;
use part::{Level, Part};
use std::collections::{BTreeSet, HashSet};
use until::UntilRule;

/// Maximum number of values in one list of a filter; some relays return nothing for longer lists.
pub(crate) const MOST_VALUES: usize = 500;
/// Number of values for which a peer answers, if it answers lists at all.
const FEW_VALUES: usize = 8;
/// Maximum number of authors that are remembered, to be requested one by one.
const MOST_AUTHORS: usize = 5_000;
/// Maximum number of gaps that are reported.
const MOST_GAPS: usize = 100;
/// The pages read, and the parts left to read.
#[derive(Debug)]
pub(crate) struct PagePlan {
    filter: PeerFilter,
    /// The remaining parts; the next one is the last element.
    parts: Vec<Part>,
    current: Option<Part>,
    /// The limit of the current page's request.
    asked: usize,
    /// The largest page of this peer so far, in events.
    pub(crate) largest: usize,
    /// The smallest page that proved to be cut: some peers cut pages by bytes, or as they like.
    smallest_cut: usize,
    /// The peer's announced maximum of events on a page.
    max_limit: Option<usize>,
    /// Events come in the order of their arrival at the peer: only a page that is not full shows
    /// its window completely.
    by_arrival: bool,
    until_rule: UntilRule,
    /// Whether a page has counted as the newest events of its filter.
    trusted: bool,
    /// The start of the reading, in seconds since the Unix epoch.
    began: u64,
    newest: Option<u64>,
    authors: BTreeSet<[u8; 32]>,
    split_seconds: u32,
    /// Whether the peer has a rate limit on questions.
    pub(crate) is_limited: bool,
    is_closed: bool,
    was_finished: bool,
    /// Whether the peer announces the end (NIP-67) when more events are left.
    finishes_early: bool,
    /// The pages so far prove nothing: everything is read again.
    begins_anew: bool,
    /// For a filter with a limit: the events received.
    collected: Vec<PageEvent>,
    pub(crate) gaps: Vec<Unseen>,
    pub(crate) pages: u64,
}

impl PagePlan {
    /// A plan to read `windows` of `filter`, newest first. `largest` is the largest page that the
    /// peer is known to have sent, `max_limit` its announced maximum.
    pub(crate) fn new(
        filter: &PeerFilter,
        windows: &[Window],
        (largest, max_limit): (usize, Option<usize>),
        began: u64,
    ) -> Self {
        let mut plan = Self {
            filter: filter.clone(),
            parts: Vec::new(),
            current: None,
            asked: usize::MAX,
            largest,
            smallest_cut: usize::MAX,
            max_limit,
            by_arrival: false,
            until_rule: UntilRule::Unknown,
            trusted: false,
            began,
            newest: None,
            authors: BTreeSet::new(),
            split_seconds: 0,
            is_limited: false,
            is_closed: false,
            was_finished: false,
            finishes_early: false,
            begins_anew: true,
            collected: Vec::new(),
            gaps: Vec::new(),
            pages: 0,
        };
        plan.add_windows(windows);
        plan
    }

    /// Adds windows to read, the first one first.
    pub(crate) fn add_windows(&mut self, windows: &[Window]) {
        for window in windows.iter().rev() {
            for (filter, window) in self.filter.parts(*window).into_iter().rev() {
                for filter in filter.split_values(MOST_VALUES) {
                    self.push(filter, window, Level::Time, HashSet::new());
                }
            }
        }
    }

    fn push(&mut self, filter: PeerFilter, window: Window, level: Level, carry: HashSet<Id>) {
        if window.since.unwrap_or(0) <= window.until.unwrap_or(u64::MAX) {
            self.parts.push(Part::new(filter, window, level, carry));
        }
    }

    /// Adds the part below the oldest event of a page with `above` events.
    fn push_rest(&mut self, part: &Part, until: Option<u64>, carry: HashSet<Id>, above: usize) {
        let window = Window { since: part.window.since, until };
        let before = self.parts.len();
        self.push(part.filter.clone(), window, part.level.clone(), carry);
        if let Some(rest) = self.parts.get_mut(before) {
            (rest.follows, rest.above) = (true, above);
        }
    }

    /// The filter of the next page, with at most `most` events; `None` when nothing is left to
    /// read.
    pub(crate) fn next(&mut self, most: usize) -> Option<PeerFilter> {
        if self.current.is_none() {
            self.current = Some(self.parts.pop().or_else(|| self.closing_question())?);
        }
        self.pages += 1;
        self.asked = most;
        let part = self.current.as_ref()?;
        let mut window = part.window;
        if window.since.is_none() && window.until.is_none() {
            // Some relays return nothing for a filter without any condition. Events of second 0
            // come with later pages.
            window.since = Some(1);
        }
        window.until = self.until_to_ask(part);
        Some(part.filter.within(window).newest(most))
    }

    /// Whether nothing is left to read.
    pub(crate) fn is_done(&self) -> bool {
        self.current.is_none() && self.parts.is_empty() && self.is_closed_or_empty()
    }

    fn is_closed_or_empty(&self) -> bool {
        self.is_closed || self.newest.is_none() || self.filter.parsed().limit.is_some()
    }

    /// The part after the newest event shown: empty, except for new events.
    fn closing_question(&mut self) -> Option<Part> {
        if self.is_closed_or_empty() {
            return None;
        }
        let since = self.newest?.checked_add(1)?;
        let until = self.filter.parsed().until;
        if until.is_some_and(|until| until < since) {
            self.is_closed = true;
            return None;
        }
        self.is_closed = true;
        let part = |(filter, window)| Part {
            is_closing: true,
            ..Part::new(filter, window, Level::Time, HashSet::new())
        };
        let parts = self.filter.parts(Window { since: Some(since), until });
        let short = parts.into_iter().flat_map(|(filter, window)| {
            filter.split_values(MOST_VALUES).into_iter().map(move |filter| (filter, window))
        });
        self.parts.extend(short.map(part));
        self.parts.pop()
    }

    /// Handles an unanswered page: the next request is smaller, if possible.
    pub(crate) fn not_answered(&mut self) {
        let Some(part) = self.current.take() else { return };
        let longest = part.filter.longest_list();
        if longest <= FEW_VALUES {
            return self.parts.push(part);
        }
        for filter in part.filter.split_values(longest.div_ceil(8)) {
            self.parts.push(Part { filter, ..part.clone() });
        }
    }

    /// Handles the page that was requested last. Returns the part that it shows completely.
    pub(crate) fn take(&mut self, mut page: Page) -> Option<ShownPart> {
        let part = self.current.take()?;
        let count = page.events.len();
        self.largest = self.largest.max(count);
        let above = if page.hint == Hint::More { 0 } else { count };
        for event in &page.events {
            self.newest = self.newest.max(Some(event.created_at));
            if self.authors.len() < MOST_AUTHORS {
                self.authors.insert(event.pubkey);
            }
        }
        let part = self.learn_until(part, &mut page)?;
        if self.filter.parsed().limit.is_some() {
            return self.take_limited(part, page);
        }
        let count = page.events.len();
        if count == 0 && (page.foreign > 0 || page.hint == Hint::More) {
            let why = if page.foreign > 0 { "filter ignored" } else { "no events, but more" };
            self.gap(part.window, None, why);
            return None;
        }
        let has_new = part.has_new(&page.events);
        if part.checks_limit {
            return if has_new { self.distrust_limit() } else { None };
        }
        if part.above > 0 && has_new {
            self.smallest_cut = self.smallest_cut.min(part.above);
        }
        if part.checks_finish && has_new {
            // The peer announces the end of every page.
            (self.finishes_early, self.was_finished, self.is_closed) = (true, false, false);
        }
        let is_finished = page.hint == Hint::Finish || part.checks_finish;
        if is_finished && !self.finishes_early && !self.may_be_cut_anywhere(&page.events) {
            return Some(self.take_finish(part, &page.events));
        }
        let lacks_shown = part.lacks_shown(&page.events);
        if lacks_shown && let Some(second) = part.window.since {
            if part.level == Level::Authors {
                self.gap(part.window, None, "a page leaves out events that an earlier page showed");
            }
            self.split_second(part, second, &page.events);
            return None;
        }
        self.take_events(part, &page, above)
    }

    /// Handles a page of which neither the peer nor an earlier page says what it lacks.
    fn take_events(&mut self, part: Part, page: &Page, above: usize) -> Option<ShownPart> {
        let Some(oldest) = oldest(&page.events) else {
            return Some(part.shown(part.window, &[]));
        };
        let count = page.events.len();
        if part.follows && self.largest <= UNCUT_EVENTS && part.has_new(&page.events) {
            self.abandon(self.filter.window(), "the peer shows too few events at a time");
            return None;
        }
        let may_hold_more = self.may_hold_more(count, page.hint);
        if part.is_closing && self.is_late(&page.events) {
            return self.distrust();
        }
        if self.by_arrival || !is_newest_first(&page.events) {
            if !may_hold_more {
                return Some(part.shown(part.window, &page.events));
            }
            if !self.by_arrival && self.trusted {
                return self.distrust();
            }
            self.by_arrival = true;
            self.split_time(part, &page.events);
            return None;
        }
        self.trusted = true;
        if part.window.until.is_none_or(|until| oldest < until) {
            return Some(self.go_on_below(part, &page.events, oldest, above));
        }
        // The whole page is of one second, and the next page may begin in that second.
        if oldest > 0 {
            self.push_rest(&part, oldest.checked_sub(1), HashSet::new(), 0);
        }
        let second = Window { since: Some(oldest), until: Some(oldest) };
        if !may_hold_more {
            if self.may_be_cut(count) {
                self.check_limit(&part, second, &page.events);
            }
            return Some(part.shown(second, &page.events));
        }
        self.split_second(part, oldest, &page.events);
        None
    }

    /// Handles the peer's announcement that nothing is left. It is trusted once the next page shows
    /// nothing new.
    fn take_finish(&mut self, part: Part, events: &[PageEvent]) -> ShownPart {
        self.was_finished = true;
        self.is_closed |= part.window.until == self.filter.parsed().until;
        let is_ordered = !self.by_arrival && is_newest_first(events);
        let oldest = oldest(events).filter(|_| is_ordered && !part.checks_finish);
        match oldest.filter(|oldest| part.window.until.is_none_or(|until| *oldest < until)) {
            Some(oldest) => {
                let before = self.parts.len();
                let shown = if events.len() <= UNCUT_EVENTS {
                    // A few events may be all that fits on a page, so the part below them is
                    // requested.
                    if oldest > 0 {
                        self.push_rest(&part, oldest.checked_sub(1), HashSet::new(), 0);
                    }
                    let window = Window { since: Some(oldest), until: part.window.until };
                    part.shown(window, events)
                } else {
                    self.go_on_below(part, events, oldest, 0)
                };
                if let Some(rest) = self.parts.get_mut(before) {
                    (rest.checks_finish, rest.follows) = (true, false);
                }
                shown
            }
            None => part.shown(part.window, events),
        }
    }

    /// The page shows its window above its oldest second; the rest becomes a part.
    fn go_on_below(
        &mut self,
        part: Part,
        events: &[PageEvent],
        oldest: u64,
        above: usize,
    ) -> ShownPart {
        let carry = events.iter().filter(|event| event.created_at == oldest).map(|it| it.id);
        self.push_rest(&part, Some(oldest), carry.collect(), above);
        let above: Vec<PageEvent> =
            events.iter().filter(|event| event.created_at > oldest).copied().collect();
        let window = Window { since: oldest.checked_add(1), until: part.window.until };
        part.shown(window, &above)
    }

    /// A filter with a limit is read until the limit is reached, and compared as a whole.
    fn take_limited(&mut self, part: Part, page: Page) -> Option<ShownPart> {
        let limit = self.filter.parsed().limit.unwrap_or(usize::MAX);
        if !is_newest_first(&page.events) {
            self.gap(part.window, None, "events come in no order");
            return None;
        }
        let known: HashSet<Id> = self.collected.iter().map(|event| event.id).collect();
        let new: Vec<PageEvent> =
            page.events.iter().filter(|event| !known.contains(&event.id)).copied().collect();
        let is_over = new.is_empty() || page.hint == Hint::Finish;
        let oldest = oldest(&page.events);
        self.collected.extend(new);
        let until = if is_over { oldest.and_then(|it| it.checked_sub(1)) } else { oldest };
        let more = self.collected.len() < limit
            && page.hint != Hint::Finish
            && until.is_some_and(|until| part.window.since.is_none_or(|since| since <= until));
        if more {
            if is_over && self.may_hold_more(page.events.len(), page.hint) {
                self.gap(part.window, None, "one second holds more events than a page");
            }
            let second = self.collected.iter().filter(|event| Some(event.created_at) == until);
            let carry = second.map(|event| event.id).collect();
            self.push_rest(&part, until, carry, 0);
            return None;
        }
        let mut all = std::mem::take(&mut self.collected);
        all.sort_unstable_by_key(|event| (std::cmp::Reverse(event.created_at), event.id));
        let theirs = all.iter().take(limit).map(|event| event.id).collect();
        Some(ShownPart { filter: self.filter.clone(), theirs })
    }

    /// Whether earlier results no longer count.
    pub(crate) fn begins_anew(&self) -> bool {
        self.begins_anew
    }

    /// Drops earlier results.
    pub(crate) fn begin(&mut self) {
        self.begins_anew = false;
    }

    /// Whether the peer announced that nothing is left (NIP-67).
    pub(crate) fn was_finished(&self) -> bool {
        self.was_finished
    }

    /// Leaves a window unread, as a gap.
    pub(crate) fn abandon(&mut self, window: Window, why: &'static str) {
        self.parts.clear();
        self.current = None;
        self.is_closed = true;
        self.gap(window, None, why);
    }

    /// Ends the reading: unread parts become gaps.
    pub(crate) fn give_up(&mut self, why: &'static str) {
        let rest: Vec<Part> = self.parts.drain(..).chain(self.current.take()).collect();
        // Parts with the same window are reported once.
        let mut windows: Vec<Window> = rest.iter().map(|part| part.window).collect();
        windows.dedup();
        for window in windows.into_iter().take(MOST_GAPS) {
            self.gap(window, None, why);
        }
    }

    pub(crate) fn gap(&mut self, window: Window, kind: Option<u16>, why: &'static str) {
        if self.gaps.len() >= MOST_GAPS {
            return;
        }
        self.gaps.push(Unseen { since: window.since, until: window.until, kind, why });
    }

    /// The second down to which everything was read without a gap, from the newest on; `None` if
    /// there is none yet.
    pub(crate) fn read_down_to(&self) -> Option<u64> {
        if !self.gaps.is_empty() || self.filter.parsed().limit.is_some() {
            return None;
        }
        let parts = self.parts.iter().chain(&self.current).filter(|part| !part.is_closing);
        let mut down_to = Some(0);
        for part in parts {
            let above = part.window.until.and_then(|until| until.checked_add(1))?;
            down_to = down_to.max(Some(above));
        }
        down_to
    }

    /// The newest `created_at` on any page.
    pub(crate) fn newest(&self) -> Option<u64> {
        self.newest
    }
}

fn oldest(events: &[PageEvent]) -> Option<u64> {
    events.iter().map(|event| event.created_at).min()
}

fn is_newest_first(events: &[PageEvent]) -> bool {
    events.is_sorted_by(|one, next| one.created_at >= next.created_at)
}
