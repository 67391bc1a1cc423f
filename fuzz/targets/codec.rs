//! The negentropy codec: a message is decoded to its end or to the faulty byte, and decoded ranges
//! survive encoding.

use negsync::reconcile::message::{Decoder, Encoder, Payload, Range};

pub fn target(bytes: &[u8]) {
    let mut decoder = match Decoder::new(bytes) {
        Ok(decoder) => decoder,
        Err(wrong) => return assert_eq!(wrong.offset, 0),
    };
    let mut ranges = Vec::new();
    let mut wrong = None;
    let mut offset = decoder.offset();
    while let Some(range) = decoder.next() {
        match range {
            Ok(range) => {
                assert!(decoder.offset() >= offset + 3, "a range of less than three bytes");
                offset = decoder.offset();
                ranges.push(range);
            }
            Err(error) => wrong = Some(error),
        }
    }
    match wrong {
        Some(wrong) => assert!((offset..=bytes.len()).contains(&wrong.offset), "{wrong}"),
        None => assert_eq!(offset, bytes.len()),
    }
    let written = write(&ranges);
    // A time after the last second is decoded as infinity, and encoded as that.
    assert!(written.len() <= offset);
    let read: Vec<Range<'_>> = Decoder::new(&written)
        .expect("a version byte was written")
        .map(|range| range.expect("what was written can be read"))
        .collect();
    assert_eq!(read, ranges);
    assert_eq!(write(&read), written);
}

fn write(ranges: &[Range<'_>]) -> Vec<u8> {
    let mut out = Encoder::new();
    for Range { upper, payload } in ranges {
        let before = out.mark();
        // Truncation leaves no trace.
        out.skip(upper);
        out.go_back(before);
        match payload {
            Payload::Skip => out.skip(upper),
            Payload::Fingerprint(fingerprint) => out.fingerprint(upper, fingerprint),
            Payload::IdList(ids) => {
                out.id_list(upper, ids.len());
                ids.iter().for_each(|id| out.id(id));
            }
        }
    }
    out.finish()
}
