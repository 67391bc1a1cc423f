//! A number that knows its bounds.

use serde::{Deserialize, Deserializer, Serialize, de::Error as _};

/// A whole number between two bounds, both included; anything else is refused where it stands in
/// the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Within<const LEAST: u64, const MOST: u64>(u64);

impl<const LEAST: u64, const MOST: u64> Within<LEAST, MOST> {
    /// The number, kept between the bounds.
    pub const fn new(number: u64) -> Self {
        let number = if number < LEAST { LEAST } else { number };
        Self(if number > MOST { MOST } else { number })
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The number as a size or count in memory.
    pub const fn size(self) -> usize {
        self.0 as usize
    }
}

impl<'de, const LEAST: u64, const MOST: u64> Deserialize<'de> for Within<LEAST, MOST> {
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
