//! The final comparison of the relays: each with the union of all, and each pair.

use super::super::machine::{Id, Left};
use super::super::reason::Reason;
use super::super::report::{Method, Proof, Report, Verdict};
use super::id_list::{IdList, compare};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};
use std::io;

/// The result of a sync between relays.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct BetweenReport {
    /// Each relay, in the given order, compared with the union of all events shown. `need` and
    /// `stored` count events that it had for others, and those that it sent.
    pub relays: Vec<Report>,
    /// Each pair of relays.
    pub pairs: Vec<PairReport>,
    /// Whether all relays have the same matching events.
    pub equal: bool,
    /// Whether no pair is `incomplete`.
    pub complete: bool,
}

/// The comparison of two relays.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct PairReport {
    /// The URLs of both.
    pub relays: [String; 2],
    /// The verdict about the pair.
    pub verdict: Verdict,
    /// The basis of the verdict: complete lists of ids (`negentropy`), or, for at least one relay,
    /// the events that it showed when it was read (`read`).
    pub proof: Option<Proof>,
    /// The number of events that only the first has, and that only the second has.
    pub only: [u64; 2],
    /// Why they were not moved, by reason. Events that were not tried are left out.
    pub differs: BTreeMap<Reason, u64>,
    /// Kinds that one of them shows only to their owners.
    pub not_compared: Vec<u16>,
    /// The number of connections that the result rests on: see [`Report::connections`].
    pub connections: u32,
    /// Why there is no result.
    pub error: Option<String>,
}

/// The end of the sync with one relay.
pub(super) struct RelayEnd {
    pub(super) report: Report,
    pub(super) left: HashMap<Id, Left>,
}

impl RelayEnd {
    /// Whether the relay has an event that it did not list: it was sent the event, and showed it
    /// later.
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

#[derive(Default)]
struct Differences {
    only: [u64; 2],
    reasons: BTreeMap<Reason, u64>,
    untried: u64,
}

impl Differences {
    fn add(&mut self, side: usize, reason: Option<Reason>) {
        // Hidden events cannot be compared.
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
            // The sets changed during the comparison.
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

/// Compares the relays by their last lists. `moves` is whether differences were to be moved. Also
/// returns the number of differing events that arrived during the moves, which no sync was to move.
pub(super) fn judge(
    ends: Vec<RelayEnd>,
    lists: &[Option<IdList>],
    moves: bool,
) -> io::Result<(BetweenReport, u64)> {
    let mut comparison = PairComparison {
        is_listed: lists.iter().map(Option::is_some).collect(),
        of_pairs: BTreeMap::new(),
        of_relays: ends.iter().map(|_| Differences::default()).collect(),
        untried: 0,
        ends,
    };
    compare(lists, |id, listed| {
        comparison.take(&id, listed);
        true
    })?;
    let untried = comparison.untried;
    Ok((comparison.report(moves), untried))
}

/// The relays and their differences.
struct PairComparison {
    ends: Vec<RelayEnd>,
    /// The relays that have a list.
    is_listed: Vec<bool>,
    of_pairs: BTreeMap<(usize, usize), Differences>,
    of_relays: Vec<Differences>,
    untried: u64,
}

impl PairComparison {
    /// Counts an event and the relays that listed it.
    fn take(&mut self, id: &Id, listed: u32) {
        let ends = self.ends.iter().enumerate();
        let has: Vec<bool> =
            ends.map(|(relay, end)| listed & 1 << relay != 0 || end.was_given(id)).collect();
        if has.iter().all(|has| *has) {
            return;
        }
        let reasons: Vec<Option<Reason>> = self.ends.iter().map(|end| end.reason(id)).collect();
        let reason_at = |relay: usize| reasons.get(relay).copied().flatten();
        let mut is_untried = false;
        for (a, b) in pairs(has.len()) {
            let (Some(has_a), Some(has_b)) = (has.get(a), has.get(b)) else { continue };
            let both = [a, b].iter().all(|relay| self.is_listed.get(*relay) == Some(&true));
            if has_a == has_b || !both {
                continue;
            }
            let (holder, lacker) = if *has_a { (a, b) } else { (b, a) };
            let reason = reason_at(lacker).or_else(|| reason_at(holder));
            is_untried |= reason.is_none();
            self.of_pairs.entry((a, b)).or_default().add(usize::from(!*has_a), reason);
        }
        self.untried += u64::from(is_untried);
        let of_any = reasons.iter().copied().flatten().next();
        for (relay, (found, has)) in self.of_relays.iter_mut().zip(&has).enumerate() {
            match has {
                true => found.only[1] += 1,
                false => found.add(0, reason_at(relay).or(of_any)),
            }
        }
    }

    fn report(mut self, moves: bool) -> BetweenReport {
        for (end, found) in self.ends.iter_mut().zip(&self.of_relays) {
            judge_relay(&mut end.report, found, moves);
        }
        let relays: Vec<Report> = self.ends.into_iter().map(|end| end.report).collect();
        let pairs: Vec<PairReport> = pairs(relays.len())
            .filter_map(|(a, b)| {
                let found = self.of_pairs.remove(&(a, b)).unwrap_or_default();
                Some(pair(relays.get(a)?, relays.get(b)?, &found, moves))
            })
            .collect();
        let equal = pairs.iter().all(|pair| pair.verdict == Verdict::Equal);
        let complete = pairs.iter().all(|pair| pair.verdict != Verdict::Incomplete);
        BetweenReport { relays, pairs, equal, complete }
    }
}

fn pairs(count: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..count).flat_map(move |a| (a + 1..count).map(move |b| (a, b)))
}

/// Compares a relay with the union of all.
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
    let connections = a.connections.max(b.connections);
    let verdict = match (found.verdict(moves), failed) {
        (_, Some(_)) => Verdict::Incomplete,
        (Verdict::Equal, None) if a.unreadable + b.unreadable > 0 => Verdict::Differs,
        (verdict, None) => verdict.over(connections),
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
        connections,
        error,
    }
}
