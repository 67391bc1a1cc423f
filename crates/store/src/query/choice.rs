//! Chooses the index for a filter: the one with the fewest rows, as far as a bounded count can
//! tell.

use super::walk::ScanIndex;
use super::walks::each_walk;
use crate::StoreError;
use crate::read_pool::ReadTransaction;
use negsync_nostr::Filter;
use std::ops::ControlFlow;

/// Rows and walks counted to find the index with the fewest rows. A longer count begins once all
/// indexes exceeded the shorter one. The indexes share the longest count.
const LOOKS: [usize; 4] = [64, 1_024, 16_384, 262_144];
/// From this number of values in a list on, walking the index of another condition may be cheaper.
const LONG_LIST: usize = 256;

/// The part of a filter's events that is requested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    /// All events: each row of the chosen index is read.
    Whole,
    /// The newest events: a walk may end long before its index does.
    Newest,
}

/// Chooses the index with the fewest rows for the filter, as far as a bounded count can tell.
pub(crate) fn choose<'filter>(
    read: &ReadTransaction<'_>,
    filter: &'filter Filter,
    extent: Extent,
) -> Result<ScanIndex<'filter>, StoreError> {
    let candidates = candidates(filter);
    let [first, others @ ..] = candidates.as_slice() else { return Ok(ScanIndex::Time) };
    if others.is_empty() {
        return Ok(*first);
    }
    let looks = match extent {
        Extent::Whole => LOOKS.as_slice(),
        Extent::Newest => LOOKS.get(..2).unwrap_or_default(),
    };
    for look in looks {
        let most = if *look > 1_024 { look / candidates.len() } else { *look };
        let mut best = None;
        for candidate in &candidates {
            let most = best.map_or(most, |(steps, _)| steps);
            let steps = look_at(read, filter, *candidate, most)?;
            if steps < most {
                best = Some((steps, *candidate));
            }
        }
        if let Some((_, source)) = best {
            return Ok(source);
        }
    }
    Ok(*first)
}

/// The indexes that can answer the filter, the most selective one (probably) first. Without long
/// lists an index of kinds or of time is never the shorter one, because the others include both.
fn candidates(filter: &Filter) -> Vec<ScanIndex<'_>> {
    let ids = filter.ids.as_deref().map(ScanIndex::Ids);
    let authors = filter.authors.as_deref().map(ScanIndex::Authors);
    let tags = filter.tags.iter().enumerate().map(|(place, keys)| ScanIndex::Tag(place, keys));
    let mut candidates: Vec<ScanIndex<'_>> = ids.into_iter().chain(authors).chain(tags).collect();
    let kinds = filter.kinds.as_deref().map(ScanIndex::Kinds);
    let longest = candidates.iter().map(|it| it.values()).max();
    if longest.is_none_or(|longest| longest > LONG_LIST) {
        candidates.extend(kinds);
        let kinds = filter.kinds.as_ref().map_or(0, Vec::len);
        if filter.since.is_some() && longest.unwrap_or(0).max(kinds) > LONG_LIST {
            candidates.push(ScanIndex::Time);
        }
    }
    candidates
}

/// Counts the rows and walks of the index, up to `most`.
fn look_at(
    read: &ReadTransaction<'_>,
    filter: &Filter,
    source: ScanIndex<'_>,
    most: usize,
) -> Result<usize, StoreError> {
    // Without the other conditions, which would be checked row by row.
    let bare = Filter {
        kinds: filter.kinds.clone(),
        without_kinds: filter.without_kinds.clone(),
        since: filter.since,
        until: filter.until,
        ..Filter::default()
    };
    let mut steps = 0;
    let mut step = || {
        steps += 1;
        if steps < most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    each_walk(read, &bare, source, |walk| {
        if step().is_break() {
            return Ok(ControlFlow::Break(()));
        }
        walk.run(bare.since.unwrap_or(0), &mut |_, _| Ok(step()))
    })?;
    Ok(steps)
}
