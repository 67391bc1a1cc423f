//! Asks a peer that shows no event for a COUNT (NIP-45), because an empty page does not prove that
//! it has none.

use super::super::Machine;
use super::super::patience::PATIENCE;
use super::super::verdict::Round;
use crate::sync::filter::Window;
use crate::sync::machine::page_plan::PagePlan;
use crate::sync::message;
use crate::sync::reason::Reason;
use std::time::Duration;

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) enum CountState {
    #[default]
    Unasked,
    Asked(String, Option<Duration>),
    Answered,
}

impl Machine {
    /// Asks for a COUNT (NIP-45) if no page showed any event, which proves nothing.
    pub(super) fn ask_count(&mut self) {
        // Events that came for no question are not nothing.
        let strays = self.report.refused.contains_key(&Reason::NotAskedFor);
        let is_finished = self.reading.plan.as_ref().is_some_and(PagePlan::was_finished) && !strays;
        if self.reading.count != CountState::Unasked || is_finished {
            return;
        }
        let is_done = self.reading.plan.as_ref().is_some_and(PagePlan::is_done);
        if !is_done || !self.reading.showed_nothing() || !self.reading.is_whole || self.working > 0
        {
            return;
        }
        let looks = self.settings.dry_run;
        let is_open = |round: &Round| {
            // Events that the first round sends have to appear in the next one.
            let goes_on = round.opened > 0 && round.index == 1 && !looks;
            goes_on || (self.over_ids && !round.is_concluded)
        };
        if self.round.as_ref().is_some_and(is_open) {
            return;
        }
        let subscription = self.subscription();
        let since = Some(self.asked_since()).filter(|since| *since > 0);
        let filter = &self.settings.filter;
        let filter = filter.within(Window { since, ..filter.window() });
        self.send(message::count(&subscription, &filter));
        let deadline = Some(self.now.at + PATIENCE);
        self.reading.count = CountState::Asked(subscription, deadline);
    }

    /// COUNT, or the reply of a peer that does not support it.
    pub(in super::super) fn counted(&mut self, subscription: &str, count: Option<u64>) -> bool {
        if self.hint_counted(subscription, count) {
            return true;
        }
        let is_it =
            matches!(&self.reading.count, CountState::Asked(name, _) if name == subscription);
        if is_it {
            self.answered();
            self.take_count(count);
        }
        is_it
    }

    pub(super) fn take_count(&mut self, count: Option<u64>) {
        self.reading.count = CountState::Answered;
        let window = self.settings.filter.window();
        if let Some(plan) = &mut self.reading.plan {
            match count {
                Some(0) => {}
                Some(_) => plan.gap(window, None, "the peer counts events and shows none"),
                None => plan.gap(window, None, "the peer showed no event, which proves nothing"),
            }
        }
    }
}
