//! One walk along an index, with checks of the conditions that the index does not cover.

use super::hit::Hit;
use crate::read_pool::ReadTransaction;
use crate::{StoreError, sqlite_error};
use negsync_nostr::{Filter, TagKey};
use negsync_reconcile::Item;
use rusqlite::{OptionalExtension, Row, ToSql, params};
use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::ControlFlow;

/// The column of the kind in every walk.
const KIND_COLUMN: usize = 3;
/// The column of the JSON in [`Walk::run_with_json`].
pub(crate) const JSON_COLUMN: usize = 4;
/// Maximum number of tag values that are looked up for a row one by one; for more, the event's own
/// tags are read.
const TAGS_TRIED: usize = 8;
/// Rows for which the check of the other tags is remembered. An event comes once for each value of
/// the list that is walked.
const CHECKED_ROWS: usize = 65_536;

/// The index that a scan walks. The conditions that it does not cover are checked event by event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ScanIndex<'filter> {
    Ids(&'filter [[u8; 32]]),
    /// The tag list at this position in [`Filter::tags`].
    Tag(usize, &'filter [TagKey]),
    Authors(&'filter [[u8; 32]]),
    Kinds(&'filter [u16]),
    Time,
}

impl ScanIndex<'_> {
    /// The number of values that are looked up.
    pub(super) fn values(&self) -> usize {
        match self {
            Self::Ids(ids) => ids.len(),
            Self::Tag(_, keys) => keys.len(),
            Self::Authors(authors) => authors.len(),
            Self::Kinds(kinds) => kinds.len(),
            Self::Time => 1,
        }
    }
}

/// Called by a walk with each matching event.
pub(crate) type Visit<'visit> =
    dyn FnMut(Hit, &Row<'_>) -> Result<ControlFlow<()>, StoreError> + 'visit;

/// One walk along an index: all rows with the same leading columns, newest first.
pub(crate) struct Walk<'run> {
    pub(super) read: &'run ReadTransaction<'run>,
    pub(super) filter: &'run Filter,
    pub(super) source: ScanIndex<'run>,
    pub(super) sql: &'run str,
    pub(super) key: &'run [&'run dyn ToSql],
    pub(super) checked: &'run RefCell<HashMap<i64, bool>>,
}

impl Walk<'_> {
    /// Calls `visit` with each match that is not older than `since`, until it breaks off.
    pub(crate) fn run(
        &self,
        since: u64,
        visit: &mut Visit<'_>,
    ) -> Result<ControlFlow<()>, StoreError> {
        self.select(self.sql, since, visit)
    }

    /// Like [`Walk::run`], reading each event whole; only if `is_one_walk` holds. SQLite reads all
    /// selected columns of a row before it returns the row, so the SQL itself excludes the kinds
    /// that are left out.
    pub(crate) fn run_with_json(
        &self,
        since: u64,
        visit: &mut Visit<'_>,
    ) -> Result<ControlFlow<()>, StoreError> {
        let mut sql = self.sql.replacen(" FROM event", ", json FROM event", 1);
        if !self.filter.without_kinds.is_empty() {
            let kinds: Vec<String> =
                self.filter.without_kinds.iter().map(ToString::to_string).collect();
            let condition = format!("WHERE kind NOT IN ({}) AND ", kinds.join(","));
            sql = sql.replacen("WHERE ", &condition, 1);
        }
        self.select(&sql, since, visit)
    }

    fn select(
        &self,
        sql: &str,
        since: u64,
        visit: &mut Visit<'_>,
    ) -> Result<ControlFlow<()>, StoreError> {
        let until = self.filter.until.unwrap_or(i64::MAX as u64) as i64;
        let since = since as i64;
        let mut statement = self.read.prepare_cached(sql).map_err(StoreError::sqlite)?;
        let times: [&dyn ToSql; 2] = [&since, &until];
        let bound = times.iter().chain(self.key);
        let mut rows =
            statement.query(rusqlite::params_from_iter(bound)).map_err(StoreError::sqlite)?;
        while let Some(row) = rows.next().map_err(StoreError::sqlite)? {
            let hit = read_hit(row).map_err(StoreError::sqlite)?;
            if self.has_the_rest(row, &hit)? && visit(hit, row)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Checks the conditions that the index does not cover.
    fn has_the_rest(&self, row: &Row<'_>, hit: &Hit) -> Result<bool, StoreError> {
        let Filter { kinds, ids, authors, without_kinds, .. } = self.filter;
        let knows_kind = match self.source {
            ScanIndex::Authors(_) | ScanIndex::Kinds(_) | ScanIndex::Tag(..) => true,
            ScanIndex::Ids(_) | ScanIndex::Time => kinds.is_none() && without_kinds.is_empty(),
        };
        if !knows_kind && !self.filter.takes_kind(row.get(KIND_COLUMN).map_err(StoreError::sqlite)?)
        {
            return Ok(false);
        }
        if let Some(ids) = ids
            && !matches!(self.source, ScanIndex::Ids(_))
            && ids.binary_search(&hit.item.id).is_err()
        {
            return Ok(false);
        }
        if let Some(authors) = authors
            && !matches!(self.source, ScanIndex::Authors(_))
            && !self.is_by(hit, authors).map_err(StoreError::sqlite)?
        {
            return Ok(false);
        }
        self.has_tags(row, hit)
    }

    fn is_by(&self, hit: &Hit, authors: &[[u8; 32]]) -> rusqlite::Result<bool> {
        let author: Option<[u8; 32]> = self
            .read
            .prepare_cached("SELECT pubkey FROM event WHERE row = ?1")?
            .query_row([hit.row], |row| row.get(0))
            .optional()?;
        Ok(author.is_some_and(|author| authors.binary_search(&author).is_ok()))
    }

    /// Whether the event has a key of each tag list that the index does not cover.
    fn has_tags(&self, row: &Row<'_>, hit: &Hit) -> Result<bool, StoreError> {
        let is_decided =
            |place: &usize| matches!(self.source, ScanIndex::Tag(walked, _) if walked == *place);
        let lists = self.filter.tags.iter().enumerate().filter(|(place, _)| !is_decided(place));
        let lists: Vec<&[TagKey]> = lists.map(|(_, keys)| keys.as_slice()).collect();
        match lists.iter().map(|keys| keys.len()).sum() {
            0 => Ok(true),
            1..=TAGS_TRIED => self.is_tagged(row, hit, &lists).map_err(StoreError::sqlite),
            _ => self.is_tagged_by_json(hit, lists),
        }
    }

    /// Looks the keys up until one of each list is found.
    fn is_tagged(&self, row: &Row<'_>, hit: &Hit, lists: &[&[TagKey]]) -> rusqlite::Result<bool> {
        let kind: u16 = row.get(KIND_COLUMN)?;
        let created_at = hit.item.created_at as i64;
        let mut tagged = self.read.prepare_cached(
            "SELECT 1 FROM tag WHERE key = ?1 AND kind = ?2 AND created_at = ?3 AND id = ?4",
        )?;
        'lists: for keys in lists {
            for key in *keys {
                if tagged.exists(params![key.as_bytes(), kind, created_at, hit.item.id])? {
                    continue 'lists;
                }
            }
            return Ok(false);
        }
        Ok(true)
    }

    /// Parses the tags of the event once, and searches for each of them in the lists.
    fn is_tagged_by_json(&self, hit: &Hit, mut lists: Vec<&[TagKey]>) -> Result<bool, StoreError> {
        if let Some(is_tagged) = self.checked.borrow().get(&hit.row) {
            return Ok(*is_tagged);
        }
        self.read.deadline().check()?;
        let mut has_tags =
            |row: &Row<'_>| Ok(negsync_nostr::has_tags(&sqlite_error::text(row, 0)?, &mut lists));
        let is_tagged = self
            .read
            .prepare_cached("SELECT json FROM event WHERE row = ?1")
            .and_then(|mut select| select.query_row([hit.row], &mut has_tags).optional())
            .map_err(StoreError::sqlite)?
            .unwrap_or(false);
        let mut checked = self.checked.borrow_mut();
        if checked.len() >= CHECKED_ROWS {
            checked.clear();
        }
        checked.insert(hit.row, is_tagged);
        Ok(is_tagged)
    }
}

fn read_hit(row: &Row<'_>) -> rusqlite::Result<Hit> {
    Ok(Hit { item: Item::new(row.get::<_, i64>(0)? as u64, row.get(1)?), row: row.get(2)? })
}
