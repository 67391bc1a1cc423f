//! Drives a machine: the socket, the clock, the threads, and what goes on in our store.

mod worker;

use super::breakdown::{Breakdown, By};
use super::ingest::FromPeer;
use super::machine::{Done, Loaded, Machine, Now, Settings, Work};
use super::peer::{Frame, Peer, PeerError};
use super::report::{Progress, Report};
use super::{Local, Options, SyncError};
use crate::config::Direction;
use crate::index::{Subscriber, SubscriberError};
use crate::relay_url::RelayUrl;
use crate::store::{Change, Step, unix_now};
use std::collections::hash_map::RandomState;
use std::future::Future;
use std::hash::{BuildHasher, Hasher};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use worker::Worker;

/// How long what is under way may take once the sync is told to end.
const STOP_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(3);
/// After so many frames in a row the runtime gets a turn.
const FRAMES_IN_A_ROW: u32 = 64;

type Connecting<'a> = Pin<Box<dyn Future<Output = Result<Peer, PeerError>> + Send + 'a>>;

/// Syncs, and tells what differed in the last round where that is to be told `by` something.
pub(super) async fn run(
    local: &Local,
    url: &str,
    options: &Options,
    by: Option<By>,
    progress: impl FnMut(Progress) + Send,
) -> Result<(Report, Option<Breakdown>), SyncError> {
    let url = RelayUrl::parse(url)?;
    local.connector.check(&url)?;
    let clock = Clock(Instant::now());
    let settings = Settings {
        filter: options.filter.clone(),
        direction: options.direction,
        dry_run: options.dry_run,
        exact: options.exact,
        live: options.live,
        attempts: options.attempts,
        by,
        key: local.keys.as_ref().map(|keys| keys.public_key().to_bytes()),
        full_interval_s: options.full_interval_s,
        nonce: RandomState::new().build_hasher().finish(),
    };
    let machine = Machine::new(&url.to_string(), settings, clock.now());
    let is_live = options.live && !options.dry_run;
    let key = mark_key(options);
    let worker = Arc::new(Worker::new(local, &url, &options.filter, key, is_live));
    let (done, works) = mpsc::unbounded_channel();
    let driver = Driver {
        local,
        url: &url,
        options,
        machine,
        worker,
        clock,
        progress,
        jobs: JoinSet::new(),
        done,
        changes: is_live.then(|| local.sets.subscribe()),
    };
    let (report, breakdown) = driver.run(works).await.map_err(SyncError::Store)?;
    let elapsed_ms = u64::try_from(clock.now().at.as_millis()).unwrap_or(u64::MAX);
    Ok((Report { elapsed_ms, ..report }, breakdown))
}

/// What a peer is remembered under: what was moved one way says nothing about the other.
fn mark_key(options: &Options) -> String {
    match options.direction {
        Direction::Both => options.filter.text(),
        one_way => format!("{} {}", one_way.name(), options.filter.text()),
    }
}

/// The moment for the machine.
#[derive(Clone, Copy)]
struct Clock(Instant);

impl Clock {
    fn now(self) -> Now {
        Now { at: self.0.elapsed(), unix_s: unix_now() }
    }
}

struct Driver<'sync, P> {
    local: &'sync Local,
    url: &'sync RelayUrl,
    options: &'sync Options,
    machine: Machine,
    worker: Arc<Worker>,
    clock: Clock,
    progress: P,
    /// Work on threads, whatever the machine asked for.
    jobs: JoinSet<()>,
    done: mpsc::UnboundedSender<Done>,
    changes: Option<Subscriber>,
}

impl<P: FnMut(Progress) + Send> Driver<'_, P> {
    async fn run(
        mut self,
        mut works: mpsc::UnboundedReceiver<Done>,
    ) -> Result<(Report, Option<Breakdown>), String> {
        let mut peer: Option<Peer> = None;
        let mut connecting: Option<Connecting<'_>> = None;
        let mut stop = self.options.stop.clone();
        let mut stopped_at = None;
        let mut frames = 0;
        loop {
            self.begin_and_tell();
            if self.machine.is_over()
                || stopped_at.is_some_and(|at: Instant| at.elapsed() >= STOP_TIMEOUT)
            {
                break;
            }
            if self.machine.wants_connection() && connecting.is_none() {
                let (url, connector) = (self.url, &self.local.connector);
                let known = self.machine.information();
                let trace = self.options.trace.clone();
                connecting = Some(Box::pin(Peer::connect(url, connector, known, trace)));
            }
            if !self.machine.is_up() {
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
                    Some(at) => tokio::time::sleep_until((self.clock.0 + at).into()).await,
                    None => std::future::pending().await,
                }
            };
            let reads = self.machine.is_up() && self.machine.may_read();
            // Stop and deadlines first: a peer that always has something to say must not keep them
            // from being seen. That is why no arm may use up the task's budget.
            let event = tokio::task::unconstrained(async {
                tokio::select! {
                    biased;
                    () = told_to_stop(&mut stop), if stopped_at.is_none() => DriverEvent::Stop,
                    () = timeout => DriverEvent::Timeout,
                    Some(done) = works.recv() => DriverEvent::Done(done),
                    connected = connected(&mut connecting) => DriverEvent::Connected(connected),
                    frame = next_frame(&mut peer), if reads => DriverEvent::Frame(frame),
                    () = std::future::ready(()), if self.machine.has_batch() => DriverEvent::Quiet,
                    change = next_change(&mut self.changes) => DriverEvent::Change(change),
                }
            })
            .await;
            let now = self.clock.now();
            match event {
                DriverEvent::Stop => {
                    stopped_at = Some(Instant::now());
                    connecting = None;
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
                    self.machine.handle_lost(error.into(), now);
                }
                DriverEvent::Frame(Ok(Frame::Text(text))) => {
                    self.machine.handle_message(&text, now)
                }
                DriverEvent::Frame(Ok(Frame::Control)) => self.machine.handle_control(now),
                DriverEvent::Frame(Err(error)) => self.machine.handle_lost(error.into(), now),
                DriverEvent::Quiet => self.machine.handle_quiet(now),
                DriverEvent::Change(Ok(change)) => self.take_change(&change, now),
                DriverEvent::Change(Err(SubscriberError::Lagged)) => {
                    self.worker.from_peer.iter().for_each(FromPeer::clear);
                    self.machine.handle_missed_events(now);
                }
                DriverEvent::Change(Err(SubscriberError::Closed)) => {
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
        self.machine.into_report()
    }

    /// Begins what is to be done, and tells what is to be told.
    fn begin_and_tell(&mut self) {
        while let Some(work) = self.machine.poll_work() {
            let (worker, done) = (Arc::clone(&self.worker), self.done.clone());
            // Sending fails only when the sync is over.
            if matches!(work, Work::Ingest { .. }) {
                self.jobs.spawn(async move { drop(done.send(worker.ingest(work).await)) });
            } else {
                self.jobs.spawn_blocking(move || drop(done.send(worker.perform(work))));
            }
        }
        while let Some(told) = self.machine.poll_progress() {
            (self.progress)(told);
        }
        // A thread that panicked leaves its work undone for ever.
        while let Some(ended) = self.jobs.try_join_next() {
            if let Err(panic) = ended
                && panic.is_panic()
            {
                let _ = self.done.send(Done::Failed(panic.to_string()));
            }
        }
    }

    fn take_done(&mut self, done: Done, now: Now) {
        if let (Done::Ingested { events, .. }, Some(from_peer)) = (&done, &self.worker.from_peer) {
            from_peer.settle(events);
        }
        self.machine.handle_work(done, now);
    }

    /// Hands over what was stored here, unless it came from the peer.
    fn take_change(&mut self, change: &Change, now: Now) {
        let mut events = Vec::new();
        for step in &change.steps {
            let (Step::Added(event) | Step::Passed(event)) = step else { continue };
            let id = event.item().id;
            let is_theirs = self.worker.from_peer.as_ref().is_some_and(|it| it.remove(&id));
            if !is_theirs
                && self.options.filter.parsed().matches(event)
                && (self.local.moves_protected() || !event.is_protected())
            {
                let (kind, json) = (event.kind(), event.json().to_owned());
                events.push(Loaded { id, kind, json });
            }
        }
        if !events.is_empty() {
            self.machine.handle_local_events(events, now);
        }
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
    Change(Result<Arc<Change>, SubscriberError>),
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

/// The next commit in our store, when anyone wants to know.
async fn next_change(changes: &mut Option<Subscriber>) -> Result<Arc<Change>, SubscriberError> {
    match changes {
        Some(changes) => changes.recv().await,
        None => std::future::pending().await,
    }
}

/// Returns when the sync is to end.
async fn told_to_stop(stop: &mut Option<watch::Receiver<bool>>) {
    if let Some(stop) = stop
        && stop.wait_for(|stop| *stop).await.is_ok()
    {
        return;
    }
    std::future::pending().await
}
