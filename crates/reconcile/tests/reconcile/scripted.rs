//! A responder that follows the protocol, except for configured faults.

use negsync_reconcile::item::Item;
use negsync_reconcile::message::{Decoder, Encoder, Payload};
use negsync_reconcile::{Bound, RangeSet, SortedItems};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::ops::Range;

/// The range over which the fingerprint of a cut frame is computed.
#[derive(Clone, Copy)]
pub enum Closing<'a> {
    /// The range of its bounds.
    True,
    /// The range after the dropped one, as in the C++, JavaScript and Go references.
    AfterDropped,
    /// The initiator's own items, so that it always looks equal; but correct where the cut lies
    /// inside a list.
    LooksEqual(&'a SortedItems),
}

pub struct Scripted<'a> {
    set: &'a SortedItems,
    limit_bytes: usize,
    rng: StdRng,
    messages: usize,
    pub closing: Closing<'a>,
    /// Answers lists of more items than this with fingerprints.
    pub longest_list: usize,
    /// Sends fingerprints of skipped ranges.
    pub answers_skips: bool,
    /// Adds empty ranges and divides Skips in two.
    pub noisy: bool,
    /// Skips every requested list, in every message or in every second one.
    pub skips_lists: Option<bool>,
    /// Begins with a bound and one below it.
    pub runs_backwards: bool,
}

impl<'a> Scripted<'a> {
    pub fn new(set: &'a SortedItems, limit_bytes: usize) -> Self {
        Self {
            set,
            limit_bytes,
            rng: StdRng::seed_from_u64(1),
            messages: 0,
            closing: Closing::True,
            longest_list: usize::MAX,
            answers_skips: false,
            noisy: false,
            skips_lists: None,
            runs_backwards: false,
        }
    }

    fn is_full(&self, out: &Encoder) -> bool {
        self.limit_bytes != 0 && out.message_bytes() > self.limit_bytes - 200
    }

    pub fn answer(&mut self, message: &[u8]) -> Vec<u8> {
        self.messages += 1;
        let skips_lists = self.skips_lists.is_some_and(|always| always || self.messages % 2 == 1);
        let mut out = Encoder::new();
        if self.runs_backwards {
            let at = |last| Bound { item: Item::new(0, [last; 32]), id_len: 32 };
            out.skip(&at(2));
            out.skip(&at(1));
        }
        let (mut lower, mut lower_bound, mut written) = (0, Bound::START, Bound::START);
        for range in Decoder::new(message).unwrap() {
            let range = range.unwrap();
            let mut upper = self.set.lower_bound(&range.upper.item).max(lower);
            let mut end = range.upper;
            let before = (out.mark(), written, out.message_bytes());
            let mut in_list = false;
            match range.payload {
                Payload::Skip if self.answers_skips && upper > lower => {
                    self.skip_to(&mut out, &mut written, lower_bound);
                    out.fingerprint(&end, &self.set.fingerprint(lower..upper));
                    written = end;
                }
                Payload::Skip => {}
                Payload::Fingerprint(theirs) if theirs == self.set.fingerprint(lower..upper) => {}
                Payload::Fingerprint(_) => {
                    self.skip_to(&mut out, &mut written, lower_bound);
                    self.split(&mut out, lower..upper, &end);
                    written = end;
                }
                Payload::IdList(_) if skips_lists => {}
                Payload::IdList(_) if upper - lower > self.longest_list => {
                    self.skip_to(&mut out, &mut written, lower_bound);
                    self.split(&mut out, lower..upper, &end);
                    written = end;
                }
                Payload::IdList(_) => {
                    self.skip_to(&mut out, &mut written, lower_bound);
                    let room = self.limit_bytes.saturating_sub(200 + before.2) / 32 + 1;
                    if self.limit_bytes != 0 && upper - lower > room {
                        upper = lower + room;
                        end = Bound::below(self.set.items()[upper]);
                    }
                    self.list(&mut out, lower..upper, &end);
                    written = end;
                    in_list = true;
                }
            }
            if self.is_full(&out) {
                if !in_list {
                    out.go_back(before.0);
                    written = before.1;
                }
                let rest = self.set.lower_bound(&written.item)..self.set.len();
                let fingerprint = match self.closing {
                    Closing::LooksEqual(ours) if !in_list => {
                        ours.fingerprint(ours.lower_bound(&written.item)..ours.len())
                    }
                    Closing::AfterDropped => self.set.fingerprint(upper..self.set.len()),
                    _ => self.set.fingerprint(rest),
                };
                out.fingerprint(&Bound::INFINITY, &fingerprint);
                break;
            }
            (lower, lower_bound) = (upper, range.upper);
        }
        out.finish()
    }

    fn skip_to(&mut self, out: &mut Encoder, written: &mut Bound, to: Bound) {
        if self.noisy {
            match self.rng.random_range(0..4) {
                0 => out.skip(written),
                1 => out.fingerprint(written, &[0; 16]),
                2 => {
                    out.id_list(written, 1);
                    out.id(&[9; 32]);
                }
                _ => out.id_list(written, 0),
            }
        }
        if written.item == to.item {
            return;
        }
        if self.noisy {
            let ranks = self.set.lower_bound(&written.item)..self.set.lower_bound(&to.item);
            let middle = self.set.bound_at(ranks.start + ranks.len() / 2);
            if written.item < middle.item && middle.item < to.item {
                out.skip(&middle);
            }
        }
        out.skip(&to);
        *written = to;
    }

    fn list(&self, out: &mut Encoder, ranks: Range<usize>, upper: &Bound) {
        out.id_list(upper, ranks.len());
        self.set.for_each(ranks, &mut |item| out.id(&item.id));
    }

    fn split(&self, out: &mut Encoder, ranks: Range<usize>, upper: &Bound) {
        if ranks.len() < 32 {
            return self.list(out, ranks, upper);
        }
        let mut start = ranks.start;
        for bucket in 1..=16 {
            let end = ranks.start + ranks.len() * bucket / 16;
            let bound = if bucket == 16 { *upper } else { self.set.bound_at(end) };
            out.fingerprint(&bound, &self.set.fingerprint(start..end));
            start = end;
        }
    }
}
