//! The kinds to search for under an author or a tag.

use crate::StoreError;
use crate::read_pool::ReadTransaction;
use crate::viewer::KINDS_TRIED;
use negsync_nostr::Filter;
use rusqlite::{OptionalExtension, ToSql, params};
use std::ops::{ControlFlow, RangeInclusive};

/// The kinds that a filter accepts, as spans. Excluded kinds are in no span, so a search for the
/// next kind does not meet them.
pub(super) enum KindSpans<'filter> {
    /// Few kinds: each is searched for.
    Each(Vec<u16>),
    /// Many kinds: only those that exist under the tag or author are searched for.
    Within(Vec<RangeInclusive<u16>>, &'filter Filter),
}

impl<'filter> KindSpans<'filter> {
    pub(super) fn of(filter: &'filter Filter) -> Self {
        let (first, last) = match &filter.kinds {
            Some(kinds) if kinds.len() <= KINDS_TRIED => {
                let taken = kinds.iter().copied().filter(|kind| filter.takes_kind(*kind));
                return Self::Each(taken.collect());
            }
            Some(kinds) => (kinds.first().map_or(0, |it| *it), kinds.last().map_or(0, |it| *it)),
            None => (0, u16::MAX),
        };
        let mut spans = Vec::new();
        let mut next = Some(first);
        for kind in filter.without_kinds.iter().filter(|kind| (first..=last).contains(kind)) {
            if let (Some(from), Some(to)) = (next, kind.checked_sub(1))
                && from <= to
            {
                spans.push(from..=to);
            }
            next = kind.checked_add(1);
        }
        spans.extend(next.filter(|from| *from <= last).map(|from| from..=last));
        Self::Within(spans, filter)
    }

    /// Calls `run` with each kind that may have events under `key`, until it breaks off.
    pub(super) fn each(
        &self,
        read: &ReadTransaction<'_>,
        next_kind: &str,
        key: &dyn ToSql,
        mut run: impl FnMut(u16) -> Result<ControlFlow<()>, StoreError>,
    ) -> Result<ControlFlow<()>, StoreError> {
        let (spans, filter) = match self {
            Self::Each(kinds) => return each(kinds, |kind| run(*kind)),
            Self::Within(spans, filter) => (spans, filter),
        };
        for span in spans {
            let (mut next, last) = (Some(*span.start()), *span.end());
            while let Some(from) = next.filter(|from| *from <= last) {
                let mut select = read.prepare_cached(next_kind).map_err(StoreError::sqlite)?;
                let kind = select.query_row(params![key, from, last], |row| row.get::<_, u16>(0));
                let Some(kind) = kind.optional().map_err(StoreError::sqlite)? else { break };
                if filter.takes_kind(kind) && run(kind)?.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
                next = kind.checked_add(1);
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}

/// Calls `run` with each value, until it breaks off.
pub(super) fn each<T>(
    values: impl IntoIterator<Item = T>,
    mut run: impl FnMut(T) -> Result<ControlFlow<()>, StoreError>,
) -> Result<ControlFlow<()>, StoreError> {
    for value in values {
        if run(value)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
}
