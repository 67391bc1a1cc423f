//! Whether `until` shows its own second. NIP-01 says so, and some relays leave that second out: what a
//! page has cut off of it would never be seen.

use super::{Page, PageEvent, PagePlan, Part, is_newest_first};
use crate::sync::filter::Window;

/// What is known of that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum UntilRule {
    Unknown,
    Includes,
    Excludes,
}

impl PagePlan {
    /// Until when to ask for the events of a part: a second more where its last one may be left out. A
    /// part that has to show some events again tells whether it is.
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

    /// Looks at what a page says of that, and leaves out what lies after its part. Returns whether it
    /// shows the part; else the part has to be asked for again.
    pub(super) fn learn_until(&mut self, part: &Part, page: &mut Page) -> bool {
        let Some(until) = part.window.until else { return true };
        let may_hold_more = self.may_hold_more(page.events.len(), page.hint);
        let is_above = |event: &PageEvent| event.created_at > until;
        if page.events.iter().any(is_above) {
            self.until_rule = UntilRule::Includes;
            page.events.retain(|event| !is_above(event));
            return !may_hold_more;
        }
        let goes_below = page.events.iter().any(|event| event.created_at < until);
        let shows_second = (goes_below || !may_hold_more)
            && !self.by_arrival
            && is_newest_first(&page.events)
            && part.follows
            && !part.carry.is_empty();
        if !shows_second || self.until_rule != UntilRule::Unknown {
            return true;
        }
        if page.events.iter().any(|event| part.carry.contains(&event.id)) {
            self.until_rule = UntilRule::Includes;
            return true;
        }
        self.until_rule = UntilRule::Excludes;
        if let Some(last) = self.filter.parsed().until {
            let window = Window { since: Some(last), until: Some(last) };
            self.gap(window, None, "the peer leaves out the last second of a filter");
        }
        false
    }
}
