//! On which days a peer differs, as the last look showed.

/// The most days of a look; what is older is one of them.
pub const MOST_LOOK_DAYS: usize = 4_096;

/// A look at which days differ.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DriftLook {
    /// When it ended, in seconds since the Unix epoch.
    pub at: u64,
    /// The days that differ, in order.
    pub days: Vec<DayDiffers>,
    /// Why the look failed; the days are then those of the last one that did not.
    pub error: Option<String>,
}

/// How much differs of what was made on one day.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DayDiffers {
    /// The first second of the day, in UTC.
    pub day: u64,
    /// Events that only we have.
    pub have: u64,
    /// Events that only the peer has.
    pub need: u64,
}

impl DriftLook {
    /// A look that was taken at the second `at`. Of more than `MOST_LOOK_DAYS` the oldest are
    /// counted with the first that is kept.
    pub fn new(at: u64, mut days: Vec<DayDiffers>) -> Self {
        let older = days.len().saturating_sub(MOST_LOOK_DAYS);
        let (mut have, mut need) = (0, 0);
        for day in days.drain(..older) {
            have += day.have;
            need += day.need;
        }
        if let Some(first) = days.first_mut() {
            first.have += have;
            first.need += need;
        }
        Self { at, days, error: None }
    }
}
