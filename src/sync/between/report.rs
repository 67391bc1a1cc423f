//! How the relays compare at the end: each with all that the others show, and each pair.

use super::super::machine::{Id, Left};
use super::super::reason::Reason;
use super::super::report::{Method, Proof, Report, Verdict};
use super::id_list::{IdList, compare};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};
use std::io;

/// The end of a sync between relays.
#[derive(Debug, Clone, Serialize)]
pub struct BetweenReport {
    /// Each relay, in the order in which they were named: against all events that any of them
    /// shows. `need` and `stored` are events that it had for others, and those that it sent.
    pub relays: Vec<Report>,
    /// Each pair.
    pub pairs: Vec<PairReport>,
    /// Whether all relays hold the same events that match.
    pub equal: bool,
    /// Whether no pair is `incomplete`.
    pub complete: bool,
}

/// How two relays compare.
#[derive(Debug, Clone, Serialize)]
pub struct PairReport {
    /// The URLs of both.
    pub relays: [String; 2],
    /// How they compare.
    pub verdict: Verdict,
    /// What that rests on: complete lists of ids (`negentropy`), or of one at least what it showed
    /// when it was read (`read`).
    pub proof: Option<Proof>,
    /// How many events only the first has, and only the second.
    pub only: [u64; 2],
    /// Why they were not moved. What was not tried is left out.
    pub differs: BTreeMap<Reason, u64>,
    /// Kinds that one of them shows to their owners only.
    pub not_compared: Vec<u16>,
    /// Why nothing is proven.
    pub error: Option<String>,
}

/// How the sync with one relay ended.
pub(super) struct RelayEnd {
    pub(super) report: Report,
    pub(super) left: HashMap<Id, Left>,
}

impl RelayEnd {
    /// Whether the relay has an event that it did not list: it was sent, and shown since.
    fn was_given(&self, id: &Id) -> bool {
        self.report.method == Method::Req && self.left.get(id) == Some(&Left::Taken)
    }

    fn reason(&self, id: &Id) -> Option<Reason> {
        match self.left.get(id) {
            Some(Left::Stayed(reason)) => *reason,
            _ => None,
        }
    }
}

/// Differences that are not told in a report.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Untried {
    /// Ids that differ and that no sync was to move: they came when others were being moved.
    pub(super) ids: u64,
}

#[derive(Default)]
struct Differences {
    only: [u64; 2],
    reasons: BTreeMap<Reason, u64>,
    untried: u64,
}

impl Differences {
    fn add(&mut self, side: usize, reason: Option<Reason>) {
        // What a relay hides cannot be compared.
        if reason == Some(Reason::Hidden) {
            return;
        }
        if let Some(count) = self.only.get_mut(side) {
            *count += 1;
        }
        match reason {
            Some(reason) => *self.reasons.entry(reason).or_default() += 1,
            None => self.untried += 1,
        }
    }

    fn verdict(&self, moves: bool) -> Verdict {
        let is_unexplained = self.reasons.keys().any(|reason| reason.is_unexplained());
        match self {
            _ if self.only == [0, 0] => Verdict::Equal,
            _ if !moves => Verdict::Differs,
            _ if is_unexplained => Verdict::Incomplete,
            // The sets change while they are compared.
            _ if self.untried > 0 => Verdict::CaughtUp,
            _ => Verdict::Differs,
        }
    }

    fn reasons(&self, moves: bool) -> BTreeMap<Reason, u64> {
        let mut reasons = self.reasons.clone();
        if !moves && self.untried > 0 {
            *reasons.entry(Reason::NotMoved).or_default() += self.untried;
        }
        reasons
    }
}

/// Compares the relays by what they listed last. `moves` is whether differences were to be moved.
pub(super) fn judge(
    mut ends: Vec<RelayEnd>,
    lists: &[Option<IdList>],
    moves: bool,
) -> io::Result<(BetweenReport, Untried)> {
    let count = ends.len();
    let mut of_pairs: BTreeMap<(usize, usize), Differences> = BTreeMap::new();
    let mut of_relays: Vec<Differences> = ends.iter().map(|_| Differences::default()).collect();
    let mut untried = Untried::default();
    compare(lists, |id, listed| {
        let has: Vec<bool> = ends
            .iter()
            .enumerate()
            .map(|(relay, end)| listed & 1 << relay != 0 || end.was_given(&id))
            .collect();
        let lacking = has.iter().filter(|has| !**has).count();
        if lacking == 0 {
            return true;
        }
        let mut is_untried = false;
        for (a, b) in pairs(count) {
            let (Some(has_a), Some(has_b)) = (has.get(a), has.get(b)) else { continue };
            if has_a == has_b || lists.get(a).is_none_or(Option::is_none) {
                continue;
            }
            if lists.get(b).is_none_or(Option::is_none) {
                continue;
            }
            let (holder, lacker) = if *has_a { (a, b) } else { (b, a) };
            let reason = ends.get(lacker).and_then(|end| end.reason(&id));
            let reason = reason.or_else(|| ends.get(holder).and_then(|end| end.reason(&id)));
            is_untried |= reason.is_none();
            of_pairs.entry((a, b)).or_default().add(usize::from(!*has_a), reason);
        }
        untried.ids += u64::from(is_untried);
        for (relay, has) in has.into_iter().enumerate() {
            let reason = || {
                let own = ends.get(relay).and_then(|end| end.reason(&id));
                own.or_else(|| ends.iter().find_map(|end| end.reason(&id)))
            };
            if let Some(differences) = of_relays.get_mut(relay) {
                match has {
                    true => differences.only[1] += 1,
                    false => differences.add(0, reason()),
                }
            }
        }
        true
    })?;
    for (end, found) in ends.iter_mut().zip(&of_relays) {
        judge_relay(&mut end.report, found, moves);
    }
    let pairs: Vec<PairReport> = pairs(count)
        .filter_map(|(a, b)| {
            let found = of_pairs.remove(&(a, b)).unwrap_or_default();
            Some(pair(&ends.get(a)?.report, &ends.get(b)?.report, &found, moves))
        })
        .collect();
    let relays: Vec<Report> = ends.into_iter().map(|end| end.report).collect();
    let equal = pairs.iter().all(|pair| pair.verdict == Verdict::Equal);
    let complete = pairs.iter().all(|pair| pair.verdict != Verdict::Incomplete);
    Ok((BetweenReport { relays, pairs, equal, complete }, untried))
}

fn pairs(count: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..count).flat_map(move |a| (a + 1..count).map(move |b| (a, b)))
}

/// A relay against all that any of them shows.
fn judge_relay(report: &mut Report, found: &Differences, moves: bool) {
    if !moves {
        (report.have, report.need) = (found.only[0], found.only[1]);
    }
    (report.have_left, report.need_left) = (found.only[0], found.only[1]);
    if report.verdict == Verdict::Incomplete {
        return;
    }
    let proof = report.proof;
    report.differs = found.reasons(moves);
    let verdict = match (found.only[0], report.unreadable) {
        (0, 0) => Verdict::Equal,
        (0, _) => Verdict::Differs,
        _ if moves && found.untried > 0 => Verdict::CaughtUp,
        _ => Verdict::Differs,
    };
    report.judge(verdict, proof);
}

fn pair(a: &Report, b: &Report, found: &Differences, moves: bool) -> PairReport {
    let failed = [a, b].into_iter().find(|report| report.verdict == Verdict::Incomplete);
    let verdict = match (found.verdict(moves), failed) {
        (_, Some(_)) => Verdict::Incomplete,
        (Verdict::Equal, None) if a.unreadable + b.unreadable > 0 => Verdict::Differs,
        (verdict, None) => verdict,
    };
    let unexplained: u64 =
        found.reasons.iter().filter(|(reason, _)| reason.is_unexplained()).map(|(_, n)| n).sum();
    let error = match failed {
        Some(report) => {
            let reason = report.error.as_deref().unwrap_or("not complete");
            Some(format!("{}: {reason}", report.url))
        }
        None => (verdict == Verdict::Incomplete)
            .then(|| format!("{unexplained} events could not be moved")),
    };
    let is_listed = [a, b].iter().all(|report| report.method == Method::Negentropy);
    let proof = if is_listed { Proof::Negentropy } else { Proof::Read };
    let mut not_compared: Vec<u16> = [a, b].iter().flat_map(|it| it.not_compared.clone()).collect();
    not_compared.sort_unstable();
    not_compared.dedup();
    PairReport {
        relays: [a.url.clone(), b.url.clone()],
        verdict,
        proof: Some(proof).filter(|_| verdict != Verdict::Incomplete),
        only: found.only,
        differs: found.reasons(moves),
        not_compared,
        error,
    }
}
