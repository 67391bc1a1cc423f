//! From a filter to the index that answers it. Every scan walks a covering index in order of
//! time; events themselves are read only when they are sent.

use super::StoreError;
use super::private_times;
use super::readers::ReadTransaction;
use super::sqlite_error;
use crate::viewer::KINDS_TRIED;
use negsync_nostr::Filter;
use negsync_nostr::TagKey;
use negsync_reconcile::Item;
use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension, Row, ToSql, params};
use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::HashMap;
use std::ops::{ControlFlow, RangeInclusive};
use std::rc::Rc;

/// A stored event that a filter selects: what it is and where it lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hit {
    /// Time and id.
    pub item: Item,
    /// The event's row in the store.
    row: i64,
}

impl Hit {
    /// The event that an engine has under this number.
    pub fn new(item: Item, row: i64) -> Self {
        Self { item, row }
    }

    /// The number by which the engine finds the event.
    pub fn row(&self) -> i64 {
        self.row
    }
}

/// The index that a scan walks. What it does not decide is checked event by event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ScanIndex<'filter> {
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
    WHERE key = ?3 AND kind = ?4 AND created_at BETWEEN ?1 AND ?2 ORDER BY created_at DESC";
const BY_AUTHOR: &str = "SELECT created_at, id, row, kind FROM event INDEXED BY event_author
    WHERE pubkey = ?3 AND kind = ?4 AND created_at BETWEEN ?1 AND ?2 ORDER BY created_at DESC";
const BY_KIND: &str = "SELECT created_at, id, row, kind FROM event INDEXED BY event_kind
    WHERE kind = ?3 AND created_at BETWEEN ?1 AND ?2 ORDER BY created_at DESC";

/// The next kind that a tag, or an author, has events of.
const KIND_OF_TAG: &str =
    "SELECT kind FROM tag WHERE key = ?1 AND kind BETWEEN ?2 AND ?3 ORDER BY kind LIMIT 1";
const KIND_OF_AUTHOR: &str = "SELECT kind FROM event INDEXED BY event_author
    WHERE pubkey = ?1 AND kind BETWEEN ?2 AND ?3 ORDER BY kind LIMIT 1";

/// Events by their rows, in that order, in one run of a statement.
const FETCH: &str = "SELECT json, expires_at, row, id FROM rarray(?1) AS wanted
    CROSS JOIN event ON row = wanted.value";
/// So many rows are read in a run.
const FETCHED_ROWS: usize = 512;

/// The time of the newest event of each author and kind, in one run of a statement.
const NEWEST_OF_AUTHORS: &str = "SELECT author.value, of_kind.value,
    (SELECT created_at FROM event INDEXED BY event_author
        WHERE pubkey = author.value AND kind = of_kind.value AND created_at BETWEEN ?3 AND ?4
        ORDER BY created_at DESC LIMIT 1)
    FROM rarray(?1) AS author CROSS JOIN rarray(?2) AS of_kind";

/// Where [`Walk::run_with_json`] finds the event itself.
pub(super) const JSON_COLUMN: usize = 4;

/// So many tag values are looked up for a row one by one; for more, the event's own tags are read.
const TAGS_TRIED: usize = 8;

/// An event comes once for each value of the list that is walked: of so many rows it is remembered
/// whether they have the other tags.
const CHECKED_ROWS: usize = 65_536;

/// Fixes the state of the store that the open transaction reads.
pub(super) fn begin(connection: &Connection) -> Result<(), StoreError> {
    connection
        .prepare_cached("SELECT 1 FROM event LIMIT 1")
        .map_err(StoreError::sqlite)?
        .exists([])
        .map(|_| ())
        .map_err(StoreError::sqlite)
}

/// NIP-40: what has expired and has not been removed yet.
pub(super) struct Expired {
    now: u64,
    // Nearly always there is none, and no row has to be looked at.
    any: bool,
}

impl Expired {
    /// What expired by `now`.
    pub(super) fn by(connection: &Connection, now: u64) -> Result<Self, StoreError> {
        let mut rows = connection
            .prepare_cached(
                "SELECT 1 FROM event WHERE expires_at IS NOT NULL AND expires_at <= ?1 LIMIT 1",
            )
            .map_err(StoreError::sqlite)?;
        Ok(Self { now, any: rows.exists([now as i64]).map_err(StoreError::sqlite)? })
    }

    /// Nothing.
    #[cfg(test)]
    pub(super) fn none() -> Self {
        Self { now: 0, any: false }
    }

    /// Whether the event in this row is among them.
    pub(super) fn contains(&self, connection: &Connection, row: i64) -> Result<bool, StoreError> {
        if !self.any {
            return Ok(false);
        }
        let mut rows = connection
            .prepare_cached("SELECT 1 FROM event WHERE row = ?1 AND expires_at <= ?2")
            .map_err(StoreError::sqlite)?;
        rows.exists(params![row, self.now as i64]).map_err(StoreError::sqlite)
    }
}

/// Calls `visit` with every item that matches, whatever the filter's limit, in no order. An item
/// can come twice when the filter lists several values of a tag.
pub(super) fn items(
    read: &ReadTransaction<'_>,
    filter: &Filter,
    visit: &mut dyn FnMut(Item) -> ControlFlow<()>,
) -> Result<(), StoreError> {
    if filter.is_void() {
        return Ok(());
    }
    let source = choose(read, filter, Extent::Whole)?;
    each_walk(read, filter, source, |walk| {
        walk.run(filter.since.unwrap_or(0), &mut |hit, _| Ok(visit(hit.item)))
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
    let mut statement = connection.prepare_cached(FETCH).map_err(StoreError::sqlite)?;
    let mut looked_at = 0;
    for some in hits.chunks(FETCHED_ROWS) {
        let wanted = Rc::new(some.iter().map(|hit| Value::Integer(hit.row)).collect::<Vec<_>>());
        let mut rows = statement.query([wanted]).map_err(StoreError::sqlite)?;
        let mut left = some.iter();
        while let Some(row) = rows.next().map_err(StoreError::sqlite)? {
            let found: i64 = row.get(2).map_err(StoreError::sqlite)?;
            // Those before it are gone.
            let Some(hit) = left.find(|hit| hit.row == found) else { break };
            let expires_at: Option<i64> = row.get(1).map_err(StoreError::sqlite)?;
            // A row number can be given to another event once its own is gone.
            if row.get::<_, [u8; 32]>(3).map_err(StoreError::sqlite)? == hit.item.id
                && expires_at.is_none_or(|second| second > now as i64)
                && visit(&hit.item, &sqlite_error::text(row, 0).map_err(StoreError::sqlite)?)
                    .is_break()
            {
                return Ok(looked_at + some.len() - left.len());
            }
        }
        looked_at += some.len();
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
        .optional()
        .map_err(StoreError::sqlite)?;
    Ok(second.map(|second| second as u64))
}

/// How much of a filter's answer is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    /// All of it: each row of the index that is walked is read.
    Whole,
    /// The newest: a walk may end long before its index does.
    Newest,
}

/// How many rows and walks are looked at to tell which of a filter's indexes has the fewest: a
/// longer look begins once all of a shorter one were too long. The indexes share the longest look.
const LOOKS: [usize; 4] = [64, 1_024, 16_384, 262_144];
/// With a list of so many values it can be cheaper to walk what another condition leaves.
const LONG_LIST: usize = 256;

/// Takes the index that has the fewest rows for the filter, as far as a bounded look can tell.
pub(super) fn choose<'filter>(
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

impl ScanIndex<'_> {
    /// How many values are looked up.
    fn values(&self) -> usize {
        match self {
            Self::Ids(ids) => ids.len(),
            Self::Tag(_, keys) => keys.len(),
            Self::Authors(authors) => authors.len(),
            Self::Kinds(kinds) => kinds.len(),
            Self::Time => 1,
        }
    }
}

/// Whether the source takes one walk, along an index of the events themselves that decides all that
/// the filter asks.
pub(super) fn is_one_walk(
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

/// What a walk calls with each event that matches.
pub(super) type Visit<'visit> =
    dyn FnMut(Hit, &Row<'_>) -> Result<ControlFlow<()>, StoreError> + 'visit;

/// One run along an index: all rows that share its leading columns, newest first.
pub(super) struct Walk<'run> {
    read: &'run ReadTransaction<'run>,
    filter: &'run Filter,
    source: ScanIndex<'run>,
    sql: &'run str,
    key: &'run [&'run dyn ToSql],
    checked: &'run RefCell<HashMap<i64, bool>>,
}

impl Walk<'_> {
    /// Calls `visit` with all that was in the filter and not before `since`, until it breaks off.
    pub(super) fn run(
        &self,
        since: u64,
        visit: &mut Visit<'_>,
    ) -> Result<ControlFlow<()>, StoreError> {
        self.select(self.sql, since, visit)
    }

    /// As [`Walk::run`] for [`is_one_walk`], and each event is read whole. SQLite reads what a row is
    /// selected with before it is asked for it: the kinds that are left out are left out by it.
    pub(super) fn run_with_json(
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
            let hit = read_hit(row)?;
            if self.has_the_rest(row, &hit)? && visit(hit, row)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Checks what the index does not decide.
    fn has_the_rest(&self, row: &Row<'_>, hit: &Hit) -> Result<bool, StoreError> {
        let Filter { kinds, ids, authors, without_kinds, .. } = self.filter;
        let knows_kind = match self.source {
            ScanIndex::Authors(_) | ScanIndex::Kinds(_) | ScanIndex::Tag(..) => true,
            ScanIndex::Ids(_) | ScanIndex::Time => kinds.is_none() && without_kinds.is_empty(),
        };
        if !knows_kind && !self.filter.takes_kind(row.get(3).map_err(StoreError::sqlite)?) {
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
            && !self.is_by(hit, authors)?
        {
            return Ok(false);
        }
        self.has_tags(hit)
    }

    fn is_by(&self, hit: &Hit, authors: &[[u8; 32]]) -> Result<bool, StoreError> {
        let author: Option<[u8; 32]> = self
            .read
            .prepare_cached("SELECT pubkey FROM event WHERE row = ?1")
            .map_err(StoreError::sqlite)?
            .query_row([hit.row], |row| row.get(0))
            .optional()
            .map_err(StoreError::sqlite)?;
        Ok(author.is_some_and(|author| authors.binary_search(&author).is_ok()))
    }

    /// Whether the event has one of the keys of each list that the index does not decide.
    fn has_tags(&self, hit: &Hit) -> Result<bool, StoreError> {
        let is_decided =
            |place: &usize| matches!(self.source, ScanIndex::Tag(walked, _) if walked == *place);
        let lists = self.filter.tags.iter().enumerate().filter(|(place, _)| !is_decided(place));
        let lists = lists.map(|(_, keys)| keys.as_slice());
        match lists.clone().map(<[TagKey]>::len).sum() {
            0 => Ok(true),
            1..=TAGS_TRIED => {
                for keys in lists {
                    if !self.is_tagged(hit, keys)? {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            // The tags of the event are read once, and each is searched for in the filter's list.
            _ => {
                if let Some(has_tags) = self.checked.borrow().get(&hit.row) {
                    return Ok(*has_tags);
                }
                self.read.deadline().check()?;
                let mut select = self
                    .read
                    .prepare_cached("SELECT json FROM event WHERE row = ?1")
                    .map_err(StoreError::sqlite)?;
                let mut rows = select.query([hit.row]).map_err(StoreError::sqlite)?;
                let Some(row) = rows.next().map_err(StoreError::sqlite)? else { return Ok(false) };
                let mut lists: Vec<&[TagKey]> = lists.collect();
                let has_tags = negsync_nostr::has_tags(
                    &sqlite_error::text(row, 0).map_err(StoreError::sqlite)?,
                    &mut lists,
                );
                let mut checked = self.checked.borrow_mut();
                if checked.len() >= CHECKED_ROWS {
                    checked.clear();
                }
                checked.insert(hit.row, has_tags);
                Ok(has_tags)
            }
        }
    }

    fn is_tagged(&self, hit: &Hit, keys: &[TagKey]) -> Result<bool, StoreError> {
        let mut tagged = self
            .read
            .prepare_cached(
                "SELECT 1 FROM tag WHERE key = ?1 AND kind = ?2 AND created_at = ?3 AND id = ?4",
            )
            .map_err(StoreError::sqlite)?;
        let mut kind = self
            .read
            .prepare_cached("SELECT kind FROM event WHERE row = ?1")
            .map_err(StoreError::sqlite)?;
        let kind: Option<u16> =
            kind.query_row([hit.row], |row| row.get(0)).optional().map_err(StoreError::sqlite)?;
        let created_at = hit.item.created_at as i64;
        for key in keys {
            if tagged
                .exists(params![key.as_bytes(), kind, created_at, hit.item.id])
                .map_err(StoreError::sqlite)?
            {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Calls `run` for each walk that the source takes, until it breaks off: one a value, or one a pair
/// of a value and a kind.
pub(super) fn each_walk(
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

/// As [`each_walk`], for who wants the newest `most`. Where there are more walks than that, they come
/// in the order of their newest events, and those that can have none of the newest do not come. `run`
/// gets the time of a walk's newest event with it, and the time before which none can matter.
pub(super) fn each_walk_newest_first(
    read: &ReadTransaction<'_>,
    filter: &Filter,
    source: ScanIndex<'_>,
    most: usize,
    expired: &Expired,
    mut run: impl FnMut(RangeInclusive<u64>, Walk<'_>) -> Result<ControlFlow<()>, StoreError>,
) -> Result<(), StoreError> {
    let kinds = KindSpans::of(filter);
    let is_decided = filter.tags.is_empty() && filter.ids.is_none() && !expired.any;
    let (ScanIndex::Authors(authors), KindSpans::Each(kinds), true) = (source, kinds, is_decided)
    else {
        return each_walk(read, filter, source, |walk| run(0..=u64::MAX, walk));
    };
    if authors.len().saturating_mul(kinds.len()) <= most {
        return each_walk(read, filter, source, |walk| run(0..=u64::MAX, walk));
    }
    let walks = newest_of_authors(read, filter, authors, &kinds)?;
    // So many walks have an event of this time or later that no earlier one is among the newest.
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

/// The time of the newest event of each author and kind that has one, the latest first.
fn newest_of_authors(
    read: &ReadTransaction<'_>,
    filter: &Filter,
    authors: &[[u8; 32]],
    kinds: &[u16],
) -> Result<Vec<(u64, [u8; 32], u16)>, StoreError> {
    let authors: Vec<Value> = authors.iter().map(|key| Value::Blob(key.to_vec())).collect();
    let kinds: Vec<Value> = kinds.iter().map(|kind| Value::Integer((*kind).into())).collect();
    let since = filter.since.unwrap_or(0) as i64;
    let until = filter.until.unwrap_or(i64::MAX as u64) as i64;
    let mut select = read.prepare_cached(NEWEST_OF_AUTHORS).map_err(StoreError::sqlite)?;
    let mut rows = select
        .query(params![Rc::new(authors), Rc::new(kinds), since, until])
        .map_err(StoreError::sqlite)?;
    let mut walks = Vec::new();
    while let Some(row) = rows.next().map_err(StoreError::sqlite)? {
        if let Some(newest) = row.get::<_, Option<i64>>(2).map_err(StoreError::sqlite)? {
            walks.push((
                newest as u64,
                row.get(0).map_err(StoreError::sqlite)?,
                row.get(1).map_err(StoreError::sqlite)?,
            ));
        }
    }
    walks.sort_unstable_by_key(|(newest, ..)| Reverse(*newest));
    Ok(walks)
}

fn each<T>(
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

/// Where the kinds lie that a filter takes. Kinds that it leaves out lie in no span, so that a look
/// for the next kind does not meet them.
enum KindSpans<'filter> {
    /// Few: each is tried.
    Each(Vec<u16>),
    /// Only those are tried that the tag or author has.
    Within(Vec<RangeInclusive<u16>>, &'filter Filter),
}

impl<'filter> KindSpans<'filter> {
    fn of(filter: &'filter Filter) -> Self {
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
    fn each(
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

/// How many events there are of each kind.
pub(super) fn kinds(connection: &Connection) -> Result<Vec<(u16, u64)>, StoreError> {
    let mut select = connection
        .prepare_cached("SELECT kind, count(*) FROM event INDEXED BY event_kind GROUP BY kind")
        .map_err(StoreError::sqlite)?;
    let rows = select
        .query_map([], |row| Ok((row.get(0)?, row.get::<_, i64>(1)?.unsigned_abs())))
        .map_err(StoreError::sqlite)?;
    rows.collect::<Result<_, _>>().map_err(StoreError::sqlite)
}

fn read_hit(row: &Row<'_>) -> Result<Hit, StoreError> {
    Ok(Hit {
        item: Item::new(
            row.get::<_, i64>(0).map_err(StoreError::sqlite)? as u64,
            row.get(1).map_err(StoreError::sqlite)?,
        ),
        row: row.get(2).map_err(StoreError::sqlite)?,
    })
}

#[cfg(test)]
mod tests;
