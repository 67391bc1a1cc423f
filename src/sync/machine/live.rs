//! Live mode, after everything is synced: new events in both directions.

use super::ledger::{IdState, Side};
use super::patience::missed;
use super::{Asked, Loaded, Loss, Machine};
use crate::sync::filter::Window;
use crate::sync::message;
use crate::sync::report::Progress;
use std::sync::Arc;
use std::time::Duration;

/// Maximum number of events waiting to be sent; beyond it, the next round finds them.
const MOST_WAITING_EVENTS: usize = 10_000;
/// Idle time after which a ping is sent, and the further idle time after which the connection is
/// closed.
const PING_AFTER: Duration = Duration::from_secs(20);
const PING_ANSWER: Duration = Duration::from_secs(30);
/// Interval of complete rounds without another trigger: a subscription can fail silently.
const LOOK_EVERY: Duration = Duration::from_secs(600);

/// Pause before a subscription that the peer ended is opened again. It doubles each time, up to
/// `MOST_AGAIN_AFTER`.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
const MOST_AGAIN_AFTER: Duration = Duration::from_secs(60);

/// The subscription to new events.
#[derive(Debug, Default)]
pub(super) struct Live {
    subscription: Option<String>,
    deadline: Option<Duration>,
    asked: Option<Asked>,
    /// Commits were missed: only another round finds the events to send.
    missed: bool,
    was_told: bool,
    /// The number of times the peer ended the subscription, and the time of the next attempt.
    endings: u32,
    again_at: Option<Duration>,
    /// The time of the next complete round; `None` before the first.
    look_at: Option<Duration>,
    wants_ping: bool,
}

impl Live {
    /// Whether no round was made on this connection.
    pub(super) fn is_idle(&self) -> bool {
        self.look_at.is_none()
    }

    /// The time at which a subscription that the peer ended is opened again.
    pub(super) fn again_at(&self) -> Option<Duration> {
        self.again_at
    }

    pub(super) fn is_about(&self, subscription: &str) -> bool {
        self.subscription.as_deref() == Some(subscription)
    }

    /// The filter that live events are checked against.
    pub(super) fn asked(&self, subscription: &str) -> Option<Asked> {
        self.asked.clone().filter(|_| self.is_about(subscription))
    }
}

impl Machine {
    /// Subscribes before the reconciliation, so that no event falls between the two. Requests one
    /// stored event, because not every relay supports a limit of 0.
    pub(super) fn advance_live(&mut self) {
        let settings = &self.settings;
        let wanted = settings.live && settings.direction.is_down() && !settings.dry_run;
        let live = &mut self.on.live;
        if !wanted
            || live.subscription.is_some()
            || live.again_at.is_some_and(|at| self.now.at < at)
        {
            return;
        }
        if live.again_at.take().is_some() {
            // Another round finds the events in between.
            live.missed = true;
        }
        let own = settings.filter.window();
        // Some relays return nothing for a filter that has only a limit.
        let window = Window { since: own.since.or(Some(1)), ..own };
        let filter = settings.filter.within(window).newest(1);
        let asked = Asked::Matching(Arc::new(self.settings.filter.parsed().clone()));
        let subscription = self.subscription();
        self.send(message::req(&subscription, &filter));
        self.on.live.asked = Some(asked);
        self.on.live.subscription = Some(subscription);
        self.on.live.deadline = Some(self.patience());
        if self.on.live.missed && self.round.is_none() && self.on.live.look_at.is_some() {
            self.go_live();
        }
    }

    /// EOSE of the subscription.
    pub(super) fn live_answered(&mut self, subscription: &str) {
        if self.on.live.is_about(subscription) {
            self.on.live.deadline = None;
            self.answered();
        }
    }

    /// CLOSED of the subscription. Returns whether it was.
    pub(super) fn live_refused(&mut self, subscription: &str, text: &str) -> bool {
        if !self.on.live.is_about(subscription) {
            return false;
        }
        self.on.live.subscription = None;
        self.on.live.deadline = None;
        let why = if text.is_empty() { "without a reason" } else { text };
        let reason = format!("the peer ended the live subscription: {why}");
        match message::prefix(text) {
            prefix if self.waits_for_auth(prefix) => {
                // Another round finds the events in between.
                self.on.live.missed |= self.on.live.look_at.is_some();
                self.auth_required(text);
            }
            Some(prefix) if prefix.is_final() => {
                let hint = "name what to sync with a filter, for example {\"kinds\":[0,1,3]}";
                self.leave(Loss::Final(reason, Some(hint)));
            }
            _ => self.subscribe_again(&reason),
        }
        true
    }

    /// Schedules another subscription after the peer ended one. A complete round runs with each.
    fn subscribe_again(&mut self, reason: &str) {
        let live = &mut self.on.live;
        let pause = AGAIN_AFTER.saturating_mul(1 << live.endings.min(8)).min(MOST_AGAIN_AFTER);
        live.again_at = Some(self.now.at + pause);
        live.endings += 1;
        if live.endings == 1 {
            self.note(format!("{reason}; asking for it again, at least every minute"));
        }
    }

    /// Everything is synced. Returns whether the sync continues with another round now.
    pub(super) fn go_live(&mut self) -> bool {
        self.on.live.look_at = Some(self.now.at + LOOK_EVERY);
        if std::mem::take(&mut self.on.live.missed) {
            self.look_from_the_start();
            return true;
        }
        if !std::mem::replace(&mut self.on.live.was_told, true) {
            self.events.push_back(Progress::Live);
        }
        false
    }

    /// Starts a complete round, as if nothing had been moved.
    fn look_from_the_start(&mut self) {
        self.rounds = 0;
        self.ledger.forget();
        self.begin_round();
    }

    /// Events of ours that match, were stored since the last call, and did not come from the peer.
    pub fn handle_local_events(&mut self, events: Vec<Loaded>, now: super::Now) {
        self.now = now;
        if !self.is_up() || !self.settings.direction.is_up() || self.settings.dry_run {
            return;
        }
        for event in events {
            if self.on.upload.waiting() >= MOST_WAITING_EVENTS {
                return self.handle_missed_events(now);
            }
            let known = self.ledger.get(&event.id).map(|entry| (entry.side, entry.state));
            match known {
                // It came from the peer, or is being moved already.
                Some((Side::Peers, IdState::Stored | IdState::UnderWay)) => continue,
                Some((Side::Ours, state)) if state != IdState::Open => continue,
                _ => {}
            }
            self.ledger.find(event.id, Side::Ours, IdState::Open, self.found_at());
            self.on.upload.add_event(event);
        }
        self.advance();
    }

    /// Events of ours were missed: only another round finds them.
    pub fn handle_missed_events(&mut self, now: super::Now) {
        self.now = now;
        self.on.live.missed = true;
        if self.is_up() && self.round.is_none() && self.on.live.look_at.is_some() {
            self.go_live();
        }
        self.advance();
    }

    /// Whether to send a ping.
    pub fn take_ping(&mut self) -> bool {
        std::mem::take(&mut self.on.live.wants_ping)
    }

    /// A live sync runs indefinitely: state that only a round needs must not accumulate.
    pub(super) fn tidy_live(&mut self) {
        // While a connection is lost there is no round either, but the peer's OKs must be known
        // then.
        let is_synced = self.on.live.look_at.is_some() && self.round.is_none();
        if is_synced && self.working == 0 && self.on.upload.is_idle() {
            self.ledger.forget();
            self.refusal = None;
            self.remember_refused();
        }
    }

    pub(super) fn live_deadline(&self) -> Option<Duration> {
        let live = &self.on.live;
        let is_quiet = self.settings.live && self.round.is_none();
        let silence = if self.on.pinged { PING_AFTER + PING_ANSWER } else { PING_AFTER };
        let ping = is_quiet.then_some(self.on.heard + silence);
        let look = live.look_at.filter(|_| is_quiet);
        [live.deadline, ping, look].into_iter().flatten().min()
    }

    pub(super) fn take_live_time(&mut self) {
        let now = self.now;
        if missed(now, &mut self.on.live.deadline) {
            return self.leave_silent("the live REQ");
        }
        if !self.settings.live || self.round.is_some() {
            return;
        }
        let silent = now.at.saturating_sub(self.on.heard);
        if silent >= PING_AFTER + PING_ANSWER {
            return self.leave(Loss::Silent("no answer: not even to a ping".to_owned()));
        }
        if silent >= PING_AFTER && !self.on.pinged {
            self.on.pinged = true;
            self.on.live.wants_ping = true;
        }
        if self.on.live.look_at.is_some_and(|at| now.at >= at) && self.on.upload.is_idle() {
            self.look_from_the_start();
        }
    }
}
