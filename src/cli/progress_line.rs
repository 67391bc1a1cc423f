//! One line with the progress of a sync with a peer, as wide as the terminal.

use negsync::sync::{Counts, Progress};
use std::fmt::{self, Display};
use std::time::{Duration, Instant};

/// Maximum number of columns of a peer's name.
const NAME_COLUMNS: usize = 40;
/// Columns of a name beside a bar.
const NAME_BESIDE_BAR_COLUMNS: usize = 24;
/// Maximum and minimum number of columns of a bar.
const BAR_COLUMNS: usize = 30;
const LEAST_BAR_COLUMNS: usize = 8;
/// Weight of the last interval in the speed, and the minimum length of an interval.
const LAST_STRETCH: f64 = 0.3;
const STRETCH: Duration = Duration::from_millis(500);

/// The progress of the sync with one peer.
pub(super) struct PeerProgress {
    name: String,
    phase: Phase,
    counts: Counts,
    speed: Speed,
    // The events moved before the sync became live: in and out.
    before_live: (u64, u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Connecting,
    Comparing,
    Moving,
    Live,
    Waiting,
}

impl PeerProgress {
    pub(super) fn new(url: &str) -> Self {
        let name = url.split_once("://").map_or(url, |(_, name)| name);
        Self {
            name: name.to_owned(),
            phase: Phase::Connecting,
            counts: Counts::default(),
            speed: Speed::default(),
            before_live: (0, 0),
        }
    }

    /// Handles a progress report.
    pub(super) fn take(&mut self, progress: &Progress, now: Instant) {
        let phase = match progress {
            Progress::Connected => Phase::Comparing,
            Progress::Waiting { .. } => Phase::Waiting,
            Progress::Live => {
                self.before_live = self.passed();
                Phase::Live
            }
            Progress::Moved(counts) => {
                self.counts = *counts;
                match self.phase {
                    Phase::Live => Phase::Live,
                    _ if counts.unsettled_items > 0 || self.events().1 == 0 => Phase::Comparing,
                    _ => Phase::Moving,
                }
            }
            _ => self.phase,
        };
        if phase != self.phase {
            self.phase = phase;
            self.speed = Speed::default();
        }
        self.speed.note(self.done_and_total().0, now);
    }

    /// The numbers of events moved in and out.
    fn passed(&self) -> (u64, u64) {
        (self.counts.tally.stored, self.counts.tally.uploaded)
    }

    /// The number of moved events, and of events known to be moved.
    fn events(&self) -> (u64, u64) {
        let Counts { downloaded, to_download, uploaded, to_upload, .. } = self.counts;
        (downloaded.saturating_add(uploaded), to_download.saturating_add(to_upload))
    }

    /// The progress of this phase and its total; 0 while unknown.
    fn done_and_total(&self) -> (u64, u64) {
        match self.phase {
            Phase::Comparing => {
                (self.counts.items.saturating_sub(self.counts.unsettled_items), self.counts.items)
            }
            Phase::Moving => self.events(),
            Phase::Connecting | Phase::Live | Phase::Waiting => (0, 0),
        }
    }

    /// The line, shorter than `columns` columns.
    pub(super) fn line(&self, columns: usize) -> String {
        let (done, total) = self.done_and_total();
        let figures = match (self.phase, total) {
            (Phase::Live, _) => {
                let (stored, uploaded) = self.passed();
                let (stored_before, uploaded_before) = self.before_live;
                let stored = Short(stored.saturating_sub(stored_before));
                let uploaded = Short(uploaded.saturating_sub(uploaded_before));
                format!("{stored} in, {uploaded} out")
            }
            (_, 0) => String::new(),
            _ => {
                let speed = self.speed.per_s;
                let rate = speed.map(|speed| format!("{}/s", Short(speed as u64)));
                let left =
                    speed.map(|speed| TimeLeft(total.saturating_sub(done), speed).to_string());
                let ratio = format!("{}/{}", Short(done), Short(total));
                format!(
                    "{ratio:>11} {:>7} {:>10}",
                    rate.unwrap_or_default(),
                    left.unwrap_or_default()
                )
            }
        };
        let right = format!("{:<10} {figures:<30}", self.phase);
        let room = columns.saturating_sub(right.chars().count() + 2);
        let bar_columns = room.saturating_sub(NAME_BESIDE_BAR_COLUMNS + 1).min(BAR_COLUMNS);
        let has_bar = total > 0 && bar_columns >= LEAST_BAR_COLUMNS;
        let name_columns = if has_bar { room - bar_columns - 1 } else { room }.min(NAME_COLUMNS);
        let mut line = format!("{:<name_columns$} {right}", cut(&self.name, name_columns));
        if has_bar {
            line = format!("{} {}", line, bar(done, total, bar_columns));
        }
        line.truncate(line.trim_end().len());
        line
    }

    /// The phase with its numbers, for a log line.
    pub(super) fn fields(&self) -> (String, u64, u64) {
        let (done, total) = self.done_and_total();
        (self.phase.to_string(), done, total)
    }
}

impl Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Connecting => "connecting",
            Self::Comparing => "comparing",
            Self::Moving => "moving",
            Self::Live => "live",
            Self::Waiting => "waiting",
        })
    }
}

/// The current speed; recent intervals have the most weight.
#[derive(Default)]
struct Speed {
    noted: Option<(Instant, u64)>,
    per_s: Option<f64>,
}

impl Speed {
    fn note(&mut self, done: u64, now: Instant) {
        let (at, before) = *self.noted.get_or_insert((now, done));
        let passed = now.saturating_duration_since(at);
        if passed >= STRETCH {
            let last = done.saturating_sub(before) as f64 / passed.as_secs_f64();
            let per_s = self.per_s.map_or(last, |per_s| per_s + (last - per_s) * LAST_STRETCH);
            self.per_s = Some(per_s);
            self.noted = Some((now, done));
        }
    }
}

/// A number in at most five columns.
struct Short(u64);

impl Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 < 10_000 {
            return write!(f, "{}", self.0);
        }
        let mut number = self.0 as f64 / 1_000.0;
        let mut units = ["k", "M", "G", "T", "P", "E"].into_iter();
        let mut unit = units.next().unwrap_or_default();
        for next in units {
            if number < 999.5 {
                break;
            }
            (number, unit) = (number / 1_000.0, next);
        }
        if number < 99.95 { write!(f, "{number:.1}{unit}") } else { write!(f, "{number:.0}{unit}") }
    }
}

/// The time that an amount takes at a speed.
struct TimeLeft(u64, f64);

impl Display for TimeLeft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0 as f64 / self.1;
        match seconds {
            0.0..3_600.0 => {
                let seconds = seconds as u64;
                write!(f, "{}:{:02} left", seconds / 60, seconds % 60)
            }
            3_600.0..360_000.0 => {
                let minutes = seconds as u64 / 60;
                write!(f, "{}h{:02}m left", minutes / 60, minutes % 60)
            }
            _ => Ok(()),
        }
    }
}

fn cut(name: &str, columns: usize) -> String {
    if name.chars().count() <= columns {
        return name.to_owned();
    }
    let kept: String = name.chars().take(columns.saturating_sub(1)).collect();
    format!("{kept}…")
}

fn bar(done: u64, total: u64, columns: usize) -> String {
    let filled = (done.min(total) as u128 * columns as u128 / total.max(1) as u128) as usize;
    format!("{}{}", "━".repeat(filled), "·".repeat(columns.saturating_sub(filled)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    fn number(rng: &mut StdRng) -> u64 {
        let most = 1 << rng.random_range(0..63);
        rng.random_range(0..=most)
    }

    #[test]
    fn a_line_fits_every_terminal_and_shows_only_what_is_known() {
        for seed in 0..40 {
            let mut rng = StdRng::seed_from_u64(seed);
            let host = "a".repeat(rng.random_range(1..80));
            let mut peer = PeerProgress::new(&format!("wss://{host}.example/ä"));
            let mut now = Instant::now();
            for _ in 0..20 {
                now += Duration::from_millis(rng.random_range(0..5_000));
                let (items, to_download, to_upload) =
                    (number(&mut rng), number(&mut rng) / 2, number(&mut rng) / 2);
                let counts = Counts {
                    items,
                    unsettled_items: rng.random_range(0..=items) * rng.random_range(0..2),
                    downloaded: rng.random_range(0..=to_download),
                    to_download,
                    uploaded: rng.random_range(0..=to_upload),
                    to_upload,
                    ..Counts::default()
                };
                let progress = match rng.random_range(0..8) {
                    0 => Progress::Connected,
                    1 => Progress::Live,
                    2 => Progress::Waiting { reason: "x".into(), pause: Duration::ZERO },
                    _ => Progress::Moved(counts),
                };
                peer.take(&progress, now);
                let (done, total) = peer.done_and_total();
                for columns in 60..=200 {
                    let line = peer.line(columns);
                    let context = format!("seed {seed}, {columns} columns: {line:?}");
                    assert!(line.chars().count() < columns, "{context}");
                    assert!(line.contains(&peer.phase.to_string()), "{context}");
                    assert_eq!(line.contains('/'), total > 0 || line.contains("/ä"), "{context}");
                    let has_bar = line.contains(['━', '·']);
                    assert!(!has_bar || total > 0, "{context}");
                    assert!(!has_bar || line.contains('·') || done == total, "{context}");
                }
            }
        }
    }

    #[test]
    fn speed_and_time_left_are_told_once_they_are_known() {
        let mut peer = PeerProgress::new("wss://relay.example.com");
        let began = Instant::now();
        let words = |line: String| line.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(words(peer.line(80)), "relay.example.com connecting");
        peer.take(&Progress::Connected, began);
        for second in 0..=10 {
            let unsettled_items = 20_000 - second * 500;
            let counts = Counts { items: 20_000, unsettled_items, ..Counts::default() };
            peer.take(&Progress::Moved(counts), began + Duration::from_secs(second));
        }
        let line = words(peer.line(60));
        assert_eq!(line, "relay.example.com comparing 5000/20.0k 500/s 0:30 left");
        let mut counts = Counts { to_download: 90, downloaded: 30, ..Counts::default() };
        peer.take(&Progress::Moved(counts), began + Duration::from_secs(11));
        assert!(words(peer.line(80)).contains("moving 30/90"), "{}", peer.line(80));
        counts.tally.stored = 90;
        peer.take(&Progress::Moved(counts), began + Duration::from_secs(12));
        peer.take(&Progress::Live, began + Duration::from_secs(13));
        (counts.tally.stored, counts.tally.uploaded) = (102, 3);
        peer.take(&Progress::Moved(counts), began + Duration::from_secs(14));
        assert!(peer.line(80).ends_with("live       12 in, 3 out"), "{}", peer.line(80));
    }

    #[test]
    fn numbers_take_five_columns_at_most() {
        for (number, text) in [
            (0, "0"),
            (9_999, "9999"),
            (10_000, "10.0k"),
            (99_949, "99.9k"),
            (99_950, "100k"),
            (999_499, "999k"),
            (999_999, "1.0M"),
            (u64::MAX, "18.4E"),
        ] {
            assert_eq!(Short(number).to_string(), text);
        }
    }
}
