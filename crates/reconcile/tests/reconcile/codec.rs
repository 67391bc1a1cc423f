//! Encoded ranges are decoded again; a malformed message is reported with the position of its
//! fault.

use crate::support::{Ids, for_seeds, random_item};
use negsync_reconcile::item::Item;
use negsync_reconcile::message::{DecodeFault, Decoder, Encoder, MessageError, Payload, Range};
use negsync_reconcile::{Bound, RangeSet, Responder, SortedItems};
use rand::{Rng, RngExt};

#[test]
fn ranges_survive_the_wire() {
    for_seeds(0..500, |rng| {
        let mut items: Vec<Item> = (0..rng.random_range(1..40))
            .map(|_| random_item(rng, 0, 1 << 40, Ids::Random))
            .collect();
        items.sort();
        let ids: Vec<[u8; 32]> = items.iter().map(|item| item.id).collect();
        let mut out = Encoder::new();
        let mut written = Vec::new();
        for item in &items {
            let mut upper = Bound { item: *item, id_len: rng.random_range(0..=32) };
            upper.item.id[usize::from(upper.id_len)..].fill(0);
            if rng.random_bool(0.05) {
                upper = Bound::INFINITY;
            }
            let payload = match rng.random_range(0..3) {
                0 => Payload::Skip,
                1 => {
                    let mut fingerprint = [0; 16];
                    rng.fill_bytes(&mut fingerprint);
                    Payload::Fingerprint(fingerprint)
                }
                _ => Payload::IdList(&ids[..rng.random_range(0..=ids.len())]),
            };
            match payload {
                Payload::Skip => out.skip(&upper),
                Payload::Fingerprint(fingerprint) => out.fingerprint(&upper, &fingerprint),
                Payload::IdList(ids) => {
                    out.id_list(&upper, ids.len());
                    ids.iter().for_each(|id| out.id(id));
                }
            }
            written.push(Range { upper, payload });
            if upper == Bound::INFINITY {
                break;
            }
        }
        let message = out.finish();
        let mut decoder = Decoder::new(&message).unwrap();
        let read: Vec<Range<'_>> = decoder.by_ref().map(Result::unwrap).collect();
        assert_eq!(read, written);
        assert_eq!(decoder.offset(), message.len());
    });
}

fn first_error(message: &[u8]) -> Option<MessageError> {
    match Decoder::new(message) {
        Ok(decoder) => decoder.filter_map(Result::err).next(),
        Err(error) => Some(error),
    }
}

#[test]
fn what_is_wrong_is_named_with_its_byte() {
    let mut long_prefix = vec![0x61, 0, 33];
    long_prefix.extend([0; 40]);
    let cases: &[(&[u8], usize, DecodeFault)] = &[
        (&[], 0, DecodeFault::Empty),
        (&[0x59], 0, DecodeFault::NotNegentropy(0x59)),
        (&[0x70, 0, 0, 0], 0, DecodeFault::NotNegentropy(0x70)),
        (&[0x62], 0, DecodeFault::OtherVersion(0x62)),
        (&[0x61, 0x81], 1, DecodeFault::VarintTruncated),
        (&[0x61, 0], 2, DecodeFault::VarintTruncated),
        (&[0x61, 0, 0], 3, DecodeFault::VarintTruncated),
        (&[0x61, 0x80, 0x01, 0, 0], 1, DecodeFault::VarintOverlong),
        (
            &[0x61, 0x82, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0, 0, 0],
            1,
            DecodeFault::VarintTooLarge,
        ),
        (&long_prefix, 2, DecodeFault::PrefixTooLong(33)),
        (&[0x61, 0, 3, 1, 2], 3, DecodeFault::PrefixTruncated),
        (&[0x61, 0, 0, 3], 3, DecodeFault::UnknownMode(3)),
        (&[0x61, 0, 0, 1, 9, 9], 4, DecodeFault::FingerprintTruncated),
        (&[0x61, 0, 0, 2, 1, 9, 9], 4, DecodeFault::IdListTruncated(1)),
        (&[0x61, 0, 0, 2, 0xc0, 0x80, 0x80, 0x80, 0], 4, DecodeFault::IdListTruncated(1 << 34)),
        // After a valid range.
        (&[0x61, 5, 0, 0, 0, 0, 7], 6, DecodeFault::UnknownMode(7)),
    ];
    for (message, offset, fault) in cases {
        assert_eq!(
            first_error(message),
            Some(MessageError { offset: *offset, fault: *fault }),
            "{message:02x?}"
        );
    }
}

#[test]
fn the_largest_number_is_read() {
    let mut message = vec![0x61, 0x81];
    message.extend([0xff; 8]);
    message.extend([0x7f, 0, 0]);
    let range = Decoder::new(&message).unwrap().next().unwrap().unwrap();
    assert_eq!(range.upper, Bound::at(u64::MAX - 1));
}

#[test]
fn an_empty_set_opens_with_an_empty_list() {
    let empty = SortedItems::default();
    let mut initiator = negsync_reconcile::Initiator::new(
        &empty,
        negsync_reconcile::InitiatorOptions::reference(0),
    )
    .unwrap();
    assert_eq!(initiator.open(), [0x61, 0, 0, 2, 0]);
}

#[test]
fn another_version_is_answered_with_ours() {
    let mut responder = Responder::new(SortedItems::default(), 0).unwrap();
    for version in (0x60..=0x6f).filter(|version| *version != 0x61) {
        assert_eq!(responder.answer(&[version, 1, 2, 3]).unwrap(), [0x61]);
    }
}

#[test]
fn frame_limits_too_small_are_refused() {
    assert!(Responder::new(SortedItems::default(), 4095).is_err());
    assert!(Responder::new(SortedItems::default(), 4096).is_ok());
}

#[test]
fn a_bound_between_neighbours_is_the_shortest_that_divides_them() {
    for_seeds(500..900, |rng| {
        let set: SortedItems = (0..30).map(|_| random_item(rng, 7, 3, Ids::SharedPrefix)).collect();
        for rank in 1..set.len() {
            let (left, right) = (set.items()[rank - 1], set.items()[rank]);
            let bound = set.bound_at(rank);
            assert!(left < bound.item && bound.item <= right);
            if let Some(shorter) = bound.id_len.checked_sub(1) {
                let mut item = bound.item;
                item.id[usize::from(shorter)..].fill(0);
                assert!(item <= left, "a shorter bound would do");
            }
        }
    });
}
