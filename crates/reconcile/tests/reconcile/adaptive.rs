//! The adaptive initiator finds exactly the differences, each id once, with any responder and any
//! cut of frames.

use crate::support::{Case, crate_engine, crate_set, for_seeds, sorted};
use negsync_reconcile::{
    Difference, DifferenceCount, Initiator, InitiatorError, InitiatorOptions, InitiatorStep,
    Responder,
};
use rand::RngExt;
use rand::rngs::StdRng;
use std::collections::BTreeMap;
use std::num::NonZeroU64;

pub fn any_options(rng: &mut StdRng, case: &Case) -> InitiatorOptions {
    let limit = |rng: &mut StdRng| match rng.random_range(0..3) {
        0 => 0,
        1 => 4096,
        _ => rng.random_range(4096..60_000),
    };
    let near = case.theirs.items().iter().chain(case.ours.items()).map(|item| item.created_at);
    let times: Vec<u64> = near.collect();
    let sync_mark = match times.len() {
        0 => Some(5),
        len => [None, Some(0), Some(times[rng.random_range(0..len)]), Some(u64::MAX)]
            [rng.random_range(0..4)],
    };
    InitiatorOptions::default()
        .frame_limit_bytes(limit(rng))
        .opening_limit_bytes(limit(rng))
        .reply_limit_bytes(rng.random_bool(0.3).then_some(5000))
        .sync_mark(sync_mark)
        .since(if rng.random_bool(0.3) { times.iter().min().copied() } else { None })
        .empty_id_lists(rng.random_bool(0.8))
        .time_bucket_s(
            rng.random_bool(0.3)
                .then(|| NonZeroU64::new([1, 60, 86_400][rng.random_range(0..3)]).unwrap()),
        )
        .bounds_seed(rng.random_bool(0.3).then(|| rng.random()))
}

/// Runs a session to its end and returns what it found.
pub fn session(
    case: &Case,
    options: &InitiatorOptions,
    mut answer: impl FnMut(&[u8]) -> Vec<u8>,
) -> Result<Difference, InitiatorError> {
    let mut initiator = Initiator::new(&case.ours, options.clone()).unwrap();
    let mut found = Difference::new();
    let mut message = initiator.open();
    for _ in 0..1000 {
        let limit = options.frame_limit_bytes;
        assert!(limit == 0 || message.len() <= limit);
        match initiator.receive(&answer(&message), &mut found)? {
            InitiatorStep::Send(next) => message = next,
            InitiatorStep::Done => return Ok(found),
        }
    }
    panic!("no end, {options:?}");
}

fn exact(case: &Case, options: &InitiatorOptions, answer: impl FnMut(&[u8]) -> Vec<u8>) {
    let found = session(case, options, answer).unwrap();
    assert!(sorted(&found.have) == case.have, "have, {options:?}");
    assert!(sorted(&found.need) == case.need, "need, {options:?}");
    let expected = options
        .time_bucket_s
        .map_or_else(BTreeMap::new, |time_bucket_s| by_cell(case, time_bucket_s.get()));
    assert!(found.time_buckets == expected, "{options:?}");
}

/// The differences of a case, by time bucket.
fn by_cell(case: &Case, time_bucket_s: u64) -> BTreeMap<u64, DifferenceCount> {
    let mut cells = BTreeMap::<u64, DifferenceCount>::new();
    for (set, differing, we) in [(&case.ours, &case.have, true), (&case.theirs, &case.need, false)]
    {
        for item in set.items().iter().filter(|item| differing.binary_search(&item.id).is_ok()) {
            let cell = cells.entry(item.created_at / time_bucket_s * time_bucket_s).or_default();
            if we { cell.have += 1 } else { cell.need += 1 }
        }
    }
    cells
}

#[test]
fn small_sets_of_any_shape() {
    for_seeds(0..4000, |rng| {
        let case = Case::any(rng, 600);
        let options = any_options(rng, &case);
        let limit = if rng.random_bool(0.3) { 0 } else { rng.random_range(4096..20_000) };
        let mut responder = Responder::new(&case.theirs, limit).unwrap();
        exact(&case, &options, |message| responder.answer(message).unwrap());
    });
}

#[test]
fn larger_sets_answered_by_the_crate() {
    for_seeds(10_000..10_100, |rng| {
        let case = Case::any(rng, 12_000);
        let options = any_options(rng, &case);
        let limit = rng.random_range(4096..20_000);
        let theirs = crate_set(case.theirs.items());
        let mut responder = crate_engine(&theirs, limit);
        exact(&case, &options, |message| responder.reconcile(message).unwrap());
    });
}
