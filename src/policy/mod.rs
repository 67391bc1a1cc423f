//! The write policy: a program of the operator that decides about each event before it is stored,
//! by the line protocol of strfry's plugins. It decides about published events and about those of a
//! sync.

mod output;
mod pending;
mod plugin;

use crate::config::{ConfigHandle, WritePolicyConfig};
use crate::store::{Origin, VerifiedEvent};
use plugin::Plugin;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// The configured program, or none: then every event is accepted. Clones share it; it is ended with
/// the last clone.
#[derive(Clone)]
pub(crate) struct WritePolicy {
    config: ConfigHandle,
    running: Arc<Mutex<RunningProgram>>,
}

/// The running program, with the configuration it was started with.
#[derive(Default)]
struct RunningProgram {
    config: WritePolicyConfig,
    plugin: Option<Arc<Plugin>>,
}

/// The program's decision about an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It may be stored.
    Accept,
    /// It is not stored; the sender gets the reason, with a prefix of NIP-01.
    Reject(String),
    /// It is not stored, but the sender is answered as if it were.
    ShadowReject,
    /// The program does not answer: the event is not stored.
    Missing,
}

/// The source of an event, in the form of the protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PolicySource {
    kind: &'static str,
    info: String,
    // The origin for fair queueing.
    origin: Origin,
}

impl PolicySource {
    /// A client by its address; `counted_as` is its address for fair queueing.
    pub(crate) fn client(address: IpAddr, counted_as: IpAddr) -> Self {
        let kind = match address.to_canonical() {
            IpAddr::V4(_) => "IP4",
            IpAddr::V6(_) => "IP6",
        };
        let info = address.to_canonical().to_string();
        Self { kind, info, origin: Origin::Client(counted_as) }
    }

    /// A peer by its URL; `live` if the event is new, as opposed to requested.
    pub(crate) fn peer(url: &str, live: bool) -> Self {
        let kind = if live { "Stream" } else { "Sync" };
        Self { kind, info: url.to_owned(), origin: Origin::Peer(url.into()) }
    }
}

impl WritePolicy {
    /// Starts the configured program, if there is one.
    ///
    /// # Errors
    /// When a thread cannot be started. If the program cannot be run, the error is logged and the
    /// start is retried.
    pub(crate) fn start(config: ConfigHandle) -> io::Result<Self> {
        let policy = Self { config, running: Arc::default() };
        policy.plugin()?;
        Ok(policy)
    }

    /// Replaces the program if another one is configured.
    pub(crate) fn reload(&self) {
        if let Err(error) = self.plugin() {
            tracing::error!(%error, "the write policy cannot be started; nothing is accepted");
        }
    }

    /// The currently configured program. Events that are waiting for an earlier one still get its
    /// answer.
    fn plugin(&self) -> io::Result<Option<Arc<Plugin>>> {
        let config = self.config.load();
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if running.config != config.write_policy {
            let config = config.write_policy.clone();
            let has_program = !config.command.trim().is_empty();
            let plugin = has_program.then(|| Plugin::start(&config)).transpose()?.map(Arc::new);
            *running = RunningProgram { config, plugin };
        }
        Ok(running.plugin.clone())
    }

    /// Asks the program about events; the answers are in the order of the events. Sources are
    /// served in turn, weighted by the length of their events. `now` is the time of receipt for the
    /// program.
    pub(crate) async fn ask(
        &self,
        events: &[&VerifiedEvent],
        source: &PolicySource,
        now: u64,
    ) -> Vec<Answer> {
        let plugin = match self.plugin() {
            Ok(Some(plugin)) => plugin,
            Ok(None) => return vec![Answer::Accept; events.len()],
            // Not accepted based on a program that is no longer configured.
            Err(_) => return vec![Answer::Missing; events.len()],
        };
        let asked: Vec<_> = events.iter().map(|event| plugin.ask(event, source, now)).collect();
        let mut answers = Vec::with_capacity(events.len());
        for answer in asked {
            answers.push(answer.await.unwrap_or(Answer::Missing));
        }
        answers
    }
}
