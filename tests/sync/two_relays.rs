//! Two relays behind one address, each with its own set: connections lead to them in turn, and
//! break. A proof holds only for the relay behind the last connection.

use super::model_peer::{Faults, Neg, PeerPlan};
use super::model_sync::sync_once;
use negsync::sync::machine::Settings;
use negsync::sync::{Direction, Options, PeerFilter, Report, Verdict};
use rand::SeedableRng;
use rand::rngs::StdRng;
use std::collections::BTreeSet;

/// Two relays, one of which lacks three of ten events of the other and has three others.
fn plan(neg: Neg, shared: usize) -> PeerPlan {
    PeerPlan {
        neg,
        faults: Faults { elsewhere: 3, cuts: true, ..Faults::default() },
        told_cap: None,
        tells_auth: false,
        is_mute: false,
        latency_us: 2_000,
        shared,
        ours: 30,
        theirs: 40,
        seconds: 5_000,
    }
}

fn settings() -> Settings {
    Settings {
        filter: PeerFilter::parse("{}").unwrap(),
        direction: Direction::Both,
        dry_run: false,
        exact: false,
        live: false,
        attempts: Options::default().attempts,
        by: None,
        key: None,
        full_interval_s: 7 * 86_400,
        nonce: 1,
    }
}

/// Runs one sync. Returns whether our set equals that of the relay behind the last connection.
fn sync_with_two(neg: Neg, shared: usize) -> (Report, bool) {
    let (mut peer, mut store) = plan(neg, shared).populate(&mut StdRng::seed_from_u64(7));
    let report = sync_once(&mut peer, &mut store, settings(), None).report;
    (report, store.ids("{}") == peer.shown("{}"))
}

#[test]
fn a_sync_over_several_connections_is_equal_only_where_one_of_them_shows_all() {
    for neg in [Neg::Works, Neg::Closed] {
        let mut verdicts = BTreeSet::new();
        let mut contradicted = 0;
        for shared in 100..140 {
            let (report, is_same) = sync_with_two(neg, shared);
            let is_equal = report.verdict == Verdict::Equal;
            assert!(!is_equal || (is_same && report.connections == 1), "{shared}: {report:#?}");
            let error = report.error.unwrap_or_default();
            contradicted += u32::from(error.starts_with("different relays behind one address"));
            verdicts.insert(report.verdict.name());
        }
        assert!(contradicted > 0 && verdicts.contains("equal"), "{neg:?}: {verdicts:?}");
        println!("{neg:?}: {contradicted} of 40 say that there are different relays; {verdicts:?}");
    }
}

/// A reading since a mark uses several connections too: an event from one may be missing on the
/// next.
#[test]
fn a_reading_since_a_mark_claims_nothing_that_another_connection_showed() {
    let mut claims = 0;
    for seed in 0..60 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut plan = plan(Neg::Closed, 12);
        (plan.seconds, plan.ours, plan.theirs) = (3, 7, 18);
        let (mut peer, mut store) = plan.populate(&mut rng);
        for number in 0..4 {
            peer.add_some(&mut rng);
            store.add_some(&mut rng);
            let settings = Settings { nonce: seed * 4 + number, ..settings() };
            let report = sync_once(&mut peer, &mut store, settings, None).report;
            let Some(since) = report.read_since else { continue };
            let (ours, theirs) = (store.ids("{}"), peer.shown("{}"));
            let second = |id| store.second(id).or_else(|| peer.second(id)).unwrap();
            let newer = ours.symmetric_difference(&theirs).filter(|id| second(id) >= since);
            // A private kind that was accepted and is not shown is reported.
            let is_named = |id| !report.not_compared.is_empty() && store.is_private(id);
            let newer = newer.filter(|id| !is_named(id)).count();
            let is_claimed = report.verdict == Verdict::CaughtUp;
            claims += u32::from(is_claimed);
            assert!(
                !is_claimed || newer == 0,
                "seed {seed}, {number}: {newer} differ: {report:#?}"
            );
        }
    }
    assert!(claims > 0);
}
