//! Hex as Nostr uses it: written in lower case, read in either case.

use std::fmt;

/// Why a text is not hex.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum HexError {
    /// The character at byte `at` of the text is not a hex digit.
    Digit {
        /// The offset in the text, in bytes.
        at: usize,
    },
    /// All characters are hex digits, but their number is odd.
    OddLength,
}

impl fmt::Display for HexError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Digit { at } => write!(f, "no hex digit at byte {at}"),
            Self::OddLength => f.write_str("an odd number of hex digits"),
        }
    }
}

impl std::error::Error for HexError {}

/// The hex of `bytes`.
///
/// ```
/// assert_eq!(negsync_nostr::hex::encode(&[0x0a, 0xff]), "0aff");
/// ```
#[must_use]
pub fn encode(bytes: &[u8]) -> String {
    faster_hex::hex_string(bytes)
}

/// Appends the hex of `bytes` to `text`.
pub fn append(bytes: &[u8], text: &mut String) {
    faster_hex::hex_append(bytes, text);
}

/// The bytes that `text` encodes.
///
/// # Errors
/// The offset of the first character that is not a hex digit, or an odd number of digits.
///
/// ```
/// use negsync_nostr::hex::{self, HexError};
///
/// assert_eq!(hex::decode("0aFF"), Ok(vec![0x0a, 0xff]));
/// assert_eq!(hex::decode("0ag"), Err(HexError::Digit { at: 2 }));
/// ```
pub fn decode(text: &str) -> Result<Vec<u8>, HexError> {
    faster_hex::hex_decode_vec(text.as_bytes()).map_err(|_| {
        let wrong = text.bytes().position(|byte| !byte.is_ascii_hexdigit());
        wrong.map_or(HexError::OddLength, |at| HexError::Digit { at })
    })
}

/// The `N` bytes that `text` encodes; `None` if it is not hex or has another length.
///
/// ```
/// use negsync_nostr::hex;
///
/// assert_eq!(hex::decode_array("0aff"), Some([0x0a, 0xff]));
/// assert_eq!(hex::decode_array::<3>("0aff"), None);
/// ```
#[must_use]
pub fn decode_array<const N: usize>(text: &str) -> Option<[u8; N]> {
    faster_hex::hex_decode_array(text.as_bytes()).ok()
}
