//! Finds days to read again, for a peer that is read since a mark: days on which the peer's COUNT
//! (NIP-45) differs from ours. Events with an old `created_at` may reach a peer late. A count
//! proves nothing; the next complete reading finds the rest.

use super::patience::PATIENCE;
use super::patience::missed;
use super::probe::PRIVATE_KINDS;
use super::{Machine, Work};
use crate::store::DAY_S;
use crate::sync::filter::{FIRST_EVENTS, Window};
use crate::sync::message;
use std::time::Duration;

/// Maximum number of COUNTs of a reading, and the time for all of them.
const MOST_COUNTS: u32 = 64;
const MOST_TIME: Duration = Duration::from_secs(15);
/// Maximum number of ranges that are read again.
const MOST_STRETCHES: u32 = 4;
/// A range is at most a day long; shorter, as long as it has more events than this.
const FEW_EVENTS: u64 = 64;

/// The number of our matching events, in all and of kinds that a peer may hide.
#[derive(Debug, Clone, Copy, Default)]
struct Ours {
    all: u64,
    private: u64,
}

/// A range of seconds, both ends included, with the counts of both sides.
#[derive(Debug, Clone, Copy)]
struct Stretch {
    first: u64,
    last: u64,
    ours: Ours,
    theirs: u64,
}

/// A range that both sides are counting.
#[derive(Debug)]
struct Question {
    subscription: String,
    first: u64,
    last: u64,
    /// The range of which it is the older part.
    whole: Option<Stretch>,
    ours: Option<Ours>,
    theirs: Option<u64>,
    deadline: Option<Duration>,
}

/// The ranges under examination, and the current question.
#[derive(Debug, Default)]
pub(super) struct CountHints {
    /// First and last seconds of ranges that are still to be counted as a whole.
    unasked: Vec<(u64, u64)>,
    /// Ranges that differ; the next one is the last element.
    differing: Vec<Stretch>,
    question: Option<Question>,
    counts: u32,
    stretches: u32,
    /// The time of the first question.
    began: Duration,
}

impl CountHints {
    /// Hints for the seconds from `first` to `end`, `end` excluded. They are in two parts, so that
    /// a late event on our side and one on the peer's side do not always cancel out. `chance`
    /// determines the boundary.
    pub(super) fn about(first: u64, end: u64, chance: u64) -> Self {
        let Some(last) = end.checked_sub(1).filter(|last| first <= *last) else {
            return Self::default();
        };
        let likely = FIRST_EVENTS.clamp(first, last);
        let cut = likely + chance % (last - likely + 1);
        let older = cut.checked_sub(1).filter(|before| first <= *before);
        let unasked = older.map(|before| (first, before)).into_iter().chain([(cut, last)]);
        Self { unasked: unasked.collect(), ..Self::default() }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.unasked.is_empty() && self.differing.is_empty() && self.question.is_none()
    }

    pub(super) fn deadline(&self) -> Option<Duration> {
        self.question.as_ref().and_then(|question| question.deadline)
    }

    pub(super) fn shorten(&mut self, until: Duration) {
        if let Some(question) = &mut self.question {
            question.deadline = question.deadline.map(|at| at.min(until));
        }
    }

    /// Asks the peer no further questions.
    pub(super) fn end(&mut self) {
        *self = Self::default();
    }

    /// The next range to examine, within the bounds.
    fn next(&mut self, now: Duration) -> Option<Stretch> {
        let is_enough = self.counts >= MOST_COUNTS
            || self.stretches >= MOST_STRETCHES
            || now >= self.began + MOST_TIME;
        if is_enough {
            self.end();
        }
        self.differing.pop()
    }
}

impl Stretch {
    /// Whether it is small enough to be read instead of divided.
    fn is_small(&self) -> bool {
        let is_a_day = self.last - self.first < DAY_S;
        self.first == self.last || (is_a_day && self.theirs.max(self.ours.all) <= FEW_EVENTS)
    }

    /// The first second of its newer part: the start of a day, if it is longer than a day.
    fn middle(&self) -> u64 {
        if self.first < FIRST_EVENTS && FIRST_EVENTS <= self.last {
            return FIRST_EVENTS;
        }
        let middle = self.first + (self.last - self.first).div_ceil(2);
        let day = middle - middle % DAY_S;
        if day > self.first { day } else { middle }
    }

    /// The rest without its older part; `None` if the counts contradict each other.
    fn without(&self, older: &Self) -> Option<Self> {
        Some(Self {
            first: older.last + 1,
            last: self.last,
            ours: Ours {
                all: self.ours.all.saturating_sub(older.ours.all),
                private: self.ours.private.saturating_sub(older.ours.private),
            },
            theirs: self.theirs.checked_sub(older.theirs)?,
        })
    }
}

impl Machine {
    /// Asks the next question, or begins to read a range that differs.
    pub(super) fn advance_count_hints(&mut self) {
        let hints = &mut self.reading.hints;
        if hints.question.is_some() {
            return;
        }
        if hints.counts == 0 {
            hints.began = self.now.at;
        }
        if let Some((first, last)) = hints.unasked.pop() {
            return self.ask_hint(first, last, None);
        }
        let Some(stretch) = hints.next(self.now.at) else { return };
        if !stretch.is_small() {
            return self.ask_hint(stretch.first, stretch.middle() - 1, Some(stretch));
        }
        hints.stretches += 1;
        let window = Window { since: Some(stretch.first), until: Some(stretch.last) };
        if let Some(plan) = &mut self.reading.plan {
            plan.add_windows(&[window]);
        }
        self.advance_reading();
    }

    /// A number that differs from sync to sync.
    pub(super) fn chance(&self) -> u64 {
        self.settings.nonce.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32)
    }

    fn ask_hint(&mut self, first: u64, last: u64, whole: Option<Stretch>) {
        let filter = self.settings.filter.within(Window { since: Some(first), until: Some(last) });
        let kinds = PRIVATE_KINDS.into_iter().filter(|kind| filter.parsed().takes_kind(*kind));
        let kinds: Vec<u16> = kinds.collect();
        let subscription = self.subscription();
        self.send(message::count(&subscription, &filter));
        self.begin_work(Work::Count { subscription: subscription.clone(), filter, kinds });
        let deadline = Some(self.now.at + PATIENCE);
        self.reading.hints.counts += 1;
        self.reading.hints.question =
            Some(Question { subscription, first, last, whole, ours: None, theirs: None, deadline });
    }

    /// Handles the peer's count; `None` if it does not count. Returns whether the count was
    /// requested here.
    pub(super) fn hint_counted(&mut self, subscription: &str, count: Option<u64>) -> bool {
        let question = self.reading.hints.question.as_mut();
        let Some(question) = question.filter(|it| it.subscription == subscription) else {
            return false;
        };
        (question.theirs, question.deadline) = (count, None);
        self.answered();
        if count.is_none() {
            self.reading.hints.end();
        }
        self.take_hint();
        true
    }

    /// Handles our own count.
    pub(super) fn ours_counted(&mut self, subscription: &str, all: u64, private: u64) {
        let question = self.reading.hints.question.as_mut();
        if let Some(question) = question.filter(|it| it.subscription == subscription) {
            question.ours = Some(Ours { all, private });
            self.take_hint();
        }
    }

    /// Keeps the ranges that differ, once both sides have counted.
    fn take_hint(&mut self) {
        let chance = self.chance();
        let hints = &mut self.reading.hints;
        let Some(Question { first, last, whole, ours: Some(ours), theirs: Some(theirs), .. }) =
            hints.question
        else {
            return;
        };
        hints.question = None;
        let older = Stretch { first, last, ours, theirs };
        let newer = match whole.map(|whole| whole.without(&older)) {
            Some(None) => return hints.end(),
            newer => newer.flatten(),
        };
        // A range that differs permanently must not always come first.
        let is_older_first = (chance >> (hints.counts % 64)) & 1 == 0;
        let mut parts: Vec<Stretch> = newer.into_iter().chain([older]).collect();
        if !is_older_first {
            parts.reverse();
        }
        let direction = self.settings.direction;
        parts.retain(|it| {
            let may_have_more = it.theirs > it.ours.all && direction.is_down();
            let may_lack_some =
                it.theirs < it.ours.all.saturating_sub(it.ours.private) && direction.is_up();
            may_have_more || may_lack_some
        });
        self.reading.hints.differing.extend(parts);
    }

    pub(super) fn take_count_hints_time(&mut self) {
        let now = self.now;
        if let Some(question) = &mut self.reading.hints.question
            && missed(now, &mut question.deadline)
        {
            self.reading.hints.end();
        }
    }
}
