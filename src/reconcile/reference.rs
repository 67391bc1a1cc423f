//! What the reference implementations do with a message, range by range, for
//! both roles: split a range whose fingerprint differs, list a small one, cut
//! the frame when it is full. Byte for byte the message that the `negentropy`
//! crate writes.
//!
//! Work on one message is linear in its length, with `log n` for each range:
//! ranges never overlap (one that ends below its beginning is empty), so that
//! a peer cannot have the same items listed twice, and a full frame ends the
//! reading.

use super::fingerprint::{Fingerprint, Sum};
use super::found::Found;
use super::message::{Decoder, Encoder, MessageError, Payload};
use super::range_set::{Bound, RangeSet};
use std::ops::Range;

/// Into how many buckets a range that differs is split.
pub(super) const BUCKETS: usize = 16;

/// A range of fewer items than this is listed rather than split.
pub(super) const LIST_BELOW_ITEMS: usize = 2 * BUCKETS;

/// The least frame limit: what a split and the closing range always fit in.
pub const FRAME_LIMIT_MIN_BYTES: usize = 4096;

/// What a frame keeps free for the closing range.
const FRAME_RESERVE_BYTES: usize = 200;

/// A frame limit that cannot be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a frame limit of {limit_bytes} bytes is below the least, 4096; 0 is none")]
pub struct FrameLimitError {
    /// The limit that was asked for.
    pub limit_bytes: usize,
}

/// How long a message may get.
#[derive(Clone, Copy, Debug)]
pub(super) struct FrameLimit {
    /// The length from which on a message is full, in bytes.
    full_above: usize,
}

impl FrameLimit {
    /// `limit_bytes`, with 0 for none.
    pub(super) fn new(limit_bytes: usize) -> Result<Self, FrameLimitError> {
        match limit_bytes {
            0 => Ok(Self { full_above: usize::MAX }),
            FRAME_LIMIT_MIN_BYTES.. => Ok(Self { full_above: limit_bytes - FRAME_RESERVE_BYTES }),
            _ => Err(FrameLimitError { limit_bytes }),
        }
    }

    /// Whether a message of `len` bytes takes no more.
    pub(super) fn is_full(self, len: usize) -> bool {
        len > self.full_above
    }

    /// How many ids a message of `len` bytes still takes: it is full after the
    /// one that passes the limit.
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

/// The answer to `message`. An initiator passes `found`, and reads the lists in
/// the message instead of answering them.
pub(super) fn reply<S: RangeSet>(
    set: &S,
    limit: FrameLimit,
    message: Decoder<'_>,
    mut found: Option<&mut Found>,
) -> Result<Vec<u8>, MessageError> {
    let mut out = Encoder::new();
    let mut lower = 0;
    let mut lower_bound = Bound::START;
    let mut skipping = false;
    // Where the ranges written so far end, as a rank: the closing range of a
    // full frame begins there.
    let mut answered = 0;

    for range in message {
        let range = range?;
        let (mut upper, sum) = set.sum_until(lower, &range.upper.item);
        let before = out.mark();
        let len_before = out.message_bytes();
        match range.payload {
            Payload::Skip => skipping = true,
            Payload::Fingerprint(theirs) if sum.fingerprint(upper - lower) == theirs => {
                skipping = true;
            }
            Payload::Fingerprint(_) => {
                if std::mem::take(&mut skipping) {
                    out.skip(&lower_bound);
                }
                split(set, &mut out, lower..upper, &range.upper);
            }
            Payload::IdList(theirs) => match found.as_deref_mut() {
                Some(found) => {
                    found.compare(set, lower..upper, theirs);
                    skipping = true;
                }
                None => {
                    if std::mem::take(&mut skipping) {
                        out.skip(&lower_bound);
                    }
                    let fit = lower.saturating_add(limit.ids_that_fit(len_before));
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
        lower = upper;
        lower_bound = range.upper;
    }
    Ok(out.finish())
}

/// Lists the items at `ranks` below rank `fit`, and returns the rank where the
/// list ends.
fn list<S: RangeSet>(
    set: &S,
    out: &mut Encoder,
    ranks: Range<usize>,
    fit: usize,
    upper: &Bound,
) -> usize {
    let end = ranks.end.min(fit);
    // A list that is cut ends just below the first item that is not in it.
    let cut = if end < ranks.end { set.item(end) } else { None };
    let upper = cut.map_or(*upper, Bound::below);
    out.id_list(&upper, end - ranks.start);
    set.for_each(ranks.start..end, &mut |item| out.id(&item.id));
    end
}

/// Writes the items at `ranks`, up to `upper`: a list of few, else the
/// fingerprints of equal buckets.
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
pub(super) struct Bucket {
    pub(super) start: usize,
    pub(super) end: usize,
    pub(super) upper: Bound,
    pub(super) fingerprint: Fingerprint,
}

/// A range of up to this many items is split in one walk over them; a longer
/// one by what the set knows of its parts.
const WALK_UP_TO_ITEMS: usize = 1024;

/// Splits `ranks`, which hold at least `count` items, into `count` buckets of
/// equal size; the first ones take one more where it does not divide.
pub(super) fn buckets<S: RangeSet>(
    set: &S,
    ranks: Range<usize>,
    upper: Bound,
    count: usize,
) -> Vec<Bucket> {
    let (size, larger) = (ranks.len() / count, ranks.len() % count);
    let ends = (1..=count).map(|index| ranks.start + index * size + index.min(larger));
    if ranks.len() <= WALK_UP_TO_ITEMS {
        return walk(set, ranks.clone(), upper, ends);
    }
    let mut start = ranks.start;
    ends.map(|end| {
        let upper = if end == ranks.end { upper } else { set.bound_at(end) };
        let bucket = Bucket { start, end, upper, fingerprint: set.fingerprint(start..end) };
        start = end;
        bucket
    })
    .collect()
}

/// Splits `ranks` at `ends`, reading each item once.
fn walk<S: RangeSet>(
    set: &S,
    ranks: Range<usize>,
    upper: Bound,
    mut ends: impl Iterator<Item = usize>,
) -> Vec<Bucket> {
    let mut buckets = Vec::new();
    let (mut start, mut rank, mut sum) = (ranks.start, ranks.start, Sum::ZERO);
    let mut end = ends.next();
    let mut last = None;
    set.for_each(ranks, &mut |item| {
        if let (Some(here), Some(last)) = (end, &last)
            && here == rank
        {
            let (upper, fingerprint) = (Bound::between(last, &item), sum.fingerprint(rank - start));
            buckets.push(Bucket { start, end: rank, upper, fingerprint });
            (start, sum, end) = (rank, Sum::ZERO, ends.next());
        }
        sum.add(&Sum::of(&item.id));
        rank += 1;
        last = Some(item);
    });
    buckets.push(Bucket { start, end: rank, upper, fingerprint: sum.fingerprint(rank - start) });
    buckets
}
