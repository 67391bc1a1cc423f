//! Applies an answer to the ranges that were asked about.
//!
//! Only requested parts are read: a list or a fingerprint that does not lie within one range of the
//! question is ignored. This applies in particular to the fingerprint that closes a cut frame. The
//! reference C++, JavaScript and Go responders compute it over a smaller range than its bounds say,
//! so it can equal ours although many items differ; and it covers ranges that were left out of the
//! question. It is trusted only if the cut lies strictly inside one requested range and we hold
//! items there.
//!
//! Ranges without an answer stay as they were. A skipped range is equal if we asked with a
//! fingerprint; a skipped list is requested again.

use super::density::{self, BucketCounts, Listed};
use super::time_buckets::TimeBuckets;
use super::{AskedRange, AskedRanges, PendingRange, RangeState};
use crate::difference::Difference;
use crate::message::{DecodeFault, Decoder, MessageError, Payload};
use crate::range_set::{Bound, RangeSet};
use alloc::vec::Vec;

/// Lists of more items than this count towards the density estimate.
const LONG_LIST_ITEMS: usize = 64;

/// The result of reading one answer.
#[derive(Debug, Default)]
pub(super) struct AnswerReading {
    /// The unsettled ranges of the question, in order.
    pub(super) left: Vec<PendingRange>,
    /// Whether the answer ended before the last range of the question.
    pub(super) cut: bool,
    pub(super) progress: AnswerProgress,
    /// Whether a fingerprint differed from ours.
    pub(super) unequal: bool,
    /// Whether a list was answered with fingerprints, or unrequested fingerprints came.
    pub(super) odd: bool,
    pub(super) listed: Listed,
    /// The density estimate of each split, with the part of `left` that it applies to.
    splits: Vec<(f64, core::ops::Range<usize>)>,
}

/// The progress that one answer made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum AnswerProgress {
    #[default]
    None,
    /// A range was divided.
    Divided,
    /// Items of ours were settled, or ids of the peer listed.
    Settled,
}

/// Reads `answer` to `asked`, and adds listed differences to `found`.
pub(super) fn read<S: RangeSet>(
    set: &S,
    mut answer: Decoder<'_>,
    asked: AskedRanges<'_>,
    time_buckets: Option<TimeBuckets>,
    found: &mut Difference,
) -> Result<AnswerReading, MessageError> {
    let mut reader = ReplyReader {
        set,
        found,
        time_buckets,
        believes_fingerprints: asked.believes_fingerprints,
        reading: AnswerReading::default(),
        counts: BucketCounts::default(),
        first_left: 0,
    };
    let mut asked = asked.ranges.iter();
    // The question being answered, and the part of it that is still unanswered.
    let mut open = asked.next().map(|question| (question, question.range));
    let mut lower = Bound::START;
    loop {
        let offset = answer.offset();
        // The part after the last range of a message is skipped.
        let (upper, payload) = match answer.next() {
            Some(range) => range.map(|range| (range.upper, range.payload))?,
            None => (Bound::INFINITY, Payload::Skip),
        };
        if upper.item < lower.item {
            return Err(MessageError { offset, fault: DecodeFault::BackwardBound });
        }
        let mut within = false;
        while let Some((question, rest)) = open
            && rest.lower.item < upper.item
        {
            let answered =
                question.range.lower.item <= lower.item && upper.item <= question.range.upper.item;
            within |= answered;
            let (part, rest) = reader.divide(&rest, &upper);
            let payload = if answered || payload == Payload::Skip { Some(payload) } else { None };
            reader.take(question, part, payload);
            open = match rest {
                Some(rest) => Some((question, rest)),
                None => {
                    reader.end_question();
                    asked.next().map(|question| (question, question.range))
                }
            };
        }
        let stray = matches!(payload, Payload::Fingerprint(_)) && !within;
        if upper.item == Bound::INFINITY.item {
            reader.reading.cut |= stray;
            break;
        }
        reader.reading.odd |= stray && lower.item < upper.item;
        lower = upper;
    }
    // Ranges after infinity are ignored, but must be well-formed.
    answer.try_for_each(|range| range.map(drop))?;
    Ok(reader.finish())
}

struct ReplyReader<'a, S> {
    set: &'a S,
    found: &'a mut Difference,
    time_buckets: Option<TimeBuckets>,
    believes_fingerprints: bool,
    reading: AnswerReading,
    counts: BucketCounts,
    /// The index in `left` of the first range that belongs to the current question.
    first_left: usize,
}

impl<S: RangeSet> ReplyReader<'_, S> {
    /// Divides `range` at `upper`, if `upper` lies inside it.
    fn divide(&self, range: &PendingRange, upper: &Bound) -> (PendingRange, Option<PendingRange>) {
        if range.upper.item <= upper.item {
            return (*range, None);
        }
        let rank = self.set.lower_bound(&upper.item).clamp(range.start, range.end);
        let part = PendingRange { upper: *upper, end: rank, ..*range };
        (part, Some(PendingRange { lower: *upper, start: rank, ..*range }))
    }

    /// Applies the peer's payload for `part` of a question; `None` if it sent none.
    fn take(&mut self, question: &AskedRange, part: PendingRange, said: Option<Payload<'_>>) {
        match said {
            Some(Payload::Skip) if !question.for_list => self.settle(&part),
            Some(Payload::Skip) => self.leave(part),
            Some(Payload::Fingerprint(theirs)) => self.compare(question, part, theirs),
            Some(Payload::IdList(ids)) => self.compare_lists(question, part, ids),
            None => self.leave(part),
        }
    }

    fn compare_lists(&mut self, question: &AskedRange, part: PendingRange, theirs: &[[u8; 32]]) {
        let time_bucket =
            self.time_buckets.map(|time_buckets| (time_buckets, time_buckets.only(&part)));
        if let Some((time_buckets, None)) = time_bucket
            && !theirs.is_empty()
        {
            self.reading.progress = self.reading.progress.max(AnswerProgress::Divided);
            self.reading.left.extend(time_buckets.divide(&part));
            return;
        }
        let (have, need) = (self.found.have.len(), self.found.need.len());
        self.found.compare(self.set, part.ranks(), theirs);
        let (have, need) = (self.found.have.len() - have, self.found.need.len() - need);
        if let Some((_, Some(start))) = time_bucket {
            self.found.count(start, have, need);
        }
        let items = part.own_items().max(theirs.len());
        if question.for_list && items > LONG_LIST_ITEMS {
            self.reading.listed.items += items;
            self.reading.listed.differences += have + need;
        }
        // A range in which neither side holds items needs no further question.
        let is_end = part.upper.item == question.range.upper.item;
        if !theirs.is_empty() || question.for_list && is_end {
            self.reading.progress = AnswerProgress::Settled;
        }
        self.settle(&part);
    }

    fn compare(&mut self, question: &AskedRange, part: PendingRange, theirs: [u8; 16]) {
        let range = &question.range;
        let whole = part.lower.item == range.lower.item && part.upper.item == range.upper.item;
        let last = part.upper.item == Bound::INFINITY.item;
        self.reading.cut |= last && (whole || question.for_list);
        self.reading.odd |= !last && question.for_list;
        if whole {
            // No new information, or the end of a frame that was cut just before it.
            return self.leave(part);
        }
        let own_items = part.own_items();
        self.counts.add(own_items);
        if self.believes_fingerprints && own_items > 0 {
            if self.set.fingerprint(part.ranks()) == theirs {
                return self.settle(&part);
            }
            self.reading.unequal = true;
        }
        self.reading.progress = self.reading.progress.max(AnswerProgress::Divided);
        let state = if question.for_list { range.state } else { RangeState::Differs };
        self.reading.left.push(PendingRange { state, ..part });
    }

    fn settle(&mut self, part: &PendingRange) {
        if part.own_items() > 0 {
            self.reading.progress = AnswerProgress::Settled;
        }
    }

    /// Keeps `part` unsettled, joined with the part of the same question before it.
    fn leave(&mut self, part: PendingRange) {
        let of_question = self.first_left < self.reading.left.len();
        match self.reading.left.last_mut() {
            Some(last) if of_question && last.touches(&part) && last.state == part.state => {
                (last.end, last.upper) = (part.end, part.upper);
            }
            _ => self.reading.left.push(part),
        }
    }

    fn end_question(&mut self) {
        let left = self.first_left..self.reading.left.len();
        if let Some(density) = core::mem::take(&mut self.counts).density() {
            self.reading.splits.push((density, left.clone()));
        }
        self.first_left = left.end;
    }

    fn finish(mut self) -> AnswerReading {
        let densities: Vec<f64> = self.reading.splits.iter().map(|split| split.0).collect();
        let smooth = density::smooth(&densities);
        for ((_, left), density) in self.reading.splits.iter().zip(smooth) {
            for range in self.reading.left.get_mut(left.clone()).unwrap_or_default() {
                range.density = Some(density);
            }
        }
        self.reading
    }
}
