//! The walks that answer a filter from one index.

use super::expired::Expired;
use super::kind_spans::{KindSpans, each};
use super::walk::{ScanIndex, Walk};
use crate::read_pool::ReadTransaction;
use crate::{StoreError, private_times};
use negsync_nostr::Filter;
use rusqlite::types::Value;
use rusqlite::{ToSql, params};
use std::cell::RefCell;
use std::cmp::Reverse;
use std::ops::{ControlFlow, RangeInclusive};
use std::rc::Rc;

const BY_ID: &str = "SELECT created_at, id, row, kind FROM event
    WHERE id = ?3 AND created_at BETWEEN ?1 AND ?2";
const BY_TAG: &str = "SELECT created_at, id, event, kind FROM tag
    WHERE key = ?3 AND kind = ?4 AND created_at BETWEEN ?1 AND ?2 ORDER BY created_at DESC";
pub(super) const BY_AUTHOR: &str =
    "SELECT created_at, id, row, kind FROM event INDEXED BY event_author
    WHERE pubkey = ?3 AND kind = ?4 AND created_at BETWEEN ?1 AND ?2 ORDER BY created_at DESC";
const BY_KIND: &str = "SELECT created_at, id, row, kind FROM event INDEXED BY event_kind
    WHERE kind = ?3 AND created_at BETWEEN ?1 AND ?2 ORDER BY created_at DESC";

/// The next kind with events under a tag or an author.
const KIND_OF_TAG: &str =
    "SELECT kind FROM tag WHERE key = ?1 AND kind BETWEEN ?2 AND ?3 ORDER BY kind LIMIT 1";
const KIND_OF_AUTHOR: &str = "SELECT kind FROM event INDEXED BY event_author
    WHERE pubkey = ?1 AND kind BETWEEN ?2 AND ?3 ORDER BY kind LIMIT 1";

/// The time of the newest event of each author and kind, in one run of a statement.
const NEWEST_OF_AUTHORS: &str = "SELECT author.value, of_kind.value,
    (SELECT created_at FROM event INDEXED BY event_author
        WHERE pubkey = author.value AND kind = of_kind.value AND created_at BETWEEN ?3 AND ?4
        ORDER BY created_at DESC LIMIT 1)
    FROM rarray(?1) AS author CROSS JOIN rarray(?2) AS of_kind";

/// Calls `run` for each walk along the index, until it breaks off: one for each value, or one for
/// each pair of a value and a kind.
pub(crate) fn each_walk(
    read: &ReadTransaction<'_>,
    filter: &Filter,
    source: ScanIndex<'_>,
    mut run: impl FnMut(Walk<'_>) -> Result<ControlFlow<()>, StoreError>,
) -> Result<(), StoreError> {
    let checked = RefCell::default();
    let mut walk = |sql: &str, key: &[&dyn ToSql]| {
        run(Walk { read, filter, source, sql, key, checked: &checked })
    };
    let is_taken = |kind: &&u16| filter.takes_kind(**kind);
    let walked = match source {
        ScanIndex::Time => {
            each(private_times::walks(read, filter).map_err(StoreError::sqlite)?.iter(), |sql| {
                walk(sql, &[])
            })
        }
        ScanIndex::Ids(ids) => each(ids, |id| walk(BY_ID, &[id])),
        ScanIndex::Kinds(kinds) => {
            each(kinds.iter().filter(is_taken), |kind| walk(BY_KIND, &[kind]))
        }
        ScanIndex::Tag(_, keys) => {
            let spans = KindSpans::of(filter);
            each(keys, |key| {
                spans.each(read, KIND_OF_TAG, &key.as_bytes(), |kind| {
                    walk(BY_TAG, &[&key.as_bytes(), &kind])
                })
            })
        }
        ScanIndex::Authors(authors) => {
            let spans = KindSpans::of(filter);
            each(authors, |author| {
                spans.each(read, KIND_OF_AUTHOR, author, |kind| walk(BY_AUTHOR, &[author, &kind]))
            })
        }
    };
    walked.map(|_| ())
}

/// Like [`each_walk`], for the newest `most` events. If there are more walks than that, they come
/// in the order of their newest events, and walks that cannot contribute are left out. `run` also
/// gets the time of the walk's newest event, and the time before which no event can matter.
pub(crate) fn each_walk_newest_first(
    read: &ReadTransaction<'_>,
    filter: &Filter,
    source: ScanIndex<'_>,
    most: usize,
    expired: &Expired,
    mut run: impl FnMut(RangeInclusive<u64>, Walk<'_>) -> Result<ControlFlow<()>, StoreError>,
) -> Result<(), StoreError> {
    let kinds = KindSpans::of(filter);
    let is_decided = filter.tags.is_empty() && filter.ids.is_none() && !expired.any();
    let (ScanIndex::Authors(authors), KindSpans::Each(kinds), true) = (source, kinds, is_decided)
    else {
        return each_walk(read, filter, source, |walk| run(0..=u64::MAX, walk));
    };
    if authors.len().saturating_mul(kinds.len()) <= most {
        return each_walk(read, filter, source, |walk| run(0..=u64::MAX, walk));
    }
    let walks = newest_of_authors(read, filter, authors, &kinds).map_err(StoreError::sqlite)?;
    // This many walks have an event of this time or later, so no earlier event is among the newest.
    let since = walks.get(most).map_or(0, |(newest, ..)| *newest);
    let checked = RefCell::default();
    for (newest, author, kind) in walks.iter().take_while(|(newest, ..)| *newest >= since) {
        let key: [&dyn ToSql; 2] = [author, kind];
        let walk = Walk { read, filter, source, sql: BY_AUTHOR, key: &key, checked: &checked };
        if run(since..=*newest, walk)?.is_break() {
            break;
        }
    }
    Ok(())
}

/// The time of the newest event of each author and kind that has one, latest first.
fn newest_of_authors(
    read: &ReadTransaction<'_>,
    filter: &Filter,
    authors: &[[u8; 32]],
    kinds: &[u16],
) -> rusqlite::Result<Vec<(u64, [u8; 32], u16)>> {
    let authors: Vec<Value> = authors.iter().map(|key| Value::Blob(key.to_vec())).collect();
    let kinds: Vec<Value> = kinds.iter().map(|kind| Value::Integer((*kind).into())).collect();
    let since = filter.since.unwrap_or(0) as i64;
    let until = filter.until.unwrap_or(i64::MAX as u64) as i64;
    let mut select = read.prepare_cached(NEWEST_OF_AUTHORS)?;
    let mut rows = select.query(params![Rc::new(authors), Rc::new(kinds), since, until])?;
    let mut walks = Vec::new();
    while let Some(row) = rows.next()? {
        if let Some(newest) = row.get::<_, Option<i64>>(2)? {
            walks.push((newest as u64, row.get(0)?, row.get(1)?));
        }
    }
    walks.sort_unstable_by_key(|(newest, ..)| Reverse(*newest));
    Ok(walks)
}

/// Whether one walk along an index on the event table covers all conditions of the filter.
pub(crate) fn is_one_walk(
    read: &ReadTransaction<'_>,
    filter: &Filter,
    source: ScanIndex<'_>,
) -> Result<bool, StoreError> {
    if !filter.tags.is_empty() || filter.ids.is_some() {
        return Ok(false);
    }
    let has_authors = filter.authors.is_some();
    Ok(match source {
        ScanIndex::Time => {
            !has_authors
                && filter.kinds.is_none()
                && private_times::walks(read, filter).map_err(StoreError::sqlite)?.len() == 1
        }
        ScanIndex::Kinds(kinds) => !has_authors && kinds.len() == 1,
        ScanIndex::Authors(authors) => {
            authors.len() == 1 && filter.kinds.as_ref().is_some_and(|kinds| kinds.len() == 1)
        }
        ScanIndex::Ids(_) | ScanIndex::Tag(..) => false,
    })
}
