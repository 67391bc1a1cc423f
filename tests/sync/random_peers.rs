//! The sync's machine against random peers as values: no socket, no clock, no disk. Each run is
//! held against what the peer really holds. `scripts/random-peers` makes more runs; one that fails
//! prints its seed, and the fewest odd ways of the peer with which it still fails.

use super::model_peer::{Faults, ModelPeer, PeerPlan, Reply};
use super::model_store::ModelStore;
use negsync::sync::machine::{Loss, Machine, Now, Settings};
use negsync::sync::{Direction, Information, Options, PeerFilter, Report, Verdict};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::collections::{BTreeSet, VecDeque};
use std::panic::AssertUnwindSafe;
use std::time::Duration;

/// The longest a sync may take on the model's clock, which costs nothing.
const MOST_TIME: Duration = Duration::from_secs(1_800);
const MOST_STEPS: u32 = 100_000;
const START_S: u64 = 1_700_000_000;

/// A message or a loss on its way to us, and when it comes.
struct Arrival {
    at: Duration,
    connection: u32,
    reply: Reply,
}

/// One sync on a clock of its own.
struct Run<'plan> {
    peer: &'plan mut ModelPeer,
    store: &'plan mut ModelStore,
    rng: StdRng,
    machine: Machine,
    now: Now,
    arrivals: VecDeque<Arrival>,
    dones: VecDeque<(Duration, negsync::sync::machine::Done)>,
    connection: u32,
    connected: bool,
    log: Vec<String>,
}

impl Run<'_> {
    fn log(&mut self, text: &str) {
        let cut: String = text.chars().take(150).collect();
        self.log.push(format!("{:8.3} {cut}", self.now.at.as_secs_f64()));
    }

    /// Puts what the peer says on its way: in order, each message a little later.
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
        while self.machine.poll_progress().is_some() {}
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
            let information = Information {
                negentropy: Some(true),
                events_per_req: self.peer.plan.told_cap.unwrap_or(500),
                max_limit: self.peer.plan.told_cap,
                auth: self.peer.plan.tells_auth,
                ..Information::default()
            };
            return self.machine.handle_connected(information, self.now);
        }
        self.next_event();
    }

    /// Goes on to whatever comes next.
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

/// Syncs once. Returns the report and what was said.
fn sync_once(
    peer: &mut ModelPeer,
    store: &mut ModelStore,
    seed: u64,
    plan: &RunPlan,
) -> (Report, Vec<String>) {
    let now = Now { at: Duration::ZERO, unix_s: START_S + 10_000 };
    let settings = Settings {
        filter: PeerFilter::parse(plan.filter).unwrap(),
        direction: plan.direction,
        dry_run: plan.dry_run,
        exact: plan.exact,
        live: false,
        attempts: Options::default().attempts,
        by: None,
        key: plan.has_key.then_some([9; 32]),
        full_interval_s: 7 * 86_400,
        nonce: seed,
    };
    peer.begin();
    let mut run = Run {
        machine: Machine::new("ws://peer", settings, now),
        peer,
        store,
        rng: StdRng::seed_from_u64(seed ^ 0x5eed),
        now,
        arrivals: VecDeque::new(),
        dones: VecDeque::new(),
        connection: 0,
        connected: false,
        log: Vec::new(),
    };
    let mut steps = 0;
    while !run.machine.is_over() {
        steps += 1;
        let stuck = steps > MOST_STEPS || run.now.at > MOST_TIME;
        if stuck {
            let tail = run.log.len().saturating_sub(60);
            panic!("no end after {steps} steps, {:?}:\n{}", run.now.at, run.log[tail..].join("\n"));
        }
        run.step();
    }
    (run.machine.report_now(), run.log)
}

/// What is synced.
#[derive(Clone, Debug)]
struct RunPlan {
    seed: u64,
    direction: Direction,
    dry_run: bool,
    has_key: bool,
    exact: bool,
    filter: &'static str,
    syncs: u32,
    peer: PeerPlan,
}

impl RunPlan {
    fn random(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let direction = match rng.random_range(0..6) {
            0 => Direction::Down,
            1 => Direction::Up,
            _ => Direction::Both,
        };
        let filter = match rng.random_range(0..4) {
            0 => r#"{"kinds":[1,7]}"#,
            _ => "{}",
        };
        Self {
            seed,
            direction,
            dry_run: rng.random_bool(0.15),
            has_key: rng.random_bool(0.4),
            exact: rng.random_bool(0.2),
            filter,
            syncs: rng.random_range(1..4),
            peer: PeerPlan::random(&mut rng),
        }
    }

    /// Runs it, and holds every verdict against what there is.
    fn run(&self) {
        let mut rng = StdRng::seed_from_u64(self.seed.wrapping_mul(31));
        let (mut peer, mut store) = self.peer.populate(&mut rng);
        for number in 0..self.syncs {
            if number > 0 {
                peer.add_some(&mut rng);
                store.add_some(&mut rng);
            }
            let before = (peer.ids(self.filter), store.ids(self.filter));
            let seed = self.seed.wrapping_add(u64::from(number) << 32);
            let (report, log) = sync_once(&mut peer, &mut store, seed, self);
            let tail = log.len().saturating_sub(80);
            let about = || format!("sync {number}: {report:#?}\n{}", log[tail..].join("\n"));
            let (ours, theirs) = (store.ids(self.filter), peer.shown(self.filter));
            // Nothing is lost.
            assert!(before.0.is_subset(&peer.ids(self.filter)), "the peer lost some; {}", about());
            assert!(before.1.is_subset(&ours), "we lost some; {}", about());
            let resent = peer.resent();
            assert!(resent.is_empty(), "{} sent again that were taken; {}", resent.len(), about());
            if self.dry_run {
                assert_eq!(before.1, ours, "a look stored something; {}", about());
                assert_eq!(before.0, peer.ids(self.filter), "a look sent something; {}", about());
            }
            let hidden = |id: &[u8; 32]| peer.hides(id) || store.is_private(id);
            let differ: BTreeSet<[u8; 32]> =
                ours.symmetric_difference(&theirs).filter(|id| !hidden(id)).copied().collect();
            match report.verdict {
                Verdict::Equal => {
                    assert!(differ.is_empty(), "equal, but {} differ; {}", differ.len(), about());
                    assert!(report.proof.is_some(), "{}", about());
                }
                Verdict::CaughtUp if report.read_since.is_some() => {
                    let since = report.read_since.unwrap();
                    let second = |id| store.second(id).or_else(|| peer.second(id)).unwrap();
                    let newer = differ.iter().filter(|id| second(id) >= since).count();
                    assert_eq!(newer, 0, "caught up, but {newer} newer differ; {}", about());
                }
                Verdict::Incomplete => assert!(report.error.is_some(), "{}", about()),
                Verdict::Differs if !self.dry_run && number == 0 => {
                    let told: u64 = report.differs.values().sum();
                    assert!(told > 0 || report.unreadable > 0, "{}", about());
                }
                _ => {}
            }
            if self.peer.faults == Faults::default()
                && !self.dry_run
                && self.direction == Direction::Both
            {
                let is_late = report.verdict == Verdict::CaughtUp;
                assert!(is_late || differ.is_empty(), "a plain peer left different; {}", about());
                assert!(report.complete, "{}", about());
            }
        }
    }

    /// The panic of a run that fails.
    fn failure(&self) -> Option<String> {
        let ended = std::panic::catch_unwind(AssertUnwindSafe(|| self.run()));
        ended.err().map(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
                .unwrap_or_default()
        })
    }

    /// The same with as few odd ways of the peer, and as few events, as still fail.
    fn shortened(&self) -> Self {
        let mut plan = self.clone();
        loop {
            let smaller = plan.peer.simpler().into_iter().map(|peer| Self { peer, ..plan.clone() });
            let fewer = (plan.syncs > 1).then(|| Self { syncs: plan.syncs - 1, ..plan.clone() });
            match smaller.chain(fewer).find(|plan| plan.failure().is_some()) {
                Some(smaller) => plan = smaller,
                None => return plan,
            }
        }
    }
}

/// `NEGSYNC_PEERS` says how many runs, `NEGSYNC_SEED` where they begin.
#[test]
fn random_peers_get_no_verdict_that_is_not_true() {
    let number = |name: &str, default| {
        std::env::var(name).map_or(default, |text| text.parse::<u64>().unwrap())
    };
    let (first, runs) = (number("NEGSYNC_SEED", 0), number("NEGSYNC_PEERS", 500));
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let failed = (first..first + runs).map(RunPlan::random).find(|plan| plan.failure().is_some());
    let failed = failed.map(|plan| plan.shortened());
    let text = failed.as_ref().and_then(RunPlan::failure);
    std::panic::set_hook(hook);
    if let (Some(plan), Some(text)) = (failed, text) {
        panic!("seed {}: {plan:#?}\n{text}", plan.seed);
    }
}
