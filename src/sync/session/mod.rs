//! One connection's work, from the first question to the proof. A single task reads the socket and
//! hears of what threads have done; nothing in it waits for the peer to take something, so that
//! the two sides can never wait for each other.

mod leaving;
mod listen;
mod live;
mod paging;
mod reconciling;
mod transfer;

use super::arrival::{FromPeer, Settled};
use super::auth::Auth;
use super::breakdown::{Breakdown, By, Rows};
use super::dial::PeerUrl;
use super::diff::NOT_MOVED;
use super::download::Download;
use super::information::Information;
use super::pass::{Pass, Verdict};
use super::peer::{Peer, PeerError};
use super::report::{Counts, Method, Progress, Report, STOPPED};
use super::upload::Upload;
use super::{Local, Options};
use crate::metrics::Tally;
use crate::store::{Refused, StoreError, Synced, unix_now};
use live::Live;
use paging::Paging;
use reconciling::{Opened, Reading, Reconciling};
use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use transfer::Batch;

/// How often deadlines are looked at and progress is told.
const TICK: Duration = Duration::from_millis(200);
/// How long a peer that owes an answer may be silent.
const SILENCE: Duration = Duration::from_secs(30);
/// After so long without a word in a live connection the peer is asked for a sign of life.
const PING_AFTER: Duration = Duration::from_secs(20);
/// Refused ids are written down at this many, and at the end of each pass.
const REFUSED_IDS: usize = 1_000;

/// What a sync keeps from one connection to the next.
pub(super) struct Memory {
    pub(super) report: Report,
    pub(super) information: Option<Information>,
    /// The peer does not reconcile.
    pub(super) without_negentropy: bool,
    /// The peer does not follow the adaptive rule.
    pub(super) reference_rule: bool,
    /// What differed in the last pass.
    pub(super) breakdown: Option<Breakdown>,
    /// What differences are told by, where they are.
    by: Option<By>,
    /// Why an id is not moved, as learnt in this sync.
    why: HashMap<[u8; 32], String>,
    /// Ids that earlier passes tried to move.
    tried: HashSet<[u8; 32]>,
    /// Ids that the report has counted.
    counted: HashSet<[u8; 32]>,
    /// Ids that the peer said it has: when they are still missing later, it did not keep them.
    accepted: HashSet<[u8; 32]>,
    /// Ids that were asked for when connections were lost, and how often.
    suspects: HashMap<[u8; 32], u8>,
    /// Why the peer has refused a download, in its words.
    refusal: Option<String>,
    pass: u32,
    advanced: bool,
}

impl Memory {
    pub(super) fn new(url: &PeerUrl, options: &Options, by: Option<By>) -> Self {
        Self {
            report: Report::new(url.as_str(), &options.filter, options.direction),
            information: None,
            without_negentropy: false,
            reference_rule: false,
            breakdown: None,
            by,
            why: HashMap::new(),
            tried: HashSet::new(),
            counted: HashSet::new(),
            accepted: HashSet::new(),
            suspects: HashMap::new(),
            refusal: None,
            pass: 0,
            advanced: false,
        }
    }

    /// Forgets what only the passes of one catch-up need.
    fn forget(&mut self) {
        self.why.clear();
        self.tried.clear();
        self.counted.clear();
        self.accepted.clear();
        self.suspects.clear();
        self.refusal = None;
    }

    /// Whether anything was achieved since the last call that need not be done again: an event
    /// was moved or has a reason not to be, or a pass came to its end.
    pub(super) fn take_advanced(&mut self) -> bool {
        std::mem::take(&mut self.advanced)
    }
}

/// How a connection's work ended.
pub(super) enum End {
    /// The report is complete, whatever it says.
    Finished,
    /// The connection is gone; another may go on.
    Lost(PeerError),
    /// Our own side cannot go on.
    Failed(String),
}

impl From<PeerError> for End {
    fn from(error: PeerError) -> Self {
        Self::Lost(error)
    }
}

/// What a thread has done.
enum Work {
    Opened(Box<Opened>),
    Read(Box<Reading>),
    Compared { have: Vec<[u8; 32]>, remembered: HashMap<[u8; 32], String>, rows: Rows },
    Sorted(Rows),
    Settled { subscription: String, events: Vec<Settled>, bytes: usize },
    Loaded { events: Vec<([u8; 32], String)>, protected: Vec<[u8; 32]> },
    Remembered,
    Failed(String),
}

/// One connection and all that is under way on it.
pub(super) struct Session<'sync> {
    local: &'sync Local,
    url: &'sync PeerUrl,
    options: &'sync Options,
    memory: &'sync mut Memory,
    progress: &'sync mut (dyn FnMut(Progress) + Send),
    peer: Peer,
    auth: Auth,
    reconciling: Reconciling,
    paging: Paging,
    download: Download,
    upload: Upload,
    live: Option<Live>,
    from_peer: Option<FromPeer>,
    // The second up to which the sets were equal when that was last proven.
    checkpoint: Option<u64>,
    pass: Option<Pass>,
    // Writes down how far the sets were equal.
    remembering: Option<JoinHandle<()>>,
    // Events of one subscription that wait to be checked together.
    batch: Option<Batch>,
    // Bytes of events that are being checked or stored.
    arriving_bytes: usize,
    refused: Vec<Refused>,
    done: mpsc::UnboundedSender<Work>,
    work: mpsc::UnboundedReceiver<Work>,
    // Threads that have not told what they did; each holds bounded work.
    working: usize,
    heard: Instant,
    pinged: bool,
    // Nothing new is begun before.
    not_before: Option<Instant>,
    // How often the peer wanted to know who we are and had not asked.
    auth_waits: u32,
    // Events that nobody asked for, or not so often.
    unasked: u32,
    counts: Counts,
}

/// What the store remembers of the peer and the filter. The first read after a commit can take
/// SQLite its time.
async fn checkpoint(
    local: &Local,
    url: &PeerUrl,
    options: &Options,
) -> Result<Option<u64>, String> {
    let (store, url, filter) =
        (local.store.clone(), url.as_str().to_owned(), options.filter.text());
    let read = move || store.reader().synced_up_to(&url, &filter);
    match tokio::task::spawn_blocking(read).await {
        Ok(read) => read.map_err(|error| error.to_string()),
        Err(panic) => Err(panic.to_string()),
    }
}

impl<'sync> Session<'sync> {
    /// Connects and works until all is synced or the connection is lost.
    pub(super) async fn run(
        local: &'sync Local,
        url: &'sync PeerUrl,
        options: &'sync Options,
        memory: &'sync mut Memory,
        progress: &'sync mut (dyn FnMut(Progress) + Send),
    ) -> End {
        // Read while the peer is waited for.
        let (peer, checkpoint) = tokio::join!(
            Peer::connect(url, &local.connector, memory.information, options.trace.clone()),
            checkpoint(local, url, options)
        );
        let (peer, checkpoint) = match (peer, checkpoint) {
            (Ok(peer), Ok(checkpoint)) => (peer, checkpoint),
            (Err(error), _) => return End::Lost(error),
            (_, Err(reason)) => return End::Failed(reason),
        };
        memory.information = Some(peer.information);
        let (done, work) = mpsc::unbounded_channel();
        let live = options.live.then(|| Live::new(local));
        let download = Download::new(&peer.information, memory.suspects.clone(), options.dry_run);
        let mut session = Self {
            auth: Auth::new(local.keys.clone(), url.as_str()),
            reconciling: Reconciling::default(),
            paging: Paging::default(),
            download,
            upload: Upload::default(),
            from_peer: live.is_some().then(FromPeer::default),
            live,
            checkpoint,
            pass: None,
            remembering: None,
            batch: None,
            arriving_bytes: 0,
            refused: Vec::new(),
            done,
            work,
            working: 0,
            heard: Instant::now(),
            pinged: false,
            not_before: None,
            auth_waits: 0,
            unasked: 0,
            counts: Counts::default(),
            local,
            url,
            options,
            memory,
            progress,
            peer,
        };
        let ended = session.serve().await;
        session.leave(ended).await
    }

    async fn serve(&mut self) -> Result<(), End> {
        (self.progress)(Progress::Connected);
        self.begin_live()?;
        self.begin_pass();
        let mut stop = self.options.stop.clone();
        let mut tick = tokio::time::interval(TICK);
        loop {
            self.advance()?;
            if self.pass.is_some() && self.is_idle() {
                if !self.end_pass() {
                    return Ok(());
                }
                // The next pass begins now, and not when something else comes.
                continue;
            }
            let may_read = self.may_read();
            tokio::select! {
                biased;
                Some(work) = self.work.recv() => self.take_work(work)?,
                heard = self.peer.next(), if may_read => self.hear(&heard?).await?,
                // Only when nothing more is there to be read at once.
                () = std::future::ready(()), if self.batch.is_some() => self.flush_batch(),
                changed = live::next_change(&mut self.live) => self.take_change(changed)?,
                _ = tick.tick() => self.take_time()?,
                () = stopped(&mut stop) => {
                    self.memory.report.error = Some(STOPPED.to_owned());
                    return Ok(());
                }
            }
        }
    }

    /// Begins to look at everything.
    fn begin_pass(&mut self) {
        self.memory.pass += 1;
        self.memory.report.passes = self.memory.pass;
        (self.progress)(Progress::Pass(self.memory.pass));
        let breakdown = self.memory.by.map(Breakdown::new);
        self.pass = Some(Pass { number: self.memory.pass, breakdown, ..Pass::default() });
        let window = self.options.filter.window();
        if self.memory.without_negentropy {
            self.paging.add(window);
        } else {
            self.reconciling.begin(window);
        }
    }

    /// Sends what may be sent and has read what may be read.
    fn advance(&mut self) -> Result<(), End> {
        if self.auth.is_under_way() {
            return Ok(());
        }
        if let Some(instant) = self.not_before {
            if Instant::now() < instant {
                return Ok(());
            }
            self.not_before = None;
        }
        self.advance_reconciling()?;
        self.advance_paging()?;
        self.advance_transfer()
    }

    fn is_idle(&self) -> bool {
        self.working == 0
            && self.batch.is_none()
            && self.reconciling.is_idle()
            && self.paging.is_idle()
            && self.download.is_idle()
            && self.upload.is_idle()
    }

    /// Draws the sum of a pass. Returns whether there is more to do on this connection.
    fn end_pass(&mut self) -> bool {
        if !self.refused.is_empty() {
            self.remember_refused();
            return true;
        }
        let Some(mut pass) = self.pass.take() else { return true };
        self.memory.advanced = true;
        self.memory.breakdown = pass.breakdown.take();
        self.memory.breakdown.iter_mut().for_each(Breakdown::finish);
        self.tell();
        let by_reading = self.memory.report.method == Method::Req;
        let report = &mut self.memory.report;
        (report.have_left, report.need_left) = (pass.have, pass.need);
        report.differs = pass.explained.clone();
        if !pass.open.is_empty() {
            report.differs.insert(NOT_MOVED.to_owned(), pass.open.len() as u64);
        }
        if self.options.dry_run {
            report.equal = pass.is_equal();
            report.complete = true;
            return false;
        }
        let verdict = match pass.verdict(&self.memory.tried) {
            // What was read page by page is compared already, and its transfers were answered.
            Verdict::Again if by_reading => Verdict::Stuck,
            verdict => verdict,
        };
        report.equal = pass.open.is_empty() && pass.explained.is_empty();
        report.complete = matches!(verdict, Verdict::Proven | Verdict::Moving);
        match verdict {
            Verdict::Again => {
                self.memory.tried.extend(&pass.open);
                self.begin_pass();
                return true;
            }
            Verdict::Stuck => {
                let mut text = format!("{} events could not be moved", pass.open.len());
                if let Some(refusal) = &self.memory.refusal {
                    text.push_str(&format!("; the peer refuses the download: {refusal}"));
                }
                report.error.get_or_insert(text);
            }
            Verdict::Proven => self.remember_synced(&pass),
            Verdict::Moving => {}
        }
        if self.live.is_some() {
            let Tally { bytes_up, bytes_down, .. } = self.tally();
            let report = Report { bytes_up, bytes_down, ..self.memory.report.clone() };
            (self.progress)(Progress::CaughtUp(Box::new(report)));
        }
        self.go_live()
    }

    /// Remembers how far the sets were seen to be equal.
    fn remember_synced(&mut self, pass: &Pass) {
        if self.memory.without_negentropy || pass.newest == 0 {
            return;
        }
        let synced = Synced {
            peer: self.url.as_str().to_owned(),
            filter: self.options.filter.text(),
            up_to: pass.newest.min(unix_now()),
        };
        let store = self.local.store.clone();
        // Waited for at the end only: it makes the next sync shorter.
        self.remembering = Some(tokio::task::spawn_blocking(move || {
            if let Err(error) = store.remember_synced(synced) {
                tracing::warn!(%error, "how far a peer is equal could not be written");
            }
        }));
    }

    /// Has a thread do something that may take its time.
    fn begin_work(&mut self, job: impl FnOnce() -> Result<Work, StoreError> + Send + 'static) {
        self.working += 1;
        let done = self.done.clone();
        tokio::spawn(async move {
            let work = match tokio::task::spawn_blocking(job).await {
                Ok(Ok(work)) => work,
                Ok(Err(error)) => Work::Failed(error.to_string()),
                Err(panic) => Work::Failed(panic.to_string()),
            };
            // Fails only when the session is over.
            let _ = done.send(work);
        });
    }

    fn take_work(&mut self, work: Work) -> Result<(), End> {
        self.working = self.working.saturating_sub(1);
        match work {
            Work::Opened(opened) => self.opened(*opened),
            Work::Read(reading) => self.read(*reading),
            Work::Compared { have, remembered, rows } => {
                self.add_rows(rows);
                self.found(have, Vec::new(), &remembered)
            }
            Work::Sorted(rows) => {
                self.add_rows(rows);
                Ok(())
            }
            Work::Settled { subscription, events, bytes } => {
                self.settled(&subscription, &events, bytes)
            }
            Work::Loaded { events, protected } => {
                self.loaded(events, protected);
                Ok(())
            }
            Work::Remembered => Ok(()),
            Work::Failed(reason) => Err(End::Failed(reason)),
        }
    }

    /// Looks at the deadlines.
    fn take_time(&mut self) -> Result<(), End> {
        self.tell();
        if self.pass.is_none() {
            // A live sync goes on for ever: what only a pass needs must not pile up.
            self.memory.forget();
            self.upload.forget();
            if !self.refused.is_empty() {
                self.remember_refused();
            }
        }
        let silent = self.heard.elapsed();
        if self.reconciling.waits_too_long(self.peer.information.negentropy, silent) {
            return self.without_negentropy("it says nothing");
        }
        let waiting = self.reconciling.is_waiting()
            || self.paging.is_waiting()
            || self.download.is_waiting()
            || self.upload.is_waiting()
            || self.auth.is_under_way();
        if silent >= SILENCE && waiting {
            let only_uploads = self.upload.is_waiting()
                && !self.reconciling.is_waiting()
                && !self.paging.is_waiting()
                && !self.download.is_waiting();
            if !only_uploads {
                return Err(End::Lost(PeerError::Silent { waited: silent }));
            }
            let events = self.upload.give_up_waiting();
            self.note(format!("the peer did not answer for {events} events"));
        }
        if self.live.is_some() && silent >= PING_AFTER && !self.pinged {
            self.pinged = true;
            self.peer.ping()?;
        }
        if self.live.is_some() && silent >= PING_AFTER + SILENCE {
            return Err(End::Lost(PeerError::Silent { waited: silent }));
        }
        Ok(())
    }

    /// Tells how far everything is, when that has changed.
    fn tell(&mut self) {
        let tally = self.tally();
        let downloaded = tally.stored + tally.refused;
        let uploaded = tally.uploaded + tally.refused_by_peer;
        let (unsettled_items, items) = self.reconciling.items();
        let counts = Counts {
            unsettled_items,
            items,
            downloaded,
            to_download: downloaded + self.download.unsettled() as u64,
            uploaded,
            to_upload: uploaded + self.upload.unsettled() as u64,
            tally,
        };
        if counts != self.counts {
            self.counts = counts;
            (self.progress)(Progress::Moved(counts));
        }
    }

    /// What the sync has moved, on this connection and those before.
    fn tally(&self) -> Tally {
        let (up, down) = self.peer.bytes();
        let before = self.memory.report.tally();
        Tally { bytes_up: before.bytes_up + up, bytes_down: before.bytes_down + down, ..before }
    }

    fn note(&mut self, text: String) {
        (self.progress)(Progress::Note(text));
    }
}

/// Returns when the sync is to end.
async fn stopped(stop: &mut Option<tokio::sync::watch::Receiver<bool>>) {
    if let Some(stop) = stop
        && stop.wait_for(|stop| *stop).await.is_ok()
    {
        return;
    }
    std::future::pending().await
}
