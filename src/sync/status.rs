//! The state of a peer, derived from the progress of its syncs: kept for display, and logged with
//! one line for each sync.

use super::{Progress, Proof, Reason, Report, Verdict};
use crate::metrics::{LastSync, PeerStatus, Tally, Watched};
use crate::store::Clock;
use std::collections::BTreeMap;
use std::time::Instant;

/// Follows the syncs with one peer.
pub(super) struct Status {
    url: String,
    watched: Watched,
    clock: Clock,
    // The totals of ended calls of `sync`; each call counts from zero.
    before: Tally,
    // The totals of this call of `sync` when it was last caught up.
    caught_up: Tally,
    // The differences at that time: events that only we have, and only the peer.
    left: (u64, u64),
    // Whether the current sync has reached the peer.
    reached: bool,
    // The start of the current sync; `None` while a live one is caught up.
    began: Option<Instant>,
}

impl Status {
    pub(super) fn new(url: String, watched: Watched, clock: Clock) -> Self {
        Self {
            url,
            watched,
            clock,
            before: Tally::default(),
            caught_up: Tally::default(),
            left: (0, 0),
            reached: false,
            began: None,
        }
    }

    /// A call of `sync` begins.
    pub(super) fn begin(&mut self) {
        self.caught_up = Tally::default();
        self.reached = false;
        self.begin_attempt();
    }

    fn begin_attempt(&mut self) {
        self.began.get_or_insert_with(Instant::now);
        self.watched.update(|status| status.last_attempt = Some(self.clock.now()));
    }

    /// Handles a progress report.
    pub(super) fn take(&mut self, progress: Progress) {
        let (peer, now) = (self.url.as_str(), self.clock.now());
        match progress {
            Progress::Connected => {
                self.reached = true;
                self.watched.update(|status| status.connected = true);
            }
            Progress::Round(_) => {
                self.began.get_or_insert_with(Instant::now);
                self.watched.update(|status| leave_step(status, now));
            }
            Progress::Moved(counts) => {
                let have = counts.to_upload.saturating_sub(counts.uploaded);
                let need = counts.to_download.saturating_sub(counts.downloaded);
                let totals = self.before.plus(counts.tally);
                let (have_left, need_left) = self.left;
                self.watched.update(|status| {
                    status.totals = totals;
                    if status.in_step {
                        status.differs(have_left + have, need_left + need, now);
                    } else if have > 0 || need > 0 {
                        // The end of the sync shows how many have a reason not to be moved.
                        status.differs(have, need, now);
                    }
                });
            }
            Progress::Note(text) => tracing::info!(peer, "{text}"),
            Progress::Live => tracing::info!(peer, "live: new events are passed on"),
            Progress::CaughtUp(report) => self.end_sync(&report, true),
            Progress::Waiting { reason, pause } => {
                tracing::info!(peer, "{reason}; again in {:.1} s", pause.as_secs_f64());
                self.disconnected(Some(reason));
                self.begin_attempt();
            }
        }
    }

    /// A call of `sync` has ended.
    pub(super) fn ended(&mut self, report: &Report) {
        self.disconnected(report.error.clone().filter(|_| !report.is_stopped()));
        // For a live sync, each catch-up was reported already.
        if self.began.is_some() && !report.is_stopped() {
            self.end_sync(report, false);
        }
        self.before = self.before.plus(report.tally());
        let totals = self.before;
        self.watched.update(|status| status.totals = totals);
        self.began = None;
    }

    /// A call of `sync` failed on our side.
    pub(super) fn failed(&mut self, reason: String) {
        tracing::error!(peer = self.url, error = reason, "sync failed on our side");
        let mut totals = self.before;
        self.watched.update(|status| totals = status.totals);
        self.before = totals;
        self.disconnected(Some(reason));
        self.began = None;
    }

    fn disconnected(&self, reason: Option<String>) {
        let now = self.clock.now();
        self.watched.update(|status| {
            status.connected = false;
            leave_step(status, now);
            if let Some(reason) = reason {
                status.failed(reason, now);
            }
        });
    }

    /// Records the end of a sync, and logs its line.
    fn end_sync(&mut self, report: &Report, live: bool) {
        let tally = report.tally().since(self.caught_up);
        self.caught_up = report.tally();
        let elapsed_s = self.began.take().map_or(0.0, |began| began.elapsed().as_secs_f64());
        log(report, &tally, elapsed_s);
        let now = self.clock.now();
        let totals = self.before.plus(self.caught_up);
        let (verdict, proof) = (report.verdict, report.proof);
        let not_compared = report.not_compared.clone();
        let differs: BTreeMap<String, u64> =
            report.differs.iter().map(|(reason, count)| (reason.to_string(), *count)).collect();
        let is_refusal = |reason: &Reason| matches!(reason, Reason::RefusedByPeer(_));
        let refuses_writes = !differs.is_empty() && report.differs.keys().all(is_refusal);
        let reached = self.reached || report.passes > 0;
        self.left = (report.have_left, report.need_left);
        self.watched.update(|status| {
            status.syncs += 1;
            status.totals = totals;
            status.last_sync = Some(LastSync {
                ended_at: now,
                elapsed_s,
                tally,
                verdict,
                proof,
                not_compared,
                differs,
                refuses_writes,
                reached,
            });
            if report.passes > 0 && report.error.is_none() {
                status.differs(report.have_left, report.need_left, now);
            }
            // Converged means equal, or as close to it as can be determined for a peer without
            // NIP-77.
            if matches!(verdict, Verdict::Equal | Verdict::CaughtUp) {
                status.last_converged = Some(now);
                status.in_step = live;
            }
        });
    }
}

fn leave_step(status: &mut PeerStatus, now: u64) {
    if std::mem::take(&mut status.in_step) {
        status.last_converged = Some(now);
    }
}

/// Logs the line of a sync.
fn log(report: &Report, tally: &Tally, elapsed_s: f64) {
    macro_rules! line {
        ($level:ident, $text:literal) => {
            tracing::$level!(
                peer = report.url,
                direction = report.direction.name(),
                have = tally.have,
                need = tally.need,
                stored = tally.stored,
                uploaded = tally.uploaded,
                refused = tally.refused,
                refused_by_peer = tally.refused_by_peer,
                round_trips = tally.round_trips,
                bytes_up = tally.bytes_up,
                bytes_down = tally.bytes_down,
                elapsed_s,
                verdict = report.verdict.name(),
                proof = report.proof.map(Proof::name),
                differs = reasons(&report.differs),
                refused_for = reasons(&report.refused),
                refused_by_peer_for = reasons(&report.refused_by_peer),
                not_compared = kinds(&report.not_compared),
                kept_since = report.kept_since,
                error = report.error,
                $text
            )
        };
    }
    if report.complete { line!(info, "synced") } else { line!(warn, "not synced") }
}

/// Reasons with their counts, for a field of the log.
fn reasons(counts: &BTreeMap<Reason, u64>) -> Option<String> {
    let counts: Vec<String> =
        counts.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    (!counts.is_empty()).then(|| counts.join(", "))
}

fn kinds(kinds: &[u16]) -> Option<String> {
    let kinds: Vec<String> = kinds.iter().map(u16::to_string).collect();
    (!kinds.is_empty()).then(|| kinds.join(", "))
}
