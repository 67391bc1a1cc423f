//! Complete SVG files, with text, a legend, and colours for dark and light.

use super::bars::{Bar, differences, length};
use super::escape;
use std::fmt::Write;

const WIDTH: u32 = 760;
const MARGIN: u32 = 24;
/// The top of the drawing, below title and legend.
const TOP: u32 = 84;
/// The height of the bars over time.
const BARS_HEIGHT: u32 = 200;
/// The height of one row by name.
const ROW_HEIGHT: u32 = 24;
/// Maximum length of a name that is shown in full.
const NAME_CHARS: usize = 20;

/// The colours. They are distinguishable in every kind of colour blindness, and have a contrast of
/// at least 3 to their background.
const STYLE: &str = "<style>
.paper{fill:#fff}.word{fill:#1c1f24}.quiet{fill:#5b6270}.have{fill:#1f6fd6}.need{fill:#c2570c}
.zero{stroke:#8b93a1}.point{fill:transparent}
text{font:13px system-ui,sans-serif}.title{font-size:16px;font-weight:600}
@media(prefers-color-scheme:dark){.paper{fill:#14171c}.word{fill:#e8eaed}.quiet{fill:#a3abb8}
.have{fill:#6cabff}.need{fill:#f59e54}.zero{stroke:#6b7380}}
</style>";

/// A chart of bars over time, with `note` beside the legend.
pub fn over_time(title: &str, note: &str, bars: &[Bar]) -> String {
    let height = TOP + BARS_HEIGHT + 44;
    let mut out = open(title, note, height);
    let (left, wide) = (MARGIN + 40, WIDTH - 2 * MARGIN - 40);
    let most = bars.iter().map(|bar| bar.have.max(bar.need)).max().unwrap_or(0);
    let drawn = differences(bars).replacen(
        "<svg ",
        &format!(r#"<svg x="{left}" y="{TOP}" width="{wide}" height="{BARS_HEIGHT}" "#),
        1,
    );
    out.push_str(&drawn);
    for (y, text) in
        [(TOP + 5, most), (TOP + BARS_HEIGHT / 2 + 4, 0), (TOP + BARS_HEIGHT + 5, most)]
    {
        word(&mut out, "quiet", left - 8, y, "end", &text.to_string());
    }
    let y = TOP + BARS_HEIGHT + 26;
    if let (Some(first), Some(last)) = (bars.first(), bars.last()) {
        let edge = |label: &str| label.split(" to ").map(str::to_owned).collect::<Vec<_>>();
        let first = edge(&first.label).swap_remove(0);
        word(&mut out, "quiet", left, y, "start", &first);
        if bars.len() > 1 {
            let last = edge(&last.label).pop().unwrap_or_default();
            word(&mut out, "quiet", left + wide, y, "end", &last);
        }
    }
    out.push_str("</svg>\n");
    out
}

/// A chart with a row for each bar, its name and its numbers.
pub fn by_name(title: &str, note: &str, bars: &[Bar]) -> String {
    let rows = u32::try_from(bars.len()).unwrap_or(u32::MAX);
    let height = TOP.saturating_add(rows.saturating_mul(ROW_HEIGHT)).saturating_add(MARGIN);
    let mut out = open(title, note, height);
    let most = bars.iter().map(|bar| bar.have.max(bar.need)).max().unwrap_or(0);
    let (middle, half, numbers) = (490.0, 170.0, 64.0);
    let mut y = f64::from(TOP);
    for bar in bars {
        let name: String = if bar.label.chars().count() > NAME_CHARS {
            bar.label.chars().take(NAME_CHARS - 1).chain(['…']).collect()
        } else {
            bar.label.clone()
        };
        let base = y + 16.0;
        let (left, right) = (length(bar.have, most, half), length(bar.need, most, half));
        let _ = write!(
            out,
            r#"<g><title>{}: {} only here, {} only there</title><text class="word" x="{MARGIN}" y="{base}">{}</text>"#,
            escape(&bar.label),
            bar.have,
            bar.need,
            escape(&name),
        );
        let _ = write!(
            out,
            r#"<rect class="have" x="{:.1}" y="{y}" width="{left:.1}" height="18"/><rect class="need" x="{middle}" y="{y}" width="{right:.1}" height="18"/>"#,
            middle - left,
        );
        let _ = write!(
            out,
            r#"<text class="quiet" text-anchor="end" x="{:.1}" y="{base}">{}</text><text class="quiet" x="{:.1}" y="{base}">{}</text></g>"#,
            (middle - left - 6.0).max(numbers),
            bar.have,
            middle + right + 6.0,
            bar.need,
        );
        y += f64::from(ROW_HEIGHT);
    }
    let bottom = y;
    let _ =
        write!(out, r#"<line class="zero" x1="{middle}" y1="{TOP}" x2="{middle}" y2="{bottom}"/>"#);
    out.push_str("</svg>\n");
    out
}

fn open(title: &str, note: &str, height: u32) -> String {
    let mut out = format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img" aria-label="{title}">
{STYLE}<rect class="paper" width="{WIDTH}" height="{height}"/><text class="word title" x="{MARGIN}" y="36">{title}</text>"#,
        title = escape(title),
    );
    let mut x = MARGIN;
    for (class, text) in [("have", "only here"), ("need", "only there")] {
        let _ =
            write!(out, r#"<rect class="{class}" x="{x}" y="51" width="12" height="12" rx="2"/>"#);
        word(&mut out, "quiet", x + 18, 62, "start", text);
        x += 110;
    }
    word(&mut out, "quiet", WIDTH - MARGIN, 62, "end", note);
    out
}

fn word(out: &mut String, class: &str, x: u32, y: u32, anchor: &str, text: &str) {
    let text = escape(text);
    let _ = write!(
        out,
        r#"<text class="{class}" x="{x}" y="{y}" text-anchor="{anchor}">{text}</text>"#
    );
}
