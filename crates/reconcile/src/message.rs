//! The negentropy v1 message: a version byte, then ranges. A range consists of an upper bound, a
//! mode and the payload of that mode; it begins where the previous range ends.
//!
//! [`Decoder`] reads without allocating: its ranges borrow from the message, and each number from a
//! peer is checked against the remaining bytes before use. [`Encoder`] writes.

use super::fingerprint::Fingerprint;
use super::range_set::Bound;
use crate::item::Item;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;

/// The version byte of negentropy v1, the first of every message.
pub const PROTOCOL_VERSION: u8 = 0x61;

/// The version bytes reserved for past and future versions of negentropy.
const VERSIONS: core::ops::RangeInclusive<u8> = 0x60..=0x6f;

/// Maximum length of one range on the wire without its ids: a bound of 10 + 1 + 32 bytes, a mode,
/// and a fingerprint or a count.
pub const RANGE_MAX_BYTES: usize = 10 + 1 + 32 + 1 + 16;

/// Why a message is malformed, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageError {
    /// Offset of the malformed field from the start of the message, in bytes.
    pub offset: usize,
    /// The kind of fault.
    pub fault: DecodeFault,
}

impl fmt::Display for MessageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { offset, fault } = self;
        write!(f, "byte {offset}: {fault}")
    }
}

impl core::error::Error for MessageError {}

/// The faults of a malformed message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DecodeFault {
    /// The message is empty: not even a version byte.
    Empty,
    /// The first byte is not a negentropy version.
    NotNegentropy(u8),
    /// A version of negentropy other than v1.
    OtherVersion(u8),
    /// The message ends inside a number.
    VarintTruncated,
    /// A number begins with a zero digit, which the protocol does not allow.
    VarintOverlong,
    /// A number of more than 64 bits.
    VarintTooLarge,
    /// A mode other than Skip, Fingerprint and IdList.
    UnknownMode(u64),
    /// A bound's id prefix of more than 32 bytes.
    PrefixTooLong(u64),
    /// The message ends inside a bound's id prefix.
    PrefixTruncated,
    /// The message ends inside a fingerprint.
    FingerprintTruncated,
    /// The message holds fewer ids than the list announces.
    IdListTruncated(u64),
    /// A range ends below its lower bound. Only an initiator refuses it.
    BackwardBound,
}

impl fmt::Display for DecodeFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("the message is empty"),
            Self::NotNegentropy(it) => write!(f, "{it:#04x} is no negentropy version byte"),
            Self::OtherVersion(it) => {
                write!(f, "version byte {it:#04x} is not the 0x61 of negentropy v1")
            }
            Self::VarintTruncated => f.write_str("the message ends inside a number"),
            Self::VarintOverlong => {
                f.write_str("a number is written with more digits than it needs")
            }
            Self::VarintTooLarge => f.write_str("a number does not fit in 64 bits"),
            Self::UnknownMode(it) => write!(f, "{it} is no range mode"),
            Self::PrefixTooLong(it) => write!(f, "an id prefix of {it} bytes is longer than an id"),
            Self::PrefixTruncated => {
                f.write_str("the message ends inside the id prefix of a bound")
            }
            Self::FingerprintTruncated => f.write_str("the message ends inside a fingerprint"),
            Self::IdListTruncated(it) => {
                write!(f, "a list announces {it} ids and the message holds fewer")
            }
            Self::BackwardBound => f.write_str("a range ends below where it begins"),
        }
    }
}

impl core::error::Error for DecodeFault {}

/// One range of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range<'a> {
    /// The upper bound: the next range begins here.
    pub upper: Bound,
    /// The content of the range.
    pub payload: Payload<'a>,
}

/// The content of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload<'a> {
    /// No statement: the range needs no work.
    Skip,
    /// The fingerprint of the sender's items in the range.
    Fingerprint(Fingerprint),
    /// The ids of all the sender's items in the range.
    IdList(&'a [[u8; 32]]),
}

const MODE_SKIP: u8 = 0;
const MODE_FINGERPRINT: u8 = 1;
const MODE_ID_LIST: u8 = 2;

/// Reads a message range by range. After an error it yields nothing more.
#[derive(Clone, Debug)]
pub struct Decoder<'a> {
    rest: &'a [u8],
    offset: usize,
    /// A time is sent as the difference to the previous bound.
    last_created_at: u64,
}

impl<'a> Decoder<'a> {
    /// Checks the version byte of `message`.
    ///
    /// # Errors
    /// [`DecodeFault::Empty`], [`DecodeFault::NotNegentropy`] and [`DecodeFault::OtherVersion`]; a
    /// responder answers the last one with the version that it supports.
    pub fn new(message: &'a [u8]) -> Result<Self, MessageError> {
        let fault = match message.split_first() {
            Some((&PROTOCOL_VERSION, rest)) => {
                return Ok(Self { rest, offset: 1, last_created_at: 0 });
            }
            Some((version, _)) if VERSIONS.contains(version) => DecodeFault::OtherVersion(*version),
            Some((version, _)) => DecodeFault::NotNegentropy(*version),
            None => DecodeFault::Empty,
        };
        Err(MessageError { offset: 0, fault })
    }

    /// The number of bytes read: the offset of the next range.
    #[must_use]
    pub fn offset(&self) -> usize {
        self.offset
    }

    fn range(&mut self) -> Result<Range<'a>, MessageError> {
        let upper = self.bound()?;
        let offset = self.offset;
        let payload = match self.varint()? {
            mode if mode == u64::from(MODE_SKIP) => Payload::Skip,
            mode if mode == u64::from(MODE_FINGERPRINT) => self.fingerprint()?,
            mode if mode == u64::from(MODE_ID_LIST) => self.id_list()?,
            mode => return Err(MessageError { offset, fault: DecodeFault::UnknownMode(mode) }),
        };
        Ok(Range { upper, payload })
    }

    fn bound(&mut self) -> Result<Bound, MessageError> {
        let created_at = match self.varint()? {
            0 => u64::MAX,
            above_last => self.last_created_at.saturating_add(above_last - 1),
        };
        self.last_created_at = created_at;
        let offset = self.offset;
        let announced = self.varint()?;
        let id_len = match u8::try_from(announced) {
            Ok(id_len @ 0..=32) => id_len,
            _ => return Err(MessageError { offset, fault: DecodeFault::PrefixTooLong(announced) }),
        };
        let prefix = self.take(usize::from(id_len), DecodeFault::PrefixTruncated)?;
        let mut id = [0; 32];
        id.iter_mut().zip(prefix).for_each(|(to, from)| *to = *from);
        Ok(Bound { item: Item::new(created_at, id), id_len })
    }

    fn fingerprint(&mut self) -> Result<Payload<'a>, MessageError> {
        let offset = self.offset;
        let bytes = self.take(size_of::<Fingerprint>(), DecodeFault::FingerprintTruncated)?;
        Fingerprint::try_from(bytes)
            .map(Payload::Fingerprint)
            .map_err(|_| MessageError { offset, fault: DecodeFault::FingerprintTruncated })
    }

    fn id_list(&mut self) -> Result<Payload<'a>, MessageError> {
        let offset = self.offset;
        let announced = self.varint()?;
        let fault = DecodeFault::IdListTruncated(announced);
        let len = usize::try_from(announced).ok().and_then(|ids| ids.checked_mul(32));
        let wrong = MessageError { offset, fault };
        let bytes = len.and_then(|len| self.take(len, fault).ok()).ok_or(wrong)?;
        let (ids, _) = bytes.as_chunks::<32>();
        Ok(Payload::IdList(ids))
    }

    /// Base 128, most significant digit first, in the fewest possible digits.
    fn varint(&mut self) -> Result<u64, MessageError> {
        let offset = self.offset;
        let wrong = |fault| MessageError { offset, fault };
        let mut value = 0u64;
        for (index, byte) in self.rest.iter().enumerate() {
            if index == 0 && *byte == 0x80 {
                return Err(wrong(DecodeFault::VarintOverlong));
            }
            if value > u64::MAX >> 7 {
                return Err(wrong(DecodeFault::VarintTooLarge));
            }
            value = value << 7 | u64::from(byte & 0x7f);
            if byte & 0x80 == 0 {
                self.take(index + 1, DecodeFault::VarintTruncated)?;
                return Ok(value);
            }
        }
        Err(wrong(DecodeFault::VarintTruncated))
    }

    fn take(&mut self, len: usize, fault: DecodeFault) -> Result<&'a [u8], MessageError> {
        let wrong = MessageError { offset: self.offset, fault };
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(wrong)?;
        self.rest = rest;
        self.offset += len;
        Ok(taken)
    }
}

impl<'a> Iterator for Decoder<'a> {
    type Item = Result<Range<'a>, MessageError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let range = self.range();
        if range.is_err() {
            self.rest = &[];
        }
        Some(range)
    }
}

/// A message of an initiator, decoded to its end. A caller can validate it before it builds the set
/// that answers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WholeMessage<'a> {
    /// Its ranges, in order.
    Ranges(Vec<Range<'a>>),
    /// The initiator uses another version of negentropy. The answer names ours.
    OtherVersion,
}

impl<'a> WholeMessage<'a> {
    /// Reads `message`.
    ///
    /// # Errors
    /// The message is malformed; the error names the fault and its offset.
    pub fn read(message: &'a [u8]) -> Result<Self, MessageError> {
        match Decoder::new(message) {
            Ok(ranges) => ranges.collect::<Result<_, _>>().map(Self::Ranges),
            Err(MessageError { fault: DecodeFault::OtherVersion(_), .. }) => Ok(Self::OtherVersion),
            Err(error) => Err(error),
        }
    }
}

/// Writes a message range by range.
#[derive(Clone, Debug)]
pub struct Encoder {
    message: Vec<u8>,
    last_created_at: u64,
}

/// A position in a message that is being written, to which it can be truncated.
#[derive(Clone, Copy, Debug)]
pub struct EncoderMark {
    len: usize,
    last_created_at: u64,
}

impl Default for Encoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Encoder {
    /// A message without ranges.
    #[must_use]
    pub fn new() -> Self {
        Self { message: vec![PROTOCOL_VERSION], last_created_at: 0 }
    }

    /// The number of bytes written.
    #[must_use]
    pub fn message_bytes(&self) -> usize {
        self.message.len()
    }

    /// The message.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        self.message
    }

    /// The current end of the message.
    #[must_use]
    pub fn mark(&self) -> EncoderMark {
        EncoderMark { len: self.message.len(), last_created_at: self.last_created_at }
    }

    /// Removes everything written since `mark`.
    pub fn go_back(&mut self, mark: EncoderMark) {
        self.message.truncate(mark.len);
        self.last_created_at = mark.last_created_at;
    }

    /// Writes a Skip range up to `upper`.
    pub fn skip(&mut self, upper: &Bound) {
        self.bound(upper);
        self.message.push(MODE_SKIP);
    }

    /// Writes a Fingerprint range up to `upper`.
    pub fn fingerprint(&mut self, upper: &Bound, fingerprint: &Fingerprint) {
        self.bound(upper);
        self.message.push(MODE_FINGERPRINT);
        self.message.extend_from_slice(fingerprint);
    }

    /// Begins an IdList range up to `upper`. The caller must follow it with `count` calls of
    /// [`Encoder::id`].
    pub fn id_list(&mut self, upper: &Bound, count: usize) {
        self.bound(upper);
        self.message.push(MODE_ID_LIST);
        self.varint(count as u64);
        self.message.reserve(count.saturating_mul(32));
    }

    /// Writes one id of the list that was begun last.
    pub fn id(&mut self, id: &[u8; 32]) {
        self.message.extend_from_slice(id);
    }

    fn bound(&mut self, bound: &Bound) {
        let created_at = bound.item.created_at;
        if created_at == u64::MAX {
            self.varint(0);
        } else {
            self.varint(created_at.saturating_sub(self.last_created_at).saturating_add(1));
        }
        self.last_created_at = created_at;
        self.message.push(bound.id_len);
        let prefix = bound.item.id.get(..usize::from(bound.id_len));
        self.message.extend_from_slice(prefix.unwrap_or(&bound.item.id));
    }

    fn varint(&mut self, value: u64) {
        let digits = (u64::BITS - value.leading_zeros()).div_ceil(7).max(1);
        for digit in (0..digits).rev() {
            let more = if digit == 0 { 0 } else { 0x80 };
            self.message.push((value >> (7 * digit)) as u8 & 0x7f | more);
        }
    }
}
