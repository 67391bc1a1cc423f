//! Drives a machine: socket, clock, threads, and the work of our side.

mod our_side;
mod worker;

pub(super) use our_side::{OurEvents, OurSide};

use super::breakdown::{Breakdown, By};
use super::connector::Connector;
use super::machine::{Done, Machine, Now, Settings, Work};
use super::peer::{Frame, Peer, PeerError};
use super::report::{Progress, Report};
use super::{Local, Options, SyncError};
use crate::config::Direction;
use crate::relay_url::RelayUrl;
use crate::store::Clock;
use std::collections::hash_map::RandomState;
use std::future::Future;
use std::hash::{BuildHasher, Hasher};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use worker::Worker;

/// Timeout for running work after the sync was stopped.
const STOP_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(3);
/// Frames in a row after which the task yields to the runtime.
const FRAMES_IN_A_ROW: u32 = 64;

type Connecting<'a> = Pin<Box<dyn Future<Output = Result<Peer, PeerError>> + Send + 'a>>;

/// Runs a sync. With `by`, also returns the differences of the last round.
pub(super) async fn run(
    local: &Local,
    url: &str,
    options: &Options,
    by: Option<By>,
    progress: impl FnMut(Progress) + Send,
) -> Result<(Report, Option<Breakdown>), SyncError> {
    let url = RelayUrl::parse(url)?;
    let is_live = options.live && !options.dry_run;
    let key = mark_key(options);
    let worker = Worker::new(local, &url, &options.filter, key, is_live);
    let clock = SyncClock::start(local.clock());
    let own_key = local.keys.as_ref().map(|keys| keys.public_key().to_bytes());
    let settings = settings(options, by, own_key);
    let machine = Machine::new(&url.to_string(), settings, clock.now());
    let machine =
        drive(&local.connector, &url, options, machine, Arc::new(worker), clock.clone(), progress)
            .await?;
    let (report, breakdown) = machine.into_report().map_err(SyncError::Store)?;
    Ok((Report { elapsed_ms: clock.elapsed_ms(), ..report }, breakdown))
}

/// The machine's settings from the options.
pub(super) fn settings(options: &Options, by: Option<By>, key: Option<[u8; 32]>) -> Settings {
    Settings {
        filter: options.filter.clone(),
        direction: options.direction,
        dry_run: options.dry_run,
        exact: options.exact,
        live: options.live,
        attempts: options.attempts,
        by,
        key,
        full_interval_s: options.full_interval_s,
        nonce: RandomState::new().build_hasher().finish(),
    }
}

/// Drives a machine until its sync is over.
///
/// # Errors
/// [`SyncError`] when the peer cannot be reached at all, or our side fails.
pub(super) async fn drive<S: OurSide>(
    connector: &Connector,
    url: &RelayUrl,
    options: &Options,
    machine: Machine,
    side: Arc<S>,
    clock: SyncClock,
    progress: impl FnMut(Progress) + Send,
) -> Result<Machine, SyncError> {
    connector.check(url)?;
    let (done, works) = mpsc::unbounded_channel();
    let jobs = JoinSet::new();
    let driver =
        Driver { connector, url, options, machine, side, clock, progress, jobs, done, gets: false };
    driver.run(works).await.map_err(SyncError::Store)
}

/// The key under which a peer's state is recorded: moves in one direction say nothing about the
/// other.
fn mark_key(options: &Options) -> String {
    match options.direction {
        Direction::Both => options.filter.text(),
        one_way => format!("{} {}", one_way.name(), options.filter.text()),
    }
}

/// Gives the machine the duration of the sync and the current time.
#[derive(Clone)]
pub(super) struct SyncClock {
    began: Instant,
    clock: Clock,
}

impl SyncClock {
    pub(super) fn start(clock: &Clock) -> Self {
        Self { began: Instant::now(), clock: clock.clone() }
    }

    pub(super) fn now(&self) -> Now {
        Now { at: self.began.elapsed(), unix_s: self.clock.now() }
    }

    pub(super) fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

struct Driver<'sync, P, S> {
    connector: &'sync Connector,
    url: &'sync RelayUrl,
    options: &'sync Options,
    machine: Machine,
    side: Arc<S>,
    clock: SyncClock,
    progress: P,
    /// The machine's work on threads.
    jobs: JoinSet<()>,
    done: mpsc::UnboundedSender<Done>,
    /// Whether the machine has downloads that are not complete.
    gets: bool,
}

impl<P: FnMut(Progress) + Send, S: OurSide> Driver<'_, P, S> {
    async fn run(mut self, mut works: mpsc::UnboundedReceiver<Done>) -> Result<Machine, String> {
        let mut peer: Option<Peer> = None;
        let mut connecting: Option<Connecting<'_>> = None;
        let mut stopped_at = None;
        let mut frames = 0;
        loop {
            self.begin_and_tell();
            if self.gets && !self.machine.downloads() {
                self.gets = false;
                self.side.download_ended();
            }
            if self.machine.is_over()
                || stopped_at.is_some_and(|at: Instant| at.elapsed() >= STOP_TIMEOUT)
            {
                break;
            }
            if self.machine.wants_connection() && connecting.is_none() {
                let (url, connector) = (self.url, self.connector);
                let known = self.machine.information();
                let trace = self.options.trace.clone();
                connecting = Some(Box::pin(Peer::connect(url, connector, known, trace)));
            }
            if !self.machine.is_up() {
                if peer.is_some() {
                    self.side.peer_lost(false);
                }
                close(&mut peer).await;
            } else if let Some(peer) = &peer
                && let Err(error) = send_all(&mut self.machine, peer)
            {
                self.machine.handle_lost(error.into(), self.clock.now());
                continue;
            }
            let timeout = self.machine.poll_timeout();
            let timeout = async {
                match timeout {
                    Some(at) => tokio::time::sleep_until((self.clock.began + at).into()).await,
                    None => std::future::pending().await,
                }
            };
            let reads = self.machine.is_up() && self.machine.may_read();
            // Stop and deadlines come first: a peer that always sends must not hide them. For that
            // reason no arm may use up the task's budget.
            let event = tokio::task::unconstrained(async {
                tokio::select! {
                    biased;
                    () = self.options.stop.cancelled(), if stopped_at.is_none() => DriverEvent::Stop,
                    () = timeout => DriverEvent::Timeout,
                    Some(done) = works.recv() => DriverEvent::Done(done),
                    connected = connected(&mut connecting) => DriverEvent::Connected(connected),
                    frame = next_frame(&mut peer), if reads => DriverEvent::Frame(frame),
                    () = std::future::ready(()), if self.machine.has_batch() => DriverEvent::Quiet,
                    events = self.side.next_events() => DriverEvent::Ours(events),
                }
            })
            .await;
            let now = self.clock.now();
            match event {
                DriverEvent::Stop => {
                    stopped_at = Some(Instant::now());
                    connecting = None;
                    self.side.stop();
                    self.machine.handle_stop(now);
                }
                DriverEvent::Timeout => self.machine.handle_timeout(now),
                DriverEvent::Done(done) => self.take_done(done, now),
                DriverEvent::Connected(Ok(connected)) => {
                    connecting = None;
                    let information = connected.information;
                    peer = Some(connected);
                    self.machine.handle_connected(information, now);
                }
                DriverEvent::Connected(Err(error)) => {
                    connecting = None;
                    self.side.peer_lost(true);
                    self.machine.handle_lost(error.into(), now);
                }
                DriverEvent::Frame(Ok(Frame::Text(text))) => {
                    self.machine.handle_message(&text, now)
                }
                DriverEvent::Frame(Ok(Frame::Control)) => self.machine.handle_control(now),
                DriverEvent::Frame(Err(error)) => self.machine.handle_lost(error.into(), now),
                DriverEvent::Quiet => self.machine.handle_quiet(now),
                DriverEvent::Ours(OurEvents::New(events)) if events.is_empty() => {}
                DriverEvent::Ours(OurEvents::New(events)) => {
                    self.machine.handle_local_events(events, now);
                }
                DriverEvent::Ours(OurEvents::Missed) => self.machine.handle_missed_events(now),
                DriverEvent::Ours(OurEvents::Closed) => {
                    return Err("the store is closed".to_owned());
                }
            }
            frames += 1;
            if frames >= FRAMES_IN_A_ROW {
                frames = 0;
                tokio::task::yield_now().await;
            }
        }
        close(&mut peer).await;
        Ok(self.machine)
    }

    /// Begins pending work and reports pending progress.
    fn begin_and_tell(&mut self) {
        while let Some(work) = self.machine.poll_work() {
            let (side, done) = (Arc::clone(&self.side), self.done.clone());
            // Sending fails only after the sync is over.
            if matches!(work, Work::Ingest { .. }) {
                self.jobs.spawn(async move { drop(done.send(side.ingest(work).await)) });
            } else {
                let job = side.begin(work);
                self.jobs.spawn_blocking(move || drop(done.send(job())));
            }
        }
        while let Some(told) = self.machine.poll_progress() {
            (self.progress)(told);
        }
        // A thread that panicked will never finish its work.
        while let Some(ended) = self.jobs.try_join_next() {
            if let Err(panic) = ended
                && panic.is_panic()
            {
                let _ = self.done.send(Done::Failed(panic.to_string()));
            }
        }
    }

    fn take_done(&mut self, done: Done, now: Now) {
        let is_conclusion = matches!(done, Done::Concluded { .. });
        self.machine.handle_work(done, now);
        self.gets |= is_conclusion && self.machine.downloads();
    }
}

/// What the driver waits for.
enum DriverEvent {
    Stop,
    Timeout,
    Done(Done),
    Connected(Result<Peer, PeerError>),
    Frame(Result<Frame, PeerError>),
    Quiet,
    Ours(OurEvents),
}

fn send_all(machine: &mut Machine, peer: &Peer) -> Result<(), PeerError> {
    if machine.take_ping() {
        peer.ping()?;
    }
    while let Some(text) = machine.poll_transmit() {
        peer.send(text)?;
    }
    Ok(())
}

async fn close(peer: &mut Option<Peer>) {
    if let Some(peer) = peer.take() {
        peer.close().await;
    }
}

async fn connected(connecting: &mut Option<Connecting<'_>>) -> Result<Peer, PeerError> {
    match connecting {
        Some(connecting) => connecting.as_mut().await,
        None => std::future::pending().await,
    }
}

async fn next_frame(peer: &mut Option<Peer>) -> Result<Frame, PeerError> {
    match peer {
        Some(peer) => peer.next().await,
        None => std::future::pending().await,
    }
}
