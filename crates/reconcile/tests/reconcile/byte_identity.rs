//! In reference behaviour, every message and every result equals the crate's.

use crate::support::{Case, crate_engine, crate_set, distinct, for_seeds, frame_cut_sets, sorted};
use negsync_reconcile::{
    Difference, Initiator, InitiatorOptions, InitiatorStep, RangeSet, Responder,
};
use rand::RngExt;
use rand::rngs::StdRng;

fn any_limit(rng: &mut StdRng) -> usize {
    match rng.random_range(0..4) {
        0 => 0,
        1 => 4096,
        2 => rng.random_range(4096..6000),
        _ => rng.random_range(4096..60_000),
    }
}

fn reference(frame_limit_bytes: usize) -> InitiatorOptions {
    InitiatorOptions::reference(frame_limit_bytes)
}

/// Runs the crate and ours side by side through one session, both roles.
fn same_session(case: &Case, our_limit: usize, their_limit: usize) {
    let (crate_ours, crate_theirs) = (crate_set(case.ours.items()), crate_set(case.theirs.items()));
    let mut crate_initiator = crate_engine(&crate_ours, our_limit);
    let mut crate_responder = crate_engine(&crate_theirs, their_limit);
    let mut initiator = Initiator::new(&case.ours, reference(our_limit)).unwrap();
    let mut responder = Responder::new(&case.theirs, their_limit).unwrap();

    let (mut crate_have, mut crate_need) = (Vec::new(), Vec::new());
    let mut found = Difference::new();
    let mut message = initiator.open();
    assert_eq!(message, crate_initiator.initiate().unwrap());
    loop {
        let answer = responder.answer(&message).unwrap();
        assert_eq!(answer, crate_responder.reconcile(&message).unwrap());
        assert!(their_limit == 0 || answer.len() <= their_limit);
        let next =
            crate_initiator.reconcile_with_ids(&answer, &mut crate_have, &mut crate_need).unwrap();
        let step = initiator.receive(&answer, &mut found).unwrap();
        match next {
            Some(next) => {
                assert_eq!(step, InitiatorStep::Send(next.clone()));
                message = next;
            }
            None => {
                assert_eq!(step, InitiatorStep::Done);
                break;
            }
        }
    }
    assert!(sorted(&found.have) == sorted(crate_have.iter().map(|id| id.as_bytes())));
    assert!(sorted(&found.need) == sorted(crate_need.iter().map(|id| id.as_bytes())));
    assert!(distinct(&found.have) == case.have);
    assert!(distinct(&found.need) == case.need);
}

#[test]
fn small_sets_of_any_shape() {
    for_seeds(0..4000, |rng| {
        let case = Case::any(rng, 600);
        let (our_limit, their_limit) = (any_limit(rng), any_limit(rng));
        same_session(&case, our_limit, their_limit);
    });
}

#[test]
fn larger_sets_under_tight_frames() {
    for_seeds(10_000..10_060, |rng| {
        let case = Case::any(rng, 12_000);
        let (our_limit, their_limit) = (any_limit(rng), rng.random_range(4096..8000));
        same_session(&case, our_limit, their_limit);
    });
}

#[test]
fn the_frame_cut_that_the_crate_mended() {
    let (many, few) = frame_cut_sets();
    for limits in [(4096, 4767), (4767, 4096), (4096, 4096), (0, 4096)] {
        same_session(&Case::new(many.clone(), few.clone()), limits.0, limits.1);
        same_session(&Case::new(few.clone(), many.clone()), limits.0, limits.1);
    }
}

#[test]
fn every_frame_limit_near_the_least() {
    for_seeds(20_000..20_002, |rng| {
        let case = loop {
            let case = Case::any(rng, 3000);
            if case.need.len() + case.have.len() > 300 && case.ours.len() > 500 {
                break case;
            }
        };
        for limit in 4096..4180 {
            same_session(&case, limit, limit);
        }
    });
}

/// Ours on one side, the crate on the other.
#[test]
fn either_side_may_be_the_crate() {
    for_seeds(30_000..30_300, |rng| {
        let case = Case::any(rng, 2000);
        let (our_limit, their_limit) = (any_limit(rng), any_limit(rng));
        let theirs = crate_set(case.theirs.items());
        let mut crate_responder = crate_engine(&theirs, their_limit);
        let mut initiator = Initiator::new(&case.ours, reference(our_limit)).unwrap();
        let mut found = Difference::new();
        let mut message = initiator.open();
        loop {
            let answer = crate_responder.reconcile(&message).unwrap();
            match initiator.receive(&answer, &mut found).unwrap() {
                InitiatorStep::Send(next) => message = next,
                InitiatorStep::Done => break,
            }
        }
        assert!(distinct(&found.have) == case.have);
        assert!(distinct(&found.need) == case.need);

        let ours = crate_set(case.ours.items());
        let mut crate_initiator = crate_engine(&ours, our_limit);
        let mut responder = Responder::new(&case.theirs, their_limit).unwrap();
        let (mut have, mut need) = (Vec::new(), Vec::new());
        let mut message = crate_initiator.initiate().unwrap();
        loop {
            let answer = responder.answer(&message).unwrap();
            match crate_initiator.reconcile_with_ids(&answer, &mut have, &mut need).unwrap() {
                Some(next) => message = next,
                None => break,
            }
        }
        assert!(distinct(have.iter().map(|id| id.as_bytes())) == case.have);
        assert!(distinct(need.iter().map(|id| id.as_bytes())) == case.need);
    });
}
