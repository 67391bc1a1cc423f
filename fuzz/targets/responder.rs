//! The responder: each answer is within the frame limit, takes bounded work, and equals that of the
//! `negentropy` crate. The first byte chooses the set, the second the limit, the rest is the
//! message.

use super::input::Input;
use super::sets::{Counted, FRAME_LIMITS, sets};
use negentropy::{Id, Negentropy, NegentropyStorageVector};
use negsync::reconcile::message::Decoder;
use negsync::reconcile::{RangeSet, Responder, SortedItems};
use std::sync::OnceLock;

pub fn target(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let place = usize::from(input.byte()) % sets().len();
    let limit_bytes = input.choose(&FRAME_LIMITS);
    let message = input.rest();
    let set = Counted::new(&sets()[place]);
    let mut responder = Responder::new(&set, limit_bytes).expect("a limit that can be kept");
    let answer = responder.answer(message);

    // Ranges do not overlap: no item is listed twice, and each bound is looked up once.
    assert!(set.visited.get() <= set.len(), "{} items visited", set.visited.get());
    assert!(set.looked_up.get() <= 64 + 4 * message.len() + 4 * set.len());

    let answer = match answer {
        Ok(answer) => answer,
        Err(wrong) => return assert!(wrong.offset <= message.len()),
    };
    assert!(limit_bytes == 0 || answer.len() <= limit_bytes, "{} bytes", answer.len());
    // Each id once, a fingerprint for every second item, and a bound for each range.
    assert!(answer.len() <= 100 + 64 * set.len() + 64 * message.len(), "{} bytes", answer.len());
    let mut ranges = Decoder::new(&answer).expect("a message of v1");
    assert!(ranges.all(|range| range.is_ok()), "an answer that cannot be read");

    let of_the_crate = &of_the_crate()[place];
    let mut engine = Negentropy::borrowed(of_the_crate, limit_bytes as u64).expect("a limit");
    assert_eq!(engine.reconcile(message).as_ref(), Ok(&answer));
}

/// The sets in the crate's form.
fn of_the_crate() -> &'static [NegentropyStorageVector] {
    static SETS: OnceLock<Vec<NegentropyStorageVector>> = OnceLock::new();
    SETS.get_or_init(|| sets().iter().map(storage).collect())
}

fn storage(set: &SortedItems) -> NegentropyStorageVector {
    let mut storage = NegentropyStorageVector::new();
    for item in set.items() {
        storage.insert(item.created_at, Id::from_byte_array(item.id)).expect("not sealed yet");
    }
    storage.seal().expect("not sealed yet");
    storage
}
