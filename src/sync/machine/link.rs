//! Connections that come and go: the state kept for the next one, and when to give up on the peer.

use super::ledger::{IdState, Side};
use super::patience::MOST_SILENCE;
use super::{Connection, Id, Machine, Now, TICK, sorted};
use crate::sync::nip11::Information;
use crate::sync::reason::Reason;
use crate::sync::report::{Progress, Verdict};
use std::time::Duration;

/// Timeout for our own work after a connection is lost.
const DRAIN: Duration = Duration::from_secs(30);
/// Connections in a row without any answer after which the peer is given up.
const MOST_SILENT_CONNECTIONS: u32 = 3;
/// Lost connections after which an id is requested alone.
pub(super) const ALONE_AFTER: u8 = 3;
/// Lost connections at which an event was requested alone, and nothing came, before it is given up:
/// fewer than a sync makes, so that a sync that gives up on a peer gets further next time.
const MOST_LONE_LOSSES: u8 = 4;
/// Divisor of a loss on which other events came: a connection may break at any event, but not
/// repeatedly at the same one.
const LOSSES_BESIDE_OTHERS: u8 = 4;
/// Hang-ups at the first NEG-OPEN before the sync reads the peer by REQ.
const MOST_NEG_HANGUPS: u32 = 2;

/// The state of the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Link {
    /// A connection is to be made.
    Connecting,
    Up,
    /// Lost; work on its messages continues until this time at most.
    Draining(Loss, Duration),
    /// The next connection is made at this time.
    Waiting(Duration),
    /// Complete, except for pending writes.
    Finishing,
    Over,
}

/// Why there is no connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Loss {
    /// It could not be made, or was closed; a retry may succeed.
    Gone(String),
    /// The peer did not answer.
    Silent(String),
    /// The peer sent a message above the length limit.
    TooLong(String),
    /// A retry cannot succeed, unless the hint is followed.
    Final(String, Option<&'static str>),
}

/// Lost connections after which a peer that is read is given up, even if each made progress: a peer
/// that cuts every answer at the same point would be read forever.
const MOST_READING_RECONNECTS: u32 = 30;

impl Machine {
    /// Whether a connection is to be made.
    pub fn wants_connection(&self) -> bool {
        matches!(self.link, Link::Connecting)
    }

    /// Whether the connection is in use; otherwise the driver must close it.
    pub fn is_up(&self) -> bool {
        matches!(self.link, Link::Up)
    }

    /// Whether the sync has ended.
    pub fn is_over(&self) -> bool {
        matches!(self.link, Link::Over)
    }

    /// A connection was made; `information` is the peer's NIP-11 document.
    pub fn handle_connected(&mut self, information: Information, now: Now) {
        self.now = now;
        self.information = information;
        self.connections += 1;
        self.on = Connection::new(&self.information, now);
        self.link = Link::Up;
        self.events.push_back(Progress::Connected);
        self.on.download.limit_ids(self.most_ids);
        self.auth_connected();
        self.send_again();
        self.advance();
    }

    /// The peer's information, once it was requested.
    pub fn information(&self) -> Option<Information> {
        (self.connections > 0).then_some(self.information)
    }

    /// The connection was lost, or could not be made.
    pub fn handle_lost(&mut self, loss: Loss, now: Now) {
        self.now = now;
        if matches!(self.link, Link::Up | Link::Connecting) {
            self.leave(loss);
        }
        self.advance();
    }

    /// Closes the connection. Messages that came with it still count.
    pub(super) fn leave(&mut self, loss: Loss) {
        if !matches!(self.link, Link::Up | Link::Connecting) {
            return;
        }
        self.flush_batch();
        self.transmit.clear();
        self.link = Link::Draining(loss, self.now.at + DRAIN);
    }

    /// Closes the connection because the peer did not answer `what`.
    pub(super) fn leave_silent(&mut self, what: &str) {
        self.silence.questions += 1;
        self.count_silence();
        let reason = format!("no answer: {what} was not answered in time");
        self.leave(Loss::Silent(reason));
    }

    pub(super) fn advance_link(&mut self) {
        match self.link.clone() {
            Link::Draining(loss, until) if self.working == 0 || self.now.at >= until => {
                self.settle_loss(&loss);
            }
            Link::Waiting(until) if self.now.at >= until => self.link = Link::Connecting,
            Link::Finishing if self.working == 0 => self.link = Link::Over,
            _ => {}
        }
    }

    /// Decides how to continue after a loss.
    fn settle_loss(&mut self, loss: &Loss) {
        self.tell();
        self.save_mark();
        self.remember_refused();
        let mut reason = match loss {
            Loss::Gone(reason) | Loss::Silent(reason) | Loss::TooLong(reason) => reason.clone(),
            Loss::Final(reason, hint) => {
                return self.give_up_peer(reason.clone(), *hint);
            }
        };
        if self.on.reconciling.is_first_unanswered() {
            self.neg_hangups += 1;
            if self.neg_hangups >= MOST_NEG_HANGUPS {
                self.read_from_now_on("it hangs up when it is asked to", false);
            }
        }
        let hung_up = matches!(loss, Loss::Gone(_)) && self.on.reconciling.is_next_unanswered();
        if matches!(loss, Loss::Gone(_)) && self.hung_up_at_a_list() {
            self.ask_less();
        }
        self.keep_upload_suspects();
        let asked_for = self.keep_suspects(loss);
        if !self.on.advanced && asked_for > 0 {
            reason = format!(
                "{reason}; of {asked_for} events that it lists and was asked for none has come"
            );
        }
        self.reopen();
        if hung_up {
            self.neg_msg_not_answered("it hangs up at NEG-MSG");
        }
        if self.on.advanced {
            self.silence.connections = 0;
            // An interrupted reading continues in the next sync. A dry run by reconciliation starts
            // again.
            let goes_on = match self.reads {
                true => self.report.reconnects < MOST_READING_RECONNECTS,
                false => !self.settings.dry_run,
            };
            if goes_on {
                self.backoff.reset();
            }
        }
        if matches!(loss, Loss::Silent(_)) {
            self.silence.connections += u32::from(!self.on.advanced);
        }
        let pause = self.backoff.next();
        let failures = self.backoff.failures();
        let tired = self.silence.connections >= MOST_SILENT_CONNECTIONS
            || self.silence.total > MOST_SILENCE;
        if let Some(most) = self.settings.attempts
            && (failures >= most || tired)
        {
            let reason = match failures {
                _ if self.silence.total > MOST_SILENCE => {
                    let waited_s = self.silence.total.as_secs();
                    format!("after {waited_s} s of waiting in vain in all: {reason}")
                }
                1 => reason,
                _ => format!("after {failures} attempts in a row that moved nothing: {reason}"),
            };
            return self.give_up_peer(reason, None);
        }
        // Nothing that was said to this connection is said to the next one.
        self.transmit.clear();
        self.report.reconnects += 1;
        self.events.push_back(Progress::Waiting { reason, pause });
        self.link = Link::Waiting(self.now.at + pause);
        self.on = Connection::new(&self.information, self.now);
    }

    /// Ends the sync: the peer cannot be synced with at present.
    pub(super) fn give_up_peer(&mut self, reason: String, hint: Option<&'static str>) {
        self.report.error = Some(reason);
        self.report.hint = hint;
        self.report.judge(Verdict::Incomplete, None);
        self.keep_unseen();
        self.finish();
    }

    /// Ends the sync once the current work is done.
    pub(super) fn finish(&mut self) {
        debug_assert!(self.ledger.is_consistent(), "figures are those of the ids");
        self.remember_refused();
        self.tell();
        if !matches!(self.link, Link::Over) {
            self.link = Link::Finishing;
        }
        self.advance_link();
    }

    /// Schedules interrupted moves again. If the round continues, the peer is first asked whether
    /// it has the events that were sent.
    fn reopen(&mut self) {
        let goes_on = self.reads && self.round.as_ref().is_some_and(|round| round.is_read);
        let under_way = self.ledger.iter().filter(|(_, it)| it.state == IdState::UnderWay);
        let lost: Vec<(Id, Side)> = under_way.map(|(id, entry)| (*id, entry.side)).collect();
        for (id, side) in lost {
            let was_sent = goes_on && side == Side::Ours;
            self.ledger.set(&id, if was_sent { IdState::Unconfirmed } else { IdState::Open });
        }
        self.reading.connection_lost();
        if !self.reads || self.round.as_ref().is_some_and(|round| !round.is_read) {
            // The next connection starts a new reconciliation.
            if self.round.take().is_some() {
                self.rounds = self.rounds.saturating_sub(1);
            } else {
                self.rounds = 0;
            }
        }
    }

    /// Whether the peer closed the connection at a question with many values and answered none of
    /// them.
    fn hung_up_at_a_list(&mut self) -> bool {
        let page = self.reading.is_unanswered();
        if page && let Some(plan) = &mut self.reading.plan {
            plan.not_answered();
        }
        self.on.download.is_unanswered() || self.on.second_look.is_unanswered()
    }

    /// Continues a reading: events that the previous connection was to send come first.
    fn send_again(&mut self) {
        if self.settings.dry_run || !self.round.as_ref().is_some_and(|round| round.is_read) {
            return;
        }
        for id in self.ours_in(IdState::Open) {
            self.send_open(id);
        }
        let unconfirmed = self.ours_in(IdState::Unconfirmed);
        self.on.second_look.ask_first(unconfirmed);
    }

    /// Events of ours that this round found to be missing at the peer, in `state`.
    fn ours_in(&self, state: IdState) -> Vec<Id> {
        let number = self.round.as_ref().map_or(0, |round| round.number);
        let ours = self
            .ledger
            .iter()
            .filter(|(_, it)| it.side == Side::Ours && it.round == number && it.state == state);
        sorted(ours.map(|(id, _)| *id))
    }

    /// Marks events that were requested when the connection broke, because they may be the cause.
    /// Returns the number of requested events.
    fn keep_suspects(&mut self, loss: &Loss) -> usize {
        // Events that were being sent may be the cause too.
        let is_clear = self.on.upload.under_way().is_empty();
        let at_fault = if is_clear { self.on.download.at_fault() } else { Vec::new() };
        let alone = at_fault.len() == 1;
        let advanced = self.on.advanced;
        for id in at_fault {
            let mut losses = 0;
            self.ledger.note(&id, |entry| {
                entry.losses = more_suspect(entry.losses, alone, advanced);
                losses = entry.losses;
            });
            let proven = alone && matches!(loss, Loss::TooLong(_));
            if proven || losses >= ALONE_AFTER + MOST_LONE_LOSSES * LOSSES_BESIDE_OTHERS {
                self.stay(id, Reason::Unreadable);
            }
        }
        self.on.download.asked_for()
    }

    /// The next deadline; it may be in the past.
    pub fn poll_timeout(&self) -> Option<Duration> {
        let tick = (self.told_at + TICK).max(self.now.at);
        let on = &self.on;
        // No work begins before this time.
        let held = on.not_before.max(on.auth.deadline()).unwrap_or_default();
        let begins = [on.upload.resumes_at(), on.live.again_at()];
        let begins = begins.into_iter().flatten().min().map(|at| at.max(held));
        match &self.link {
            Link::Connecting | Link::Over => None,
            Link::Finishing => Some(self.now.at + TICK),
            Link::Draining(_, until) => Some(*until),
            Link::Waiting(until) => Some(*until),
            Link::Up => [
                on.not_before.map(|at| at.max(held)),
                on.auth.deadline(),
                on.probe.deadline(),
                on.reconciling.deadline(),
                self.reading.deadline(),
                on.download.deadline(),
                on.upload.deadline(),
                on.second_look.deadline(),
                self.live_deadline(),
                begins,
                (self.round.is_some() || self.is_behind()).then_some(tick),
            ]
            .into_iter()
            .flatten()
            .min(),
        }
    }

    /// Whether progress or records wait for the next tick.
    fn is_behind(&self) -> bool {
        !self.refused.is_empty() || self.ledger.len() > 0
    }

    /// Handles expired deadlines.
    pub(super) fn take_time(&mut self) {
        if !matches!(self.link, Link::Up) {
            return;
        }
        if self.now.at >= self.told_at + TICK {
            self.tell();
            self.tidy_live();
        }
        if !self.may_read() {
            // The answers may have arrived, and this side is behind.
            return self.extend_deadlines();
        }
        self.take_auth_time();
        self.take_probe_time();
        self.take_reconciling_time();
        self.take_reading_time();
        self.take_download_time();
        self.take_upload_time();
        self.take_second_look_time();
        self.take_live_time();
    }

    fn extend_deadlines(&mut self) {
        let later = self.patience();
        self.on.probe.extend(later);
        self.on.reconciling.extend(later);
        self.reading.extend(later);
        self.on.download.extend(later);
        self.on.upload.extend(later);
        self.on.second_look.extend(later);
    }
}

/// The new suspicion of an event that was pending when a connection broke. If others came, any of
/// the next ones may be the cause: fewer are requested together from then on. If none came, each is
/// requested alone, and an event that was alone has one attempt less; a fraction of one, if others
/// came.
fn more_suspect(losses: u8, alone: bool, others_came: bool) -> u8 {
    match (others_came, alone) {
        (true, _) if losses < ALONE_AFTER => losses + 1,
        (true, false) => losses,
        (true, true) => losses.saturating_add(1),
        (false, false) => losses.max(ALONE_AFTER),
        (false, true) => losses.max(ALONE_AFTER).saturating_add(LOSSES_BESIDE_OTHERS),
    }
}
