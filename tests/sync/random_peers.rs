//! The sync's machine against random peers as values: no socket, no clock, no disk. The result of
//! each run is compared with the peer's contents. `scripts/random-peers` makes more runs; a failing
//! one prints its seed, and the smallest set of the peer's faults with which it still fails.

use super::model_peer::{Faults, PeerPlan};
use super::model_sync::{Ended, START_S, sync_once};
use negsync::store::RetentionWindow;
use negsync::sync::machine::Settings;
use negsync::sync::{Direction, Options, PeerFilter, Verdict};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;

/// The parameters of a run.
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
    /// The window that our retention keeps.
    kept: Option<RetentionWindow>,
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
        let mut plan = Self {
            seed,
            direction,
            dry_run: rng.random_bool(0.15),
            has_key: rng.random_bool(0.4),
            exact: rng.random_bool(0.2),
            filter,
            syncs: rng.random_range(1..4),
            peer: PeerPlan::random(&mut rng),
            kept: None,
        };
        if rng.random_bool(0.2) {
            let since = START_S + rng.random_range(0..=plan.peer.seconds);
            let ageless_kinds = if rng.random_bool(0.5) { vec![7] } else { vec![] };
            plan.kept = Some(RetentionWindow { since, ageless_kinds });
            // The store refuses events outside the window, but the model does not.
            plan.peer.faults.lists_all = false;
        }
        if rng.random_bool(0.1) {
            plan.peer.faults.elsewhere = rng.random_range(1..11);
            plan.peer.faults.cuts |= rng.random_bool(0.7);
        }
        plan.peer.faults.until_excludes = rng.random_bool(0.1);
        plan
    }

    fn settings(&self, nonce: u64) -> Settings {
        Settings {
            filter: PeerFilter::parse(self.filter).unwrap(),
            direction: self.direction,
            dry_run: self.dry_run,
            exact: self.exact,
            live: false,
            attempts: Options::default().attempts,
            by: None,
            key: self.has_key.then_some([9; 32]),
            full_interval_s: 7 * 86_400,
            nonce,
        }
    }

    /// Runs it, and compares every verdict with the contents.
    fn run(&self) {
        let mut rng = StdRng::seed_from_u64(self.seed.wrapping_mul(31));
        let (mut peer, mut store) = self.peer.populate(&mut rng);
        store.kept.clone_from(&self.kept);
        for number in 0..self.syncs {
            if number > 0 {
                peer.add_some(&mut rng);
                store.add_some(&mut rng);
            }
            let before = (peer.ids_anywhere(self.filter), store.ids(self.filter));
            let seed = self.seed.wrapping_mul(4).wrapping_add(u64::from(number));
            let ended = sync_once(&mut peer, &mut store, self.settings(seed), None);
            let Ended { report, log, .. } = ended;
            let tail = log.len().saturating_sub(80);
            let about = || format!("sync {number}: {report:#?}\n{}", log[tail..].join("\n"));
            let (ours, theirs) = (store.ids(self.filter), peer.shown(self.filter));
            // No event is lost.
            assert!(
                before.0.is_subset(&peer.ids_anywhere(self.filter)),
                "the peer lost some; {}",
                about()
            );
            assert!(before.1.is_subset(&ours), "we lost some; {}", about());
            // An event accepted by one relay may be missing at another.
            let resent = if self.peer.faults.elsewhere > 0 { &[] } else { peer.resent() };
            assert!(resent.is_empty(), "{} sent again that were taken; {}", resent.len(), about());
            if self.dry_run {
                assert_eq!(before.1, ours, "a look stored something; {}", about());
                assert_eq!(
                    before.0,
                    peer.ids_anywhere(self.filter),
                    "a look sent something; {}",
                    about()
                );
            }
            let is_past = |id: &[u8; 32]| {
                let kept = self.kept.as_ref();
                kept.is_some_and(|kept| store.is_past(id, kept) || peer.is_past(id, kept))
            };
            let moved = ours.difference(&before.1).chain(theirs.difference(&before.0));
            let past = moved.filter(|id| is_past(id)).count();
            assert_eq!(past, 0, "events were moved that retention does not keep; {}", about());
            assert_eq!(report.kept_since, self.kept.as_ref().map(|kept| kept.since), "{}", about());
            let is_named = !report.not_compared.is_empty();
            let is_private = |id: &[u8; 32]| peer.hides(id) || store.is_private(id);
            let hidden = |id: &[u8; 32]| (is_named && is_private(id)) || is_past(id);
            let differ: BTreeSet<[u8; 32]> =
                ours.symmetric_difference(&theirs).filter(|id| !hidden(id)).copied().collect();
            match report.verdict {
                Verdict::Equal => {
                    assert!(differ.is_empty(), "equal, but {} differ; {}", differ.len(), about());
                    assert!(report.proof.is_some(), "{}", about());
                    assert_eq!(report.connections, 1, "equal over several; {}", about());
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

    /// The panic of a failing run.
    fn failure(&self) -> Option<String> {
        let ended = std::panic::catch_unwind(AssertUnwindSafe(|| self.run()));
        ended.err().map(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
                .unwrap_or_default()
        })
    }

    /// The same with the fewest faults of the peer, and the fewest events, that still fail.
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

/// `NEGSYNC_PEERS` sets the number of runs, `NEGSYNC_SEED` the first seed.
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
