//! The days on which a peer differs, as of the last comparison.

/// Maximum number of days; older ones are counted in the first.
pub const MOST_LOOK_DAYS: usize = 4_096;

/// A comparison by day.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DriftLook {
    /// When it ended, in seconds since the Unix epoch.
    pub at: u64,
    /// The days with differences, in order.
    pub days: Vec<DayDiffers>,
    /// Why the comparison failed; `days` are then those of the last successful one.
    pub error: Option<String>,
}

/// The differences among the events of one day.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DayDiffers {
    /// The first second of the day, in UTC.
    pub day: u64,
    /// The number of events that only we have.
    pub have: u64,
    /// The number of events that only the peer has.
    pub need: u64,
}

impl DriftLook {
    /// A comparison that ended at the second `at`. Days above `MOST_LOOK_DAYS` are counted in the
    /// first day that is kept.
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
