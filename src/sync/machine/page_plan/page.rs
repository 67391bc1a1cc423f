//! Pages, and the ranges that remain unseen.

use super::Id;
use crate::sync::filter::PeerFilter;
use serde::Serialize;
use std::collections::HashSet;

/// The hint beside an EOSE (NIP-67).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hint {
    None,
    Finish,
    More,
}

/// The readable fields of an event on a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PageEvent {
    pub(crate) id: Id,
    pub(crate) created_at: u64,
    pub(crate) kind: u16,
    pub(crate) pubkey: [u8; 32],
    /// Whether this sync sent it to the peer.
    pub(crate) is_ours: bool,
}

/// A page in the order of arrival.
#[derive(Debug, Clone)]
pub(crate) struct Page {
    pub(crate) events: Vec<PageEvent>,
    pub(crate) hint: Hint,
    /// The number of events that do not match the filter.
    pub(crate) foreign: u64,
}

/// A time range, perhaps of one kind only, that the peer did not show completely.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unseen {
    /// The first second; `None` if unbounded.
    pub since: Option<u64>,
    /// The last second; `None` if unbounded.
    pub until: Option<u64>,
    /// The kind; `None` for all kinds of the filter.
    pub kind: Option<u16>,
    /// Why it was not seen.
    pub why: &'static str,
}

impl std::fmt::Display for Unseen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.since, self.until) {
            (Some(since), Some(until)) if since == until => write!(f, "second {since}")?,
            (Some(since), Some(until)) => write!(f, "seconds {since} to {until}")?,
            (Some(since), None) => write!(f, "since {since}")?,
            (None, Some(until)) => write!(f, "up to {until}")?,
            (None, None) => f.write_str("anything")?,
        }
        if let Some(kind) = self.kind {
            write!(f, ", kind {kind}")?;
        }
        write!(f, ": {}", self.why)
    }
}

/// A part of the filter that the peer has shown completely, with all its ids.
#[derive(Debug)]
pub(crate) struct ShownPart {
    pub(crate) filter: PeerFilter,
    pub(crate) theirs: HashSet<Id>,
}
