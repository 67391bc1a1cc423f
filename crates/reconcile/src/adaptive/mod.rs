//! The initiator beyond the reference: it keeps every range that is not settled
//! in a queue of its own, asks for lists with lists of no ids, and takes from
//! an answer only what was asked for.
//!
//! A responder answers each range it is asked about and remembers nothing, so an
//! initiator is free to ask in any order and to leave out what does not fit.
//! What follows from that:
//!
//! * An IdList is answered with the responder's whole list whatever ids it
//!   holds, so lists are asked for with none ([`split_strategy`] says when).
//! * A range that got no answer stays in the queue as it was. The fingerprint
//!   that closes a cut frame is never believed (see [`reply`]).
//! * One message asks for about as much as one answer holds ([`budget`]).
//! * Where much differs, splitting costs more than listing ([`density`]).
//! * By the exact rule everything is listed, and no fingerprint settles anything.
//! * A range of one day gives ids of that day ([`time_buckets`]).

mod bound_choice;
mod budget;
mod density;
mod reply;
mod split_strategy;
mod time_buckets;

use super::difference::Difference;
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

/// The most ranges that may wait at once; 120 bytes each. An honest peer comes
/// near it only with millions of differences.
const MAX_PENDING_RANGES: usize = 1 << 21;

/// After how many answers in a row that told nothing a session ends. One such
/// answer is met by asking again.
const MAX_IDLE_ROUNDS: u32 = 2;

/// After how many answers in a row that only divided ranges, settling none of
/// our items and listing none of the peer's, a session ends. A responder that
/// splits in 16 is through the largest set in half of them.
const MAX_DIVIDING_ROUNDS: u32 = 32;

/// A range that is not settled.
#[derive(Clone, Copy, Debug)]
struct PendingRange {
    lower: Bound,
    upper: Bound,
    /// The ranks of our own items in it.
    start: usize,
    end: usize,
    state: RangeState,
    /// DifferenceCount for each of our items, where an answer let us estimate it.
    density: Option<f64>,
}

/// What is known of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RangeState {
    /// Nothing: compare fingerprints.
    Untested,
    /// The fingerprints differ.
    Differs,
    /// To be listed, whatever its fingerprint.
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

/// A range as it was put to the peer. `range.state` is what it falls back to
/// when it gets no answer.
#[derive(Clone, Copy, Debug)]
struct AskedRange {
    range: PendingRange,
    for_list: bool,
}

/// A question, as its answer is read.
#[derive(Clone, Copy, Debug)]
struct AskedRanges<'a> {
    ranges: &'a [AskedRange],
    /// Whether a range is settled by an equal fingerprint.
    believes_fingerprints: bool,
}

/// One session's queue and what it has learnt of the peer.
#[derive(Clone, Debug)]
pub(super) struct AdaptiveInitiator {
    split_strategy: SplitStrategy,
    bound_choice: BoundChoice,
    frame_limit_bytes: usize,
    opening_limit_bytes: usize,
    /// No bound is sent that lies below this one.
    since: Bound,
    /// No list is taken that spans two of them.
    time_buckets: Option<TimeBuckets>,
    pending: VecDeque<PendingRange>,
    asked: Vec<AskedRange>,
    budget: ReplyBudget,
    idle_rounds: u32,
    dividing_rounds: u32,
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
        }
    }

    pub(super) fn open<S: RangeSet>(&mut self, set: &S, sync_mark: Option<u64>) -> Vec<u8> {
        let sync_mark = sync_mark.map(|at| at.max(self.since.item.created_at));
        self.pending.clear();
        self.asked.clear();
        (self.idle_rounds, self.dividing_rounds) = (0, 0);
        let opening = match self.time_buckets {
            Some(time_buckets) => time_buckets.opening(set),
            None if self.split_strategy.rule() == Rule::Exact => split_strategy::whole(set),
            None => split_strategy::opening(set, sync_mark, &mut self.bound_choice),
        };
        opening.into_iter().for_each(|range| self.keep(range));
        self.next_message(set, self.opening_limit_bytes)
    }

    /// Our items in ranges that wait or are being asked about.
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
        let reading = reply::read(set, Decoder::new(message)?, asked, self.time_buckets, found)?;
        self.budget.learn(message.len(), reading.cut);
        self.split_strategy.learn(reading.odd);
        let waiting = core::mem::take(&mut self.pending);
        reading.left.into_iter().for_each(|range| self.keep(range));
        self.pending.extend(waiting);
        if let Some(density) = reading.listed.too_sparse_to_list() {
            self.pending.iter_mut().for_each(|range| range.density = Some(density));
        }
        if self.pending.is_empty() {
            return Ok(InitiatorStep::Done);
        }
        self.expect(reading.progress)?;
        if self.pending.len() > MAX_PENDING_RANGES {
            return Err(InitiatorError::TooManyRanges { limit: MAX_PENDING_RANGES });
        }
        Ok(InitiatorStep::Send(self.next_message(set, self.frame_limit_bytes)))
    }

    /// Every answer must bring the end nearer.
    fn expect(&mut self, progress: AnswerProgress) -> Result<(), InitiatorError> {
        self.idle_rounds = if progress == AnswerProgress::None { self.idle_rounds + 1 } else { 0 };
        self.dividing_rounds =
            if progress == AnswerProgress::Settled { 0 } else { self.dividing_rounds + 1 };
        if self.idle_rounds >= MAX_IDLE_ROUNDS || self.dividing_rounds >= MAX_DIVIDING_ROUNDS {
            return Err(InitiatorError::NoProgress { answers: self.dividing_rounds });
        }
        Ok(())
    }

    /// Puts `range` at the end of the queue, without what lies below the
    /// window: a responder that holds a view of a larger set may answer a bound
    /// from before its view with an empty one.
    fn keep(&mut self, mut range: PendingRange) {
        if range.lower != Bound::START && range.lower.item < self.since.item {
            range.lower = self.since;
        }
        if range.lower.item < range.upper.item && self.since.item < range.upper.item {
            self.pending.push_back(range);
        }
    }

    /// Asks about ranges from the front of the queue until the frame is full or
    /// the answer will be.
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

    /// Makes one list of `range` and those that follow it without a gap, or of
    /// its first part when it is too long for one.
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

    /// Asks about `range` in `count` fingerprints. Returns what did not fit.
    fn split<S: RangeSet>(
        &mut self,
        set: &S,
        out: &mut QuestionWriter,
        range: &PendingRange,
        count: usize,
    ) -> Option<PendingRange> {
        // A bucket of a range that differs may be equal.
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

/// A message being written, which takes a range only if it fits.
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
