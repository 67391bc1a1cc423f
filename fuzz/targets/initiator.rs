//! The initiator under both rules, against a peer that answers honestly, or with some bytes
//! changed, or with arbitrary bytes. The input decides for each answer. At its end the peer is
//! honest, so the session must end, and its result must be exact if the peer was always honest.

use super::input::Input;
use super::sets::{FRAME_LIMITS, sets};
use negsync::item::Item;
use negsync::reconcile::message::Decoder;
use negsync::reconcile::{
    Difference, DifferenceCount, Initiator, InitiatorOptions, InitiatorStep, Responder, Rule,
    SortedItems,
};
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU64;

/// An honest peer is through with the largest of the sets well before.
const MOST_HONEST_ANSWERS: usize = 200;
/// Maximum number of answers that an input may change.
const MOST_SPOILT_ANSWERS: usize = 24;

pub fn target(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let ours = &sets()[usize::from(input.byte()) % sets().len()];
    let theirs = &sets()[usize::from(input.byte()) % sets().len()];
    let options = any_options(&mut input);
    let mut responder =
        Responder::new(theirs, input.choose(&FRAME_LIMITS)).expect("a limit that can be kept");
    let mut initiator = Initiator::new(ours, options.clone()).expect("limits that can be kept");
    let mut message = initiator.open();
    let mut found = Difference::new();
    let (mut spoilt, mut spoilt_listed) = (0, 0);
    let ended = (0..MOST_HONEST_ANSWERS).find_map(|_| {
        check_message(&message, &options);
        let honest = responder.answer(&message).expect("a message that can be read");
        let answer = if input.is_empty() || spoilt == MOST_SPOILT_ANSWERS {
            honest.clone()
        } else {
            spoil(&mut input, honest.clone())
        };
        if answer != honest {
            spoilt += 1;
            spoilt_listed += answer.len() / 32;
        }
        match initiator.receive(&answer, &mut found) {
            Ok(InitiatorStep::Send(next)) => {
                message = next;
                None
            }
            Ok(InitiatorStep::Done) => Some(true),
            Err(_) => Some(false),
        }
    });
    let complete = ended.expect("the session did not end");
    assert!(complete || spoilt > 0, "a session with an honest peer failed");
    check_found(ours, theirs, &found, &options, spoilt, spoilt_listed);
}

fn any_options(input: &mut Input<'_>) -> InitiatorOptions {
    let first = sets()[5].items()[0].created_at;
    let flags = input.byte();
    InitiatorOptions::default()
        .rule(match flags & 129 {
            0 => Rule::Adaptive,
            128 => Rule::Exact,
            _ => Rule::Reference,
        })
        .frame_limit_bytes(input.choose(&FRAME_LIMITS))
        .opening_limit_bytes(if flags & 2 == 0 { 0 } else { 4_096 })
        .reply_limit_bytes((flags & 4 != 0).then(|| input.number()))
        .sync_mark((flags & 8 != 0).then(|| first + input.number() as u64))
        // Below all items: both sets are complete.
        .since((flags & 16 != 0).then_some(first))
        .empty_id_lists(flags & 32 == 0)
        .time_bucket_s(if flags & 64 == 0 {
            None
        } else {
            NonZeroU64::new(1 << (input.byte() % 20))
        })
}

/// The answer, changed by the input.
fn spoil(input: &mut Input<'_>, mut answer: Vec<u8>) -> Vec<u8> {
    match input.byte() % 8 {
        // Unchanged.
        0..3 => {}
        // Some bytes are changed.
        3 | 4 => {
            for _ in 0..=input.byte() % 4 {
                let (place, byte) = (input.number(), input.byte());
                let place = place % answer.len();
                answer[place] ^= byte;
            }
        }
        5 => answer.truncate(input.number() % (answer.len() + 1)),
        // Ranges from the input in the middle or at the end.
        6 => {
            let place = input.number() % (answer.len() + 1);
            let len = usize::from(input.byte());
            answer.splice(place..place, input.take(len).iter().copied());
        }
        _ => {
            let len = input.number() % 1_024;
            answer = input.take(len).to_vec();
        }
    }
    answer
}

fn check_message(message: &[u8], options: &InitiatorOptions) {
    let limit_bytes = options.frame_limit_bytes;
    // The opening of the reference rule ignores the limit; the others must respect it.
    assert!(limit_bytes == 0 || message.len() <= limit_bytes, "{} bytes", message.len());
    let mut last = None;
    for range in Decoder::new(message).expect("a message of v1") {
        let upper = range.expect("a message that can be read").upper.item;
        // The reference accepts a backward bound from its peer, and passes it on.
        let forwards = last.is_none_or(|last| last <= upper);
        assert!(forwards || options.rule == Rule::Reference, "a bound that runs backwards");
        last = Some(upper);
    }
}

/// The number of items of either set that the other lacks, by time bucket.
fn cells(
    ours: &SortedItems,
    theirs: &SortedItems,
    time_bucket_s: NonZeroU64,
) -> BTreeMap<u64, DifferenceCount> {
    let items = |set: &SortedItems| -> BTreeSet<Item> { set.items().iter().copied().collect() };
    let (ours, theirs) = (items(ours), items(theirs));
    let mut cells: BTreeMap<u64, DifferenceCount> = BTreeMap::new();
    for item in ours.symmetric_difference(&theirs) {
        let cell = cells.entry(item.created_at / time_bucket_s * time_bucket_s.get()).or_default();
        let count = if ours.contains(item) { &mut cell.have } else { &mut cell.need };
        *count += 1;
    }
    cells
}

fn check_found(
    our_set: &SortedItems,
    their_set: &SortedItems,
    found: &Difference,
    options: &InitiatorOptions,
    spoilt: usize,
    spoilt_listed: usize,
) {
    let ids = |set: &SortedItems| -> BTreeSet<[u8; 32]> {
        set.items().iter().map(|item| item.id).collect()
    };
    let (ours, theirs) = (ids(our_set), ids(their_set));
    let have: BTreeSet<[u8; 32]> = found.have.iter().copied().collect();
    let need: BTreeSet<[u8; 32]> = found.need.iter().copied().collect();
    assert!(have.is_subset(&ours), "something found that we never had");
    // Every needed id was listed by the peer.
    assert!(found.need.len() <= theirs.len() * (1 + spoilt) + spoilt_listed);
    if options.rule != Rule::Reference {
        assert_eq!(have.len(), found.have.len(), "an id of ours found twice");
    }
    if spoilt == 0 {
        assert_eq!(have, ours.difference(&theirs).copied().collect());
        assert_eq!(need, theirs.difference(&ours).copied().collect());
        if options.rule != Rule::Reference {
            assert_eq!(need.len(), found.need.len(), "an id of theirs found twice");
        }
        if let Some(time_bucket_s) =
            options.time_bucket_s.filter(|_| options.rule != Rule::Reference)
        {
            assert_eq!(found.time_buckets, cells(our_set, their_set, time_bucket_s));
        }
    }
}
