//! Which index answers a filter: the one with the fewest rows, as far as a bounded look can tell.

use super::walk::ScanIndex;
use super::walks::each_walk;
use crate::StoreError;
use crate::read_pool::ReadTransaction;
use negsync_nostr::Filter;
use std::ops::ControlFlow;

/// How many rows and walks are looked at to tell which of a filter's indexes has the fewest: a
/// longer look begins once all of a shorter one were too long. The indexes share the longest look.
const LOOKS: [usize; 4] = [64, 1_024, 16_384, 262_144];
/// With a list of so many values it can be cheaper to walk what another condition leaves.
const LONG_LIST: usize = 256;

/// How much of a filter's answer is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    /// All of it: each row of the index that is walked is read.
    Whole,
    /// The newest: a walk may end long before its index does.
    Newest,
}

/// Takes the index that has the fewest rows for the filter, as far as a bounded look can tell.
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

/// The indexes that can answer the filter; the first is the likeliest to be short. Without long
/// lists an index of kinds or of time is never the shorter one: the others are narrowed by both.
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

/// Counts the source's rows and walks, up to `most`.
fn look_at(
    read: &ReadTransaction<'_>,
    filter: &Filter,
    source: ScanIndex<'_>,
    most: usize,
) -> Result<usize, StoreError> {
    // Without the other conditions: they would be looked up row by row.
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
