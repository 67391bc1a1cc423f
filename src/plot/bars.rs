//! Bars and their geometry, without text; a page adds its own labels.

use crate::store::DAY_S;
use crate::utc;
use std::fmt::Write;

/// Numbers of days that one bar may stand for; the last is for the longest times.
const DAYS_PER_BAR: [u64; 6] = [1, 7, 28, 91, 364, 3_640];
/// The width of a bar with its gap, and of the bar alone.
const STEP: f64 = 10.0;
const BAR: f64 = 8.0;
/// The height of a drawing; the caller scales it.
pub(super) const HEIGHT: f64 = 100.0;
/// Minimum height of a bar that is not zero.
const LEAST: f64 = 2.0;

/// The values of one bar.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bar {
    /// The day, the range of days, or the name.
    pub label: String,
    /// The number of events that we have.
    pub held: u64,
    /// The number of events that only we have.
    pub have: u64,
    /// The number of events that only the peer has.
    pub need: u64,
}

/// An axis of days; each bar stands for as many days as needed to limit the number of bars.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Days {
    first: u64,
    last: u64,
    per_bar: u64,
}

impl Days {
    /// An axis from the day of second `first` to that of `last`, with at most `most` bars.
    pub fn new(first: u64, last: u64, most: u64) -> Self {
        let (first, last) = (first / DAY_S, last.max(first) / DAY_S);
        let span = (last - first).saturating_add(1);
        let fits = |days: &&u64| span.div_ceil(**days) <= most.max(1);
        let per_bar = DAYS_PER_BAR.iter().find(fits).copied();
        Self { first, last, per_bar: per_bar.unwrap_or_else(|| span.div_ceil(most.max(1))) }
    }

    /// The number of days that a bar stands for.
    pub fn per_bar(self) -> u64 {
        self.per_bar
    }

    /// The start of each bar, and the end of the last one, in seconds.
    pub fn edges(self) -> impl Iterator<Item = u64> {
        let count = (self.last - self.first).saturating_add(1).div_ceil(self.per_bar);
        let end = self.last.saturating_add(1);
        (0..=count).map(move |n| {
            let day = self.first.saturating_add(n.saturating_mul(self.per_bar)).min(end);
            day.saturating_mul(DAY_S)
        })
    }

    /// The bars, with labels and without values.
    pub fn bars(self) -> Vec<Bar> {
        let edges: Vec<u64> = self.edges().collect();
        let bar = |edges: &[u64]| {
            let [from, to] = [edges.first(), edges.last()].map(|edge| edge.copied().unwrap_or(0));
            let (from, to) = (utc::date(from), utc::date(to.saturating_sub(1)));
            let label = if from == to { from } else { format!("{from} to {to}") };
            Bar { label, ..Bar::default() }
        };
        edges.windows(2).map(bar).collect()
    }

    /// The bars with the values of `rows`, each at a second of its day. Rows outside the axis are
    /// left out.
    pub fn with(self, rows: impl IntoIterator<Item = (u64, Bar)>) -> Vec<Bar> {
        let mut bars = self.bars();
        for (second, row) in rows {
            let place = (second / DAY_S).checked_sub(self.first).map(|day| day / self.per_bar);
            let bar = place.and_then(|n| bars.get_mut(usize::try_from(n).ok()?));
            if let Some(bar) = bar {
                bar.held += row.held;
                bar.have += row.have;
                bar.need += row.need;
            }
        }
        bars
    }
}

/// The width of a drawing with these bars.
pub(super) fn width(bars: &[Bar]) -> f64 {
    bars.len() as f64 * STEP
}

/// The number of events that we have, as bars from the bottom up.
pub fn held(bars: &[Bar]) -> String {
    let most = bars.iter().map(|bar| bar.held).max().unwrap_or(0);
    let mut out = open(bars, "held");
    for (n, bar) in bars.iter().enumerate() {
        let height = length(bar.held, most, HEIGHT);
        rectangle(&mut out, "held", n, HEIGHT - height, height);
    }
    close(out, bars, |bar| format!("{}: {} events here", bar.label, bar.held))
}

/// The differences on one scale: up, what only we have; down, what only the peer has.
pub fn differences(bars: &[Bar]) -> String {
    up_and_down(bars, |bar| {
        format!("{}: {} only here, {} only there", bar.label, bar.have, bar.need)
    })
}

/// Like [`differences`], with only our side.
pub fn only_here(bars: &[Bar]) -> String {
    let bars: Vec<Bar> = bars.iter().map(|bar| Bar { need: 0, ..bar.clone() }).collect();
    up_and_down(&bars, |bar| format!("{}: {} only here", bar.label, bar.have))
}

fn up_and_down(bars: &[Bar], words: impl Fn(&Bar) -> String) -> String {
    let most = bars.iter().map(|bar| bar.have.max(bar.need)).max().unwrap_or(0);
    let middle = HEIGHT / 2.0;
    let mut out = open(bars, "differences");
    for (n, bar) in bars.iter().enumerate() {
        let up = length(bar.have, most, middle);
        rectangle(&mut out, "have", n, middle - up, up);
        rectangle(&mut out, "need", n, middle, length(bar.need, most, middle));
    }
    let end = width(bars);
    let _ = write!(
        out,
        r#"<line class="zero" x1="0" y1="{middle}" x2="{end}" y2="{middle}" vector-effect="non-scaling-stroke"/>"#
    );
    close(out, bars, words)
}

/// The length of the bar for `count`, if the bar for `most` has the length `full`.
pub(super) fn length(count: u64, most: u64, full: f64) -> f64 {
    if count == 0 { 0.0 } else { (count as f64 / most.max(1) as f64 * full).max(LEAST) }
}

fn open(bars: &[Bar], class: &str) -> String {
    format!(
        r#"<svg class="bars {class}" viewBox="0 0 {} {HEIGHT}" preserveAspectRatio="none" aria-hidden="true">"#,
        width(bars)
    )
}

fn rectangle(out: &mut String, class: &str, n: usize, y: f64, height: f64) {
    if height > 0.0 {
        let x = n as f64 * STEP + (STEP - BAR) / 2.0;
        let _ = write!(
            out,
            r#"<rect class="{class}" x="{x}" y="{y:.1}" width="{BAR}" height="{height:.1}"/>"#
        );
    }
}

/// Adds a tooltip to each bar and closes the drawing.
fn close(mut out: String, bars: &[Bar], words: impl Fn(&Bar) -> String) -> String {
    for (n, bar) in bars.iter().enumerate() {
        let x = n as f64 * STEP;
        let words = super::escape(&words(bar));
        let _ = write!(
            out,
            r#"<rect class="point" x="{x}" y="0" width="{STEP}" height="{HEIGHT}"><title>{words}</title></rect>"#
        );
    }
    out.push_str("</svg>");
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    #[test]
    fn every_row_stands_in_one_bar_and_the_bars_cover_the_time() {
        for seed in 0..500 {
            let mut rng = StdRng::seed_from_u64(seed);
            let first = rng.random_range(0..2_000_000_000u64);
            let span = [90, 40_000, 2_000_000_000][rng.random_range(0..3)];
            let last = first + rng.random_range(0..span);
            let most = rng.random_range(1..100);
            let rows: Vec<(u64, Bar)> = (0..rng.random_range(0..50))
                .map(|_| {
                    let (held, have, need) = (rng.random_range(0..9), rng.random_range(0..9), 1);
                    let bar = Bar { label: String::new(), held, have, need };
                    (rng.random_range(first..=last), bar)
                })
                .collect();
            let count = rows.len() as u64;
            let have: u64 = rows.iter().map(|(_, bar)| bar.have).sum();
            let days = Days::new(first, last, most);
            let bars = days.with(rows);
            assert_eq!(days.edges().count(), bars.len() + 1, "seed {seed}");
            assert!(bars.len() as u64 <= most, "seed {seed}");
            assert_eq!(bars.iter().map(|bar| bar.need).sum::<u64>(), count, "seed {seed}");
            assert_eq!(bars.iter().map(|bar| bar.have).sum::<u64>(), have, "seed {seed}");
            assert!(bars[0].label.starts_with(&utc::date(first)), "seed {seed}");
            assert!(bars[bars.len() - 1].label.ends_with(&utc::date(last)), "seed {seed}");
        }
    }

    #[test]
    fn what_is_not_nothing_is_seen() {
        let bar = |have, need| Bar { label: "<a>".into(), held: have, have, need };
        let drawn = differences(&[bar(1_000_000, 1), bar(0, 0)]);
        assert_eq!(drawn.matches(r#"<rect class="have""#).count(), 1, "{drawn}");
        assert_eq!(drawn.matches(r#"<rect class="need""#).count(), 1, "{drawn}");
        assert!(drawn.contains(r#"height="2.0""#) && !drawn.contains("<a>"), "{drawn}");
    }
}
