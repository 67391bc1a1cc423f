//! Whether the peer treats `until` as included. NIP-01 says so, but some relays exclude that
//! second: events that a page has cut off of it would never be seen.

use super::part::Part;
use super::{Page, PageEvent, PagePlan, is_newest_first};
use crate::sync::filter::Window;

/// The peer's treatment of `until`, as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum UntilRule {
    Unknown,
    Includes,
    Excludes,
}

impl PagePlan {
    /// The `until` to request for a part: one second later if the peer may exclude it. A part that
    /// must show some events again determines the treatment.
    pub(super) fn until_to_ask(&self, part: &Part) -> Option<u64> {
        let tells = part.follows && !part.carry.is_empty();
        let more = match self.until_rule {
            UntilRule::Unknown => u64::from(!tells),
            UntilRule::Includes => 0,
            UntilRule::Excludes => 1,
        };
        let last = self.filter.parsed().until.unwrap_or(u64::MAX);
        part.window.until.map(|until| until.saturating_add(more).min(last))
    }

    /// Determines the treatment from a page, and removes events after its part. Returns the part
    /// that the page shows; the rest is requested again.
    pub(super) fn learn_until(&mut self, mut part: Part, page: &mut Page) -> Option<Part> {
        let Some(until) = part.window.until else { return Some(part) };
        let may_hold_more = self.may_hold_more(page.events.len(), page.hint);
        let is_above = |event: &PageEvent| event.created_at > until;
        if page.events.iter().any(is_above) {
            self.until_rule = UntilRule::Includes;
            page.events.retain(|event| !is_above(event));
            if may_hold_more {
                self.parts.push(part);
                return None;
            }
            return Some(part);
        }
        let goes_below = page.events.iter().any(|event| event.created_at < until);
        let shows_second = (goes_below || !may_hold_more)
            && !self.by_arrival
            && is_newest_first(&page.events)
            && part.follows
            && !part.carry.is_empty();
        if !shows_second || self.until_rule != UntilRule::Unknown {
            return Some(part);
        }
        if page.events.iter().any(|event| part.carry.contains(&event.id)) {
            self.until_rule = UntilRule::Includes;
            return Some(part);
        }
        self.until_rule = UntilRule::Excludes;
        let parsed = self.filter.parsed();
        let (last, is_limited) = (parsed.until, parsed.limit.is_some());
        if let Some(last) = last {
            let window = Window { since: Some(last), until: Some(last) };
            self.gap(window, None, "the peer leaves out the last second of a filter");
        }
        let below = Window { until: until.checked_sub(1), ..part.window };
        if is_limited || below.until < below.since.or(Some(0)) {
            // Either no part lies below that second, or the newest events have to come first.
            self.parts.push(part);
            return None;
        }
        let second = Window { since: Some(until), until: Some(until) };
        self.parts.push(Part { window: second, follows: false, ..part.clone() });
        part.window = below;
        part.carry.clear();
        Some(part)
    }
}
