//! The short key under which a single-letter tag is indexed.

use crate::hex;
use sha2::{Digest, Sha256};

/// A single-letter tag name and a value in at most 34 bytes: the letter, the encoding of the value,
/// and the value. The value is 32 raw bytes if it is 64 lower-case hex digits (as nearly all are:
/// ids and public keys), the text itself if it is at most 32 bytes long, and its SHA-256 otherwise.
/// Equal keys mean equal tags. The size is bounded for every tag.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TagKey {
    bytes: [u8; 34],
    len: u8,
}

const RAW_HEX: u8 = 0;
const VERBATIM: u8 = 1;
const HASHED: u8 = 2;

impl TagKey {
    /// The key of a tag; `None` if its name is not a single letter (NIP-01, Tags).
    #[must_use]
    pub fn of_tag(name: &str, value: &str) -> Option<Self> {
        match name.as_bytes() {
            [letter] if letter.is_ascii_alphabetic() => Some(Self::new(*letter, value)),
            _ => None,
        }
    }

    /// The key of `value` in a tag named `letter`.
    #[must_use]
    pub fn new(letter: u8, value: &str) -> Self {
        let mut body = [0; 32];
        let raw = hex::decode_array(value).filter(|_| is_lower(value));
        let (form, body_len) = if let Some(raw) = raw {
            body = raw;
            (RAW_HEX, 32)
        } else if let Some(short) = body.get_mut(..value.len()) {
            short.copy_from_slice(value.as_bytes());
            (VERBATIM, value.len())
        } else {
            body.copy_from_slice(&Sha256::digest(value.as_bytes()));
            (HASHED, 32)
        };
        let mut bytes = [0; 34];
        bytes[0] = letter;
        bytes[1] = form;
        bytes[2..].copy_from_slice(&body);
        Self { bytes, len: body_len as u8 + 2 }
    }

    /// The key as stored in the database.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or(&self.bytes)
    }

    /// The tag's value; `None` if the value was too long and only its hash is stored.
    #[must_use]
    pub fn value(&self) -> Option<String> {
        let body = self.as_bytes().get(2..)?;
        match self.bytes[1] {
            RAW_HEX => Some(hex::encode(body)),
            VERBATIM => String::from_utf8(body.to_vec()).ok(),
            _ => None,
        }
    }

    /// The 32 raw bytes of a value that is lower-case hex, such as an id or a public key.
    #[must_use]
    pub fn raw_hex(&self) -> Option<[u8; 32]> {
        let [_, form, raw @ ..] = self.as_bytes() else { return None };
        raw.try_into().ok().filter(|_| *form == RAW_HEX)
    }

    /// The tag's letter.
    #[must_use]
    pub fn letter(&self) -> u8 {
        self.bytes[0]
    }
}

impl std::fmt::Debug for TagKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "#{}:", char::from(self.letter()))?;
        self.as_bytes().iter().skip(2).try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

fn is_lower(hex: &str) -> bool {
    !hex.bytes().any(|digit| digit.is_ascii_uppercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_keys_mean_equal_tags() {
        let hex = "00".repeat(32);
        let values = [
            "",
            "a",
            "\0",
            "\0\0",
            hex.as_str(),
            &"0".repeat(63),
            &"A0".repeat(32),
            &"x".repeat(32),
            &"x".repeat(33),
        ];
        let mut keys: Vec<TagKey> = values
            .iter()
            .flat_map(|value| [b'e', b'E'].map(|letter| TagKey::new(letter, value)))
            .collect();
        let made = keys.len();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), made);
        assert!(keys.iter().all(|key| key.as_bytes().len() <= 34));
        assert_eq!(TagKey::of_tag("ee", "x"), None);
        assert_eq!(TagKey::of_tag("1", "x"), None);
    }
}
