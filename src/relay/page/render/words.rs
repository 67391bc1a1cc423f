//! Formats numbers, times and names for people.

use crate::store::DAY_S;
use crate::utc;

/// The keys of NIP-11's `limitation`, with their names and units.
pub(super) const KEYS_OF_LIMITS: [(&str, &str, &str); 13] = [
    ("max_message_length", "Longest message", "bytes"),
    ("max_subscriptions", "Subscriptions of a connection", ""),
    ("max_filters", "Filters of a subscription", ""),
    ("max_limit", "Events that a filter is answered with", ""),
    ("max_subid_length", "Longest subscription id", "bytes"),
    ("max_event_tags", "Tags of an event", ""),
    ("max_content_length", "Longest content", "characters"),
    ("min_pow_difficulty", "Proof of work", "bits"),
    ("created_at_lower_limit", "How old an event may be", "s"),
    ("created_at_upper_limit", "How far ahead an event may be", "s"),
    ("auth_required", "Authentication required", ""),
    ("payment_required", "Payment required", ""),
    ("restricted_writes", "Writing restricted", ""),
];

/// `1234567` as `1,234,567`.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Bytes, in a unit that keeps the number below a thousand.
pub(super) fn size(bytes: u64) -> String {
    let (bytes_f, units) = (bytes as f64, ["KB", "MB", "GB", "TB"]);
    if bytes < 1_000 {
        return format!("{bytes} bytes");
    }
    let mut number = bytes_f / 1_000.0;
    let mut unit = 0;
    while number >= 999.95 && unit + 1 < units.len() {
        number /= 1_000.0;
        unit += 1;
    }
    format!("{number:.1} {}", units.get(unit).copied().unwrap_or_default())
}

/// A second, for people and for programs.
pub(super) fn time(second: u64) -> String {
    let text = utc::utc(second);
    format!(r#"<time datetime="{}Z">{text} UTC</time>"#, text.replace(' ', "T"))
}

/// The approximate time since a second; approximate, so that it changes rarely.
pub(super) fn ago(second: u64, now: u64) -> String {
    let passed = now.saturating_sub(second);
    match passed {
        0..60 => "just now".to_owned(),
        60..7_200 => format!("{} min ago", passed / 60),
        7_200..172_800 => format!("{} h ago", passed / 3_600),
        _ => format!("{} days ago", grouped(passed / DAY_S)),
    }
}

/// The common name of a kind's events; empty for most kinds.
pub(super) fn kind_name(kind: u16) -> &'static str {
    match kind {
        0 => "profile",
        1 => "note",
        3 => "follows",
        4 => "direct message, old form",
        5 => "deletion",
        6 | 16 => "repost",
        7 => "reaction",
        8 => "badge award",
        1_059 => "gift wrap",
        1_111 => "comment",
        1_984 => "report",
        9_734 => "zap request",
        9_735 => "zap",
        10_000 => "mutes",
        10_002 => "relay list",
        10_050 => "relays for direct messages",
        30_023 => "article",
        30_078 => "application data",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_for_people() {
        for (number, text) in [(0, "0"), (999, "999"), (1_000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(grouped(number), text);
        }
        for (bytes, text) in [(999, "999 bytes"), (1_000, "1.0 KB"), (999_990, "1.0 MB")] {
            assert_eq!(size(bytes), text);
        }
        assert_eq!(size(u64::MAX), "18446744.1 TB");
        for (passed, text) in
            [(0, "just now"), (61, "1 min ago"), (7_200, "2 h ago"), (172_800, "2 days ago")]
        {
            assert_eq!(ago(1_000, 1_000 + passed), text);
        }
        assert_eq!(ago(10, 5), "just now");
    }
}
