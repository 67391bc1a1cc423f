//! Authentication to a peer (NIP-42): on its challenge, and before questions that need it.

use super::patience::missed;
use super::{Id, Machine, Work};
use crate::sync::message;
use std::time::Duration;

/// Maximum number of challenges that are answered on one connection.
const MOST_CHALLENGES: u32 = 4;
/// Time for a challenge before the first question, for a peer that is known to send one.
const GREETING: Duration = Duration::from_millis(500);
/// Time for a challenge after a refusal that requires authentication.
const CHALLENGE: Duration = Duration::from_millis(1_500);
/// Timeout for the answer to AUTH: questions before the answer are refused.
const ANSWER: Duration = Duration::from_secs(10);
/// Repetitions of a question after such a refusal.
const MOST_REFUSALS: u32 = 3;

/// The hint for a sync without a key.
const NO_KEY: &str = "set a key for NIP-42: `[sync] key_file`, or NEGSYNC_KEY";
const BAD_KEY: &str = "ask its operator to admit the key of `[sync] key_file`";

/// The state of authentication on one connection.
#[derive(Debug, Default)]
pub(super) struct Auth {
    state: State,
    challenges: u32,
    refusals: u32,
    /// Until when all questions wait.
    until: Option<Duration>,
    /// Whether the peer has sent a challenge.
    pub(super) was_challenged: bool,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    /// No challenge yet.
    #[default]
    Unasked,
    /// The answer is being signed.
    Signing,
    /// The answer was sent, with this id.
    UnderWay(Id),
    /// The peer accepted the answer.
    Known,
    /// The peer did not reply to the answer with this id; it may have accepted it.
    Unanswered(Id),
    /// The peer rejected the answer.
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
    /// Handles a new connection: waits for the challenge of a peer that is known to send one.
    pub(super) fn auth_connected(&mut self) {
        if self.settings.key.is_some() && self.information.auth {
            self.on.auth.until = Some(self.now.at + GREETING);
        }
    }

    /// Whether all questions wait.
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

    /// Handles the OK of the answer; `false` if it is another event's OK. While the answer is
    /// pending, a refusal without the id of an event counts for it.
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
            // Earlier results may lack events that the authenticated key may see.
            self.look_again();
        } else {
            self.note(format!("the peer does not accept our key: {text}"));
        }
        true
    }

    /// Handles a refusal that requires authentication. The caller asks the question again; `false`
    /// if that cannot help: the sync has then ended.
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

    /// Whether a request that requires authentication may still succeed.
    pub(super) fn auth_may_help(&self) -> bool {
        self.settings.key.is_some()
            && self.on.auth.state != State::Refused
            && self.on.auth.refusals <= MOST_REFUSALS
    }

    /// Whether an answer to a challenge is pending.
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
