//! Rounds, one after the other, and what they prove.

use super::ledger::Side;
use super::same_relay::Looks;
use super::{Breakdown, Machine, Work};
use crate::store::SyncMark;
use crate::sync::reason::Reason;
use crate::sync::report::{Method, Progress, Proof, Report, Verdict};
use std::time::Duration;

/// Maximum number of rounds: the first moves, the second proves, more are needed if the sets
/// change.
const MOST_ROUNDS: u16 = 4;

/// Time for a peer to list events that it accepted.
const INDEX_TIME: Duration = Duration::from_millis(1_500);

/// One complete comparison, and the moves that follow from it.
#[derive(Debug, Default)]
pub(super) struct Round {
    /// The number of the round in this sync.
    pub(super) number: u32,
    /// The number of the round since the last complete start, counted from 1.
    pub(super) index: u16,
    /// Whether the peer is read instead of reconciled.
    pub(super) is_read: bool,
    /// The number of ids found that only we have, and that only the peer has.
    pub(super) have: u64,
    pub(super) need: u64,
    /// The number of ids to be moved, and those among them that an earlier round was to move.
    pub(super) opened: u64,
    pub(super) reopened: u64,
    /// The number of events that were moved, or have a reason not to be.
    pub(super) moved: u64,
    /// The newest `created_at` of our set when it was compared.
    pub(super) newest: u64,
    /// The differences, row by row, if they are to be listed.
    pub(super) breakdown: Option<Breakdown>,
    /// Whether our events of hidden kinds have been excluded.
    knows_kinds: bool,
    /// Whether the next round looks again for accepted events that the peer does not list yet.
    pub(super) waits: bool,
    /// Whether it found a difference that no earlier round had found.
    pub(super) has_new: bool,
    /// See [`Work::Conclude`].
    pub(super) is_concluded: bool,
}

impl Machine {
    /// Begins a complete comparison.
    pub(super) fn begin_round(&mut self) {
        self.has_waited &= self.rounds > 0;
        self.rounds += 1;
        self.looks += 1;
        self.report.passes = u32::from(self.rounds);
        self.events.push_back(Progress::Round(self.report.passes));
        let breakdown = self.settings.by.map(Breakdown::new);
        self.round =
            Some(Round { number: self.looks, index: self.rounds, breakdown, ..Round::default() });
        if self.reads {
            self.read_this_round();
        } else {
            self.on.reconciling.begin(&self.settings.filter);
        }
    }

    /// Continues the round by reading.
    pub(super) fn read_this_round(&mut self) {
        let by = self.settings.by;
        let Some(round) = &mut self.round else { return };
        round.is_read = true;
        round.breakdown = by.map(Breakdown::new);
        let whole = round.index > 1;
        self.begin_reading(whole);
    }

    /// Starts again, because the peer may show more events now: earlier answers prove nothing.
    pub(super) fn look_again(&mut self) {
        if self.round.as_ref().is_some_and(|round| round.is_read) {
            self.reading.connection_lost();
            self.begin_reading(self.report.passes > 1);
        } else {
            self.reconcile_anew();
        }
    }

    /// Ends a round. Returns whether another one has begun.
    pub(super) fn end_round(&mut self) -> bool {
        if !self.refused.is_empty() && !self.settings.dry_run {
            self.remember_refused();
            return false;
        }
        let hidden = self.perhaps_hidden();
        if let Some(round) = &mut self.round
            && !std::mem::replace(&mut round.knows_kinds, true)
            && !hidden.is_empty()
        {
            self.begin_work(Work::Kinds { ids: hidden });
            return false;
        }
        self.save_mark();
        let Some(mut round) = self.round.take() else { return false };
        self.on.advanced = true;
        self.backoff_advanced();
        self.breakdown = round.breakdown.take();
        self.breakdown.iter_mut().for_each(Breakdown::finish);
        self.tell();
        let goes_on = if round.is_read { self.judge_read(&round) } else { self.judge(&round) };
        if goes_on {
            if round.waits && !std::mem::replace(&mut self.has_waited, true) {
                self.on.not_before = Some(self.now.at + INDEX_TIME);
            }
            self.begin_round();
            return self.on.not_before.is_none();
        }
        if self.settings.live && !self.settings.dry_run {
            self.looked = Looks::default();
            let report: Report = self.report_now();
            self.events.push_back(Progress::CaughtUp(Box::new(report)));
            return self.go_live();
        }
        self.finish();
        false
    }

    fn backoff_advanced(&mut self) {
        if !self.settings.dry_run {
            self.backoff.reset();
        }
        (self.silence.connections, self.silence.total) = (0, Duration::ZERO);
    }

    /// Records the remaining differences of the round. Returns the number of those without an
    /// excuse.
    fn note_differences(&mut self, round: &Round) -> u64 {
        let mut differs = self.ledger.differences(round.number);
        // Events that cannot be compared do not count.
        let hidden = differs.remove(&Reason::Hidden).unwrap_or(0);
        if hidden > 0 && self.report.not_compared.is_empty() {
            // Recorded by an earlier sync, without the kinds.
            self.report.not_compared = self.private_kinds();
        }
        let unexplained = differs.iter().filter(|(reason, _)| reason.is_unexplained());
        let unexplained = unexplained.map(|(_, count)| count).sum();
        let mut left = (0, 0);
        for (_, entry) in self.ledger.iter().filter(|(_, entry)| entry.round == round.number) {
            if entry.state.differs() {
                match entry.side {
                    Side::Ours => left.0 += 1,
                    Side::Peers => left.1 += 1,
                }
            }
        }
        let report = &mut self.report;
        (report.have_left, report.need_left) = (u64::saturating_sub(left.0, hidden), left.1);
        report.differs = differs;
        unexplained
    }

    /// Judges a reconciliation. Returns whether another round has to prove the moves.
    fn judge(&mut self, round: &Round) -> bool {
        let unexplained = self.note_differences(round);
        self.note_look(round);
        self.report.method = Method::Negentropy;
        let proof = Some(Proof::Negentropy);
        if self.settings.dry_run {
            let verdict =
                if self.report.differs.is_empty() { Verdict::Equal } else { Verdict::Differs };
            self.report.judge(verdict, proof);
            return false;
        }
        let may_go_on = round.index < MOST_ROUNDS;
        let is_stuck = round.index > 1 && round.reopened > 0 && round.moved == 0;
        let may_wait = round.waits && !self.has_waited;
        if round.opened > 0 && may_go_on && (!is_stuck || may_wait) {
            return true;
        }
        self.ledger.confirm(round.number);
        if unexplained > 0 && (round.opened == 0 || round.reopened > 0) {
            self.report.judge(Verdict::Incomplete, None);
            self.note_unmoved(unexplained);
            return false;
        }
        if self.is_contradicted() {
            return false;
        }
        let verdict = match (round.opened > 0, self.report.differs.is_empty()) {
            // Every round found something new: the sets change during the comparison.
            (true, _) => Verdict::CaughtUp,
            (false, true) => Verdict::Equal,
            (false, false) => Verdict::Differs,
        };
        self.report.error = None;
        self.report.judge(verdict, proof);
        if round.opened == 0 && round.newest > 0 {
            let equal_up_to = Some(round.newest.min(self.now.unix_s));
            self.mark.equal_up_to = equal_up_to;
            self.begin_work(Work::RememberMark(SyncMark { equal_up_to, read: None }));
        }
        false
    }

    fn note_unmoved(&mut self, count: u64) {
        let mut text = format!("{count} events could not be moved");
        if let Some(refusal) = &self.refusal {
            text.push_str(&format!("; the peer refuses: {refusal}"));
        }
        self.report.error = Some(text);
    }

    /// Judges a reading. Returns whether another one has to show the sent events.
    fn judge_read(&mut self, round: &Round) -> bool {
        let unexplained = self.note_differences(round);
        self.note_look(round);
        self.report.method = Method::Req;
        self.report.not_seen = self.reading.gaps().to_vec();
        self.report.unreadable = self.reading.unreadable();
        let may_go_on = round.index < MOST_ROUNDS && !self.settings.dry_run;
        let is_whole = self.reading.is_whole();
        if self.reading.showed_nothing() && self.report.not_seen.is_empty() {
            // Read events have to be shown again; sent events have to be shown by a reading.
            let was_sent = round.opened > 0 && round.index == 1;
            if may_go_on && (!is_whole || (was_sent && !self.reading.is_counted())) {
                return true;
            }
        }
        let proof = if is_whole { Proof::Read } else { Proof::ReadSince };
        self.report.read_since =
            self.reading.since.filter(|_| !is_whole && self.report.connections == 1);
        self.report.read_whole_at = self.mark.read.filter(|_| !is_whole).map(|mark| mark.whole_at);
        if let Some(gap) = self.report.not_seen.first() {
            let more = self.report.not_seen.len() - 1;
            let more = if more > 0 { format!("; and {more} more") } else { String::new() };
            self.report.error = Some(format!("not all was seen: {gap}{more}"));
            self.report.judge(Verdict::Incomplete, None);
            return false;
        }
        if unexplained > 0 && !self.settings.dry_run {
            self.report.judge(Verdict::Incomplete, None);
            self.note_unmoved(unexplained);
            return false;
        }
        if self.is_contradicted() {
            return false;
        }
        // A reading after the first lacks events that the peer took, or showed, before.
        if may_go_on && round.waits && !self.has_waited {
            return true;
        }
        if is_whole && self.reads_again() {
            return true;
        }
        let differs = !self.report.differs.is_empty() || self.report.unreadable > 0;
        let verdict = match (differs, is_whole) {
            (true, _) => Verdict::Differs,
            (false, true) => Verdict::Equal,
            (false, false) => Verdict::CaughtUp,
        };
        self.report.error = None;
        self.report.judge(verdict, Some(proof));
        false
    }
}
