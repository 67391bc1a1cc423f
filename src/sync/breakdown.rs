//! Differences grouped by day, kind or author.

use super::machine::{Seen, Settled};
use crate::hex;
use crate::reconcile::{Difference, DifferenceCount};
use crate::store::DAY_S;
use crate::store::{Event, EventSource, StoreError};
use crate::utc;
use serde::{Serialize, Serializer};
use std::collections::{BTreeMap, HashSet};
use std::num::NonZeroU64;

/// Length of the ranges for differences by day, in seconds.
pub(super) const BUCKET_S: NonZeroU64 = NonZeroU64::new(DAY_S).unwrap();
/// Maximum number of events to request from the peer for their kinds and authors.
const MOST_LOOKED_AT: usize = 100_000;

/// The grouping of differences.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum By {
    /// The day of `created_at`, in UTC. The reconciliation alone finds it.
    #[default]
    Day,
    /// The kind. Events that only the peer has are requested, but not stored.
    Kind,
    /// The author. Events that only the peer has are requested, but not stored.
    Author,
}

/// The common property of a row's events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// The first second of a day, in UTC.
    Day(u64),
    /// A kind.
    Kind(u16),
    /// An author's public key.
    Author([u8; 32]),
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Day(second) => f.write_str(&utc::date(*second)),
            Self::Kind(kind) => write!(f, "{kind}"),
            Self::Author(pubkey) => f.write_str(&hex::encode(pubkey)),
        }
    }
}

impl Serialize for Key {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl By {
    fn key(self, created_at: u64, kind: u16, pubkey: [u8; 32]) -> Key {
        match self {
            Self::Day => Key::Day(created_at - created_at % DAY_S),
            Self::Kind => Key::Kind(kind),
            Self::Author => Key::Author(pubkey),
        }
    }
}

/// The differences, row by row.
#[derive(Debug, Clone, Default)]
pub struct Rows(pub(super) BTreeMap<Key, DifferenceCount>);

impl Rows {
    fn add(&mut self, key: Key, have: u64, need: u64) {
        let row = self.0.entry(key).or_default();
        row.have += have;
        row.need += need;
    }

    /// Counts an event that only the peer has.
    pub(super) fn add_theirs(&mut self, by: By, created_at: u64, seen: Seen) {
        self.add(by.key(created_at, seen.kind, seen.pubkey), 0, 1);
    }

    fn merge(&mut self, other: Self) {
        for (key, DifferenceCount { have, need }) in other.0 {
            self.add(key, have, need);
        }
    }
}

/// The rows of one pass.
#[derive(Debug)]
pub(super) struct Breakdown {
    pub(super) by: By,
    pub(super) rows: Rows,
    /// Events that only the peer has and that were not requested.
    pub(super) unseen: u64,
    /// Requested events that have not come yet.
    awaited: HashSet<[u8; 32]>,
    /// The differences of the current session; only a complete session counts.
    session: Difference,
}

/// Ids of a complete session that are to be looked up.
pub(super) struct ToLookUp {
    /// Events of our own side.
    pub(super) have: Vec<[u8; 32]>,
    /// Events to request from the peer.
    pub(super) need: Vec<[u8; 32]>,
}

impl Breakdown {
    pub(super) fn new(by: By) -> Self {
        Self {
            by,
            rows: Rows::default(),
            unseen: 0,
            awaited: HashSet::new(),
            session: Difference::new(),
        }
    }

    /// Begins a session. Drops the differences of an unfinished one, which will be found again.
    pub(super) fn begin_session(&mut self) {
        self.session = Difference::new();
    }

    /// Adds the differences of one answer.
    pub(super) fn found(&mut self, found: &Difference) {
        match self.by {
            By::Day => {
                for (start, differences) in &found.time_buckets {
                    let cell = self.session.time_buckets.entry(*start).or_default();
                    cell.have += differences.have;
                    cell.need += differences.need;
                }
            }
            By::Kind | By::Author => {
                self.session.have.extend(&found.have);
                self.session.need.extend(&found.need);
            }
        }
    }

    /// Ends a complete session.
    pub(super) fn end_session(&mut self) -> ToLookUp {
        let Difference { have, mut need, time_buckets: cells } = std::mem::take(&mut self.session);
        for (start, DifferenceCount { have, need }) in cells {
            self.rows.add(Key::Day(start), have, need);
        }
        let room = MOST_LOOKED_AT.saturating_sub(self.awaited.len());
        self.unseen += need.len().saturating_sub(room) as u64;
        need.truncate(room);
        self.awaited.extend(&need);
        ToLookUp { have, need }
    }

    /// Counts a requested event; `false` if it was not requested.
    pub(super) fn looked_at(&mut self, event: &Settled, seen: Seen) -> bool {
        let awaited = event.id.is_some_and(|id| self.awaited.remove(&id));
        if awaited {
            self.rows.add_theirs(self.by, event.created_at, seen);
        }
        awaited
    }

    pub(super) fn merge(&mut self, rows: Rows) {
        self.rows.merge(rows);
    }

    /// Ends the pass: no more events come.
    pub(super) fn finish(&mut self) {
        self.unseen += self.awaited.drain().count() as u64;
    }
}

/// The rows of events that only we have.
pub(super) fn of_ours(
    source: &dyn EventSource,
    by: By,
    ids: &[[u8; 32]],
) -> Result<Rows, StoreError> {
    let mut rows = Rows::default();
    source.events(ids, &mut |item, json| {
        // A stored event can always be parsed.
        if by == By::Day {
            rows.add(by.key(item.created_at, 0, [0; 32]), 1, 0);
        } else if let Ok(event) = Event::parse(json) {
            rows.add(by.key(item.created_at, event.kind(), *event.pubkey()), 1, 0);
        }
    })?;
    Ok(rows)
}
