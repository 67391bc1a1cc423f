//! An initiator that improves on the reference. It keeps all unsettled ranges in a queue, requests
//! lists by sending empty lists, and reads only the parts of an answer that it requested.
//!
//! A responder answers each range of a message and keeps no state, so an initiator may ask in any
//! order and leave out what does not fit. Consequences:
//!
//! * A responder answers an IdList with its whole list, whichever ids the IdList holds. So lists
//!   are requested with an empty one ([`split_strategy`] decides when).
//! * A range without an answer stays in the queue unchanged. The fingerprint that closes a cut
//!   frame is not trusted (see [`reply`]).
//! * One message requests about as much as one answer holds ([`budget`]).
//! * Where many items differ, splitting costs more than listing ([`density`]).
//! * The exact rule lists everything; no fingerprint settles a range.
//! * A range of one day yields ids of that day ([`time_buckets`]).

mod bound_choice;
mod budget;
mod density;
mod reply;
mod split_strategy;
mod time_buckets;

use super::difference::{Difference, SessionEvidence};
use super::message::{Decoder, Encoder};
use super::options::{InitiatorError, InitiatorOptions, InitiatorStep, Rule};
use super::range_set::{Bound, RangeSet};
use super::reference::SplitBucket;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use bound_choice::BoundChoice;
use budget::ReplyBudget;
use core::ops::Range;
use reply::AnswerProgress;
use split_strategy::{Plan, SplitStrategy};
use time_buckets::TimeBuckets;

/// Maximum number of pending ranges, 120 bytes each. An honest peer comes near it only with
/// millions of differences.
const MAX_PENDING_RANGES: usize = 1 << 21;

/// Consecutive answers without any progress after which a session ends. The first such answer is
/// met by asking again.
const MAX_IDLE_ROUNDS: u32 = 2;

/// Consecutive answers after which a session ends if they only divided ranges: none of our items
/// settled, no id of the peer listed. A responder that splits ranges in 16 needs half as many for
/// the largest set.
const MAX_DIVIDING_ROUNDS: u32 = 32;

/// A range that is not settled yet.
#[derive(Clone, Copy, Debug)]
struct PendingRange {
    lower: Bound,
    upper: Bound,
    /// The ranks of our items in the range.
    start: usize,
    end: usize,
    state: RangeState,
    /// Estimated differences for each of our items, once an answer allowed an estimate.
    density: Option<f64>,
}

/// What is known about a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RangeState {
    /// Nothing yet: compare fingerprints.
    Untested,
    /// The fingerprints differ.
    Differs,
    /// To be listed, whether or not its fingerprint is equal.
    Unlisted,
}

impl PendingRange {
    fn ranks(&self) -> Range<usize> {
        self.start..self.end
    }

    fn own_items(&self) -> usize {
        self.end - self.start
    }

    fn touches(&self, next: &Self) -> bool {
        self.upper.item == next.lower.item
    }
}

/// A range as it was sent to the peer. Without an answer it returns to `range.state`.
#[derive(Clone, Copy, Debug)]
struct AskedRange {
    range: PendingRange,
    for_list: bool,
}

/// The ranges of one message, for reading its answer.
#[derive(Clone, Copy, Debug)]
struct AskedRanges<'a> {
    ranges: &'a [AskedRange],
    /// Whether an equal fingerprint settles a range.
    believes_fingerprints: bool,
}

/// The queue of one session and what it has learned about the peer.
#[derive(Clone, Debug)]
pub(super) struct AdaptiveInitiator {
    split_strategy: SplitStrategy,
    bound_choice: BoundChoice,
    frame_limit_bytes: usize,
    opening_limit_bytes: usize,
    /// No bound below this one is sent.
    since: Bound,
    /// No list spans two time buckets.
    time_buckets: Option<TimeBuckets>,
    pending: VecDeque<PendingRange>,
    asked: Vec<AskedRange>,
    budget: ReplyBudget,
    idle_rounds: u32,
    dividing_rounds: u32,
    evidence: SessionEvidence,
}

impl AdaptiveInitiator {
    pub(super) fn new(options: &InitiatorOptions) -> Self {
        let unlimited = |bytes: usize| if bytes == 0 { usize::MAX } else { bytes };
        let frame_limit_bytes = unlimited(options.frame_limit_bytes);
        Self {
            split_strategy: SplitStrategy::new(options.rule, options.empty_id_lists),
            bound_choice: BoundChoice::new(options.bounds_seed),
            frame_limit_bytes,
            opening_limit_bytes: unlimited(options.opening_limit_bytes).min(frame_limit_bytes),
            since: options.since.map_or(Bound::START, Bound::at),
            time_buckets: options.time_bucket_s.map(|length_s| TimeBuckets { length_s }),
            pending: VecDeque::new(),
            asked: Vec::new(),
            budget: ReplyBudget::new(options.reply_limit_bytes),
            idle_rounds: 0,
            dividing_rounds: 0,
            evidence: SessionEvidence::default(),
        }
    }

    pub(super) fn open<S: RangeSet>(&mut self, set: &S, sync_mark: Option<u64>) -> Vec<u8> {
        let sync_mark = sync_mark.map(|at| at.max(self.since.item.created_at));
        self.pending.clear();
        self.asked.clear();
        (self.idle_rounds, self.dividing_rounds, self.evidence) =
            (0, 0, SessionEvidence::default());
        let opening = match self.time_buckets {
            Some(time_buckets) => time_buckets.opening(set),
            None if self.split_strategy.rule() == Rule::Exact => split_strategy::whole(set),
            None => split_strategy::opening(set, sync_mark, &mut self.bound_choice),
        };
        opening.into_iter().for_each(|range| self.keep(range));
        self.next_message(set, self.opening_limit_bytes)
    }

    /// Our items in pending ranges and in ranges that were sent.
    pub(super) fn unsettled_items(&self) -> usize {
        let asked = self.asked.iter().map(|asked| asked.range.own_items());
        self.pending.iter().map(PendingRange::own_items).chain(asked).sum()
    }

    pub(super) fn receive<S: RangeSet>(
        &mut self,
        set: &S,
        message: &[u8],
        found: &mut Difference,
    ) -> Result<InitiatorStep, InitiatorError> {
        let asked = core::mem::take(&mut self.asked);
        let believes_fingerprints = self.split_strategy.rule() != Rule::Exact;
        let asked = AskedRanges { ranges: &asked, believes_fingerprints };
        let known = found.len();
        let reading = reply::read(set, Decoder::new(message)?, asked, self.time_buckets, found)?;
        self.evidence.unequal |= reading.unequal;
        self.evidence.cut |= reading.cut;
        self.evidence.difference |= found.len() > known;
        self.budget.learn(message.len(), reading.cut);
        self.split_strategy.learn(reading.odd);
        let waiting = core::mem::take(&mut self.pending);
        reading.left.into_iter().for_each(|range| self.keep(range));
        self.pending.extend(waiting);
        if let Some(density) = reading.listed.too_sparse_to_list() {
            self.pending.iter_mut().for_each(|range| range.density = Some(density));
        }
        if self.pending.is_empty() {
            return self.evidence.end();
        }
        self.expect(reading.progress)?;
        if self.pending.len() > MAX_PENDING_RANGES {
            return Err(InitiatorError::TooManyRanges { limit: MAX_PENDING_RANGES });
        }
        Ok(InitiatorStep::Send(self.next_message(set, self.frame_limit_bytes)))
    }

    /// Records the progress of one answer; fails after too many answers without enough of it.
    fn expect(&mut self, progress: AnswerProgress) -> Result<(), InitiatorError> {
        self.idle_rounds = if progress == AnswerProgress::None { self.idle_rounds + 1 } else { 0 };
        self.dividing_rounds =
            if progress == AnswerProgress::Settled { 0 } else { self.dividing_rounds + 1 };
        if self.idle_rounds >= MAX_IDLE_ROUNDS || self.dividing_rounds >= MAX_DIVIDING_ROUNDS {
            return Err(InitiatorError::NoProgress { answers: self.dividing_rounds });
        }
        Ok(())
    }

    /// Appends `range` to the queue, cut to the window. A responder that holds a view of a larger
    /// set may answer a bound from before its view with an empty one.
    fn keep(&mut self, mut range: PendingRange) {
        if range.lower != Bound::START && range.lower.item < self.since.item {
            range.lower = self.since;
        }
        if range.lower.item < range.upper.item && self.since.item < range.upper.item {
            self.pending.push_back(range);
        }
    }

    /// Asks about ranges from the front of the queue until the message or the expected answer is
    /// full.
    fn next_message<S: RangeSet>(&mut self, set: &S, limit_bytes: usize) -> Vec<u8> {
        let crowded = self.split_strategy.is_crowded(self.pending.iter());
        let mut out = QuestionWriter { out: Encoder::new(), end: Bound::START, limit_bytes };
        let mut expected_bytes = 0;
        while let Some(range) = self.pending.pop_front() {
            if expected_bytes >= self.budget.bytes() {
                self.pending.push_front(range);
                break;
            }
            let plan = self.split_strategy.plan(&range, crowded);
            expected_bytes += split_strategy::expected_reply_bytes(&range, plan);
            let rest = match plan {
                Plan::List => {
                    let range = self.join(set, range, crowded, limit_bytes);
                    let written = out.list(set, &range, self.split_strategy.lists_own_ids());
                    if written {
                        self.asked.push(AskedRange { range, for_list: true });
                    }
                    (!written).then_some(range)
                }
                Plan::Split(count) => self.split(set, &mut out, &range, count),
            };
            if let Some(rest) = rest {
                self.pending.push_front(rest);
                break;
            }
        }
        out.out.finish()
    }

    /// Joins `range` and the ranges that follow it without a gap into one list, or takes the first
    /// part of `range` if it is too long for one list.
    fn join<S: RangeSet>(
        &mut self,
        set: &S,
        mut range: PendingRange,
        crowded: bool,
        limit_bytes: usize,
    ) -> PendingRange {
        let most_items = self.split_strategy.list_most_items(limit_bytes);
        if range.own_items() > most_items {
            let mut rest = range;
            range.end = range.start + most_items;
            range.upper = set.bound_at(range.end);
            (rest.start, rest.lower) = (range.end, range.upper);
            self.pending.push_front(rest);
        }
        while let Some(next) = self.pending.front() {
            let joins = self.split_strategy.joins_lists()
                && range.touches(next)
                && self.time_buckets.is_none_or(|time_buckets| time_buckets.share(&range, next))
                && self.split_strategy.plan(next, crowded) == Plan::List
                && range.own_items() + next.own_items() <= most_items;
            if !joins {
                break;
            }
            (range.end, range.upper) = (next.end, next.upper);
            range.state = RangeState::Unlisted;
            self.pending.pop_front();
        }
        range
    }

    /// Asks about `range` in `count` fingerprints. Returns the part that did not fit.
    fn split<S: RangeSet>(
        &mut self,
        set: &S,
        out: &mut QuestionWriter,
        range: &PendingRange,
        count: usize,
    ) -> Option<PendingRange> {
        // One bucket of a range that differs may itself be equal.
        let state = if count == 1 { range.state } else { RangeState::Untested };
        let mut lower = range.lower;
        for SplitBucket { start, end, upper, fingerprint } in
            self.bound_choice.buckets(set, range.ranks(), range.upper, count)
        {
            if !out.fingerprint(&lower, &upper, &fingerprint) {
                return Some(PendingRange { lower, start, ..*range });
            }
            let bucket = PendingRange { lower, upper, start, end, state, density: range.density };
            self.asked.push(AskedRange { range: bucket, for_list: false });
            lower = upper;
        }
        None
    }
}

/// A message being written. It takes a range only if the range fits.
struct QuestionWriter {
    out: Encoder,
    end: Bound,
    limit_bytes: usize,
}

impl QuestionWriter {
    fn list<S: RangeSet>(&mut self, set: &S, range: &PendingRange, own_ids: bool) -> bool {
        self.write(&range.lower, &range.upper, |out| {
            let ranks = if own_ids { range.ranks() } else { 0..0 };
            out.id_list(&range.upper, ranks.len());
            set.for_each(ranks, &mut |item| out.id(&item.id));
        })
    }

    fn fingerprint(&mut self, lower: &Bound, upper: &Bound, fingerprint: &[u8; 16]) -> bool {
        self.write(lower, upper, |out| out.fingerprint(upper, fingerprint))
    }

    fn write(&mut self, lower: &Bound, upper: &Bound, range: impl FnOnce(&mut Encoder)) -> bool {
        let mark = self.out.mark();
        if self.end.item != lower.item {
            self.out.skip(lower);
        }
        range(&mut self.out);
        let fits = self.out.message_bytes() <= self.limit_bytes;
        if fits {
            self.end = *upper;
        } else {
            self.out.go_back(mark);
        }
        fits
    }
}
