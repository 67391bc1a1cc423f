//! Messages that no honest peer sends: no panic, no answer above the frame limit, and no more than
//! the contents of the set.

use crate::support::{Case, crate_engine, crate_set, for_seeds};
use negsync_reconcile::item::Item;
use negsync_reconcile::message::{Decoder, Encoder};
use negsync_reconcile::{
    Bound, Difference, Initiator, InitiatorOptions, RangeSet, Responder, SortedItems,
};
use rand::RngExt;
use rand::rngs::StdRng;

fn mutate(rng: &mut StdRng, message: &mut Vec<u8>) {
    for _ in 0..rng.random_range(1..4) {
        let at = rng.random_range(0..=message.len());
        let end = rng.random_range(at..=message.len().min(at + 50));
        match rng.random_range(0..5) {
            0 if at < message.len() => message[at] ^= 1 << rng.random_range(0..8),
            1 if at < message.len() => message[at] = rng.random(),
            2 => message.truncate(at),
            3 => drop(message.drain(at..end)),
            _ => {
                let copy = message[at..end].to_vec();
                let to = rng.random_range(0..=message.len());
                message.splice(to..to, copy);
            }
        }
    }
}

#[test]
fn a_mutated_message_gets_the_crates_answer_or_an_error() {
    for_seeds(0..3000, |rng| {
        let case = Case::any(rng, 400);
        let limit = if rng.random_bool(0.5) { 0 } else { rng.random_range(4096..5000) };
        let mut initiator = Initiator::new(&case.ours, InitiatorOptions::reference(0)).unwrap();
        let mut responder = Responder::new(&case.theirs, limit).unwrap();
        let mut message = initiator.open();
        if rng.random_bool(0.5) {
            let answer = responder.answer(&message).unwrap();
            let step = initiator.receive(&answer, &mut Difference::new()).unwrap();
            if let negsync_reconcile::InitiatorStep::Send(next) = step {
                message = next;
            }
        }
        mutate(rng, &mut message);
        let theirs = crate_set(case.theirs.items());
        let Ok(answer) = responder.answer(&message) else { return };
        assert!(limit == 0 || answer.len() <= limit);
        assert_eq!(Ok(answer), crate_engine(&theirs, limit).reconcile(&message));
    });
}

#[test]
fn a_mutated_answer_never_breaks_an_initiator() {
    for_seeds(5000..8000, |rng| {
        let case = Case::any(rng, 400);
        for options in
            [InitiatorOptions::reference(4096), InitiatorOptions::default().frame_limit_bytes(4096)]
        {
            let mut initiator = Initiator::new(&case.ours, options).unwrap();
            let mut responder = Responder::new(&case.theirs, 4096).unwrap();
            let mut message = initiator.open();
            for _ in 0..50 {
                let mut answer = responder.answer(&message).unwrap();
                mutate(rng, &mut answer);
                match initiator.receive(&answer, &mut Difference::new()) {
                    Ok(negsync_reconcile::InitiatorStep::Send(next)) => message = next,
                    Ok(negsync_reconcile::InitiatorStep::Done) | Err(_) => break,
                }
                assert!(message.len() <= 4096);
                // Any responder can decode our messages.
                assert!(Decoder::new(&message).unwrap().all(|range| range.is_ok()));
            }
        }
    });
}

#[test]
fn no_message_has_the_same_items_listed_twice() {
    let set: SortedItems = (0..1000u64).map(|i| Item::new(i, [i as u8; 32])).collect();
    let mut out = Encoder::new();
    for _ in 0..10_000 {
        // The whole set, then backward bounds, repeatedly.
        out.id_list(&Bound::at(5000), 0);
        out.id_list(&Bound::at(10), 0);
        out.fingerprint(&Bound::at(900), &[7; 16]);
    }
    let message = out.finish();
    let mut unlimited = Responder::new(&set, 0).unwrap();
    let answer = unlimited.answer(&message).unwrap();
    assert!(answer.len() <= 1000 * 32 + message.len(), "{} bytes", answer.len());
    let mut limited = Responder::new(&set, 4096).unwrap();
    assert!(limited.answer(&message).unwrap().len() <= 4096);
    assert_eq!(set.len(), 1000);
}
