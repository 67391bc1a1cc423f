//! Rows as a table with bars for a terminal: on the left, events that only we have; on the right,
//! events that only the peer has.

use negsync::sync::{By, DiffRow};
use std::fmt::Write;

/// Length of the longest bar, in characters.
const BAR: usize = 24;
/// Maximum number of rows that are printed; `--json` prints all.
const MOST_ROWS: usize = 60;
/// Number of hex digits of an author's key that are shown.
const AUTHOR_DIGITS: usize = 16;
/// Blue and yellow are distinguishable for most people with colour blindness.
const HERE: &str = "\x1b[34m";
const THERE: &str = "\x1b[33m";
const PLAIN: &str = "\x1b[0m";

/// The newest days, in order; or the kinds and authors with the most differences first.
pub(super) fn table(rows: &[DiffRow], by: By, color: bool) -> String {
    let mut shown: Vec<&DiffRow> = rows.iter().collect();
    if by != By::Day {
        shown.sort_by_key(|row| std::cmp::Reverse(row.have + row.need));
        shown.truncate(MOST_ROWS);
    }
    let left_out = rows.len().saturating_sub(MOST_ROWS);
    if by == By::Day {
        shown.drain(..left_out);
    }
    let mut out = String::new();
    if shown.is_empty() {
        return out;
    }
    let heading = match by {
        By::Day => "day",
        By::Kind => "kind",
        By::Author => "author",
    };
    let name = |row: &DiffRow| match by {
        By::Author => row.key.to_string().chars().take(AUTHOR_DIGITS).collect(),
        By::Day | By::Kind => row.key.to_string(),
    };
    let names = shown.iter().map(|row| name(row).len()).chain([heading.len()]).max().unwrap_or(0);
    let digits = |count: u64| count.to_string().len();
    let have = shown.iter().map(|row| digits(row.have)).max().unwrap_or(0).max("only here".len());
    let need = shown.iter().map(|row| digits(row.need)).max().unwrap_or(0).max("only there".len());
    let most = shown.iter().map(|row| row.have.max(row.need)).max().unwrap_or(0);
    let _ = writeln!(out, "{heading:names$}  {:>have$}  {:>need$}", "only here", "only there");
    if by == By::Day && left_out > 0 {
        let older = rows.get(..left_out).unwrap_or_default();
        let (here, there) =
            older.iter().fold((0, 0), |sum, row| (sum.0 + row.have, sum.1 + row.need));
        let _ = writeln!(out, "{:names$}  {here:>have$}  {there:>need$}  {left_out} days", "older");
    }
    for row in shown {
        let (left, right) = (halves(row.have, most), halves(row.need, most));
        let left = format!("{:>BAR$}", format!("{}{}", half(left, "▐"), full(left)));
        let right = format!("{}{}", full(right), half(right, "▌"));
        let (left, right) = if color {
            (format!("{HERE}{left}{PLAIN}"), format!("{THERE}{right}{PLAIN}"))
        } else {
            (left, right)
        };
        let line = format!(
            "{:names$}  {:>have$}  {:>need$}  {left}│{right}",
            name(row),
            row.have,
            row.need
        );
        let _ = writeln!(out, "{}", line.trim_end());
    }
    if by != By::Day && left_out > 0 {
        let _ = writeln!(out, "and {left_out} more with fewer; --json has all");
    }
    out
}

/// The length of a bar in half characters; at least one, if `count` is not zero.
fn halves(count: u64, most: u64) -> usize {
    if count == 0 {
        return 0;
    }
    let share = count as f64 / most.max(1) as f64;
    ((share * (2 * BAR) as f64).round() as usize).clamp(1, 2 * BAR)
}

fn full(halves: usize) -> String {
    "█".repeat(halves / 2)
}

fn half(halves: usize, character: &str) -> &str {
    if halves % 2 == 1 { character } else { "" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use negsync::store::DAY_S;
    use negsync::sync::Key;

    #[test]
    fn bars_grow_from_the_middle_and_nothing_else_has_colour() {
        let row = |day: u64, have, need| DiffRow { key: Key::Day(day * DAY_S), have, need };
        let rows = [row(0, 0, 48), row(1, 1, 0), row(20_000, 24, 3)];
        let plain = table(&rows, By::Day, false);
        let expected = [
            "day         only here  only there".to_owned(),
            format!("1970-01-01          0          48  {}│{}", " ".repeat(24), "█".repeat(24)),
            format!("1970-01-02          1           0  {}▐│", " ".repeat(23)),
            format!("2024-10-04         24           3  {}{}│█▌", " ".repeat(12), "█".repeat(12)),
        ];
        assert_eq!(plain.lines().collect::<Vec<_>>(), expected);
        let colored = table(&rows, By::Day, true);
        let without = [HERE, THERE, PLAIN].iter().fold(colored.clone(), |it, c| it.replace(c, ""));
        assert_ne!(colored, plain);
        let trimmed: Vec<&str> = without.lines().map(str::trim_end).collect();
        assert_eq!(trimmed, plain.lines().collect::<Vec<_>>());
        assert_eq!(table(&[], By::Day, true), "");
    }

    #[test]
    fn long_tables_are_cut_and_say_so() {
        let rows: Vec<DiffRow> = (0..100)
            .map(|kind| DiffRow { key: Key::Kind(kind), have: kind.into(), need: 1 })
            .collect();
        let text = table(&rows, By::Kind, false);
        assert!(text.contains("\n99 ") && !text.contains("\n3 "), "{text}");
        assert!(text.contains("and 40 more"), "{text}");
        let days: Vec<DiffRow> =
            (0..100).map(|day| DiffRow { key: Key::Day(day * DAY_S), have: 2, need: 1 }).collect();
        let text = table(&days, By::Day, false);
        assert!(text.lines().nth(1).unwrap().starts_with("older"), "{text}");
        assert!(text.contains("80"), "{text}");
        assert_eq!(text.lines().count(), 62, "{text}");
    }
}
