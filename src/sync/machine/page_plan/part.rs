//! A part of a reading: what one request asks for, and what its page has to show.

use super::super::Id;
use super::{PageEvent, ShownPart};
use crate::sync::filter::{PeerFilter, Window};
use std::collections::HashSet;

/// A part that is still to be read.
#[derive(Debug, Clone)]
pub(super) struct Part {
    /// Restricted to kinds, authors or values; its times are those of `window`.
    pub(super) filter: PeerFilter,
    pub(super) window: Window,
    pub(super) level: Level,
    /// Ids of the second `window.until` that earlier pages showed.
    pub(super) carry: HashSet<Id>,
    /// Whether this part is the rest of a page: nothing new is expected, unless the page was cut.
    pub(super) follows: bool,
    /// The number of events on that page; 0 if the peer said that it was cut.
    pub(super) above: usize,
    pub(super) is_closing: bool,
    /// Whether the previous page claimed to be the last (NIP-67): this part verifies that.
    pub(super) checks_finish: bool,
    /// Whether this part verifies the announced maximum: it must show nothing new.
    pub(super) checks_limit: bool,
}

impl Part {
    /// A part that no page has told anything about.
    pub(super) fn new(
        filter: PeerFilter,
        window: Window,
        level: Level,
        carry: HashSet<Id>,
    ) -> Self {
        Self {
            filter,
            window,
            level,
            carry,
            follows: false,
            above: 0,
            is_closing: false,
            checks_finish: false,
            checks_limit: false,
        }
    }

    /// The part within `window`, which `events` show completely.
    pub(super) fn shown(&self, window: Window, events: &[PageEvent]) -> ShownPart {
        let shown = events.iter().map(|event| event.id);
        let theirs = shown.chain(self.carry.iter().copied()).collect();
        ShownPart { filter: self.filter.within(window), theirs }
    }

    /// Whether the page has an event that no earlier page showed.
    pub(super) fn has_new(&self, events: &[PageEvent]) -> bool {
        events.iter().any(|event| !self.carry.contains(&event.id))
    }

    /// Whether a page of a part of one second lacks events of it that an earlier page showed: the
    /// page was cut.
    pub(super) fn lacks_shown(&self, events: &[PageEvent]) -> bool {
        if self.level == Level::Time || self.carry.is_empty() {
            return false;
        }
        let ids: HashSet<Id> = events.iter().map(|event| event.id).collect();
        !self.carry.is_subset(&ids)
    }
}

/// How a part was split.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Level {
    Time,
    Kinds(Vec<u16>),
    Authors,
}
