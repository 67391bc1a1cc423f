//! Work that the machine requests because it needs a disk, a thread or a key, and its results.

use super::{Id, Items};
use crate::reconcile::{Difference, InitiatorError, InitiatorOptions, Rule};
use crate::store::{Filter, PeerTraits, ReadMark, RefusedId, RetentionWindow, SyncMark};
use crate::sync::breakdown::{By, Rows};
use crate::sync::filter::{PeerFilter, Window};
use crate::sync::reason::Reason;
use std::collections::{HashMap, HashSet};
use std::num::NonZeroU64;
use std::sync::Arc;

/// A work item. Each results in one [`Done`], in any order. A session is identified by a number.
#[derive(Debug)]
pub enum Work {
    /// Look up the recorded state: [`Done::Recalled`].
    Recall,
    /// Build our set for the filter, and the first question about it: [`Done::Opened`].
    Open(Opening),
    /// Process an answer in a session: [`Done::Answered`].
    Answer {
        /// The session.
        session: u64,
        /// The peer's negentropy message.
        payload: Vec<u8>,
    },
    /// Drop a session, and divide its window: [`Done::Divided`].
    Divide {
        /// The session.
        session: u64,
        /// Its time window.
        window: Window,
        /// The peer's maximum number of events, if it states one.
        cap: Option<u64>,
    },
    /// Drop a session: [`Done::Finished`].
    Forget {
        /// The session.
        session: u64,
    },
    /// Find our events that match and are not among the peer's: [`Done::Compared`].
    Compare {
        /// The events to compare.
        filter: PeerFilter,
        /// The ids of all matching events that the peer has.
        theirs: HashSet<Id>,
        /// The grouping of differences, if they are to be listed.
        by: Option<By>,
    },
    /// Group events of ours into rows: [`Done::Sorted`].
    Sort {
        /// The grouping of the rows.
        by: By,
        /// The events.
        ids: Vec<Id>,
    },
    /// Find the kinds of events of ours: [`Done::Kinds`].
    Kinds {
        /// The events.
        ids: Vec<Id>,
    },
    /// Count our events that match: [`Done::Counted`].
    Count {
        /// The question that the peer's count answers.
        subscription: String,
        /// The events to count.
        filter: PeerFilter,
        /// Kinds that are also counted separately.
        kinds: Vec<u16>,
    },
    /// Read events of ours for sending: [`Done::Loaded`].
    Load {
        /// The events.
        ids: Vec<Id>,
    },
    /// Check and store events from the peer: [`Done::Ingested`].
    Ingest {
        /// The subscription that they came for.
        subscription: String,
        /// The request of that subscription.
        asked: Asked,
        /// The events as received.
        texts: Vec<Box<str>>,
        /// Their total length, in bytes.
        bytes: usize,
        /// Whether they are new events of a live subscription.
        live: bool,
    },
    /// For a machine that knows our events by their ids alone: all of the peer's ids have been
    /// found. Determine the moves: [`Done::Concluded`].
    Conclude {
        /// The round that found them.
        look: u64,
        /// Whether it is the first since the last complete start.
        is_first: bool,
        /// Whether it showed all of the peer's events, and not only new ones.
        is_whole: bool,
    },
    /// Record ids that need not be moved again: [`Done::Finished`].
    RememberRefused(Vec<RefusedId>),
    /// Record how far the peer is known: [`Done::Finished`].
    RememberMark(SyncMark),
    /// Record how to query the peer: [`Done::Finished`].
    RememberTraits(PeerTraits),
    /// Sign the answer to a challenge (NIP-42): [`Done::Signed`].
    Sign {
        /// The challenge.
        challenge: String,
    },
}

/// The parameters of a session.
#[derive(Debug)]
pub struct Opening {
    /// The session.
    pub session: u64,
    /// The events, restricted to `window`.
    pub filter: PeerFilter,
    /// The time window.
    pub window: Window,
    /// The rule that chooses the questions.
    pub rule: Rule,
    /// Maximum length of a message, before hex encoding.
    pub frame_limit_bytes: usize,
    /// Maximum length of the first message, before hex encoding.
    pub opening_limit_bytes: usize,
    /// The second up to which both sides were equal.
    pub equal_up_to: Option<u64>,
    /// The length of the time buckets of differences.
    pub time_bucket_s: Option<NonZeroU64>,
    /// Seed of the bounds: a round that verifies earlier rounds compares other ranges.
    pub bounds_seed: Option<u64>,
}

impl Opening {
    /// The options of the session's initiator.
    #[must_use]
    pub fn initiator_options(&self) -> InitiatorOptions {
        InitiatorOptions::default()
            .rule(self.rule)
            .frame_limit_bytes(self.frame_limit_bytes)
            .opening_limit_bytes(self.opening_limit_bytes)
            .sync_mark(self.equal_up_to)
            .since(self.window.since)
            .time_bucket_s(self.time_bucket_s)
            .bounds_seed(self.bounds_seed)
    }
}

/// The request of a REQ.
#[derive(Debug, Clone)]
pub enum Asked {
    /// Events with these ids that match.
    Ids(Arc<HashSet<Id>>, Arc<Filter>),
    /// All matching events.
    Matching(Arc<Filter>),
    /// All matching events, for comparison only: not stored.
    Listing(Arc<Filter>),
    /// Events with these ids that match, for comparison only: not stored.
    ListingIds(Arc<HashSet<Id>>, Arc<Filter>),
}

/// The result of a [`Work`].
#[derive(Debug)]
pub enum Done {
    /// The recorded state.
    Recalled {
        /// How far the peer is known.
        mark: SyncMark,
        /// How to query the peer.
        traits: PeerTraits,
        /// The second from which a reading continues after `mark.read`.
        overlap: Option<u64>,
        /// The part of the filter that our retention keeps: nothing else is requested.
        kept: Option<RetentionWindow>,
    },
    /// The first question of a session.
    Opened {
        /// The session.
        session: u64,
        /// The negentropy message.
        message: Vec<u8>,
        /// Facts about our set.
        items: Items,
    },
    /// The result of an answer.
    Answered {
        /// The session.
        session: u64,
        /// The ids that differ.
        found: Difference,
        /// The recorded reasons not to move some of these ids.
        remembered: HashMap<Id, String>,
        /// The number of our items that are not settled yet.
        unsettled_items: usize,
        /// The next question; `None` when the session is complete.
        next: Result<Option<Vec<u8>>, InitiatorError>,
    },
    /// The parts of a window; `None` if it cannot be divided.
    Divided {
        /// The window.
        window: Window,
        /// Its parts, oldest first.
        parts: Option<Vec<Window>>,
    },
    /// Events that only we have.
    Compared {
        /// The ids.
        have: Vec<Id>,
        /// The recorded reasons not to move some of them.
        remembered: HashMap<Id, String>,
        /// The same in rows, if differences are to be listed.
        rows: Rows,
    },
    /// The events to move.
    Concluded {
        /// The round that found them.
        look: u64,
        /// Ids of events that the peer lacks.
        have: Vec<Id>,
        /// Ids of events to request from the peer.
        need: Vec<Id>,
    },
    /// Events of ours, grouped into rows.
    Sorted(Rows),
    /// The kinds of events.
    Kinds(Vec<(Id, u16)>),
    /// The number of our matching events.
    Counted {
        /// The question that the peer's count answers.
        subscription: String,
        /// All of them.
        all: u64,
        /// Those of the kinds that are counted separately.
        of_kinds: u64,
    },
    /// Events to send.
    Loaded {
        /// Those that are still stored.
        events: Vec<Loaded>,
        /// Ids of those that only their author may publish (NIP-70).
        protected: Vec<Id>,
    },
    /// The result for events from the peer.
    Ingested {
        /// The subscription that they came for.
        subscription: String,
        /// The result for each event, in any order.
        events: Vec<Settled>,
        /// Their total length, in bytes.
        bytes: usize,
    },
    /// The work is done.
    Finished,
    /// The answer to a challenge.
    Signed {
        /// The event's id.
        id: Id,
        /// The event.
        json: String,
    },
    /// Our own side failed.
    Failed(String),
}

/// An event of ours to send.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// Its id.
    pub id: Id,
    /// Its kind.
    pub kind: u16,
    /// The event.
    pub json: String,
}

/// The result for one event from the peer.
#[derive(Debug, Clone)]
pub struct Settled {
    /// Its id; `None` if it was not requested or has no id.
    pub id: Option<Id>,
    /// Its `created_at`, in seconds.
    pub created_at: u64,
    /// What was done with it.
    pub fate: Fate,
}

/// What was done with an event from the peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// It is new and stored.
    Stored,
    /// We had it already.
    Duplicate,
    /// Its id was recorded; nothing else was needed.
    Noted,
    /// It is new, and only compared.
    Seen(Seen),
    /// It is not stored.
    Refused(Reason),
    /// The store failed; no more events can be stored.
    Failed(String),
}

/// The fields of an event that is not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Its kind.
    pub kind: u16,
    /// Its author.
    pub pubkey: [u8; 32],
}

/// The state of a reading; separate from [`SyncMark`], so that either can be written alone.
pub(crate) fn read_mark(from: u64, to: u64, whole_at: u64) -> SyncMark {
    SyncMark { equal_up_to: None, read: Some(ReadMark { from, to, whole_at }) }
}
