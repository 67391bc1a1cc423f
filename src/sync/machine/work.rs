//! What the machine has others do, because it takes a disk, a thread or a key, and what came of it.

use super::{Id, Items};
use crate::reconcile::{Difference, InitiatorError, Rule};
use crate::store::{Filter, PeerTraits, ReadMark, RefusedId, RetentionWindow, SyncMark};
use crate::sync::breakdown::{By, Rows};
use crate::sync::filter::{PeerFilter, Window};
use crate::sync::reason::Reason;
use std::collections::{HashMap, HashSet};
use std::num::NonZeroU64;
use std::sync::Arc;

/// Something to do. Each is answered by one [`Done`], in any order. A session is named by a number.
#[derive(Debug)]
pub enum Work {
    /// Look up what earlier syncs remember: [`Done::Recalled`].
    Recall,
    /// Take our set for the filter, and make the first question over it: [`Done::Opened`].
    Open(Opening),
    /// Have a session read an answer: [`Done::Answered`].
    Answer {
        /// The session.
        session: u64,
        /// The peer's negentropy message.
        payload: Vec<u8>,
    },
    /// Forget a session, and divide its window: [`Done::Divided`].
    Divide {
        /// The session.
        session: u64,
        /// Its window of time.
        window: Window,
        /// How many events the peer takes, if it says so.
        cap: Option<u64>,
    },
    /// Forget a session: [`Done::Finished`].
    Forget {
        /// The session.
        session: u64,
    },
    /// Find our events that match and are not among the peer's: [`Done::Compared`].
    Compare {
        /// Which events.
        filter: PeerFilter,
        /// The ids of all that match and that the peer has.
        theirs: HashSet<Id>,
        /// What differences are told by, where they are.
        by: Option<By>,
    },
    /// Sort events of ours into rows: [`Done::Sorted`].
    Sort {
        /// What the rows are.
        by: By,
        /// The events.
        ids: Vec<Id>,
    },
    /// Tell the kinds of events of ours: [`Done::Kinds`].
    Kinds {
        /// The events.
        ids: Vec<Id>,
    },
    /// Count our events that match: [`Done::Counted`].
    Count {
        /// The question that the peer's count answers.
        subscription: String,
        /// Which events.
        filter: PeerFilter,
        /// Kinds to be counted apart, too.
        kinds: Vec<u16>,
    },
    /// Read events of ours to be sent: [`Done::Loaded`].
    Load {
        /// The events.
        ids: Vec<Id>,
    },
    /// Check and store events that the peer sent: [`Done::Ingested`].
    Ingest {
        /// The subscription that they came for.
        subscription: String,
        /// What that asked for.
        asked: Asked,
        /// The events as they came.
        texts: Vec<Box<str>>,
        /// How long all of them are.
        bytes: usize,
        /// Whether they come as they are published.
        live: bool,
    },
    /// Of a machine that knows our events by their ids alone: all of the peer's ids have been found.
    /// Tell what is to be moved: [`Done::Concluded`].
    Conclude {
        /// The look that found them.
        look: u64,
        /// Whether it is the first since everything was last looked at from the start.
        is_first: bool,
        /// Whether it showed all that the peer has, and not only what is new.
        is_whole: bool,
    },
    /// Write down ids that need not be moved again: [`Done::Finished`].
    RememberRefused(Vec<RefusedId>),
    /// Write down how far the peer is known: [`Done::Finished`].
    RememberMark(SyncMark),
    /// Write down how the peer has to be asked: [`Done::Finished`].
    RememberTraits(PeerTraits),
    /// Sign the answer to a challenge (NIP-42): [`Done::Signed`].
    Sign {
        /// The challenge.
        challenge: String,
    },
}

/// How a session begins.
#[derive(Debug)]
pub struct Opening {
    /// The session.
    pub session: u64,
    /// Which events, cut to `window`.
    pub filter: PeerFilter,
    /// The window of time.
    pub window: Window,
    /// Who chooses what to ask.
    pub rule: Rule,
    /// The longest message, before hex.
    pub frame_limit_bytes: usize,
    /// The longest first message, before hex.
    pub opening_limit_bytes: usize,
    /// The second up to which both sides were equal.
    pub equal_up_to: Option<u64>,
    /// The width of the time buckets by which differences are told.
    pub time_bucket_s: Option<NonZeroU64>,
    /// What proves a round compares other ranges than the rounds before: chosen by this seed.
    pub bounds_seed: Option<u64>,
}

/// What a REQ asked for.
#[derive(Debug, Clone)]
pub enum Asked {
    /// These ids, of events that match.
    Ids(Arc<HashSet<Id>>, Arc<Filter>),
    /// Whatever matches.
    Matching(Arc<Filter>),
    /// Whatever matches, to be compared and not to be stored.
    Listing(Arc<Filter>),
    /// These ids, of events that match, to be looked at and not to be stored.
    ListingIds(Arc<HashSet<Id>>, Arc<Filter>),
}

/// What came of some [`Work`].
#[derive(Debug)]
pub enum Done {
    /// What is remembered.
    Recalled {
        /// How far the peer is known.
        mark: SyncMark,
        /// How it has to be asked.
        traits: PeerTraits,
        /// The second from which a reading begins that goes on after `mark.read`.
        overlap: Option<u64>,
        /// What our retention keeps of the filter: nothing else is asked for.
        kept: Option<RetentionWindow>,
    },
    /// The first question of a session.
    Opened {
        /// The session.
        session: u64,
        /// The negentropy message.
        message: Vec<u8>,
        /// What our set holds.
        items: Items,
    },
    /// What an answer shows.
    Answered {
        /// The session.
        session: u64,
        /// The ids that differ.
        found: Difference,
        /// What is remembered of them: why an id need not be moved.
        remembered: HashMap<Id, String>,
        /// Our items that are not settled yet.
        unsettled_items: usize,
        /// The next question; none when all is found.
        next: Result<Option<Vec<u8>>, InitiatorError>,
    },
    /// The parts of a window; none when it cannot be divided.
    Divided {
        /// The window.
        window: Window,
        /// Its parts, the oldest first.
        parts: Option<Vec<Window>>,
    },
    /// What only we have.
    Compared {
        /// The ids.
        have: Vec<Id>,
        /// What is remembered of them.
        remembered: HashMap<Id, String>,
        /// The same in rows, where differences are told by something.
        rows: Rows,
    },
    /// What is to be moved.
    Concluded {
        /// The look that it follows from.
        look: u64,
        /// Ids of events that the peer lacks.
        have: Vec<Id>,
        /// Ids of events that the peer is asked for.
        need: Vec<Id>,
    },
    /// Events of ours in rows.
    Sorted(Rows),
    /// The kinds of events.
    Kinds(Vec<(Id, u16)>),
    /// How many events of ours match.
    Counted {
        /// The question that the peer's count answers.
        subscription: String,
        /// All of them.
        all: u64,
        /// Those of the kinds that are counted apart.
        of_kinds: u64,
    },
    /// Events to send.
    Loaded {
        /// Those that are still there.
        events: Vec<Loaded>,
        /// Those that only their author may publish (NIP-70).
        protected: Vec<Id>,
    },
    /// What became of events that the peer sent.
    Ingested {
        /// The subscription that they came for.
        subscription: String,
        /// Each event, in any order.
        events: Vec<Settled>,
        /// How long all of them are.
        bytes: usize,
    },
    /// It is done.
    Finished,
    /// The answer to a challenge.
    Signed {
        /// The event's id.
        id: Id,
        /// The event.
        json: String,
    },
    /// Our own side cannot go on.
    Failed(String),
}

/// An event of ours that is to be sent.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// Its id.
    pub id: Id,
    /// Its kind.
    pub kind: u16,
    /// The event.
    pub json: String,
}

/// An event from the peer that has been dealt with.
#[derive(Debug, Clone)]
pub struct Settled {
    /// Its id; none when it was not asked for or names none.
    pub id: Option<Id>,
    /// When it says that it was made, in seconds.
    pub created_at: u64,
    /// What became of it.
    pub fate: Fate,
}

/// What became of an event from the peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// It is new and stored.
    Stored,
    /// We had it.
    Duplicate,
    /// Its id was noted, and nothing else was to be done.
    Noted,
    /// It is new, and was only to be compared.
    Seen(Seen),
    /// It is not kept.
    Refused(Reason),
    /// The store failed; nothing more can be kept.
    Failed(String),
}

/// What is to be known of an event that is not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Its kind.
    pub kind: u16,
    /// Its author.
    pub pubkey: [u8; 32],
}

/// How much a sync remembers of the peer; kept apart from [`SyncMark`] so that either is written
/// alone.
pub(crate) fn read_mark(from: u64, to: u64, whole_at: u64) -> SyncMark {
    SyncMark { equal_up_to: None, read: Some(ReadMark { from, to, whole_at }) }
}
