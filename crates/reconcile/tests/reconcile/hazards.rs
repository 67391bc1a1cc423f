//! Known misbehaviour of responders, one by one, against the initiator. No difference may be missed
//! or found twice, and every session must end.

use crate::adaptive::{any_options, session};
use crate::scripted::{Closing, Scripted};
use crate::support::{Case, Ids, for_seeds, random_item, sorted};
use negsync_reconcile::item::Item;
use negsync_reconcile::message::{DecodeFault, Decoder, Encoder, Payload};
use negsync_reconcile::{
    Bound, Difference, Initiator, InitiatorError, InitiatorOptions, InitiatorStep, Responder, Rule,
    SortedItems, Sum,
};
use rand::RngExt;
use rand::rngs::StdRng;
use std::collections::BTreeSet;

/// Cases with small frames, with a responder that `told` configures.
fn exact_with(seeds: std::ops::Range<u64>, told: impl Fn(&mut Scripted<'_>)) {
    for_seeds(seeds, |rng| {
        let most_items = if rng.random_bool(0.1) { 8000 } else { 700 };
        let case = Case::any(rng, most_items);
        let options = any_options(rng, &case);
        let limit = if rng.random_bool(0.1) { 0 } else { rng.random_range(4096..9000) };
        let mut responder = Scripted::new(&case.theirs, limit);
        told(&mut responder);
        let found = session(&case, &options, |message| responder.answer(message)).unwrap();
        assert!(sorted(&found.have) == case.have, "have, {options:?}");
        assert!(sorted(&found.need) == case.need, "need, {options:?}");
    });
}

/// Many items that only the peer has at the end of the order, where we hold nothing, and enough
/// before them to fill a frame.
fn nothing_at_the_end(rng: &mut StdRng) -> Case {
    let shared: BTreeSet<Item> =
        (0..2000).map(|_| random_item(rng, 1000, 10_000, Ids::Random)).collect();
    let scattered: BTreeSet<Item> =
        (0..300).map(|_| random_item(rng, 1000, 10_000, Ids::Random)).collect();
    let newest: BTreeSet<Item> = (0..rng.random_range(1..500))
        .map(|_| random_item(rng, 20_000, 5000, Ids::Random))
        .collect();
    let theirs = shared.iter().chain(&scattered).chain(&newest).copied().collect();
    Case::new(shared, theirs)
}

#[test]
fn hazard_1_a_cut_frame_closed_over_too_little() {
    for_seeds(0..150, |rng| {
        let case = nothing_at_the_end(rng);
        let mut responder = Scripted::new(&case.theirs, rng.random_range(4096..9000));
        responder.closing = Closing::AfterDropped;
        let options = any_options(rng, &case);
        let found = session(&case, &options, |message| responder.answer(message)).unwrap();
        assert!(sorted(&found.have) == case.have, "have, {options:?}");
        assert!(sorted(&found.need) == case.need, "need, {options:?}");
    });
    exact_with(1000..1700, |responder| responder.closing = Closing::AfterDropped);
}

/// The reason for the hazard: to an initiator that sends a fingerprint of the empty set, the end
/// looks equal although all of its items are missing.
#[test]
fn hazard_1_is_what_the_script_commits() {
    let theirs: SortedItems = (0..5000u64)
        .map(|i| {
            let mut id = [7; 32];
            id[..8].copy_from_slice(&i.to_be_bytes());
            Item::new(i, id)
        })
        .collect();
    let mut out = Encoder::new();
    (1..=20).for_each(|i| out.fingerprint(&Bound::at(i * 100), &[0; 16]));
    out.fingerprint(&Bound::INFINITY, &Sum::ZERO.fingerprint(0));
    let question = out.finish();

    // With some limit the frame is full where the last range is split.
    let lost = (4096..9000).any(|limit| {
        let mut responder = Scripted::new(&theirs, limit);
        responder.closing = Closing::AfterDropped;
        let answer = responder.answer(&question);
        let last = Decoder::new(&answer).unwrap().last().unwrap().unwrap();
        last.payload == Payload::Fingerprint(Sum::ZERO.fingerprint(0))
    });
    assert!(lost);
}

#[test]
fn hazard_1_no_fingerprint_where_we_hold_nothing() {
    for_seeds(0..500, |rng| {
        let case = Case::any(rng, 700);
        let options = any_options(rng, &case);
        let mut responder = Scripted::new(&case.theirs, 5000);
        session(&case, &options, |message| {
            let mut lower = Item::default();
            for range in Decoder::new(message).unwrap().map(Result::unwrap) {
                if matches!(range.payload, Payload::Fingerprint(_)) {
                    let ours = case.ours.items();
                    assert!(ours.iter().any(|item| lower <= *item && *item < range.upper.item));
                }
                lower = range.upper.item;
            }
            responder.answer(message)
        })
        .unwrap();
    });
}

#[test]
fn hazard_2_a_cut_frame_that_looks_equal() {
    for_seeds(0..600, |rng| {
        let case =
            if rng.random_bool(0.3) { nothing_at_the_end(rng) } else { Case::any(rng, 3000) };
        let options = any_options(rng, &case);
        let mut responder = Scripted::new(&case.theirs, rng.random_range(4096..9000));
        responder.closing = Closing::LooksEqual(&case.ours);
        let found = session(&case, &options, |message| responder.answer(message)).unwrap();
        assert!(sorted(&found.have) == case.have, "have, {options:?}");
        assert!(sorted(&found.need) == case.need, "need, {options:?}");
    });
}

#[test]
fn hazard_3_no_bound_below_the_window() {
    for_seeds(0..1000, |rng| {
        let whole = Case::any(rng, 1500);
        let Some(since) = whole.theirs.items().first().map(|item| item.created_at + 20) else {
            return;
        };
        let window = |set: &SortedItems| -> BTreeSet<Item> {
            set.items().iter().copied().filter(|item| item.created_at >= since).collect()
        };
        let case = Case::new(window(&whole.ours), window(&whole.theirs));
        let options = InitiatorOptions::default()
            .since(since)
            .sync_mark(
                [None, Some(0), Some(since - 1), Some(since), Some(since + 30)]
                    [rng.random_range(0..5)],
            )
            .frame_limit_bytes(4096);
        let mut responder = Scripted::new(&case.theirs, rng.random_range(4096..9000));
        let found = session(&case, &options, |message| {
            for range in Decoder::new(message).unwrap().map(Result::unwrap) {
                assert!(range.upper.item >= Item::new(since, [0; 32]), "{options:?}");
            }
            responder.answer(message)
        })
        .unwrap();
        assert!(sorted(&found.have) == case.have && sorted(&found.need) == case.need);
    });
}

#[test]
fn hazard_4_long_lists_answered_with_fingerprints() {
    exact_with(3000..3700, |responder| responder.longest_list = 40);
    exact_with(4000..4500, |responder| responder.longest_list = 1000);
}

#[test]
fn hazard_4_skipped_ranges_answered_with_fingerprints() {
    exact_with(5000..5700, |responder| responder.answers_skips = true);
    exact_with(6000..6500, |responder| {
        responder.answers_skips = true;
        responder.longest_list = 100;
        responder.closing = Closing::AfterDropped;
    });
}

#[test]
fn hazard_5_zero_width_ranges_and_double_skips() {
    exact_with(7000..7700, |responder| responder.noisy = true);
}

#[test]
fn hazard_5_a_list_that_is_skipped_is_asked_for_again() {
    exact_with(8000..8700, |responder| responder.skips_lists = Some(false));
}

#[test]
fn hazard_5_a_peer_that_skips_every_list_ends_with_an_error() {
    let theirs: SortedItems = (0..500).map(|i| Item::new(i, [i as u8; 32])).collect();
    for ours in [0..0, 0..10, 0..499, 400..500] {
        let ours: SortedItems = ours.map(|i| Item::new(i, [i as u8; 32])).collect();
        let mut responder = Scripted::new(&theirs, 0);
        responder.skips_lists = Some(true);
        let case = Case::new(
            ours.items().iter().copied().collect(),
            theirs.items().iter().copied().collect(),
        );
        let ended =
            session(&case, &InitiatorOptions::default(), |message| responder.answer(message));
        assert_eq!(ended, Err(InitiatorError::NoProgress { answers: 2 }));
    }
}

#[test]
fn hazard_5_a_bound_that_runs_backwards_is_refused() {
    let items: SortedItems = (0..500).map(|i| Item::new(i, [i as u8; 32])).collect();
    let mut responder = Scripted::new(&items, 0);
    responder.runs_backwards = true;
    let mut initiator = Initiator::new(&items, InitiatorOptions::default()).unwrap();
    let answer = responder.answer(&initiator.open());
    let ended = initiator.receive(&answer, &mut Difference::new());
    let Err(InitiatorError::Message(error)) = ended else { panic!("{ended:?}") };
    assert_eq!(error.fault, DecodeFault::BackwardBound);
    assert!(error.offset > 1 && error.offset < answer.len());
}

#[test]
fn hazard_6_the_opening_keeps_to_its_own_limit() {
    for_seeds(0..50, |rng| {
        // Bounds of maximum length: one second, and ids with the longest common prefixes.
        let items: BTreeSet<Item> =
            (0..3000).map(|_| random_item(rng, 1 << 40, 1, Ids::SharedPrefix)).collect();
        let mut theirs = items.clone();
        theirs.pop_last();
        let case = Case::new(items, theirs);
        for sync_mark in [None, Some(5)] {
            let options = InitiatorOptions::default()
                .frame_limit_bytes(60_000)
                .opening_limit_bytes(4096)
                .sync_mark(sync_mark);
            let opening = Initiator::new(&case.ours, options.clone()).unwrap().open();
            assert!(opening.len() <= 4096);
            let mut responder = Scripted::new(&case.theirs, 0);
            let found = session(&case, &options, |message| responder.answer(message)).unwrap();
            assert!(sorted(&found.have) == case.have && sorted(&found.need) == case.need);
        }
    });
}

#[test]
fn a_peer_of_another_version_is_named() {
    let mut initiator =
        Initiator::new(SortedItems::default(), InitiatorOptions::default()).unwrap();
    initiator.open();
    let ended = initiator.receive(&[0x62], &mut Difference::new());
    let Err(InitiatorError::Message(error)) = ended else { panic!("{ended:?}") };
    assert_eq!(error.fault, DecodeFault::OtherVersion(0x62));
}

#[test]
fn peers_that_never_settle_anything_end_with_an_error() {
    let items: SortedItems = (0..5000u64)
        .map(|i| {
            let mut id = [7; 32];
            id[..8].copy_from_slice(&i.to_be_bytes());
            Item::new(i, id)
        })
        .collect();
    // Answers repeatedly that everything differs, repeats the question, or answers nothing.
    let mut nothing = vec![0x61, 0, 0, 1];
    nothing.extend([5; 16]);
    for repeats in [false, true] {
        let reply = |message: &[u8]| if repeats { message.to_vec() } else { nothing.clone() };
        let mut initiator = Initiator::new(&items, InitiatorOptions::default()).unwrap();
        let mut message = initiator.open();
        let mut found = Difference::new();
        let ended = (0..1000).find_map(|_| match initiator.receive(&reply(&message), &mut found) {
            Ok(InitiatorStep::Send(next)) => {
                message = next;
                None
            }
            Ok(InitiatorStep::Done) => Some(Ok(())),
            Err(error) => Some(Err(error)),
        });
        assert!(ended.is_some(), "no end");
    }
}

/// Only the first answer is true; each later one says that nothing differs.
#[test]
fn a_peer_that_skips_what_differs_never_looks_equal() {
    for_seeds(0..200, |rng| {
        let theirs: BTreeSet<Item> = (0..rng.random_range(100..2000))
            .map(|_| random_item(rng, 0, 5000, Ids::Random))
            .collect();
        let mut ours = theirs.clone();
        let lacks = rng.random_range(1..20);
        ours.retain(|item| item.created_at % 20 >= lacks);
        let case = Case::new(ours, theirs);
        for rule in [Rule::Adaptive, Rule::Reference] {
            let mut responder = Scripted::new(&case.theirs, 0);
            let mut answers = 0;
            let ended = session(&case, &InitiatorOptions::default().rule(rule), |message| {
                answers += 1;
                if answers == 1 { responder.answer(message) } else { vec![0x61] }
            });
            let looks_equal = ended.is_ok_and(|found| found.is_empty());
            assert!(!looks_equal, "{rule:?} after {answers} answers");
        }
    });
}

#[test]
fn lists_of_what_was_not_asked_for_are_not_believed() {
    // A peer that answers every message with its whole set.
    let theirs: SortedItems = (0..3000u64).map(|i| Item::new(i, [(i % 251) as u8; 32])).collect();
    let ours: SortedItems =
        theirs.items().iter().copied().filter(|item| item.created_at % 50 != 0).collect();
    let whole = Responder::new(&theirs, 0).unwrap().answer(&[0x61, 0, 0, 2, 0]).unwrap();
    let mut initiator = Initiator::new(&ours, InitiatorOptions::default()).unwrap();
    initiator.open();
    let mut found = Difference::new();
    let first = initiator.receive(&whole, &mut found).unwrap();
    assert!(matches!(first, InitiatorStep::Send(_)));
    assert!(found.is_empty());
    assert_eq!(
        initiator.receive(&whole, &mut found),
        Err(InitiatorError::NoProgress { answers: 2 })
    );
}
