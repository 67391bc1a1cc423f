//! The message handling of the reference implementations, range by range, for both roles: split a
//! range whose fingerprint differs, list a small one, cut the frame when it is full. The output
//! equals that of the `negentropy` crate byte for byte.
//!
//! The work for one message is linear in its length, with `log n` for each range. Ranges never
//! overlap (one that ends below its lower bound is empty), so a peer cannot have the same items
//! listed twice. Reading stops when the frame is full.

use super::difference::Difference;
use super::fingerprint::{Fingerprint, Sum};
use super::message::{self, Encoder, MessageError, Payload};
use super::range_set::{Bound, RangePosition, RangeSet};
use crate::item::Item;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

/// Buckets into which a differing range is split.
pub(super) const BUCKETS: usize = 16;

/// A range of fewer items than this is listed rather than split.
pub(super) const LIST_BELOW_ITEMS: usize = 2 * BUCKETS;

/// Minimum frame limit: a split and the closing range always fit in it.
pub const FRAME_LIMIT_MIN_BYTES: usize = 4096;

/// Bytes of a frame that are reserved for the closing range.
const FRAME_RESERVE_BYTES: usize = 200;

/// A frame limit below the minimum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FrameLimitError {
    /// The requested limit.
    pub limit_bytes: usize,
}

impl fmt::Display for FrameLimitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { limit_bytes } = self;
        write!(f, "a frame limit of {limit_bytes} bytes is below the least, 4096; 0 is none")
    }
}

impl core::error::Error for FrameLimitError {}

/// The maximum length of a message.
#[derive(Clone, Copy, Debug)]
pub(super) struct FrameLimit {
    /// A message longer than this is full, in bytes.
    full_above: usize,
}

impl FrameLimit {
    /// A limit of `limit_bytes`; 0 is unlimited.
    pub(super) fn new(limit_bytes: usize) -> Result<Self, FrameLimitError> {
        match limit_bytes {
            0 => Ok(Self { full_above: usize::MAX }),
            FRAME_LIMIT_MIN_BYTES.. => Ok(Self { full_above: limit_bytes - FRAME_RESERVE_BYTES }),
            _ => Err(FrameLimitError { limit_bytes }),
        }
    }

    /// Whether a message of `len` bytes is full.
    pub(super) fn is_full(self, len: usize) -> bool {
        len > self.full_above
    }

    /// The number of ids that still fit in a message of `len` bytes. The id that passes the limit
    /// is the last one.
    fn ids_that_fit(self, len: usize) -> usize {
        self.full_above.checked_sub(len).map_or(0, |room| room / 32 + 1)
    }
}

/// The opening message: the whole set, split.
pub(super) fn opening<S: RangeSet>(set: &S) -> Vec<u8> {
    let mut out = Encoder::new();
    split(set, &mut out, 0..set.len(), &Bound::INFINITY);
    out.finish()
}

/// What an initiator learns from an answer.
#[derive(Debug)]
pub(super) struct Learned<'a> {
    pub(super) found: &'a mut Difference,
    /// Whether a fingerprint differed from ours. The last one of a message does not count: it may
    /// close a cut frame.
    pub(super) unequal: bool,
}

/// The answer to `message`. An initiator passes `learned`; the lists in the message are then read
/// instead of answered.
pub(super) fn reply<'a, S: RangeSet>(
    set: &S,
    limit: FrameLimit,
    message: impl Iterator<Item = Result<message::Range<'a>, MessageError>>,
    mut learned: Option<&mut Learned<'_>>,
) -> Result<Vec<u8>, MessageError> {
    let mut out = Encoder::new();
    let mut lower_bound = Bound::START;
    let mut skipping = false;
    // Rank at which the ranges written so far end: the closing range of a full frame begins there.
    let mut answered = 0;

    for found_range in Placed::new(set, message) {
        let PositionedRange { range, lower, mut upper, is_equal } = found_range?;
        let before = out.mark();
        let len_before = out.message_bytes();
        match range.payload {
            Payload::Skip => skipping = true,
            Payload::Fingerprint(_) if is_equal => skipping = true,
            Payload::Fingerprint(_) => {
                if let Some(learned) = &mut learned {
                    learned.unequal |= range.upper.item < Bound::INFINITY.item;
                }
                if core::mem::take(&mut skipping) {
                    out.skip(&lower_bound);
                }
                split(set, &mut out, lower..upper, &range.upper);
            }
            Payload::IdList(theirs) => match &mut learned {
                Some(learned) => {
                    learned.found.compare(set, lower..upper, theirs);
                    skipping = true;
                }
                None => {
                    if core::mem::take(&mut skipping) {
                        out.skip(&lower_bound);
                    }
                    let fit = lower.saturating_add(limit.ids_that_fit(len_before));
                    // A list that is cut fills the frame.
                    upper = list(set, &mut out, lower..upper, fit, &range.upper);
                }
            },
        }
        if limit.is_full(out.message_bytes()) {
            if matches!(range.payload, Payload::IdList(_)) {
                answered = upper;
            } else {
                out.go_back(before);
            }
            out.fingerprint(&Bound::INFINITY, &set.fingerprint(answered..set.len()));
            break;
        }
        if out.message_bytes() > len_before {
            answered = upper;
        }
        lower_bound = range.upper;
    }
    Ok(out.finish())
}

/// A range of a message, with the set's items in it.
struct PositionedRange<'a> {
    range: message::Range<'a>,
    /// Lower and upper end, as ranks.
    lower: usize,
    upper: usize,
    /// Whether the range is a fingerprint equal to that of the set.
    is_equal: bool,
}

/// The ranges of a message with their positions in the set. A few are looked up at a time, so that
/// their memory accesses and hashes overlap.
struct Placed<'s, 'a, S, M> {
    set: &'s S,
    message: M,
    lower: RangePosition,
    ahead: alloc::vec::IntoIter<PositionedRange<'a>>,
    /// The error of the range after those, if it is malformed.
    wrong: Option<MessageError>,
}

/// Number of ranges that are looked up together.
const RANGES_AHEAD: usize = 32;

impl<'s, 'a, S: RangeSet, M> Placed<'s, 'a, S, M>
where
    M: Iterator<Item = Result<message::Range<'a>, MessageError>>,
{
    fn new(set: &'s S, message: M) -> Self {
        let lower = RangePosition { rank: 0, sum: Sum::ZERO };
        Self { set, message, lower, ahead: Vec::new().into_iter(), wrong: None }
    }

    fn look_ahead(&mut self) {
        let mut ranges = Vec::with_capacity(RANGES_AHEAD);
        for range in self.message.by_ref().take(RANGES_AHEAD) {
            match range {
                Ok(range) => ranges.push(range),
                Err(wrong) => self.wrong = Some(wrong),
            }
        }
        let bounds: Vec<Item> = ranges.iter().map(|range| range.upper.item).collect();
        let found = ranges.into_iter().zip(self.set.places(&bounds)).map(|(range, upper)| {
            // A range that ends below its lower bound is empty.
            let upper = if upper.rank < self.lower.rank { self.lower } else { upper };
            let lower = core::mem::replace(&mut self.lower, upper);
            let is_equal = match range.payload {
                Payload::Fingerprint(theirs) => upper.fingerprint_from(&lower) == theirs,
                _ => false,
            };
            PositionedRange { range, lower: lower.rank, upper: upper.rank, is_equal }
        });
        self.ahead = found.collect::<Vec<_>>().into_iter();
    }
}

impl<'a, S: RangeSet, M> Iterator for Placed<'_, 'a, S, M>
where
    M: Iterator<Item = Result<message::Range<'a>, MessageError>>,
{
    type Item = Result<PositionedRange<'a>, MessageError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ahead.len() == 0 && self.wrong.is_none() {
            self.look_ahead();
        }
        self.ahead.next().map(Ok).or_else(|| self.wrong.take().map(Err))
    }
}

/// Lists the items at `ranks` up to rank `fit`. Returns the rank at which the list ends.
fn list<S: RangeSet>(
    set: &S,
    out: &mut Encoder,
    ranks: Range<usize>,
    fit: usize,
    upper: &Bound,
) -> usize {
    let end = ranks.end.min(fit);
    // A cut list ends just below the first item that it leaves out.
    let cut = if end < ranks.end { set.item(end) } else { None };
    let upper = cut.map_or(*upper, Bound::below);
    out.id_list(&upper, end - ranks.start);
    set.for_each(ranks.start..end, &mut |item| out.id(&item.id));
    end
}

/// Writes the items at `ranks`, up to `upper`: as a list if they are few, otherwise as fingerprints
/// of equal buckets.
fn split<S: RangeSet>(set: &S, out: &mut Encoder, ranks: Range<usize>, upper: &Bound) {
    if ranks.len() < LIST_BELOW_ITEMS {
        list(set, out, ranks.clone(), ranks.end, upper);
        return;
    }
    for bucket in buckets(set, ranks, *upper, BUCKETS) {
        out.fingerprint(&bucket.upper, &bucket.fingerprint);
    }
}

/// One bucket of a split.
#[derive(Clone, Copy, Debug)]
pub(super) struct SplitBucket {
    pub(super) start: usize,
    pub(super) end: usize,
    pub(super) upper: Bound,
    pub(super) fingerprint: Fingerprint,
}

/// Splits `ranks`, which must hold at least `count` items, into `count` buckets of equal size. If
/// it does not divide evenly, the first buckets hold one item more.
pub(super) fn buckets<S: RangeSet>(
    set: &S,
    ranks: Range<usize>,
    upper: Bound,
    count: usize,
) -> Vec<SplitBucket> {
    buckets_between(set, &even_ends(&ranks, count), upper)
}

/// The ends of `count` buckets of equal size.
pub(super) fn even_ends(ranks: &Range<usize>, count: usize) -> Vec<usize> {
    let (size, larger) = (ranks.len() / count, ranks.len() % count);
    (0..=count).map(|index| ranks.start + index * size + index.min(larger)).collect()
}

/// The buckets between each of the ascending `ends` and the next; the last one ends at `upper`.
pub(super) fn buckets_between<S: RangeSet>(
    set: &S,
    ends: &[usize],
    upper: Bound,
) -> Vec<SplitBucket> {
    let places = ends.iter().zip(set.cuts(ends));
    let places = places.map(|(rank, (bound, sum))| (bound, RangePosition { rank: *rank, sum }));
    let places: Vec<(Bound, RangePosition)> = places.collect();
    let pairs = places.iter().zip(places.iter().skip(1));
    pairs
        .map(|((_, lower), (bound, end))| SplitBucket {
            start: lower.rank,
            end: end.rank,
            upper: if Some(&end.rank) == ends.last() { upper } else { *bound },
            fingerprint: end.fingerprint_from(lower),
        })
        .collect()
}
