//! Admission of events: published events, events from peers for our store or for the attached
//! relay, and imported events.
//!
//! It has two stages. [`Admission::read`] and [`Admission::check`] make the cheap checks before the
//! signature is verified: limits, the ban list, protected events, permission to publish.
//! [`Admission::judge`] asks the operator's program about verified events.

pub(crate) mod access;
mod hooks;
mod limits;

pub(crate) use hooks::Hooks;

use crate::config::{Config, ConfigError, ConfigHandle, Reloaded};
use crate::moderation::{BanList, Moderation, ModerationError};
use crate::policy::{self, WritePolicy};
use crate::prefix::Prefix;
use crate::store::{Clock, Event, Filter, VerifiedEvent, Viewer};
use std::borrow::Cow;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;

/// The source of an event.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Source {
    /// A client.
    Client {
        /// The client's IP address.
        address: IpAddr,
        /// The address for fair queues and limits: its own, or its IPv6 network's.
        counted_as: IpAddr,
        /// The authenticated keys (NIP-42).
        viewer: Viewer,
    },
    /// A peer that we sync with.
    Peer {
        /// Its URL.
        url: String,
        /// Whether the event is new, as opposed to requested.
        live: bool,
    },
    /// A file that the operator imports: size limits and the ban list apply, and no other check.
    Import,
}

/// Why an event is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum RefusalReason {
    /// It is malformed.
    Malformed,
    /// It exceeds one of the `[limits]`.
    OverLimits,
    /// Only its author may publish it, or it is a repost of such an event (NIP-70).
    Protected,
    /// The sender lacks the permission to publish it.
    NotAllowed,
    /// The operator has banned it, its author, its kind, or a word in it.
    Banned,
    /// The write policy refuses it, or the hook of the program that runs the relay.
    WritePolicy,
    /// The write policy does not answer.
    NoWritePolicy,
}

/// The refusal of an event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
#[non_exhaustive]
pub struct Refusal {
    /// The event's id in lower-case hex, if it could be parsed.
    pub id: Option<String>,
    /// The reason.
    pub reason: RefusalReason,
    /// The text for the sender, with a machine-readable prefix (NIP-01).
    pub text: String,
}

impl Refusal {
    fn new(event: &Event, reason: RefusalReason, text: impl Into<String>) -> Self {
        Self { id: Some(event.id_hex()), reason, text: text.into() }
    }

    fn invalid(id: Option<String>, reason: RefusalReason, text: &str) -> Self {
        Self { id, reason, text: format!("{}: {text}", Prefix::Invalid) }
    }
}

/// The decision about an event.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Judgement {
    /// It may be stored.
    Accept,
    /// It is not stored; the sender gets the reason.
    Reject(Refusal),
    /// It is not stored, but the sender is answered as if it were.
    ShadowReject,
}

/// Why admission cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdmissionError {
    /// A thread for the write policy cannot be started.
    #[error("cannot start a thread for the write policy: {0}")]
    Thread(io::Error),
    /// The ban list cannot be read.
    #[error(transparent)]
    Moderation(#[from] ModerationError),
}

/// Decides about every event. Clones share the state and the operator's program.
#[derive(Clone)]
pub struct Admission {
    config: ConfigHandle,
    policy: WritePolicy,
    moderation: Moderation,
    hooks: Hooks,
    clock: Clock,
}

impl std::fmt::Debug for Admission {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admission").finish_non_exhaustive()
    }
}

impl Admission {
    /// Starts admission as configured, with the write policy.
    ///
    /// # Errors
    /// [`AdmissionError`] when a thread cannot be started, or the ban list cannot be read.
    pub fn start(config: impl Into<ConfigHandle>) -> Result<Self, AdmissionError> {
        Self::start_with(config, Hooks::default())
    }

    /// Like [`Admission::start`], with hooks of the program that runs the relay.
    pub(crate) fn start_with(
        config: impl Into<ConfigHandle>,
        hooks: Hooks,
    ) -> Result<Self, AdmissionError> {
        let config = config.into();
        let moderation = Moderation::configured(&config.load())?;
        let policy = WritePolicy::start(config.clone()).map_err(AdmissionError::Thread)?;
        Ok(Self { policy, config, moderation, hooks, clock: Clock::system() })
    }

    /// The same with the clock of the store that the events are for.
    #[must_use]
    pub(crate) fn by_clock(self, clock: &Clock) -> Self {
        Self { clock: clock.clone(), ..self }
    }

    /// The ban list.
    pub fn moderation(&self) -> &Moderation {
        &self.moderation
    }

    /// The current configuration.
    pub fn config(&self) -> Arc<Config> {
        self.config.load()
    }

    /// The handle of the current configuration.
    pub fn config_handle(&self) -> &ConfigHandle {
        &self.config
    }

    /// Applies a new configuration, except for keys that need a restart.
    ///
    /// # Errors
    /// As [`Config::check`]; everything then stays as it was.
    pub fn reload(&self, config: Config) -> Result<Reloaded, ConfigError> {
        let reloaded = self.config.reload(config)?;
        self.policy.reload();
        Ok(reloaded)
    }

    /// Parses an event from JSON, and checks it.
    ///
    /// # Errors
    /// As [`Admission::check`], and when the event is malformed.
    pub fn read(&self, json: &str, source: &Source) -> Result<Event, Refusal> {
        let event = Event::parse(json)
            .map_err(|error| Refusal::invalid(error.id, RefusalReason::Malformed, &error.reason))?;
        self.check(&event, source)?;
        Ok(event)
    }

    /// Checks an event whose signature is not verified yet.
    ///
    /// # Errors
    /// [`Refusal`] when it exceeds a limit, or the source may not publish it.
    pub fn check(&self, event: &Event, source: &Source) -> Result<(), Refusal> {
        check(&self.config(), &self.moderation.current(), event, source, self.clock.now())
    }

    /// Asks the hook and the write policy about events of one source. The verdicts are in the order
    /// of the events. Imported events are accepted without asking. Sources are served in turn.
    pub async fn judge(&self, events: &[VerifiedEvent], from: &Source) -> Vec<Judgement> {
        let Some(source) = asked_as(from) else {
            return vec![Judgement::Accept; events.len()];
        };
        let refusals: Vec<Option<Refusal>> =
            events.iter().map(|event| self.hooks.refuses(event, from)).collect();
        let is_asked = |(event, refusal)| Option::is_none(refusal).then_some(event);
        let asked: Vec<&VerifiedEvent> =
            events.iter().zip(&refusals).filter_map(is_asked).collect();
        let mut answers = self.policy.ask(&asked, &source, self.clock.now()).await.into_iter();
        let judgement = |(event, refusal): (_, Option<Refusal>)| match refusal {
            Some(refusal) => Judgement::Reject(refusal),
            None => verdict(event, answers.next().unwrap_or(policy::Answer::Missing)),
        };
        events.iter().zip(refusals).map(judgement).collect()
    }

    /// Checks that a client may ask for the filters by REQ and COUNT.
    ///
    /// # Errors
    /// The refusal, with its prefix.
    pub(crate) fn may_read(
        &self,
        viewer: &Viewer,
        filters: &[Filter],
    ) -> Result<(), Cow<'static, str>> {
        access::may_read(&self.config().auth, viewer, filters)?;
        self.hooks.may_read(viewer, filters)
    }

    /// Checks that a client may reconcile the filters.
    ///
    /// # Errors
    /// The refusal, with its prefix.
    pub(crate) fn may_sync(
        &self,
        viewer: &Viewer,
        filters: &[Filter],
    ) -> Result<(), Cow<'static, str>> {
        access::may_sync(&self.config().auth, viewer, filters)?;
        self.hooks.may_read(viewer, filters)
    }

    /// Checks that a client may still receive live events: a reload may have changed `auth.required`.
    ///
    /// # Errors
    /// The refusal, with its prefix.
    pub(crate) fn may_stay_subscribed(&self, viewer: &Viewer) -> Result<(), String> {
        access::may_do_anything(&self.config().auth, viewer)
    }

    /// Checks that a client may continue its NEG sessions: a reload may have changed `auth.required`
    /// or `auth.sync_keys`.
    ///
    /// # Errors
    /// The refusal, with its prefix.
    pub(crate) fn may_continue_sync(&self, viewer: &Viewer) -> Result<(), String> {
        access::may_sync_public(&self.config().auth, viewer)
    }
}

fn check(
    config: &Config,
    bans: &BanList,
    event: &Event,
    source: &Source,
    now: u64,
) -> Result<(), Refusal> {
    let over =
        |text: String| Refusal::invalid(Some(event.id_hex()), RefusalReason::OverLimits, &text);
    limits::check_form(event, &config.limits).map_err(over)?;
    if let Some(text) = bans.refuses(event) {
        return Err(Refusal::new(event, RefusalReason::Banned, text));
    }
    match source {
        Source::Import => {}
        Source::Peer { .. } => {
            if !config.sync.protected && (event.is_protected() || event.holds_protected()) {
                let text = Prefix::Blocked.before("protected events are not moved between relays");
                return Err(Refusal::new(event, RefusalReason::Protected, text));
            }
            limits::check_time(event, &config.limits, now).map_err(over)?;
        }
        Source::Client { viewer, address, .. } => {
            if bans.blocks(*address) {
                let text = Prefix::Blocked.before("your address is banned");
                return Err(Refusal::new(event, RefusalReason::Banned, text));
            }
            limits::check_time(event, &config.limits, now).map_err(over)?;
            access::may_publish(&config.auth, bans, viewer, event)
                .map_err(|text| Refusal::new(event, RefusalReason::NotAllowed, text))?;
        }
    }
    Ok(())
}

/// The source in terms of strfry's plugin protocol; `None` if the program is not asked.
fn asked_as(source: &Source) -> Option<policy::PolicySource> {
    match source {
        Source::Client { address, counted_as, .. } => {
            Some(policy::PolicySource::client(*address, *counted_as))
        }
        Source::Peer { url, live } => Some(policy::PolicySource::peer(url, *live)),
        Source::Import => None,
    }
}

fn verdict(event: &VerifiedEvent, answer: policy::Answer) -> Judgement {
    let refusal = |reason, text: String| Judgement::Reject(Refusal::new(event, reason, text));
    match answer {
        policy::Answer::Accept => Judgement::Accept,
        policy::Answer::Reject(text) => refusal(RefusalReason::WritePolicy, text),
        policy::Answer::ShadowReject => Judgement::ShadowReject,
        policy::Answer::Missing => {
            let text = Prefix::Error.before("the write policy does not answer; try again");
            refusal(RefusalReason::NoWritePolicy, text.to_owned())
        }
    }
}
