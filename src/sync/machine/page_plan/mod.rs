//! Which pages to ask for so that all that a peer holds is read, and what each page proves.
//!
//! A page is believed to hold the newest events of its filter only while its events come in that
//! order. It then shows its window down to the second in which it ends; that second is part of the
//! next page. A second that may hold more than a page is split by kind, then by author. What no
//! split can prove is a [`Unseen`] gap.

mod page;
mod split;
mod until;

pub use page::Unseen;
pub(crate) use page::{Hint, Page, PageEvent, ShownPart};

use super::Id;
use crate::sync::filter::{PeerFilter, Window};
use std::collections::{BTreeSet, HashSet};
use until::UntilRule;

/// The most values in one list of a filter; some relays answer longer ones with nothing.
pub(crate) const MOST_VALUES: usize = 500;
/// Lists of so few values are answered, if any are.
const FEW_VALUES: usize = 8;
/// A page of so few events was not cut: a peer that is seen to cut so is left unread.
const UNCUT_EVENTS: usize = 2;
/// The most authors that are remembered, to ask for one by one.
const MOST_AUTHORS: usize = 5_000;
/// The most gaps that are named.
const MOST_GAPS: usize = 100;
/// Events that a closing question shows may be older than the reading by so much: they were on
/// their way to the peer.
const LATE_S: u64 = 60;

/// A part that is still to be read.
#[derive(Debug, Clone)]
struct Part {
    /// Narrowed by kinds, authors or values; its times are those of `window`.
    filter: PeerFilter,
    window: Window,
    level: Level,
    /// Ids of the second `window.until` that earlier pages showed.
    carry: HashSet<Id>,
    /// What the page before left: had it not been cut, there would be nothing new.
    follows: bool,
    is_closing: bool,
    /// The page before said that it was the last (NIP-67): this one shows whether that is so.
    checks_finish: bool,
}

/// What a part was split by.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Level {
    Time,
    Kinds(Vec<u16>),
    Authors,
}

/// What is read, and what is left to read.
#[derive(Debug)]
pub(crate) struct PagePlan {
    filter: PeerFilter,
    /// The parts left, the next one last.
    parts: Vec<Part>,
    current: Option<Part>,
    /// How many events the current page was asked to have at most.
    asked: usize,
    /// The most events of any page of this peer.
    pub(crate) largest: usize,
    /// How many events a page has at most, where the peer says it.
    max_limit: Option<usize>,
    /// Events come in the order of their arrival at the peer: only a page that is not full shows
    /// its window.
    by_arrival: bool,
    until_rule: UntilRule,
    /// Whether a page was believed to be the newest of its filter.
    trusted: bool,
    /// When the reading began, in seconds since the Unix epoch.
    began: u64,
    newest: Option<u64>,
    authors: BTreeSet<[u8; 32]>,
    split_seconds: u32,
    /// The peer limits the rate of questions.
    pub(crate) is_limited: bool,
    is_closed: bool,
    was_finished: bool,
    /// The peer says `finish` (NIP-67) where more is left.
    finishes_early: bool,
    /// What was read proves nothing: all is read again.
    begins_anew: bool,
    /// Of a filter with a limit: what has come.
    collected: Vec<PageEvent>,
    pub(crate) gaps: Vec<Unseen>,
    pub(crate) pages: u64,
}

impl PagePlan {
    /// Reads `windows` of `filter`, the newest first. `largest` is the largest page that the peer
    /// is known to have sent, `max_limit` the largest that it says it sends.
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

    /// Reads these, too, the first one first.
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
            self.parts.push(Part {
                filter,
                window,
                level,
                carry,
                follows: false,
                is_closing: false,
                checks_finish: false,
            });
        }
    }

    /// What lies below the oldest event of a page.
    fn push_rest(&mut self, part: &Part, until: Option<u64>, carry: HashSet<Id>) {
        let window = Window { since: part.window.since, until };
        let before = self.parts.len();
        self.push(part.filter.clone(), window, part.level.clone(), carry);
        if let Some(rest) = self.parts.get_mut(before) {
            rest.follows = true;
        }
    }

    /// The filter of the next page, of at most `most` events; `None` when nothing is left to ask.
    pub(crate) fn next(&mut self, most: usize) -> Option<PeerFilter> {
        if self.current.is_none() {
            self.current = Some(self.parts.pop().or_else(|| self.closing_question())?);
        }
        self.pages += 1;
        self.asked = most;
        let part = self.current.as_ref()?;
        let mut window = part.window;
        if window.since.is_none() && window.until.is_none() {
            // A page without any condition is answered with nothing by some relays. What is of
            // second 0 comes with the pages further down.
            window.since = Some(1);
        }
        window.until = self.until_to_ask(part);
        Some(part.filter.within(window).newest(most))
    }

    /// Whether nothing is left to ask.
    pub(crate) fn is_done(&self) -> bool {
        self.current.is_none() && self.parts.is_empty() && self.is_closed_or_empty()
    }

    fn is_closed_or_empty(&self) -> bool {
        self.is_closed || self.newest.is_none() || self.filter.parsed().limit.is_some()
    }

    /// What lies after the newest event that was shown: nothing, unless it is new.
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
            filter,
            window,
            level: Level::Time,
            carry: HashSet::new(),
            follows: false,
            is_closing: true,
            checks_finish: false,
        };
        let parts = self.filter.parts(Window { since: Some(since), until });
        let short = parts.into_iter().flat_map(|(filter, window)| {
            filter.split_values(MOST_VALUES).into_iter().map(move |filter| (filter, window))
        });
        self.parts.extend(short.map(part));
        self.parts.pop()
    }

    /// The page did not come: the next question is smaller, where it can be.
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

    /// Takes the page that was asked for last. Returns what it shows completely.
    pub(crate) fn take(&mut self, mut page: Page) -> Option<ShownPart> {
        let part = self.current.take()?;
        let count = page.events.len();
        self.largest = self.largest.max(count);
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
        let is_new = |event: &PageEvent| !part.carry.contains(&event.id);
        if part.checks_finish && page.events.iter().any(is_new) {
            // The peer says so of every page.
            (self.finishes_early, self.was_finished, self.is_closed) = (true, false, false);
        }
        let is_finished = page.hint == Hint::Finish || part.checks_finish;
        if is_finished && !self.finishes_early && !self.may_be_cut_anywhere(&page.events) {
            return Some(self.take_finish(part, &page.events));
        }
        let (Some(oldest), true) = (oldest(&page.events), count > 0) else {
            return Some(shown(&part, part.window, &[]));
        };
        if part.follows && self.largest <= UNCUT_EVENTS && page.events.iter().any(is_new) {
            self.abandon(self.filter.window(), "the peer shows too few events at a time");
            return None;
        }
        let may_hold_more = self.may_hold_more(count, page.hint);
        if part.is_closing && self.is_late(&page.events) {
            return self.distrust();
        }
        if self.by_arrival || !is_newest_first(&page.events) {
            if !may_hold_more {
                return Some(shown(&part, part.window, &page.events));
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
            return Some(self.go_on_below(part, &page.events, oldest));
        }
        // The whole page is of one second, in which another page may begin.
        if oldest > 0 {
            self.push_rest(&part, oldest.checked_sub(1), HashSet::new());
        }
        let second = Window { since: Some(oldest), until: Some(oldest) };
        if !may_hold_more {
            return Some(shown(&part, second, &page.events));
        }
        self.split_second(part, oldest, &page.events);
        None
    }

    /// Whether the page is large, and no page below it could show that something is left out of it.
    fn may_be_cut_anywhere(&self, events: &[PageEvent]) -> bool {
        let newest = events.iter().map(|event| event.created_at).max();
        let is_ordered = !self.by_arrival && is_newest_first(events) && newest != oldest(events);
        !is_ordered && self.may_hold_more(events.len(), Hint::None)
    }

    /// The peer's own word that nothing is left. It is believed once the next page shows nothing new.
    fn take_finish(&mut self, part: Part, events: &[PageEvent]) -> ShownPart {
        self.was_finished = true;
        self.is_closed |= part.window.until == self.filter.parsed().until;
        let is_ordered = !self.by_arrival && is_newest_first(events);
        let oldest = oldest(events).filter(|_| is_ordered && !part.checks_finish);
        match oldest.filter(|oldest| part.window.until.is_none_or(|until| *oldest < until)) {
            Some(oldest) => {
                let before = self.parts.len();
                let shown = if events.len() <= UNCUT_EVENTS {
                    // The same few may be all that fits, so what lies below them is asked for.
                    if oldest > 0 {
                        self.push_rest(&part, oldest.checked_sub(1), HashSet::new());
                    }
                    let window = Window { since: Some(oldest), until: part.window.until };
                    shown(&part, window, events)
                } else {
                    self.go_on_below(part, events, oldest)
                };
                if let Some(rest) = self.parts.get_mut(before) {
                    (rest.checks_finish, rest.follows) = (true, false);
                }
                shown
            }
            None => shown(&part, part.window, events),
        }
    }

    /// The page shows its window above its oldest second.
    fn go_on_below(&mut self, part: Part, events: &[PageEvent], oldest: u64) -> ShownPart {
        let carry = events.iter().filter(|event| event.created_at == oldest).map(|it| it.id);
        self.push_rest(&part, Some(oldest), carry.collect());
        let above: Vec<PageEvent> =
            events.iter().filter(|event| event.created_at > oldest).copied().collect();
        let window = Window { since: oldest.checked_add(1), until: part.window.until };
        shown(&part, window, &above)
    }

    /// The order of events was believed and is none: everything is read again, by time.
    fn distrust(&mut self) -> Option<ShownPart> {
        self.by_arrival = true;
        self.is_closed = false;
        self.begins_anew = true;
        self.parts.clear();
        let whole = self.filter.window();
        self.add_windows(&[whole]);
        None
    }

    /// Whether events came with a closing question that were there before.
    fn is_late(&self, events: &[PageEvent]) -> bool {
        !self.by_arrival && events.iter().any(|event| !event.is_ours && self.is_old(event))
    }

    /// Whether the event was made before the reading began.
    pub(crate) fn is_old(&self, event: &PageEvent) -> bool {
        event.created_at.saturating_add(LATE_S) < self.began
    }

    fn may_hold_more(&self, count: usize, hint: Hint) -> bool {
        let may_be_cut = count >= self.largest && count > UNCUT_EVENTS;
        hint == Hint::More
            || count >= self.asked
            || (may_be_cut && self.max_limit.is_none_or(|most| count >= most))
    }

    /// A filter with a limit is read until it is full, and compared as a whole.
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
            self.push_rest(&part, until, carry);
            return None;
        }
        let mut all = std::mem::take(&mut self.collected);
        all.sort_unstable_by_key(|event| (std::cmp::Reverse(event.created_at), event.id));
        let theirs = all.iter().take(limit).map(|event| event.id).collect();
        Some(ShownPart { filter: self.filter.clone(), theirs })
    }

    /// Whether what was found before no longer counts.
    pub(crate) fn begins_anew(&self) -> bool {
        self.begins_anew
    }

    /// What was found before is forgotten.
    pub(crate) fn begin(&mut self) {
        self.begins_anew = false;
    }

    /// Whether the peer itself said that nothing is left (NIP-67).
    pub(crate) fn was_finished(&self) -> bool {
        self.was_finished
    }

    /// Leaves the rest unread.
    pub(crate) fn abandon(&mut self, window: Window, why: &'static str) {
        self.parts.clear();
        self.current = None;
        self.is_closed = true;
        self.gap(window, None, why);
    }

    /// The sync ends here: what is not read yet is a gap.
    pub(crate) fn give_up(&mut self, why: &'static str) {
        let rest: Vec<Part> = self.parts.drain(..).chain(self.current.take()).collect();
        // One line says enough of many parts of the same time.
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

    /// The second down to which everything was read without a gap, from the newest on; `None`
    /// while there is none.
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

    /// The newest `created_at` that any page has shown.
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

fn shown(part: &Part, window: Window, events: &[PageEvent]) -> ShownPart {
    let theirs = events.iter().map(|event| event.id).chain(part.carry.iter().copied()).collect();
    ShownPart { filter: part.filter.within(window), theirs }
}
