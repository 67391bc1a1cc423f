//! After everything is synced: events as they come, both ways.

use super::ledger::{IdState, Side};
use super::link::missed;
use super::{Asked, Loaded, Loss, Machine};
use crate::prefix::Prefix;
use crate::sync::filter::Window;
use crate::sync::message;
use crate::sync::report::Progress;
use std::sync::Arc;
use std::time::Duration;

/// The most events that wait to be sent; with more the next round finds them.
const MOST_WAITING_EVENTS: usize = 10_000;
/// After so long without a word in a quiet connection the peer is asked for a sign of life, and
/// after so long more it is left.
const PING_AFTER: Duration = Duration::from_secs(20);
const PING_ANSWER: Duration = Duration::from_secs(30);
/// How often everything is looked at though nothing calls for it: a subscription can die silently.
const LOOK_EVERY: Duration = Duration::from_secs(600);

/// A subscription that the peer ends is asked for again after this long, twice as long each time, and
/// at most so long.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
const MOST_AGAIN_AFTER: Duration = Duration::from_secs(60);

/// The subscription of events as they come.
#[derive(Debug, Default)]
pub(super) struct Live {
    subscription: Option<String>,
    deadline: Option<Duration>,
    asked: Option<Asked>,
    /// Commits were missed, so that only another round tells what is to be sent.
    missed: bool,
    was_told: bool,
    /// How often the peer has ended the subscription, and when it is asked for again.
    endings: u32,
    again_at: Option<Duration>,
    /// When everything is looked at again; none before it was.
    look_at: Option<Duration>,
    wants_ping: bool,
}

impl Live {
    /// Whether no round was made on this connection.
    pub(super) fn is_idle(&self) -> bool {
        self.look_at.is_none()
    }

    /// When the peer is asked again for a subscription that it has ended.
    pub(super) fn again_at(&self) -> Option<Duration> {
        self.again_at
    }

    pub(super) fn is_about(&self, subscription: &str) -> bool {
        self.subscription.as_deref() == Some(subscription)
    }

    /// What live events are compared with.
    pub(super) fn asked(&self, subscription: &str) -> Option<Asked> {
        self.asked.clone().filter(|_| self.is_about(subscription))
    }
}

impl Machine {
    /// Subscribes before anything is reconciled, so that nothing falls between the two. One
    /// stored event is asked for, because not every relay knows what to do with none.
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
            // What came in between is found by another round.
            live.missed = true;
        }
        let own = settings.filter.window();
        // Some relays answer a filter that has nothing but a limit with nothing.
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
            Some(Prefix::AuthRequired) => {
                // What came in between is found by another round.
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

    /// The peer has ended the subscription. All is looked at whenever it is asked for again.
    fn subscribe_again(&mut self, reason: &str) {
        let live = &mut self.on.live;
        let pause = AGAIN_AFTER.saturating_mul(1 << live.endings.min(8)).min(MOST_AGAIN_AFTER);
        live.again_at = Some(self.now.at + pause);
        live.endings += 1;
        if live.endings == 1 {
            self.note(format!("{reason}; asking for it again, at least every minute"));
        }
    }

    /// All is synced. Returns whether the sync goes on with another round now.
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

    /// Begins to look at everything, as if nothing had been moved.
    fn look_from_the_start(&mut self) {
        self.rounds = 0;
        self.ledger.forget();
        self.begin_round();
    }

    /// Events of ours that match, that were stored since the last call and did not come from the
    /// peer.
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
                // It came from there, or is on its way already.
                Some((Side::Peers, IdState::Stored | IdState::UnderWay)) => continue,
                Some((Side::Ours, state)) if state != IdState::Open => continue,
                _ => {}
            }
            self.ledger.find(event.id, Side::Ours, IdState::Open, self.found_at());
            self.on.upload.add_event(event);
        }
        self.advance();
    }

    /// Events of ours were missed: only another round tells which.
    pub fn handle_missed_events(&mut self, now: super::Now) {
        self.now = now;
        self.on.live.missed = true;
        if self.is_up() && self.round.is_none() && self.on.live.look_at.is_some() {
            self.go_live();
        }
        self.advance();
    }

    /// Whether the peer is to be asked for a sign of life.
    pub fn take_ping(&mut self) -> bool {
        std::mem::take(&mut self.on.live.wants_ping)
    }

    /// A live sync goes on for ever: what only a round needs must not pile up.
    pub(super) fn tidy_live(&mut self) {
        // There is no round either while a connection is lost: what the peer took must be known then.
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
