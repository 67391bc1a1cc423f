//! What the operator's own program says about an event before it is stored: plugins that speak
//! strfry's line protocol. Published events and those that a sync brings are put to the same one.

mod output;
mod pending;
mod plugin;

use crate::config::{ConfigHandle, WritePolicyConfig};
use crate::store::{Origin, VerifiedEvent};
use plugin::Plugin;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// The operator's program as it is configured, or none: then every event is accepted. Clones share
/// it; it is told to end with the last one.
#[derive(Clone)]
pub(crate) struct WritePolicy {
    config: ConfigHandle,
    running: Arc<Mutex<RunningProgram>>,
}

/// What runs, and the configuration it was started with.
#[derive(Default)]
struct RunningProgram {
    config: WritePolicyConfig,
    plugin: Option<Arc<Plugin>>,
}

/// What the program says about an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It may be stored.
    Accept,
    /// It is not stored, and whoever sent it is told why, with NIP-01's prefixes.
    Reject(String),
    /// It is not stored, and whoever sent it is told that it was.
    ShadowReject,
    /// The program does not answer: nothing is stored.
    Missing,
}

/// Where an event comes from, as the program is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PolicySource {
    kind: &'static str,
    info: String,
    // Whose turn it takes.
    origin: Origin,
}

impl PolicySource {
    /// A client by its address; its turns are those of the address that it is counted as.
    pub(crate) fn client(address: IpAddr, counted_as: IpAddr) -> Self {
        let kind = match address.to_canonical() {
            IpAddr::V4(_) => "IP4",
            IpAddr::V6(_) => "IP6",
        };
        let info = address.to_canonical().to_string();
        Self { kind, info, origin: Origin::Client(counted_as) }
    }

    /// A peer by its URL; `live` when it sends what is new rather than what was asked for.
    pub(crate) fn peer(url: &str, live: bool) -> Self {
        let kind = if live { "Stream" } else { "Sync" };
        Self { kind, info: url.to_owned(), origin: Origin::Peer(url.into()) }
    }
}

impl WritePolicy {
    /// Starts the configured program, where there is one.
    ///
    /// # Errors
    /// When the system gives no thread. A program that cannot be run is in the log, and tried
    /// again and again.
    pub(crate) fn start(config: ConfigHandle) -> io::Result<Self> {
        let policy = Self { config, running: Arc::default() };
        policy.plugin()?;
        Ok(policy)
    }

    /// Changes the program if another one is configured.
    pub(crate) fn reload(&self) {
        if let Err(error) = self.plugin() {
            tracing::error!(%error, "the write policy cannot be started; nothing is accepted");
        }
    }

    /// The program that is configured now. Events that wait for an earlier one still get its answer.
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

    /// Puts events to the program; the answers come in the order of the events. Sources take turns by
    /// the length of their events. The program is given `now` as the time of receipt.
    pub(crate) async fn ask(
        &self,
        events: &[&VerifiedEvent],
        source: &PolicySource,
        now: u64,
    ) -> Vec<Answer> {
        let plugin = match self.plugin() {
            Ok(Some(plugin)) => plugin,
            Ok(None) => return vec![Answer::Accept; events.len()],
            // Not accepted on the word of a program that is not the configured one.
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
