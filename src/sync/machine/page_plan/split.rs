//! Splits a second that may hold more than a page: by kind, then by author.

use super::super::Id;
use super::part::{Level, Part};
use super::{MOST_VALUES, PageEvent, PagePlan};
use crate::sync::filter::{PeerFilter, Window};
use std::collections::{BTreeSet, HashSet};

/// Maximum number of seconds that are split; further ones are gaps.
const MOST_SPLIT_SECONDS: u32 = 64;
/// The same for a peer with a rate limit on questions: each such second takes more than a hundred
/// questions.
const MOST_SPLIT_SECONDS_LIMITED: u32 = 2;
/// Maximum number of authors in one part of a second.
const AUTHORS_PER_PART: usize = 50;

impl PagePlan {
    pub(super) fn split_time(&mut self, part: Part, events: &[PageEvent]) {
        let mut times: Vec<u64> = events.iter().map(|event| event.created_at).collect();
        times.sort_unstable();
        let (first, last) = (times[0], times[times.len() - 1]);
        let (since, until) = (part.window.since, part.window.until);
        if since == until && since.is_some() {
            return self.split_second(part, first, events);
        }
        let cuts = if first == last {
            vec![first, first.saturating_add(1)]
        } else {
            let middle = times[times.len() / 2];
            vec![if middle > first { middle } else { middle + 1 }]
        };
        let mut from = since;
        for cut in cuts {
            let window = Window { since: from, until: cut.checked_sub(1) };
            if cut > 0 {
                self.push(part.filter.clone(), window, Level::Time, HashSet::new());
            }
            from = Some(cut);
        }
        self.push(part.filter, Window { since: from, until }, Level::Time, HashSet::new());
    }

    /// Splits a second that may hold more than a page by kinds, and a second of one kind by
    /// authors. The parts have to show the events of the page again.
    pub(super) fn split_second(&mut self, part: Part, second: u64, events: &[PageEvent]) {
        let window = Window { since: Some(second), until: Some(second) };
        match &part.level {
            Level::Time => {
                self.split_seconds += 1;
                let most =
                    if self.is_limited { MOST_SPLIT_SECONDS_LIMITED } else { MOST_SPLIT_SECONDS };
                if self.split_seconds > most {
                    return self.gap(window, None, "too many seconds that hold more than a page");
                }
                let kinds = part.filter.parsed().kinds.clone();
                let kinds = kinds.unwrap_or_else(|| (0..=u16::MAX).collect());
                self.split_kinds(&part.filter, window, kinds.into_iter().collect(), events);
            }
            Level::Kinds(kinds) if kinds.len() > 1 => {
                self.split_kinds(&part.filter, window, kinds.iter().copied().collect(), events);
            }
            Level::Kinds(kinds) => {
                let kind = kinds.first().copied();
                self.split_authors(&part.filter, window, kind, events);
            }
            Level::Authors => {
                let authors = part.filter.parsed().authors.clone().unwrap_or_default();
                let authors: Vec<[u8; 32]> = authors.into_iter().collect();
                if authors.len() <= 1 {
                    let kind = events.first().map(|event| event.kind);
                    return self.gap(window, kind, "one author has more events than a page");
                }
                let most = authors.len().div_ceil(2);
                self.push_authors(&part.filter, window, authors.chunks(most), events);
            }
        }
    }

    fn split_kinds(
        &mut self,
        filter: &PeerFilter,
        window: Window,
        kinds: BTreeSet<u16>,
        events: &[PageEvent],
    ) {
        let seen: BTreeSet<u16> = events.iter().map(|event| event.kind).collect();
        let (alone, rest): (Vec<u16>, Vec<u16>) =
            kinds.into_iter().partition(|kind| seen.contains(kind));
        let most = if rest.len() > MOST_VALUES { MOST_VALUES } else { rest.len().max(1) };
        // More than a hundred questions about kinds that were not seen are worth a proof only.
        let is_worth_it = rest.len() <= MOST_VALUES || self.gaps.is_empty();
        if !is_worth_it {
            self.gap(window, None, "one second holds more events than a page");
        }
        let rest = rest.chunks(most).filter(|_| is_worth_it);
        let parts = rest.map(<[u16]>::to_vec).chain(alone.into_iter().map(|k| vec![k]));
        for kinds in parts {
            let narrow = filter.with_kinds(&kinds);
            let carry = ids(events, |event| kinds.contains(&event.kind));
            self.push(narrow, window, Level::Kinds(kinds), carry);
        }
    }

    /// Splits by authors. This is complete if the filter names its authors; otherwise the second is
    /// a gap, of which the known authors are read.
    fn split_authors(
        &mut self,
        filter: &PeerFilter,
        window: Window,
        kind: Option<u16>,
        events: &[PageEvent],
    ) {
        let named = filter.parsed().authors.clone();
        let authors: Vec<[u8; 32]> = match named {
            Some(authors) => authors.into_iter().collect(),
            None => {
                self.gap(window, kind, "one second holds more events of one kind than a page");
                self.authors.iter().copied().collect()
            }
        };
        self.push_authors(filter, window, authors.chunks(AUTHORS_PER_PART), events);
    }

    fn push_authors<'authors>(
        &mut self,
        filter: &PeerFilter,
        window: Window,
        parts: impl Iterator<Item = &'authors [[u8; 32]]>,
        events: &[PageEvent],
    ) {
        for authors in parts {
            let carry = ids(events, |event| authors.contains(&event.pubkey));
            self.push(filter.with_authors(authors), window, Level::Authors, carry);
        }
    }
}

/// The ids of the events that are in a part.
fn ids(events: &[PageEvent], is_in: impl Fn(&PageEvent) -> bool) -> HashSet<Id> {
    events.iter().filter(|event| is_in(event)).map(|event| event.id).collect()
}
