//! A sync with one peer as a state machine: no socket, clock, thread or disk.
//!
//! The driver passes events in (`handle_*`) and takes actions out (`poll_*`): messages to send,
//! work for threads, the next deadline, progress to report. Time is a parameter. A [`Machine`]
//! lives as long as the sync; connections come and go.
//!
//! - `reconciling`: differences by NIP-77; `reading`: by pages, if the peer does not reconcile
//! - `download`, `upload`: the moves; `second_look`: whether the peer kept the events
//! - `ledger`: the state of each id; `verdict`: the result and its basis
//! - `same_relay`: whether the result holds for one relay, if connections may lead to several
//! - `answers`: dispatch of the peer's messages; `link`: connections that come and go
//! - `connection`: the state of one connection; `patience`: timeouts of questions
//! - `count_hints`: days to read again, by COUNT (NIP-45)
//! - `conclusion`: the moves, if only the ids of our events are known
//! - `auth` (NIP-42), `probe` (kinds that the peer hides), `live` (new events)

mod answers;
mod auth;
mod conclusion;
mod connection;
mod count_hints;
mod download;
mod ledger;
mod link;
mod live;
mod notices;
mod page_plan;
mod patience;
mod probe;
mod reading;
mod reconciling;
mod same_relay;
mod second_look;
mod settings;
mod transfer;
mod upload;
mod verdict;
mod work;

pub use page_plan::Unseen;
pub use work::{Asked, Done, Fate, Loaded, Opening, Seen, Settled, Work};

pub(super) use conclusion::Left;
pub(super) use page_plan::{Hint, PageEvent};

use super::backoff::Backoff;
use super::breakdown::{Breakdown, By};
use super::nip11::Information;
use super::report::{Counts, Progress, Report, STOPPED};
use crate::metrics::Tally;
use crate::store::{Filter, PeerTraits, RefusedId, SyncMark};
use connection::Connection;
use ledger::{FoundAt, Ledger, Side};
use link::Link;
use notices::Notices;
use patience::Silence;
use reading::Reading;
use same_relay::Looks;
use std::collections::VecDeque;
use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;
use verdict::Round;

pub use link::Loss;
pub use settings::Settings;

/// An event's id.
pub type Id = [u8; 32];

/// A time on a monotonic clock and on the wall clock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Now {
    /// Since a fixed time before the sync began.
    pub at: Duration,
    /// Seconds since the Unix epoch.
    pub unix_s: u64,
}

/// Facts about our set when a session opens over it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Items {
    /// The number of items.
    pub count: usize,
    /// The newest `created_at`.
    pub newest: u64,
    /// The time from which to request events ahead: we have few items as new, so most of the peer's
    /// are new to us.
    pub ahead: Option<u64>,
}

/// Interval of progress reports and of checks of slow deadlines.
const TICK: Duration = Duration::from_millis(200);
/// Number of refused ids at which they are recorded; they are also recorded at the end of each
/// round.
const REFUSED_IDS: usize = 1_000;
/// Bytes of events being checked or stored above which no message is read.
const MOST_ARRIVING_BYTES: usize = 16 << 20;

/// A sync with one peer.
pub struct Machine {
    settings: Settings,
    /// The filter of `settings`, for checking events.
    matching: Arc<Filter>,
    url: String,
    now: Now,
    transmit: VecDeque<String>,
    work: VecDeque<Work>,
    events: VecDeque<Progress>,
    link: Link,
    failed: Option<String>,
    /// The number of unfinished work items.
    working: usize,
    ledger: Ledger,
    report: Report,
    counts: Counts,
    told_at: Duration,
    backoff: Backoff,
    information: Information,
    traits: PeerTraits,
    mark: SyncMark,
    overlap: Option<u64>,
    is_recalled: bool,
    /// Whether this sync reads the peer because it does not reconcile.
    reads: bool,
    /// Whether our events are known by their ids alone: see [`Work::Conclude`].
    over_ids: bool,
    /// Whether the peer does not support the adaptive rule.
    reference_rule: bool,
    /// Whether a session ended because the peer's answers contradict each other.
    was_contradicted: bool,
    /// Connections lost while the first NEG-OPEN was unanswered.
    neg_hangups: u32,
    /// Unanswered NEG-MSGs, and whether any was ever answered.
    neg_silences: u32,
    answers_neg_msg: bool,
    /// A connection was lost while events moved in both directions: from then on one direction at a
    /// time.
    one_way: bool,
    /// Events in a row at which the peer closed the connection.
    event_hangups: u32,
    /// Pauses in a row for a peer with a rate limit on questions.
    rate_pauses: u32,
    /// Whether the peer has mentioned a limit since its last answer.
    limit_was_refused: bool,
    /// The peer's unanswered questions.
    silence: Silence,
    /// Maximum number of ids in a REQ, reduced by unanswered ones.
    most_ids: usize,
    /// The peer's reason for refusing a download.
    refusal: Option<String>,
    notices: Notices,
    /// The number of rounds since the last complete start, and in total.
    rounds: u16,
    looks: u32,
    /// Whether the sync has waited once before looking for accepted events again.
    has_waited: bool,
    /// The connections that the rounds used.
    looked: Looks,
    round: Option<Round>,
    breakdown: Option<Breakdown>,
    reading: Reading,
    refused: Vec<RefusedId>,
    connections: u32,
    on: Connection,
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine").finish_non_exhaustive()
    }
}

impl Machine {
    /// A sync that begins at `now` with the peer at `url`, and needs a connection first.
    pub fn new(url: &str, settings: Settings, now: Now) -> Self {
        let report = Report::new(url, &settings.filter, settings.direction);
        let mut machine = Self {
            matching: Arc::new(settings.filter.parsed().clone()),
            url: url.to_owned(),
            now,
            transmit: VecDeque::new(),
            work: VecDeque::new(),
            events: VecDeque::new(),
            link: Link::Connecting,
            failed: None,
            working: 0,
            ledger: Ledger::default(),
            report,
            counts: Counts::default(),
            told_at: now.at,
            backoff: Backoff::new(settings.nonce),
            information: Information::default(),
            traits: PeerTraits::default(),
            mark: SyncMark::default(),
            overlap: None,
            is_recalled: false,
            reads: false,
            over_ids: false,
            reference_rule: false,
            was_contradicted: false,
            neg_hangups: 0,
            neg_silences: 0,
            answers_neg_msg: false,
            one_way: false,
            event_hangups: 0,
            rate_pauses: 0,
            limit_was_refused: false,
            silence: Silence::default(),
            most_ids: usize::MAX,
            refusal: None,
            notices: Notices::default(),
            rounds: 0,
            has_waited: false,
            looks: 0,
            looked: Looks::default(),
            round: None,
            breakdown: None,
            reading: Reading::default(),
            refused: Vec::new(),
            connections: 0,
            on: Connection::new(&Information::default(), now),
            settings,
        };
        machine.begin_work(Work::Recall);
        machine
    }

    /// A message from the peer.
    pub fn handle_message(&mut self, text: &str, now: Now) {
        self.now = now;
        self.report.bytes_down += text.len() as u64;
        if matches!(self.link, Link::Up) {
            self.hear(text);
            self.advance();
        }
    }

    /// No further message is waiting: processes incomplete batches.
    pub fn handle_quiet(&mut self, now: Now) {
        self.now = now;
        self.flush_batch();
    }

    /// Whether a batch is incomplete: see [`Machine::handle_quiet`].
    pub fn has_batch(&self) -> bool {
        self.on.batch.is_some()
    }

    /// A frame without a message, a ping or a pong: it shows that the connection works.
    pub fn handle_control(&mut self, now: Now) {
        self.now = now;
        self.on.heard = now.at;
        self.on.pinged = false;
        self.count_idle_frame();
        self.advance();
    }

    /// Work is done.
    pub fn handle_work(&mut self, done: Done, now: Now) {
        self.now = now;
        self.working = self.working.saturating_sub(1);
        self.take_done(done);
        self.advance();
    }

    /// The time of [`Machine::poll_timeout`] has come.
    pub fn handle_timeout(&mut self, now: Now) {
        self.now = now;
        self.take_time();
        self.advance();
    }

    /// The sync should end.
    pub fn handle_stop(&mut self, now: Now) {
        self.now = now;
        self.report.error = Some(STOPPED.to_owned());
        self.report.judge(super::report::Verdict::Incomplete, None);
        self.flush_batch();
        self.finish();
    }

    /// The next message to send.
    pub fn poll_transmit(&mut self) -> Option<String> {
        self.transmit.pop_front()
    }

    /// The next work to begin.
    pub fn poll_work(&mut self) -> Option<Work> {
        self.work.pop_front()
    }

    /// The next progress report.
    pub fn poll_progress(&mut self) -> Option<Progress> {
        self.events.pop_front()
    }

    /// Whether another message may be passed in; otherwise our own side is behind.
    pub fn may_read(&self) -> bool {
        self.on.arriving_bytes < MOST_ARRIVING_BYTES
    }

    /// Whether new events of our store should be passed in.
    pub fn is_live(&self) -> bool {
        self.settings.live && !matches!(self.link, Link::Finishing | Link::Over)
    }

    /// The report, once the sync is over, and the differences of the last round.
    ///
    /// # Errors
    /// Why our own side failed.
    pub(super) fn into_report(mut self) -> Result<(Report, Option<Breakdown>), String> {
        match self.failed.take() {
            Some(reason) => Err(reason),
            None => {
                let report = self.report_now();
                Ok((report, self.breakdown))
            }
        }
    }

    /// The current report.
    pub fn report_now(&self) -> Report {
        let figures = self.ledger.figures();
        let mut report = self.report.clone();
        (report.have, report.need) = (figures.have, figures.need);
        (report.stored, report.uploaded) = (figures.stored, figures.uploaded);
        report.duplicates += figures.duplicates;
        for (reason, count) in figures.refused {
            *report.refused.entry(reason).or_default() += count;
        }
        report.refused_by_peer = figures.refused_by_peer;
        report
    }

    fn advance(&mut self) {
        if self.failed.is_some() && !matches!(self.link, Link::Over) {
            self.link = Link::Over;
        }
        self.advance_link();
        if !matches!(self.link, Link::Up) || !self.is_recalled {
            return;
        }
        if self.auth_holds() || self.on.not_before.is_some_and(|at| self.now.at < at) {
            return;
        }
        self.on.not_before = None;
        if self.round.is_none() && self.on.live.is_idle() {
            self.begin_round();
        }
        loop {
            self.advance_live();
            self.advance_probe();
            self.advance_reconciling();
            self.advance_reading();
            self.advance_conclusion();
            self.advance_transfer();
            self.advance_second_look();
            if !matches!(self.link, Link::Up) || self.round.is_none() || !self.is_idle() {
                return;
            }
            // The next round begins now, without waiting for another event.
            if !self.end_round() {
                return;
            }
        }
    }

    fn is_idle(&self) -> bool {
        self.working == 0
            && self.on.not_before.is_none()
            && self.on.batch.is_none()
            && self.on.probe.is_idle()
            && self.on.reconciling.is_idle()
            && self.reading.is_idle()
            && self.on.download.is_idle()
            && self.on.upload.is_idle()
            && self.on.second_look.is_idle()
    }

    /// Queues work that may take time.
    fn begin_work(&mut self, work: Work) {
        self.working += 1;
        self.work.push_back(work);
    }

    fn send(&mut self, text: String) {
        self.report.bytes_up += text.len() as u64;
        self.transmit.push_back(text);
    }

    fn note(&mut self, text: String) {
        self.events.push_back(Progress::Note(text));
    }

    /// The round and connection of differences found now.
    fn found_at(&self) -> FoundAt {
        FoundAt { round: self.looks, connection: NonZeroU32::new(self.connections) }
    }

    /// An id for a subscription, made unique by the nonce: some relays share one namespace between
    /// all clients.
    fn subscription(&mut self) -> String {
        self.on.subscriptions += 1;
        let prefix = (self.settings.nonce ^ u64::from(self.connections).wrapping_mul(0x9e37_79b9))
            & 0xff_ffff;
        format!("n{prefix:06x}-{}", self.on.subscriptions)
    }

    /// Reports progress if it has changed.
    fn tell(&mut self) {
        self.told_at = self.now.at;
        let tally = self.tally();
        let downloaded = tally.stored + tally.refused;
        let uploaded = tally.uploaded + tally.refused_by_peer;
        let (unsettled_items, items) = self.on.reconciling.items();
        let moves = !self.settings.dry_run;
        let left = |side| if moves { self.ledger.unsettled(side) } else { 0 };
        let counts = Counts {
            unsettled_items,
            items,
            downloaded,
            to_download: downloaded + left(Side::Peers),
            uploaded,
            to_upload: uploaded + left(Side::Ours),
            tally,
        };
        if counts != self.counts {
            self.counts = counts;
            self.events.push_back(Progress::Moved(counts));
        }
    }

    /// The totals of the sync, over all connections.
    fn tally(&self) -> Tally {
        self.report_now().tally()
    }
}

/// Ids in an order that is the same in each run.
fn sorted(ids: impl IntoIterator<Item = Id>) -> Vec<Id> {
    let mut ids: Vec<Id> = ids.into_iter().collect();
    ids.sort_unstable();
    ids
}
