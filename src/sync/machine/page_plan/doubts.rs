//! Doubts about the pages of a peer: whether one may be cut, and what is read again if the order of
//! events or the announced maximum is not true.

use super::super::Id;
use super::part::{Level, Part};
use super::{Hint, PageEvent, PagePlan, ShownPart, is_newest_first, oldest};
use crate::sync::filter::Window;
use std::collections::{BTreeMap, HashSet};

/// A page of at most this many events counts as complete. A peer that cuts pages below it cannot be
/// read.
pub(super) const UNCUT_EVENTS: usize = 2;
/// Events of a closing question may be this much older than the start of the reading: they were on
/// their way to the peer.
const LATE_S: u64 = 60;

impl PagePlan {
    /// Whether the page is so large that it may have been cut, and no later page could show this.
    pub(super) fn may_be_cut_anywhere(&self, events: &[PageEvent]) -> bool {
        let newest = events.iter().map(|event| event.created_at).max();
        let is_ordered = !self.by_arrival && is_newest_first(events) && newest != oldest(events);
        !is_ordered && self.may_hold_more(events.len(), Hint::None)
    }

    /// The assumed order of events was wrong: everything is read again, by time.
    pub(super) fn distrust(&mut self) -> Option<ShownPart> {
        self.by_arrival = true;
        self.read_again()
    }

    /// Reads everything again: the pages so far prove nothing.
    pub(super) fn read_again(&mut self) -> Option<ShownPart> {
        self.is_closed = false;
        self.begins_anew = true;
        self.parts.clear();
        let whole = self.filter.window();
        self.add_windows(&[whole]);
        None
    }

    /// Whether a closing question showed events that existed before.
    pub(super) fn is_late(&self, events: &[PageEvent]) -> bool {
        !self.by_arrival && events.iter().any(|event| !event.is_ours && self.is_old(event))
    }

    /// Whether the event's `created_at` is before the start of the reading.
    pub(crate) fn is_old(&self, event: &PageEvent) -> bool {
        event.created_at.saturating_add(LATE_S) < self.began
    }

    /// Whether a page of `count` events may lack some of its filter.
    pub(super) fn may_hold_more(&self, count: usize, hint: Hint) -> bool {
        hint == Hint::More
            || count >= self.asked
            || (self.may_be_cut(count) && self.max_limit.is_none_or(|most| count >= most))
            || (count > 1 && count >= self.smallest_cut)
    }

    /// Whether no page was larger.
    pub(super) fn may_be_cut(&self, count: usize) -> bool {
        count >= self.largest && count > UNCUT_EVENTS
    }

    /// Asks for some of the events of a second again, which counts as complete only because the
    /// peer announces a larger maximum: a narrower filter would show more of them.
    pub(super) fn check_limit(&mut self, part: &Part, second: Window, events: &[PageEvent]) {
        let pairs = events.iter().map(|event| (event.kind, event.pubkey));
        let Some((kind, author)) = most_common(pairs) else { return };
        let carry: HashSet<Id> = events
            .iter()
            .filter(|event| (event.kind, event.pubkey) == (kind, author))
            .map(|event| event.id)
            .collect();
        if carry.len() < events.len() {
            let filter = part.filter.with_kinds(&[kind]).with_authors(&[author]);
            self.push(filter, second, Level::Authors, carry);
            if let Some(part) = self.parts.last_mut() {
                part.checks_limit = true;
            }
        }
    }

    /// The announced maximum was not true: everything is read again.
    pub(super) fn distrust_limit(&mut self) -> Option<ShownPart> {
        self.max_limit = None;
        self.read_again()
    }
}

fn most_common<T: Ord + Copy>(values: impl Iterator<Item = T>) -> Option<T> {
    let mut counts: BTreeMap<T, usize> = BTreeMap::new();
    values.for_each(|value| *counts.entry(value).or_default() += 1);
    counts.into_iter().max_by_key(|(_, count)| *count).map(|(value, _)| value)
}
