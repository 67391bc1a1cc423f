//! Formats seconds: as dates, in UTC and the Gregorian calendar, and as durations.

use crate::store::DAY_S;

/// Days from 1 March of the year 0 to 1 January 1970.
const DAYS_TO_1970: u64 = 719_468;
/// The lengths of the months of a year that begins in March, so that the leap day is its last day.
const MONTH_DAYS: [u64; 12] = [31, 30, 31, 30, 31, 31, 30, 31, 30, 31, 31, 29];

/// `seconds` since the Unix epoch as `2026-01-31 23:59:59`.
pub fn utc(seconds: u64) -> String {
    let second = seconds % DAY_S;
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{} {hour:02}:{minute:02}:{second:02}", date(seconds))
}

/// The day of `seconds` since the Unix epoch as `2026-01-31`.
pub fn date(seconds: u64) -> String {
    let (year, month, day) = calendar(seconds / DAY_S);
    format!("{year:04}-{month:02}-{day:02}")
}

/// A duration in the largest unit with a count of at least two.
pub fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / DAY_S),
    }
}

/// Year, month and day, given the number of days since 1 January 1970.
fn calendar(days: u64) -> (u64, u64, u64) {
    // Cycles of 400, 100, 4 and 1 years. For cycles of 100 years and of 1 year, the last one in the
    // cycle above has one day more.
    let days = days + DAYS_TO_1970;
    let (cycles, days) = (days / 146_097, days % 146_097);
    let centuries = (days / 36_524).min(3);
    let days = days - centuries * 36_524;
    let (fours, days) = (days / 1_461, days % 1_461);
    let ones = (days / 365).min(3);
    let mut day = days - ones * 365;
    let year = cycles * 400 + centuries * 100 + fours * 4 + ones;
    let mut from_march = 0;
    for month_days in MONTH_DAYS {
        if day < month_days {
            break;
        }
        day -= month_days;
        from_march += 1;
    }
    let next_year = u64::from(from_march >= 10);
    (year + next_year, (from_march + 2) % 12 + 1, day + 1)
}

#[cfg(test)]
mod tests {
    use super::{calendar, utc};

    #[test]
    fn every_day_of_a_thousand_years_follows_the_one_before() {
        let (mut year, mut month, mut day) = (1970, 1, 1);
        for days in 0..365_243 {
            assert_eq!(calendar(days), (year, month, day), "day {days}");
            let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let last = match month {
                4 | 6 | 9 | 11 => 30,
                2 => 28 + u64::from(leap),
                _ => 31,
            };
            day += 1;
            if day > last {
                (day, month) = (1, month + 1);
            }
            if month > 12 {
                (month, year) = (1, year + 1);
            }
        }
    }

    #[test]
    fn the_first_and_the_last_second_have_a_date() {
        assert_eq!(utc(0), "1970-01-01 00:00:00");
        assert_eq!(utc(1_767_225_599), "2025-12-31 23:59:59");
        assert!(utc(u64::MAX).ends_with("07:00:15"));
    }
}
