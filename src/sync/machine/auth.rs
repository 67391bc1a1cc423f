//! Authentication to a peer (NIP-42): on its challenge, and before questions that need it.

use super::ledger::{IdState, Side};
use super::patience::missed;
use super::{Id, Machine, Work, sorted};
use crate::prefix::Prefix;
use crate::sync::message;
use crate::sync::reason::Reason;
use std::time::Duration;

/// Maximum number of challenges that are answered on one connection.
const MOST_CHALLENGES: u32 = 4;
/// The same for a peer that has ignored an answer.
const MOST_IGNORED: u32 = 2;
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
    /// The number of answered challenges, the last one, and a newer one that came meanwhile: some
    /// peers send one with each refusal, and accept the newest only.
    challenges: u32,
    answered: String,
    newer: Option<String>,
    /// Refusals since the peer accepted the answer, or ignored it.
    refusals: u32,
    /// Whether one of those refused a question, and not only events.
    refused_question: bool,
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
    /// The peer refused events only, and sent no challenge: everything else goes on.
    Unchallenged,
}

/// The reason of a peer that requires authentication and sends no challenge.
const NO_CHALLENGE: &str = "it wants to know who we are, and does not ask (NIP-42)";

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
        let auth = &mut self.on.auth;
        auth.was_challenged = true;
        if self.settings.key.is_none() || auth.state == State::Refused {
            return;
        }
        if matches!(auth.state, State::Signing | State::UnderWay(_)) {
            auth.newer = (challenge != auth.answered).then_some(challenge);
            return;
        }
        self.answer_challenge(challenge);
    }

    /// Signs an answer, unless there were too many challenges. Returns whether it does.
    fn answer_challenge(&mut self, challenge: String) -> bool {
        let until = self.patience();
        let auth = &mut self.on.auth;
        let is_ignored = matches!(auth.state, State::Unanswered(_));
        if auth.challenges >= if is_ignored { MOST_IGNORED } else { MOST_CHALLENGES } {
            return false;
        }
        auth.challenges += 1;
        auth.answered.clone_from(&challenge);
        auth.newer = None;
        auth.state = State::Signing;
        auth.until = Some(until);
        self.begin_work(Work::Sign { challenge });
        true
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
        if !accepted
            && let Some(challenge) = self.on.auth.newer.take()
            && self.answer_challenge(challenge)
        {
            return true;
        }
        self.on.auth.state = if accepted { State::Known } else { State::Refused };
        if accepted {
            (self.on.not_before, self.on.auth.refusals) = (None, 0);
            self.send_refused_again();
            // Earlier results may lack events that the authenticated key may see.
            self.look_again();
        } else {
            self.note(format!("the peer does not accept our key: {text}"));
        }
        true
    }

    /// Sends again what the peer refused before it knew us.
    fn send_refused_again(&mut self) {
        use Prefix::{AuthRequired, Blocked, Restricted};
        let may_help = |prefix| matches!(prefix, None | Some(AuthRequired | Blocked | Restricted));
        let round = self.looks;
        let refused = self.ledger.iter().filter(|(_, entry)| {
            let state = entry.state;
            entry.side == Side::Ours
                && entry.round == round
                && matches!(state, IdState::Stays(Reason::RefusedByPeer(prefix)) if may_help(prefix))
        });
        let refused = sorted(refused.map(|(id, _)| *id));
        self.refused.retain(|it| refused.binary_search(&it.id).is_err());
        for id in refused {
            self.ledger.set(&id, IdState::Open);
            self.send_open(id);
        }
    }

    /// Whether a refused question is to be asked again once the peer knows us: also a refusal for
    /// good that came before the peer's answer.
    pub(super) fn waits_for_auth(&self, prefix: Option<Prefix>) -> bool {
        let is_early = prefix.is_some_and(Prefix::is_final) && self.auth_is_under_way();
        is_early || prefix == Some(Prefix::AuthRequired)
    }

    /// The hint for a peer that refuses a question for good: `hint`, unless a key may help.
    pub(super) fn hint_of_refusal(
        &self,
        prefix: Option<Prefix>,
        hint: &'static str,
    ) -> &'static str {
        let wants_key = prefix == Some(Prefix::Restricted) && self.on.auth.was_challenged;
        if wants_key && self.settings.key.is_none() { NO_KEY } else { hint }
    }

    /// Handles a refusal that requires authentication. The caller asks the question again; `false`
    /// if that cannot help: the sync has then ended.
    pub(super) fn auth_required(&mut self, text: &str) -> bool {
        self.on.auth.refused_question = true;
        if self.auth_is_under_way() {
            return true;
        }
        self.on.auth.refusals += 1;
        let hopeless =
            self.on.auth.refusals > MOST_REFUSALS && self.on.auth.state != State::Unasked;
        match self.on.auth.state {
            _ if self.settings.key.is_none() => self.auth_failed(text, NO_KEY),
            State::Refused => self.auth_failed(text, BAD_KEY),
            State::Unchallenged => self.auth_failed(NO_CHALLENGE, BAD_KEY),
            State::Unasked => {
                self.await_challenge();
                true
            }
            _ if hopeless => self.auth_failed(text, BAD_KEY),
            _ => true,
        }
    }

    /// The same for an event: the sync goes on in any case.
    pub(super) fn auth_required_for_event(&mut self) {
        match self.on.auth.state {
            _ if self.settings.key.is_none() => {}
            State::Unasked => {
                self.on.auth.refusals += 1;
                self.await_challenge();
            }
            State::Known | State::Unanswered(_) => self.on.auth.refusals += 1,
            _ => {}
        }
    }

    fn await_challenge(&mut self) {
        if self.on.auth.until.is_none() {
            self.on.auth.until = Some(self.now.at + CHALLENGE);
        }
    }

    /// Whether an event that requires authentication, and was sent `tries` times, may still be
    /// taken. A first refusal may be older than the peer's answer.
    pub(super) fn auth_may_help(&self, tries: u8) -> bool {
        self.settings.key.is_some()
            && match self.on.auth.state {
                State::Refused | State::Unchallenged => false,
                State::Unasked | State::Signing | State::UnderWay(_) => true,
                State::Known | State::Unanswered(_) => {
                    tries < 2 || self.on.auth.refusals <= MOST_REFUSALS
                }
            }
    }

    /// Why an event that requires authentication will not be taken.
    pub(super) fn auth_hopeless(&self) -> &'static str {
        let is_unchallenged = self.on.auth.state == State::Unchallenged;
        if is_unchallenged { NO_CHALLENGE } else { "no key that it accepts" }
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
            State::Unasked if self.on.auth.refused_question => {
                self.auth_failed(NO_CHALLENGE, BAD_KEY);
            }
            State::Unasked if self.on.auth.refusals > 0 => {
                self.on.auth.state = State::Unchallenged;
            }
            _ => {}
        }
    }
}
