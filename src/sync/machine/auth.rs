//! Telling a peer who we are (NIP-42): when it asks, and before anything else that needs it.

use super::link::missed;
use super::{Id, Machine, Work};
use crate::sync::message;
use std::time::Duration;

/// The most challenges of one connection that are answered.
const MOST_CHALLENGES: u32 = 4;
/// How long a peer that is known to ask has for it, before the first question.
const GREETING: Duration = Duration::from_millis(500);
/// How long a peer that has refused for want of it has to ask.
const CHALLENGE: Duration = Duration::from_millis(1_500);
/// How long the answer to AUTH may take: what is asked before it is refused.
const ANSWER: Duration = Duration::from_secs(10);
/// How often a question is asked again after that.
const MOST_REFUSALS: u32 = 3;

/// What a sync without a key can do.
const NO_KEY: &str = "set a key for NIP-42: `[sync] key_file`, or NEGSYNC_KEY";
const BAD_KEY: &str = "ask its operator to admit the key of `[sync] key_file`";

/// The state of authentication on one connection.
#[derive(Debug, Default)]
pub(super) struct Auth {
    state: State,
    challenges: u32,
    refusals: u32,
    /// Until when everything else waits.
    until: Option<Duration>,
    /// Whether the peer has asked who we are.
    pub(super) was_challenged: bool,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The peer has not asked.
    #[default]
    Unasked,
    /// The answer is being signed.
    Signing,
    /// The answer is under way, with this id.
    UnderWay(Id),
    /// The peer knows us.
    Known,
    /// The peer says nothing to the answer, which has this id: it may have believed it.
    Unanswered(Id),
    /// The peer does not take our word.
    Refused,
}

impl Auth {
    pub(super) fn deadline(&self) -> Option<Duration> {
        self.until
    }

    pub(super) fn is_known(&self) -> bool {
        self.state == State::Known
    }
}

impl Machine {
    /// A new connection: a peer that is known to ask who its clients are is given time to.
    pub(super) fn auth_connected(&mut self) {
        if self.settings.key.is_some() && self.information.auth {
            self.on.auth.until = Some(self.now.at + GREETING);
        }
    }

    /// Whether everything else waits.
    pub(super) fn auth_holds(&self) -> bool {
        self.on.auth.until.is_some()
    }

    /// AUTH: a challenge.
    pub(super) fn challenged(&mut self, challenge: String) {
        let until = self.patience();
        let auth = &mut self.on.auth;
        auth.was_challenged = true;
        auth.challenges += 1;
        let may_help = !matches!(auth.state, State::Signing | State::Refused);
        if self.settings.key.is_none() || auth.challenges > MOST_CHALLENGES || !may_help {
            return;
        }
        auth.state = State::Signing;
        auth.until = Some(until);
        self.begin_work(Work::Sign { challenge });
    }

    pub(super) fn signed(&mut self, id: Id, json: &str) {
        if self.on.auth.state != State::Signing {
            return;
        }
        self.on.auth.state = State::UnderWay(id);
        self.on.auth.until = Some(self.now.at + ANSWER);
        self.send(message::auth(json));
    }

    /// Takes the OK of the answer; `false` when it is another's. A refusal without an id that is no
    /// event's counts for it while it is under way.
    pub(super) fn auth_answered(&mut self, id: Option<&Id>, accepted: bool, text: &str) -> bool {
        let (State::UnderWay(own) | State::Unanswered(own)) = self.on.auth.state else {
            return false;
        };
        if id.is_some_and(|id| *id != own) || (id.is_none() && accepted) {
            return false;
        }
        self.on.auth.until = None;
        self.on.auth.state = if accepted { State::Known } else { State::Refused };
        if accepted {
            self.on.not_before = None;
            // What was answered to a stranger is no proof of what we may see.
            self.look_again();
        } else {
            self.note(format!("the peer does not accept our key: {text}"));
        }
        true
    }

    /// The peer refused a question because it does not know us. The question is asked again by
    /// whoever asked it; `false` when that cannot help: the sync has then ended.
    pub(super) fn auth_required(&mut self, text: &str) -> bool {
        self.on.auth.refusals += 1;
        let hopeless =
            self.on.auth.refusals > MOST_REFUSALS && self.on.auth.state != State::Unasked;
        match self.on.auth.state {
            _ if self.settings.key.is_none() => self.auth_failed(text, NO_KEY),
            State::Refused | State::Known | State::Unanswered(_) if hopeless => {
                self.auth_failed(text, BAD_KEY)
            }
            State::Refused => self.auth_failed(text, BAD_KEY),
            State::Unasked => {
                if self.on.auth.until.is_none() {
                    self.on.auth.until = Some(self.now.at + CHALLENGE);
                }
                true
            }
            State::Signing | State::UnderWay(_) | State::Known | State::Unanswered(_) => true,
        }
    }

    /// Whether what is refused for want of authentication may still be granted.
    pub(super) fn auth_may_help(&self) -> bool {
        self.settings.key.is_some()
            && self.on.auth.state != State::Refused
            && self.on.auth.refusals <= MOST_REFUSALS
    }

    /// Whether the peer has asked who we are, and is being told.
    pub(super) fn auth_is_under_way(&self) -> bool {
        matches!(self.on.auth.state, State::Signing | State::UnderWay(_))
    }

    fn auth_failed(&mut self, text: &str, hint: &'static str) -> bool {
        let reason = format!("authentication: the peer refuses: {text}");
        self.leave(super::Loss::Final(reason, Some(hint)));
        false
    }

    pub(super) fn take_auth_time(&mut self) {
        let now = self.now;
        if !missed(now, &mut self.on.auth.until) {
            return;
        }
        self.on.auth.until = None;
        match self.on.auth.state {
            State::UnderWay(id) => self.on.auth.state = State::Unanswered(id),
            State::Unasked if self.on.auth.refusals > 0 => {
                let text = "it wants to know who we are, and does not ask (NIP-42)";
                self.auth_failed(text, BAD_KEY);
            }
            _ => {}
        }
    }
}
