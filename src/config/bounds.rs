//! Integers with inclusive bounds, checked when a file is parsed and when a program sets them.

use super::ConfigError;
use serde::{Deserialize, Deserializer, de::Error as _};

/// A number in a file: a value out of bounds is refused with its line.
#[derive(Clone, Copy)]
pub(super) struct Bounded<const LEAST: u64, const MOST: u64>(u64);

impl<'de, const LEAST: u64, const MOST: u64> Deserialize<'de> for Bounded<LEAST, MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = i64::deserialize(deserializer).map_err(|_| {
            D::Error::custom(format!("must be a whole number from {LEAST} to {MOST}"))
        })?;
        u64::try_from(number)
            .ok()
            .filter(|number| (LEAST..=MOST).contains(number))
            .map(Self)
            .ok_or_else(|| D::Error::custom(format!("{number} is not between {LEAST} and {MOST}")))
    }
}

impl<const LEAST: u64, const MOST: u64> Bounded<LEAST, MOST> {
    /// A default, which must be within its bounds.
    pub(super) fn of(number: impl Number) -> Self {
        Self(number.to_u64())
    }

    pub(super) fn get<N: Number>(self) -> N {
        N::from_u64(self.0)
    }
}

/// The number of a key.
pub(super) trait Number: Copy {
    fn to_u64(self) -> u64;
    fn from_u64(number: u64) -> Self;
}

impl Number for u64 {
    fn to_u64(self) -> u64 {
        self
    }

    fn from_u64(number: u64) -> Self {
        number
    }
}

impl Number for usize {
    fn to_u64(self) -> u64 {
        self as u64
    }

    fn from_u64(number: u64) -> Self {
        Self::try_from(number).unwrap_or(Self::MAX)
    }
}

/// The bounds of one key in section `S`.
pub(super) struct KeyBounds<S> {
    pub(super) key: &'static str,
    pub(super) least: u64,
    pub(super) most: u64,
    pub(super) get: fn(&S) -> u64,
    pub(super) set: fn(&mut S, u64),
}

/// Checks a number that a program has set.
///
/// # Errors
/// [`ConfigError`] with the key, when the number is out of bounds.
pub(super) fn check(key: &str, number: u64, least: u64, most: u64) -> Result<(), ConfigError> {
    if (least..=most).contains(&number) {
        return Ok(());
    }
    Err(ConfigError::OutOfBounds { key: key.to_owned(), number, least, most })
}
