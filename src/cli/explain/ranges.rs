//! A negentropy message as a table: one line for each range, with its ids.

use negsync::hex;
use negsync::reconcile::message::{DecodeFault, Decoder, Payload, Range};
use negsync::reconcile::{Bound, MessageError};
use negsync::utc::utc;
use std::fmt::Write;

/// Number of ids of a list that are shown, unless all are requested.
const SHOWN_IDS: usize = 4;
/// Number of bytes of a bound's id prefix that are shown, unless all are requested.
const SHOWN_PREFIX_BYTES: usize = 4;
/// Number of bytes that are shown before and after the faulty one.
const BYTES_BEFORE: usize = 16;
const BYTES_AFTER: usize = 8;

/// The counts of a message's parts.
#[derive(Default)]
pub(super) struct MessageTotals {
    pub(super) bytes: usize,
    pub(super) skips: usize,
    pub(super) fingerprints: usize,
    pub(super) lists: usize,
    pub(super) ids: usize,
    /// The number of adjacent fingerprint ranges at the end.
    pub(super) last_fingerprints: usize,
    /// The bounds of the last range.
    pub(super) last: Option<(Bound, Bound)>,
}

impl MessageTotals {
    fn count(&mut self, lower: Bound, range: &Range<'_>) {
        self.last = Some((lower, range.upper));
        match range.payload {
            Payload::Skip => self.skips += 1,
            Payload::Fingerprint(_) => {
                self.fingerprints += 1;
                self.last_fingerprints += 1;
                return;
            }
            Payload::IdList(ids) => {
                self.lists += 1;
                self.ids += ids.len();
            }
        }
        self.last_fingerprints = 0;
    }

    pub(super) fn ranges(&self) -> usize {
        self.skips + self.fingerprints + self.lists
    }
}

/// Writes a line for each range of `message`, up to the first fault.
pub(super) fn write_table(
    message: &[u8],
    all: bool,
    out: &mut String,
) -> Result<MessageTotals, MessageError> {
    let read = write_ranges(message, all, out);
    if let Err(wrong) = &read {
        write_wrong(message, wrong, out);
    }
    read
}

fn write_ranges(
    message: &[u8],
    all: bool,
    out: &mut String,
) -> Result<MessageTotals, MessageError> {
    let mut ranges = Decoder::new(message)?;
    let mut totals = MessageTotals { bytes: message.len(), ..MessageTotals::default() };
    let mut lower = Bound::START;
    let mut offset = ranges.offset();
    while let Some(range) = ranges.next() {
        let range = range?;
        if totals.ranges() == 0 {
            line(out, &format!("{:>8} {:>7}  {:<29} says", "byte", "bytes", "range up to"));
        }
        // An initiator refuses such a range; for a responder it is empty.
        if range.upper.item < lower.item {
            return Err(MessageError { offset, fault: DecodeFault::BackwardBound });
        }
        let bytes = ranges.offset() - offset;
        let upper = show_bound(&range.upper, all);
        let says = match range.payload {
            Payload::Skip => "skip".to_owned(),
            Payload::Fingerprint(fingerprint) => {
                format!("fingerprint {}", hex::encode(&fingerprint))
            }
            Payload::IdList(ids) => counted(ids.len(), "id"),
        };
        line(out, &format!("{offset:>8} {bytes:>7}  {upper:<29} {says}"));
        if let Payload::IdList(ids) = range.payload {
            write_ids(ids, all, out);
        }
        totals.count(lower, &range);
        (lower, offset) = (range.upper, ranges.offset());
    }
    Ok(totals)
}

fn write_ids(ids: &[[u8; 32]], all: bool, out: &mut String) {
    let most = if all { ids.len() } else { SHOWN_IDS };
    for id in ids.iter().take(most) {
        line(out, &format!("{:>18}{}", "", hex::encode(id)));
    }
    if ids.len() > most {
        line(out, &format!("{:>18}and {} more", "", ids.len() - most));
    }
}

/// The bytes around the faulty one.
fn write_wrong(message: &[u8], wrong: &MessageError, out: &mut String) {
    let (before, after) = message.split_at_checked(wrong.offset).unwrap_or((message, &[]));
    let (cut, before) = match before.split_last_chunk::<BYTES_BEFORE>() {
        Some((longer, last)) => (!longer.is_empty(), last.as_slice()),
        None => (false, before),
    };
    let shown = after.first_chunk::<BYTES_AFTER>().map_or(after, |first| first);
    line(
        out,
        &format!(
            "{:>8} wrong  {}{} >>> {}{}",
            wrong.offset,
            if cut { "..." } else { "" },
            hex::encode(before),
            if shown.is_empty() { "the end".to_owned() } else { hex::encode(shown) },
            if shown.len() < after.len() { "..." } else { "" },
        ),
    );
}

/// A bound for people: a date, and the beginning of its id.
pub(super) fn show_bound(bound: &Bound, all: bool) -> String {
    let mut text = match bound.item.created_at {
        u64::MAX => "infinity".to_owned(),
        created_at => utc(created_at),
    };
    let prefix = bound.item.id.get(..usize::from(bound.id_len)).unwrap_or(&bound.item.id);
    let shown = prefix.first_chunk::<SHOWN_PREFIX_BYTES>().filter(|_| !all);
    if !prefix.is_empty() {
        let shown = shown.map_or(prefix, |first| first);
        let _ = write!(text, " {}", hex::encode(shown));
        if shown.len() < prefix.len() {
            text.push('+');
        }
    }
    text
}

/// `1 id`, `2 ids`.
pub(super) fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn line(out: &mut String, text: &str) {
    out.push_str(text);
    out.push('\n');
}
