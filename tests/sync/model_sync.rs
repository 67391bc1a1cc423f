//! A sync of the machine with a peer as a value: no socket, no disk, and a clock of its own.

use super::model_peer::{ModelPeer, Reply};
use super::model_store::ModelStore;
use negsync::sync::machine::{Done, Loss, Machine, Now, Settings};
use negsync::sync::{Information, Progress, Report};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::collections::VecDeque;
use std::time::Duration;

/// Maximum time of a sync on the model's clock, which costs nothing.
const MOST_TIME: Duration = Duration::from_secs(1_800);
const MOST_STEPS: u32 = 100_000;
pub const START_S: u64 = 1_700_000_000;

/// A message or a loss on its way to us, with its time of arrival.
struct Arrival {
    at: Duration,
    connection: u32,
    reply: Reply,
}

/// One sync with a clock of its own.
struct Run<'plan> {
    peer: &'plan mut ModelPeer,
    store: &'plan mut ModelStore,
    rng: StdRng,
    machine: Machine,
    now: Now,
    arrivals: VecDeque<Arrival>,
    dones: VecDeque<(Duration, Done)>,
    connection: u32,
    connected: bool,
    /// The report of a live sync after a complete round.
    caught_up: Option<Report>,
    log: Vec<String>,
}

impl Run<'_> {
    fn log(&mut self, text: &str) {
        let cut: String = text.chars().take(150).collect();
        self.log.push(format!("{:8.3} {cut}", self.now.at.as_secs_f64()));
    }

    /// Schedules the peer's messages: in order, each slightly later.
    fn on_its_way(&mut self, replies: Vec<Reply>) {
        let mut at = self.now.at;
        if let Some(last) = self.arrivals.back() {
            at = at.max(last.at);
        }
        for reply in replies {
            at += Duration::from_micros(self.rng.random_range(0..self.peer.plan.latency_us));
            if let Reply::Late(text, delay) = reply {
                let (at, connection) = (at + delay, self.connection);
                self.arrivals.push_back(Arrival { at, connection, reply: Reply::Text(text) });
            } else {
                self.arrivals.push_back(Arrival { at, connection: self.connection, reply });
            }
        }
    }

    fn step(&mut self) {
        while let Some(work) = self.machine.poll_work() {
            let delay = Duration::from_micros(self.rng.random_range(0..3_000));
            self.dones.push_back((self.now.at + delay, self.store.perform(work)));
        }
        while let Some(told) = self.machine.poll_progress() {
            match told {
                Progress::CaughtUp(report) => self.caught_up = Some(*report),
                Progress::Waiting { reason, .. } => self.log(&format!("waiting: {reason}")),
                Progress::Note(text) => self.log(&format!("note: {text}")),
                _ => {}
            }
        }
        if self.connected && !self.machine.is_up() {
            self.log("we leave");
            self.connected = false;
            self.arrivals.clear();
        }
        while let Some(text) = self.machine.poll_transmit() {
            self.log(&format!("> {text}"));
            let replies = self.peer.hear(&text, self.now.at);
            self.on_its_way(replies);
        }
        self.machine.take_ping();
        if self.machine.wants_connection() && !self.connected {
            self.connected = true;
            self.connection += 1;
            self.now.at += Duration::from_millis(5);
            let greeting = self.peer.connect();
            self.on_its_way(greeting);
            let plan = &self.peer.plan;
            let told = Information {
                negentropy: Some(true),
                events_per_req: plan.told_cap.unwrap_or(500),
                max_limit: plan.told_cap,
                counts: true,
                auth: plan.tells_auth,
                ..Information::default()
            };
            let information = if plan.is_mute { Information::default() } else { told };
            return self.machine.handle_connected(information, self.now);
        }
        self.next_event();
    }

    /// Advances to the next event.
    fn next_event(&mut self) {
        let arrival = self.arrivals.front().map(|it| it.at);
        let work = self.dones.iter().map(|(at, _)| *at).min();
        let timeout = self.machine.poll_timeout();
        let next = [arrival.filter(|_| self.machine.may_read()), work, timeout];
        let Some(at) = next.into_iter().flatten().min() else {
            panic!("nothing is left to wait for");
        };
        if self.machine.has_batch() && arrival.is_none_or(|arrival| arrival > self.now.at) {
            return self.machine.handle_quiet(self.now);
        }
        let passed = at.max(self.now.at);
        self.now = Now { at: passed, unix_s: START_S + 10_000 + passed.as_secs() };
        if work.is_some_and(|work| work <= at) {
            let place = self.dones.iter().position(|(at, _)| Some(*at) == work).unwrap();
            let (_, done) = self.dones.remove(place).unwrap();
            return self.machine.handle_work(done, self.now);
        }
        if arrival == Some(at) && self.machine.may_read() {
            let arrival = self.arrivals.pop_front().unwrap();
            if arrival.connection != self.connection || !self.connected {
                return;
            }
            match arrival.reply {
                Reply::Text(text) | Reply::Late(text, _) => {
                    self.log(&format!("< {text}"));
                    self.peer.told(&text);
                    self.machine.handle_message(&text, self.now);
                }
                Reply::Ping => self.machine.handle_control(self.now),
                Reply::HangUp => {
                    self.log("the peer hangs up");
                    self.connected = false;
                    self.arrivals.clear();
                    self.machine.handle_lost(Loss::Gone("cut".to_owned()), self.now);
                }
            }
            return;
        }
        self.machine.handle_timeout(self.now);
    }
}

/// The result of a sync.
pub struct Ended {
    pub report: Report,
    /// Its end on its own clock; for a live sync, the end of the first complete round.
    pub at: Duration,
    /// The messages and notes.
    pub log: Vec<String>,
}

/// The start of syncs.
pub fn start() -> Now {
    Now { at: Duration::ZERO, unix_s: START_S + 10_000 }
}

/// Runs one sync. A live sync is stopped after a complete round, or after `most`.
pub fn sync_once(
    peer: &mut ModelPeer,
    store: &mut ModelStore,
    settings: Settings,
    most: Option<Duration>,
) -> Ended {
    peer.begin();
    let seed = settings.nonce;
    let mut run = Run {
        machine: Machine::new("ws://peer", settings, start()),
        peer,
        store,
        rng: StdRng::seed_from_u64(seed ^ 0x5eed),
        now: start(),
        arrivals: VecDeque::new(),
        dones: VecDeque::new(),
        connection: 0,
        connected: false,
        caught_up: None,
        log: Vec::new(),
    };
    let mut steps = 0;
    let mut ended_at = None;
    while !run.machine.is_over() {
        steps += 1;
        let stuck = steps > MOST_STEPS || run.now.at > MOST_TIME;
        if stuck {
            let tail = run.log.len().saturating_sub(60);
            panic!("no end after {steps} steps, {:?}:\n{}", run.now.at, run.log[tail..].join("\n"));
        }
        let is_enough = run.caught_up.is_some() || most.is_some_and(|most| run.now.at > most);
        if is_enough && ended_at.is_none() {
            let since = most.filter(|_| run.caught_up.is_none());
            ended_at = Some(since.unwrap_or(run.now.at));
            run.machine.handle_stop(run.now);
            continue;
        }
        run.step();
    }
    let report = run.caught_up.unwrap_or_else(|| run.machine.report_now());
    Ended { report, at: ended_at.unwrap_or(run.now.at), log: run.log }
}
