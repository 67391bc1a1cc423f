//! Events to the peer: a window of them under way, every OK read.

use super::message;
use super::peer::{Peer, PeerError};
use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

/// The most events that wait for their OK.
const EVENTS_IN_FLIGHT: usize = 512;
/// The most bytes of them; one event may always go.
const BYTES_IN_FLIGHT: usize = 4 << 20;
/// How many events are read from the store at a time.
pub(super) const READ_EVENTS: usize = 256;
/// What an EVENT message takes beside its event.
const WRAPPING_BYTES: usize = 64;
/// How often an event is sent that the peer fails to take.
const MOST_TRIES: u8 = 3;
/// The events under way to a peer that limits their rate.
const EVENTS_IN_FLIGHT_LIMITED: usize = 16;
/// The first pause that such a peer is given, and the longest; each doubles the one before.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const MOST_PAUSE: Duration = Duration::from_secs(30);
/// After so many pauses in which it took nothing the rest is left for another time.
const MOST_PAUSES: u32 = 8;

/// The events to send and those that wait for their OK.
#[derive(Default)]
pub(super) struct Upload {
    queue: VecDeque<[u8; 32]>,
    // Read from the store.
    ready: VecDeque<([u8; 32], String)>,
    under_way: HashMap<[u8; 32], usize>,
    bytes_under_way: usize,
    reading: bool,
    tries: HashMap<[u8; 32], u8>,
    // The peer limits the rate.
    limited: bool,
    // Pauses since it last took something, and when the last one ends.
    pauses: u32,
    pause_ends: Option<Instant>,
}

/// What the peer said to an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// It has it now.
    Taken,
    /// It had it already.
    Duplicate,
    /// It does not take it; the prefix says why.
    Refused(String),
    /// It does not take it now: it is sent again after a pause.
    PutOff,
    /// It wants to know who we are first.
    AuthRequired,
    /// It was not asked.
    Unasked,
}

impl Upload {
    /// Ids to send.
    pub(super) fn add(&mut self, ids: impl IntoIterator<Item = [u8; 32]>) {
        self.queue.extend(ids);
    }

    /// An event to send that need not be read.
    pub(super) fn add_event(&mut self, id: [u8; 32], json: String) {
        self.ready.push_back((id, json));
    }

    /// Whether nothing is left to send or to wait for.
    pub(super) fn is_idle(&self) -> bool {
        self.unsettled() == 0
    }

    /// Whether the peer owes an answer.
    pub(super) fn is_waiting(&self) -> bool {
        !self.under_way.is_empty()
    }

    /// Events that are not settled.
    pub(super) fn unsettled(&self) -> usize {
        self.queue.len()
            + self.ready.len()
            + self.under_way.len()
            + if self.reading { READ_EVENTS } else { 0 }
    }

    /// Forgets what the peer said to events that are settled.
    pub(super) fn forget(&mut self) {
        self.tries.clear();
    }

    /// The next ids to read from the store, unless enough is read.
    pub(super) fn next_to_read(&mut self) -> Option<Vec<[u8; 32]>> {
        if self.reading || self.queue.is_empty() || self.ready.len() >= READ_EVENTS {
            return None;
        }
        self.reading = true;
        let count = READ_EVENTS.min(self.queue.len());
        Some(self.queue.drain(..count).collect())
    }

    /// Events have been read; those that went in the meantime are not among them.
    pub(super) fn read(&mut self, events: Vec<([u8; 32], String)>) {
        self.reading = false;
        self.ready.extend(events);
    }

    /// Sends as much as may be under way. Returns the ids of events that are too long for a peer
    /// that takes messages of `message_bytes`.
    pub(super) fn advance(
        &mut self,
        peer: &Peer,
        message_bytes: usize,
    ) -> Result<Vec<[u8; 32]>, PeerError> {
        let mut too_long = Vec::new();
        if self.pause_ends.is_some_and(|ends| Instant::now() < ends) {
            return Ok(too_long);
        }
        let most = if self.limited { EVENTS_IN_FLIGHT_LIMITED } else { EVENTS_IN_FLIGHT };
        while self.under_way.len() < most && self.bytes_under_way < BYTES_IN_FLIGHT {
            let Some((id, json)) = self.ready.pop_front() else { break };
            if json.len() + WRAPPING_BYTES > message_bytes {
                too_long.push(id);
                continue;
            }
            peer.send(message::event(&json))?;
            self.bytes_under_way += json.len();
            self.under_way.insert(id, json.len());
        }
        Ok(too_long)
    }

    /// Reads an OK (NIP-01, with its machine-readable prefixes).
    pub(super) fn answered(&mut self, id: &[u8; 32], accepted: bool, text: &str) -> Answer {
        let Some(bytes) = self.under_way.remove(id) else { return Answer::Unasked };
        self.bytes_under_way = self.bytes_under_way.saturating_sub(bytes);
        let prefix = text.split_once(':').map_or("", |(prefix, _)| prefix.trim());
        if accepted || prefix == "duplicate" {
            self.pauses = 0;
            return if prefix == "duplicate" { Answer::Duplicate } else { Answer::Taken };
        }
        match prefix {
            "auth-required" => {
                self.queue.push_front(*id);
                Answer::AuthRequired
            }
            "rate-limited" if self.pauses < MOST_PAUSES => {
                self.queue.push_front(*id);
                self.pause();
                Answer::PutOff
            }
            "error" => {
                let tries = self.tries.entry(*id).or_insert(0);
                *tries += 1;
                if *tries >= MOST_TRIES {
                    return Answer::Refused(prefix.to_owned());
                }
                self.queue.push_back(*id);
                self.pause_ends = Some(Instant::now() + FIRST_PAUSE);
                Answer::PutOff
            }
            "rate-limited" => Answer::Refused(prefix.to_owned()),
            // What strfry and we say of an older version.
            "replaced" => Answer::Refused("superseded".to_owned()),
            "blocked" | "invalid" | "pow" | "restricted" | "mute" => {
                Answer::Refused(prefix.to_owned())
            }
            _ => Answer::Refused("other".to_owned()),
        }
    }

    /// Begins a pause, unless there is one.
    fn pause(&mut self) {
        let now = Instant::now();
        self.limited = true;
        if self.pause_ends.is_none_or(|ends| ends <= now) {
            let pause = FIRST_PAUSE.saturating_mul(1 << self.pauses.min(8)).min(MOST_PAUSE);
            self.pauses += 1;
            self.pause_ends = Some(now + pause);
        }
    }

    /// The peer answers no more: what is under way is left to the next reconciliation to tell.
    pub(super) fn give_up_waiting(&mut self) -> usize {
        self.bytes_under_way = 0;
        self.under_way.drain().count()
    }
}
