//! What the operator's own program says about an event before it is stored: plugins that speak
//! strfry's line protocol. Published events and those that a sync brings pass the same one.

mod flight;
mod plugin;

use crate::config::WritePolicyConfig;
use crate::store::VerifiedEvent;
use plugin::{Plugin, Request};
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// The operator's program, or none: then every event is accepted. Clones share it; it is told to
/// end with the last one.
#[derive(Clone, Default)]
pub struct WritePolicy {
    plugin: Option<Arc<Plugin>>,
}

/// What is to become of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It may be stored.
    Accepted,
    /// It is not stored, and whoever sent it is told why, with NIP-01's prefixes.
    Refused(String),
    /// It is not stored, and whoever sent it is told that it was.
    RefusedQuietly,
    /// The program does not answer: nothing is stored.
    Unknown,
}

/// Where an event comes from, as the program is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    kind: &'static str,
    info: String,
}

impl Source {
    /// A client by its address.
    pub fn client(address: IpAddr) -> Self {
        let kind = match address.to_canonical() {
            IpAddr::V4(_) => "IP4",
            IpAddr::V6(_) => "IP6",
        };
        Self { kind, info: address.to_canonical().to_string() }
    }

    /// A peer by its URL; `live` when it sends what is new rather than what was asked for.
    pub fn peer(url: &str, live: bool) -> Self {
        Self { kind: if live { "Stream" } else { "Sync" }, info: url.to_owned() }
    }
}

impl WritePolicy {
    /// Starts the configured program, where there is one.
    ///
    /// # Errors
    /// When the system gives no thread. A program that cannot be run is in the log, and tried
    /// again and again.
    pub fn start(config: &WritePolicyConfig) -> io::Result<Self> {
        if config.command.trim().is_empty() {
            return Ok(Self::default());
        }
        Ok(Self { plugin: Some(Arc::new(Plugin::start(config)?)) })
    }

    /// Calls `done` with the events in their order and what is to become of each: at once where
    /// there is no program, else on another thread. Waits while many events wait for the program.
    pub fn judge(
        &self,
        events: Vec<VerifiedEvent>,
        source: &Source,
        done: impl FnOnce(Vec<(VerifiedEvent, Verdict)>) + Send + 'static,
    ) {
        let Some(plugin) = self.plugin.as_ref().filter(|_| !events.is_empty()) else {
            return done(events.into_iter().map(|event| (event, Verdict::Accepted)).collect());
        };
        let lines: Vec<([u8; 32], String)> = events
            .iter()
            .map(|event| (event.item().id, plugin::line(event, source.kind, &source.info)))
            .collect();
        let judged = Arc::new(Mutex::new(Judged::new(events, done)));
        for (place, (id, line)) in lines.into_iter().enumerate() {
            let judged = Arc::clone(&judged);
            let reply = move |verdict| {
                let complete =
                    judged.lock().unwrap_or_else(PoisonError::into_inner).settle(place, verdict);
                if let Some((events, done)) = complete {
                    done(events);
                }
            };
            plugin.ask(Request { id, line, reply: Box::new(reply) });
        }
    }
}

/// Events that are judged together.
struct Judged<Done> {
    events: Vec<(VerifiedEvent, Verdict)>,
    // How many are still to be judged.
    left: usize,
    done: Option<Done>,
}

impl<Done> Judged<Done> {
    fn new(events: Vec<VerifiedEvent>, done: Done) -> Self {
        let left = events.len();
        let events = events.into_iter().map(|event| (event, Verdict::Unknown)).collect();
        Self { events, left, done: Some(done) }
    }

    /// Notes the verdict over one of them; gives all of them back when it was the last.
    fn settle(
        &mut self,
        place: usize,
        verdict: Verdict,
    ) -> Option<(Vec<(VerifiedEvent, Verdict)>, Done)> {
        if let Some((_, judged)) = self.events.get_mut(place) {
            *judged = verdict;
        }
        self.left = self.left.saturating_sub(1);
        if self.left > 0 {
            return None;
        }
        Some((std::mem::take(&mut self.events), self.done.take()?))
    }
}
