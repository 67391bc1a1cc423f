//! A sync with one peer as a state machine: no socket, clock, thread or disk.
//!
//! Whoever drives it hands over what happens (`handle_*`) and asks what is to be done (`poll_*`):
//! messages to send, work for threads, the next deadline, what to tell people. Time is a parameter.
//! A [`Machine`] lives as long as the sync; connections come and go under it.
//!
//! - `reconciling`: what differs, by NIP-77; `reading`: by pages, where the peer does not reconcile
//! - `download`, `upload`: moving it, as it becomes known; `second_look`: whether the peer kept it
//! - `ledger`: what became of each id; `verdict`: what all of it proves
//! - `same_relay`: whether that holds of one relay, where connections may lead to several
//! - `answers`: whom a peer's message concerns; `link`: connections that come and go
//! - `connection`: what is under way on one of them
//! - `count_hints`: which days to read again, by COUNT (NIP-45)
//! - `conclusion`: what is to be moved, where our events are known by their ids alone
//! - `auth` (NIP-42), `probe` (kinds that the peer hides), `live` (events as they come)

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
mod probe;
mod reading;
mod reconciling;
mod same_relay;
mod second_look;
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
use super::filter::PeerFilter;
use super::nip11::Information;
use super::report::{Counts, Progress, Report, STOPPED};
use crate::config::Direction;
use crate::metrics::Tally;
use crate::store::{Filter, PeerTraits, RefusedId, SyncMark};
use connection::Connection;
use ledger::{FoundAt, Ledger, Side};
use link::Link;
use notices::Notices;
use reading::Reading;
use same_relay::Looks;
use std::collections::VecDeque;
use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;
use verdict::Round;

pub use link::Loss;

/// An event's id.
pub type Id = [u8; 32];

/// A moment: on a clock that only goes forward, and on the wall.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Now {
    /// Since any moment before the sync began.
    pub at: Duration,
    /// Seconds since the Unix epoch.
    pub unix_s: u64,
}

/// What is known of our set when a session opens over it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Items {
    /// How many there are.
    pub count: usize,
    /// The newest `created_at`.
    pub newest: u64,
    /// Since when to ask ahead: few of ours are as new, so that what the peer has of it is new.
    pub ahead: Option<u64>,
}

/// What to sync, and how.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Which events.
    pub filter: PeerFilter,
    /// Which way.
    pub direction: Direction,
    /// Find out what differs and move nothing.
    pub dry_run: bool,
    /// Compare by lists of ids, not by fingerprints.
    pub exact: bool,
    /// Go on when all is synced.
    pub live: bool,
    /// The connections in a row that may fail or move nothing; `None` for any number.
    pub attempts: Option<u32>,
    /// What differences are told by, where they are.
    pub by: Option<By>,
    /// Our public key for NIP-42.
    pub key: Option<[u8; 32]>,
    /// After how many seconds a peer without NIP-77 is read whole again.
    pub full_interval_s: u64,
    /// What tells our subscriptions from those of others.
    pub nonce: u64,
}

/// How often progress is told, and slow deadlines are looked at.
const TICK: Duration = Duration::from_millis(200);
/// How long the first answer to a question may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// So much longer after each question in a row that was not answered.
const MORE_PATIENCE: Duration = Duration::from_secs(3);
/// The most of all that.
const MOST_PATIENCE: Duration = Duration::from_secs(17);
/// A deadline that is noticed so late was missed by us, not by the peer.
const LATE: Duration = Duration::from_millis(800);
/// Refused ids are written down at this many, and at the end of each round.
const REFUSED_IDS: usize = 1_000;
/// With so many bytes of events being checked or stored no message is taken.
const MOST_ARRIVING_BYTES: usize = 16 << 20;

/// A sync with one peer.
pub struct Machine {
    settings: Settings,
    /// The filter of `settings`, for whoever checks events.
    matching: Arc<Filter>,
    url: String,
    now: Now,
    transmit: VecDeque<String>,
    work: VecDeque<Work>,
    events: VecDeque<Progress>,
    link: Link,
    failed: Option<String>,
    /// Work that was handed out and is not done.
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
    /// The peer does not reconcile, as far as this sync is concerned.
    reads: bool,
    /// Our events are known by their ids alone: see [`Work::Conclude`].
    over_ids: bool,
    /// The peer does not follow the adaptive rule.
    reference_rule: bool,
    /// Connections that were lost while the first NEG-OPEN was not answered.
    neg_hangups: u32,
    /// NEG-MSGs that were not answered, and whether any ever was.
    neg_silences: u32,
    answers_neg_msg: bool,
    /// A connection was lost while events went both ways: one way after the other.
    one_way: bool,
    /// Events in a row at which the peer ended the connection.
    event_hangups: u32,
    /// Pauses in a row for a peer that limits the rate of questions.
    rate_pauses: u32,
    /// The peer has said something of a limit since it last answered.
    limit_was_refused: bool,
    /// Questions in a row that were not answered.
    silences: u32,
    /// Connections in a row that were left because of that.
    silent_connections: u32,
    /// The longest that an answer took that came in time only because there was more of it.
    slowest: Duration,
    /// For how long questions of this round went without an answer.
    silent_for: Duration,
    /// The most ids that a REQ asks for, as far as unanswered ones have shown.
    most_ids: usize,
    /// Why the peer has refused a download, in its words.
    refusal: Option<String>,
    notices: Notices,
    /// Rounds since everything was last looked at from the start, and in all.
    rounds: u16,
    /// What the peer took was looked for once more after a while.
    has_waited: bool,
    looks: u32,
    /// Over which connections they went.
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
    /// A sync that begins now with the peer at `url`, and wants a connection first.
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
            neg_hangups: 0,
            neg_silences: 0,
            answers_neg_msg: false,
            one_way: false,
            event_hangups: 0,
            rate_pauses: 0,
            limit_was_refused: false,
            silences: 0,
            silent_connections: 0,
            slowest: Duration::ZERO,
            silent_for: Duration::ZERO,
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

    /// No further message is at hand: what waits for company is begun.
    pub fn handle_quiet(&mut self, now: Now) {
        self.now = now;
        self.flush_batch();
    }

    /// Whether events wait for company: see [`Machine::handle_quiet`].
    pub fn has_batch(&self) -> bool {
        self.on.batch.is_some()
    }

    /// A frame that carries no message: a ping, or a pong, which shows that the line is there.
    pub fn handle_control(&mut self, now: Now) {
        self.now = now;
        self.on.heard = now.at;
        self.on.pinged = false;
        self.count_idle_frame();
        self.advance();
    }

    /// Some work is done.
    pub fn handle_work(&mut self, done: Done, now: Now) {
        self.now = now;
        self.working = self.working.saturating_sub(1);
        self.take_done(done);
        self.advance();
    }

    /// The moment of [`Machine::poll_timeout`] has come.
    pub fn handle_timeout(&mut self, now: Now) {
        self.now = now;
        self.take_time();
        self.advance();
    }

    /// The sync is to end.
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

    /// The next thing to tell.
    pub fn poll_progress(&mut self) -> Option<Progress> {
        self.events.pop_front()
    }

    /// Whether another message may be handed over: else our own side is behind.
    pub fn may_read(&self) -> bool {
        self.on.arriving_bytes < MOST_ARRIVING_BYTES
    }

    /// Whether events of our store are to be handed over as they come.
    pub fn is_live(&self) -> bool {
        self.settings.live && !matches!(self.link, Link::Finishing | Link::Over)
    }

    /// The report, once the sync is over, and what differed in the last look.
    ///
    /// # Errors
    /// Why our own side could not go on.
    pub(super) fn into_report(mut self) -> Result<(Report, Option<Breakdown>), String> {
        match self.failed.take() {
            Some(reason) => Err(reason),
            None => {
                let report = self.report_now();
                Ok((report, self.breakdown))
            }
        }
    }

    /// The report up to here.
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
            // The next round begins now, and not when something else comes.
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

    /// Has something done that may take its time.
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

    /// The round and the connection of what is found now.
    fn found_at(&self) -> FoundAt {
        FoundAt { round: self.looks, connection: NonZeroU32::new(self.connections) }
    }

    /// An id for a subscription: some relays have one namespace for all clients.
    fn subscription(&mut self) -> String {
        self.on.subscriptions += 1;
        let prefix = (self.settings.nonce ^ u64::from(self.connections).wrapping_mul(0x9e37_79b9))
            & 0xff_ffff;
        format!("n{prefix:06x}-{}", self.on.subscriptions)
    }

    /// How long a question that is asked now may go without an answer: longer after silences and for
    /// a peer that was slow before, less where much was waited in vain.
    fn patience(&self) -> Duration {
        let by_silences = PATIENCE + MORE_PATIENCE * self.silences.min(4);
        let wanted = by_silences.max(self.slowest * 2).min(MOST_PATIENCE);
        let left = match self.settings.attempts {
            Some(_) => link::MOST_SILENCE.saturating_sub(self.silent_for),
            None => MOST_PATIENCE,
        };
        self.now.at + wanted.min(left.max(PATIENCE))
    }

    /// Tells how far everything is, when that has changed.
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

    /// What the sync has moved, on this connection and those before.
    fn tally(&self) -> Tally {
        self.report_now().tally()
    }

    /// An answer came to something that was asked.
    fn answered(&mut self) {
        let took = self.now.at.saturating_sub(self.on.answered_at);
        if self.silences > 0 && took >= PATIENCE {
            self.slowest = self.slowest.max(took.min(MOST_PATIENCE));
        }
        self.silences = 0;
        self.on.idle_frames.0 = 0;
        self.on.answered_at = self.now.at;
    }
}

/// Ids in an order that does not change from run to run.
fn sorted(ids: impl IntoIterator<Item = Id>) -> Vec<Id> {
    let mut ids: Vec<Id> = ids.into_iter().collect();
    ids.sort_unstable();
    ids
}
