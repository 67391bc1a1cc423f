//! From a filter to the index that answers it. Every scan walks a covering index in order of
//! time; events themselves are read only when they are sent.

use super::StoreError;
use super::fault;
use super::filter::{Filter, holds};
use super::tag_key::TagKey;
use crate::item::Item;
use rusqlite::{Connection, OptionalExtension, Row, ToSql, params};
use std::borrow::Cow;
use std::collections::HashSet;
use std::ops::ControlFlow;

/// A stored event that a filter selects: what it is and where it lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hit {
    /// Time and id.
    pub item: Item,
    /// The event's row in the store.
    row: i64,
}

impl Hit {
    pub(super) fn row(&self) -> i64 {
        self.row
    }
}

/// The index that a scan walks. What it does not decide is checked event by event.
#[derive(Clone, Copy)]
pub(super) enum Source<'filter> {
    Ids(&'filter [[u8; 32]]),
    /// The tag list with this position in [`Filter::tags`].
    Tag(usize, &'filter [TagKey]),
    Authors(&'filter [[u8; 32]]),
    Kinds(&'filter [u16]),
    Time,
}

const BY_ID: &str = "SELECT created_at, id, row, kind FROM event
    WHERE id = ?3 AND created_at BETWEEN ?1 AND ?2";
const BY_TAG: &str = "SELECT created_at, id, event, kind FROM tag
    WHERE key = ?3 AND created_at BETWEEN ?1 AND ?2 ORDER BY created_at DESC";
const BY_AUTHOR: &str = "SELECT created_at, id, row, kind FROM event INDEXED BY event_author
    WHERE pubkey = ?3 AND kind = ?4 AND created_at BETWEEN ?1 AND ?2 ORDER BY created_at DESC";
const BY_KIND: &str = "SELECT created_at, id, row, kind FROM event INDEXED BY event_kind
    WHERE kind = ?3 AND created_at BETWEEN ?1 AND ?2 ORDER BY created_at DESC";
const BY_TIME: &str = "SELECT created_at, id, row, kind FROM event INDEXED BY event_time
    WHERE created_at BETWEEN ?1 AND ?2 ORDER BY created_at DESC";

/// Where [`Walk::run_with_json`] finds the event itself.
pub(super) const JSON_COLUMN: usize = 4;

/// So many kinds of an author are tried one by one; of a longer list only those are that the author
/// has.
const KINDS_TRIED: usize = 16;

/// How many rows are looked at to tell which of a filter's indexes has the fewest.
const PROBE_ROWS: usize = 1_000;

/// Fixes the state of the store that the open transaction reads.
pub(super) fn begin(connection: &Connection) -> Result<(), StoreError> {
    Ok(connection.prepare_cached("SELECT 1 FROM event LIMIT 1")?.exists([]).map(|_| ())?)
}

/// NIP-40: the rows of the events that expired by `now` and have not been removed yet.
pub(super) fn expired_rows(connection: &Connection, now: u64) -> Result<HashSet<i64>, StoreError> {
    let mut rows = connection.prepare_cached(
        "SELECT row FROM event WHERE expires_at IS NOT NULL AND expires_at <= ?1",
    )?;
    let rows = rows.query_map([now as i64], |row| row.get(0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Calls `visit` with every item that matches, whatever the filter's limit, in no order. An item
/// can come twice when the filter lists several values of a tag.
pub(super) fn items(
    connection: &Connection,
    filter: &Filter,
    visit: &mut dyn FnMut(Item) -> ControlFlow<()>,
) -> Result<(), StoreError> {
    if filter.is_void() {
        return Ok(());
    }
    let source = choose(connection, filter)?;
    let mut stopped = false;
    each_walk(connection, filter, source, |walk| {
        if stopped {
            return Ok(());
        }
        walk.run(filter.since.unwrap_or(0), &mut |hit, _| {
            let flow = visit(hit.item);
            stopped = flow.is_break();
            flow
        })
    })
}

/// Reads the JSON of the events in the order of `hits`, leaving out those that are gone or that
/// expired by `now`, until `visit` breaks off. Returns how many of the hits were looked at.
pub(super) fn fetch(
    connection: &Connection,
    hits: &[Hit],
    now: u64,
    visit: &mut dyn FnMut(&Item, &str) -> ControlFlow<()>,
) -> Result<usize, StoreError> {
    // A row number can be given to another event once its own is gone: compare the id as well.
    let mut statement = connection
        .prepare_cached("SELECT json, expires_at FROM event WHERE row = ?1 AND id = ?2")?;
    for (place, hit) in hits.iter().enumerate() {
        let mut rows = statement.query(params![hit.row, hit.item.id])?;
        let Some(row) = rows.next()? else { continue };
        let expires_at: Option<i64> = row.get(1)?;
        if expires_at.is_none_or(|second| second > now as i64)
            && visit(&hit.item, &fault::text(row, 0)?).is_break()
        {
            return Ok(place + 1);
        }
    }
    Ok(hits.len())
}

/// The time of the event in the middle of the table.
pub(super) fn middle_second(connection: &Connection) -> Result<Option<u64>, StoreError> {
    let second: Option<i64> = connection
        .query_row(
            "SELECT created_at FROM event WHERE row >= (SELECT max(row) / 2 FROM event)
             ORDER BY row LIMIT 1",
            [],
            |row| row.get(0),
        )
        .optional()?;
    Ok(second.map(|second| second as u64))
}

/// Takes the most selective index: ids, else whichever of the tags and authors has fewest rows,
/// else kinds, else time.
pub(super) fn choose<'filter>(
    connection: &Connection,
    filter: &'filter Filter,
) -> Result<Source<'filter>, StoreError> {
    if let Some(ids) = &filter.ids {
        return Ok(Source::Ids(ids));
    }
    let authors = filter.authors.iter().map(|authors| Source::Authors(authors));
    let tags = filter.tags.iter().enumerate().map(|(place, keys)| Source::Tag(place, keys));
    let mut candidates: Vec<Source<'filter>> = authors.chain(tags).collect();
    match (candidates.pop(), candidates.is_empty(), &filter.kinds) {
        (None, _, Some(kinds)) => Ok(Source::Kinds(kinds)),
        (None, _, None) => Ok(Source::Time),
        (Some(only), true, _) => Ok(only),
        (Some(last), false, _) => {
            let mut best = (probe(connection, filter, last)?, last);
            for candidate in candidates {
                let rows = probe(connection, filter, candidate)?;
                if rows < best.0 {
                    best = (rows, candidate);
                }
            }
            Ok(best.1)
        }
    }
}

/// Counts the source's rows, up to [`PROBE_ROWS`].
fn probe(
    connection: &Connection,
    filter: &Filter,
    source: Source<'_>,
) -> Result<usize, StoreError> {
    // Without the other conditions: they would be looked up row by row.
    let bare = match source {
        Source::Authors(_) => Filter { tags: Vec::new(), ..filter.clone() },
        _ => Filter { since: filter.since, until: filter.until, ..Filter::default() },
    };
    let mut rows = 0;
    each_walk(connection, &bare, source, |walk| {
        if rows >= PROBE_ROWS {
            return Ok(());
        }
        walk.run(bare.since.unwrap_or(0), &mut |_, _| {
            rows += 1;
            if rows < PROBE_ROWS { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })
    })?;
    Ok(rows)
}

/// Whether the source takes one walk, along an index of the events themselves that decides all that
/// the filter asks.
pub(super) fn is_one_walk(filter: &Filter, source: Source<'_>) -> bool {
    if !filter.tags.is_empty() {
        return false;
    }
    match source {
        Source::Time => true,
        Source::Kinds(kinds) => kinds.len() == 1,
        Source::Authors(authors) => {
            authors.len() == 1 && filter.kinds.as_ref().is_some_and(|kinds| kinds.len() == 1)
        }
        Source::Ids(_) | Source::Tag(..) => false,
    }
}

/// One run along an index: all rows that share its leading columns, newest first.
pub(super) struct Walk<'run> {
    connection: &'run Connection,
    filter: &'run Filter,
    source: Source<'run>,
    sql: &'static str,
    key: &'run [&'run dyn ToSql],
}

impl Walk<'_> {
    /// Calls `visit` with all that was in the filter and not before `since`, until it breaks off.
    pub(super) fn run(
        &self,
        since: u64,
        visit: &mut dyn FnMut(Hit, &Row<'_>) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        self.select(self.sql, since, visit)
    }

    /// As [`Walk::run`] for [`is_one_walk`], and each event is read whole. SQLite reads what a row is
    /// selected with before it is asked for it: the kinds that are left out are left out by it.
    pub(super) fn run_with_json(
        &self,
        since: u64,
        visit: &mut dyn FnMut(Hit, &Row<'_>) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
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
        visit: &mut dyn FnMut(Hit, &Row<'_>) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let until = self.filter.until.unwrap_or(i64::MAX as u64) as i64;
        let since = since as i64;
        let mut statement = self.connection.prepare_cached(sql)?;
        let times: [&dyn ToSql; 2] = [&since, &until];
        let bound = times.iter().chain(self.key);
        let mut rows = statement.query(rusqlite::params_from_iter(bound))?;
        while let Some(row) = rows.next()? {
            let hit = read_hit(row)?;
            if self.has_the_rest(row, &hit)? && visit(hit, row).is_break() {
                break;
            }
        }
        Ok(())
    }

    /// Checks what the index does not decide.
    fn has_the_rest(&self, row: &Row<'_>, hit: &Hit) -> Result<bool, StoreError> {
        let Filter { kinds, authors, tags, without_kinds, .. } = self.filter;
        let knows_kind = match self.source {
            Source::Authors(_) | Source::Kinds(_) => true,
            Source::Ids(_) | Source::Tag(..) | Source::Time => {
                kinds.is_none() && without_kinds.is_empty()
            }
        };
        if !knows_kind && !self.filter.takes_kind(row.get(3)?) {
            return Ok(false);
        }
        if let (Some(authors), Source::Ids(_) | Source::Tag(..)) = (authors, self.source)
            && !self.is_by(hit, authors)?
        {
            return Ok(false);
        }
        for (place, keys) in tags.iter().enumerate() {
            let decided = matches!(self.source, Source::Tag(walked, _) if walked == place);
            if !decided && !self.has_tag(hit, keys)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn is_by(&self, hit: &Hit, authors: &[[u8; 32]]) -> Result<bool, StoreError> {
        let author: Option<[u8; 32]> = self
            .connection
            .prepare_cached("SELECT pubkey FROM event WHERE row = ?1")?
            .query_row([hit.row], |row| row.get(0))
            .optional()?;
        Ok(author.is_some_and(|author| authors.binary_search(&author).is_ok()))
    }

    fn has_tag(&self, hit: &Hit, keys: &[TagKey]) -> Result<bool, StoreError> {
        let mut statement = self
            .connection
            .prepare_cached("SELECT 1 FROM tag WHERE key = ?1 AND created_at = ?2 AND id = ?3")?;
        for key in keys {
            let created_at = hit.item.created_at as i64;
            if statement.exists(params![key.as_bytes(), created_at, hit.item.id])? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Calls `run` for each walk that the source takes: one a value, or one a pair of author and kind.
pub(super) fn each_walk(
    connection: &Connection,
    filter: &Filter,
    source: Source<'_>,
    mut run: impl FnMut(Walk<'_>) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let mut walk =
        |sql: &'static str, key: &[&dyn ToSql]| run(Walk { connection, filter, source, sql, key });
    match source {
        Source::Time => walk(BY_TIME, &[]),
        Source::Ids(ids) => ids.iter().try_for_each(|id| walk(BY_ID, &[id])),
        Source::Tag(_, keys) => keys.iter().try_for_each(|key| walk(BY_TAG, &[&key.as_bytes()])),
        Source::Kinds(kinds) => {
            let mut kinds = kinds.iter().filter(|kind| filter.takes_kind(**kind));
            kinds.try_for_each(|kind| walk(BY_KIND, &[kind]))
        }
        Source::Authors(authors) => authors.iter().try_for_each(|author| {
            let kinds = match &filter.kinds {
                Some(kinds) if kinds.len() <= KINDS_TRIED => Cow::Borrowed(kinds),
                kinds => {
                    let mut own = kinds_of(connection, author)?;
                    own.retain(|kind| holds(kinds, kind));
                    Cow::Owned(own)
                }
            };
            let mut kinds = kinds.iter().filter(|kind| filter.takes_kind(**kind));
            kinds.try_for_each(|kind| walk(BY_AUTHOR, &[author, kind]))
        }),
    }
}

/// How many events there are of each kind.
pub(super) fn kinds(connection: &Connection) -> Result<Vec<(u16, u64)>, StoreError> {
    let mut select = connection
        .prepare_cached("SELECT kind, count(*) FROM event INDEXED BY event_kind GROUP BY kind")?;
    let rows =
        select.query_map([], |row| Ok((row.get(0)?, row.get::<_, i64>(1)?.unsigned_abs())))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// The kinds that an author has events of: one probe of the index a kind.
fn kinds_of(connection: &Connection, author: &[u8; 32]) -> Result<Vec<u16>, StoreError> {
    let mut next = connection.prepare_cached(
        "SELECT kind FROM event INDEXED BY event_author WHERE pubkey = ?1 AND kind > ?2
         ORDER BY kind LIMIT 1",
    )?;
    let mut kinds = Vec::new();
    let mut last = -1;
    while let Some(kind) =
        next.query_row(params![author, last], |row| row.get::<_, u16>(0)).optional()?
    {
        kinds.push(kind);
        last = i32::from(kind);
    }
    Ok(kinds)
}

fn read_hit(row: &Row<'_>) -> Result<Hit, StoreError> {
    Ok(Hit { item: Item::new(row.get::<_, i64>(0)? as u64, row.get(1)?), row: row.get(2)? })
}

#[cfg(test)]
mod tests {
    use super::super::schema;
    use super::*;

    /// Five thousand authors and as many kinds fit into one filter, and made 25 million walks
    /// whatever was stored.
    #[test]
    fn the_walks_of_authors_and_kinds_are_bounded_by_what_is_stored() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store.sqlite");
        let connection = schema::open_writer(&path).unwrap();
        for (author, kind) in [(1_u8, 1), (1, 7), (1, 9_000), (2, 300)] {
            connection
                .execute(
                    "INSERT INTO event (id, pubkey, created_at, kind, json)
                     VALUES (randomblob(32), ?1, 1, ?2, '')",
                    params![[author; 32], kind],
                )
                .unwrap();
        }
        let authors: Vec<[u8; 32]> = (0..100).map(|author| [author; 32]).collect();
        for (kinds, expected) in [(0..1_000, 3), (0..10_000, 4), (8..299, 0)] {
            let filter = Filter { kinds: Some(kinds.collect()), ..Filter::default() };
            let mut walks = 0;
            let mut items = 0;
            each_walk(&connection, &filter, Source::Authors(&authors), |walk| {
                walks += 1;
                walk.run(0, &mut |_, _| {
                    items += 1;
                    ControlFlow::Continue(())
                })
            })
            .unwrap();
            assert_eq!((walks, items), (expected, expected));
        }
    }
}
