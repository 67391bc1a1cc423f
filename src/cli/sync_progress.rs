//! What `negsync sync` shows while it runs: bars on a terminal, log lines elsewhere.

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use negsync::sync::{Counts, Progress};
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// How often a line is written where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Where progress is shown.
pub(super) struct Display {
    bars: Option<MultiProgress>,
}

impl Display {
    /// On standard error: bars if that is a terminal and nothing else is `written` there.
    pub(super) fn new(written: bool) -> Self {
        let bars = std::io::stderr().is_terminal() && !written;
        Self { bars: bars.then(MultiProgress::new) }
    }

    /// The part of one peer.
    pub(super) fn of_peer(&self, url: &str) -> PeerDisplay {
        let bars = self.bars.as_ref().map(|all| Bars::new(all, url));
        PeerDisplay { url: url.to_owned(), bars, line_at: Instant::now() }
    }
}

/// What is shown of one peer.
pub(super) struct PeerDisplay {
    url: String,
    bars: Option<Bars>,
    line_at: Instant,
}

impl PeerDisplay {
    pub(super) fn show(&mut self, progress: &Progress) {
        let url = &self.url;
        match progress {
            Progress::Moved(counts) => match &self.bars {
                Some(bars) => bars.set(counts),
                None if self.line_at.elapsed() >= LINE_EVERY => {
                    self.line_at = Instant::now();
                    let Counts { items, unsettled_items, .. } = counts;
                    let settled = items.saturating_sub(*unsettled_items);
                    tracing::info!(
                        "{url}: {settled} of {items} items settled, {} of {} events downloaded, \
                         {} of {} uploaded",
                        counts.downloaded,
                        counts.to_download,
                        counts.uploaded,
                        counts.to_upload,
                    );
                }
                None => {}
            },
            Progress::Note(text) => self.say(text),
            Progress::Waiting { reason, pause } => {
                self.say(&format!("{reason}; again in {:.1} s", pause.as_secs_f64()));
            }
            Progress::Live => self.say("synced; events are passed on as they come"),
            Progress::CaughtUp(_) => {}
            Progress::Connected => tracing::debug!("{url}: connected"),
            Progress::Pass(pass) => tracing::debug!("{url}: pass {pass}"),
        }
    }

    fn say(&self, text: &str) {
        match &self.bars {
            Some(bars) => bars.reconciled.suspend(|| {
                let _ = writeln!(std::io::stderr(), "{}: {text}", self.url);
            }),
            None => tracing::info!("{}: {text}", self.url),
        }
    }
}

struct Bars {
    reconciled: ProgressBar,
    downloaded: ProgressBar,
    uploaded: ProgressBar,
}

impl Bars {
    fn new(all: &MultiProgress, url: &str) -> Self {
        let bar = |what: &str| {
            let bar = all.add(ProgressBar::new(0));
            let template = "{prefix:24!} {msg:10} {bar:30} {pos}/{len} {per_sec:>14}, {eta} left";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar.set_prefix(url.to_owned());
            bar.set_message(what.to_owned());
            bar
        };
        Self { reconciled: bar("settled"), downloaded: bar("down"), uploaded: bar("up") }
    }

    fn set(&self, counts: &Counts) {
        let settled = counts.items.saturating_sub(counts.unsettled_items);
        for (bar, done, all) in [
            (&self.reconciled, settled, counts.items),
            (&self.downloaded, counts.downloaded, counts.to_download),
            (&self.uploaded, counts.uploaded, counts.to_upload),
        ] {
            bar.set_length(all);
            bar.set_position(done);
        }
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        for bar in [&self.reconciled, &self.downloaded, &self.uploaded] {
            bar.finish_and_clear();
        }
    }
}
