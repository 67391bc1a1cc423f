//! The progress of `negsync sync` and `negsync diff`: a line for each peer on a terminal, log lines
//! elsewhere.

use super::progress_line::PeerProgress;
use console::Term;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use negsync::relay_url::redacted;
use negsync::sync::Progress;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Interval of log lines if there is no terminal.
const LOG_EVERY: Duration = Duration::from_secs(5);

/// The display of progress.
pub(super) struct Display {
    lines: Option<MultiProgress>,
}

impl Display {
    /// On standard error: lines that change, if it is a terminal and nothing else is `written`
    /// there.
    pub(super) fn new(written: bool) -> Self {
        let changes = std::io::stderr().is_terminal() && !written;
        Self { lines: changes.then(MultiProgress::new) }
    }

    /// The part for one peer.
    pub(super) fn of_peer(&self, url: &str) -> PeerDisplay {
        let line = self.lines.as_ref().map(|all| {
            let style = ProgressStyle::with_template("{msg}");
            let line = all.add(ProgressBar::no_length());
            line.with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()))
        });
        let url = redacted(url);
        let progress = PeerProgress::new(&url);
        PeerDisplay { url, progress, line, logged_at: Instant::now() }
    }
}

/// The display of one peer.
pub(super) struct PeerDisplay {
    url: String,
    progress: PeerProgress,
    line: Option<ProgressBar>,
    logged_at: Instant,
}

impl PeerDisplay {
    pub(super) fn show(&mut self, progress: &Progress) {
        self.progress.take(progress, Instant::now());
        match progress {
            Progress::Note(text) => self.say(text),
            Progress::Waiting { reason, pause } => {
                self.say(&format!("{reason}; again in {:.1} s", pause.as_secs_f64()));
            }
            Progress::Live => self.say("synced; live: new events are passed on"),
            _ => {}
        }
        match &self.line {
            Some(line) => {
                let (_, columns) = Term::stderr().size();
                line.set_message(self.progress.line(columns.into()));
            }
            None if self.logged_at.elapsed() >= LOG_EVERY => {
                self.logged_at = Instant::now();
                let (phase, done, total) = self.progress.fields();
                tracing::info!(peer = self.url, phase, done, total, "sync under way");
            }
            None => {}
        }
    }

    fn say(&self, text: &str) {
        match &self.line {
            Some(line) => line.suspend(|| {
                let _ = writeln!(std::io::stderr(), "{}: {text}", self.url);
            }),
            None => tracing::info!("{}: {text}", self.url),
        }
    }
}

impl Drop for PeerDisplay {
    fn drop(&mut self) {
        if let Some(line) = &self.line {
            line.finish_and_clear();
        }
    }
}
