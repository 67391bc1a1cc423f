//! The newest events of a filter, in the order in which a client gets them (NIP-01, `limit`).

use super::StoreError;
use super::query::{
    self, Expired, Extent, Hit, ScanIndex, choose, each_walk, each_walk_newest_first, is_one_walk,
};
use super::read_pool::ReadTransaction;
use super::sqlite_error;
use negsync_nostr::Filter;
use negsync_reconcile::Item;
use rusqlite::Row;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};

/// Events of one second that are held until they are in order.
const SECOND_EVENTS: usize = 64;

/// The newest events that match a filter, and whether the limit left any out.
pub(super) struct Newest {
    /// Newest first; within a second the lowest id first.
    pub(super) hits: Vec<Hit>,
    /// What a limit left out.
    pub(super) rest: Rest,
}

/// The events that a limit left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rest {
    /// None: every matching event is among the hits.
    Nothing,
    /// This event, and perhaps others.
    Event(Item),
    /// Not determined.
    Unknown,
}

/// The newest events that match and have not expired, newest first; within a second the lowest id
/// first (NIP-01, `limit`). At most `most`, and at most the filter's limit.
pub(super) fn newest(
    read: &ReadTransaction<'_>,
    filter: &Filter,
    most: usize,
    expired: &Expired,
) -> Result<Newest, StoreError> {
    let most = filter.limit.map_or(most, |limit| limit.min(most));
    if filter.is_void() {
        return Ok(Newest { hits: Vec::new(), rest: Rest::Nothing });
    }
    if most == 0 {
        return Ok(Newest { hits: Vec::new(), rest: Rest::Unknown });
    }
    newest_of(read, filter, choose(read, filter, extent(most))?, most, expired)
}

/// A request without an effective limit reads each row of an index.
fn extent(most: usize) -> Extent {
    if most == usize::MAX { Extent::Whole } else { Extent::Newest }
}

fn newest_of(
    read: &ReadTransaction<'_>,
    filter: &Filter,
    source: ScanIndex<'_>,
    most: usize,
    expired: &Expired,
) -> Result<Newest, StoreError> {
    let mut found = Kept { most, hits: BTreeMap::new(), rest: Rest::Nothing };
    each_walk_newest_first(read, filter, source, most, expired, |times, walk| {
        // A hit of a later walk must be at least as new as the oldest hit kept.
        let since = filter.since.max(found.oldest()).unwrap_or(0).max(*times.start());
        if *times.end() < since {
            return Ok(ControlFlow::Break(()));
        }
        walk.run(since, &mut |hit, _| {
            if !expired.contains(read, hit.row()).map_err(StoreError::sqlite)? {
                return Ok(found.add(hit));
            }
            Ok(ControlFlow::Continue(()))
        })
        // The next walk may still have newer events.
        .map(|_| ControlFlow::Continue(()))
    })?;
    Ok(found.into_newest())
}

/// The newest hits so far, in order and without duplicates.
struct Kept {
    most: usize,
    hits: BTreeMap<(Reverse<u64>, [u8; 32]), i64>,
    rest: Rest,
}

impl Kept {
    /// The second before which events cannot matter, once there are enough hits and it is known
    /// that others are left out.
    fn oldest(&self) -> Option<u64> {
        let ((Reverse(second), _), _) = self.hits.last_key_value()?;
        (self.rest != Rest::Nothing).then_some(*second)
    }

    /// Breaks off a walk whose remaining events cannot matter.
    fn add(&mut self, hit: Hit) -> ControlFlow<()> {
        self.hits.insert((Reverse(hit.item.created_at), hit.item.id), hit.row());
        if self.hits.len() <= self.most {
            return ControlFlow::Continue(());
        }
        if let Some(((Reverse(second), id), _)) = self.hits.pop_last() {
            self.rest = Rest::Event(Item::new(second, id));
        }
        // The same second may have more events with lower ids.
        if self.oldest().is_some_and(|oldest| hit.item.created_at < oldest) {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }

    fn into_newest(self) -> Newest {
        let hit = |((Reverse(second), id), row)| Hit::new(Item::new(second, id), row);
        Newest { hits: self.hits.into_iter().map(hit).collect(), rest: self.rest }
    }
}

/// Orders the hits and keeps the first `most`. `rest` becomes the first of the others, if there are
/// any.
pub fn cut(hits: &mut Vec<Hit>, most: usize, rest: &mut Rest) {
    order(hits);
    if let Some(hit) = hits.get(most) {
        *rest = Rest::Event(hit.item);
    }
    hits.truncate(most);
}

/// Like [`newest`], and calls `visit` with the JSON of the first hits, in order, until it breaks
/// off; returns the number of visited hits too. If one walk finds all hits, each event is read when
/// it is found, and none after `visit` broke off.
pub(super) fn and_first(
    read: &ReadTransaction<'_>,
    filter: &Filter,
    most: usize,
    expired: &Expired,
    now: u64,
    visit: &mut dyn FnMut(&Item, &str) -> ControlFlow<()>,
) -> Result<(Newest, usize), StoreError> {
    let most = filter.limit.map_or(most, |limit| limit.min(most));
    if most == 0 || filter.is_void() {
        return Ok((newest(read, filter, most, expired)?, 0));
    }
    let source = choose(read, filter, extent(most))?;
    if !is_one_walk(read, filter, source)? {
        let newest = newest_of(read, filter, source, most, expired)?;
        let looked_at = query::fetch(read, &newest.hits, now, visit)?;
        return Ok((newest, looked_at));
    }
    let mut found = NewestHits {
        most,
        hits: Vec::new(),
        rest: Rest::Nothing,
        read: 0,
        second: Vec::new(),
        texts: String::new(),
        visit: Some(visit),
    };
    each_walk(read, filter, source, |walk| {
        walk.run_with_json(filter.since.unwrap_or(0), &mut |hit, row| {
            if expired.contains(read, hit.row()).map_err(StoreError::sqlite)? {
                return Ok(ControlFlow::Continue(()));
            }
            found.add(hit, row).map_err(StoreError::sqlite)
        })
    })?;
    found.end_second();
    let NewestHits { mut hits, mut rest, read: looked_at, visit, .. } = found;
    if visit.is_none() {
        // The remaining hits come from the index alone, in the same snapshot.
        return Ok((newest_of(read, filter, source, most, expired)?, looked_at));
    }
    cut(&mut hits, most, &mut rest);
    Ok((Newest { hits, rest }, looked_at))
}

/// Visitor of events as they are found, until it breaks off.
type Visit<'visit> = dyn FnMut(&Item, &str) -> ControlFlow<()> + 'visit;

/// The hits of a walk that goes back in time, and within a second from the highest id down.
struct NewestHits<'visit> {
    most: usize,
    hits: Vec<Hit>,
    rest: Rest,
    // Number of hits that were visited.
    read: usize,
    // The hits of the second that is being walked.
    second: Vec<(Hit, Range<usize>)>,
    // The JSON of those hits.
    texts: String,
    // `None` once the visitor broke off.
    visit: Option<&'visit mut Visit<'visit>>,
}

impl NewestHits<'_> {
    /// Breaks off when all hits are found, or when the visitor has broken off.
    fn add(&mut self, hit: Hit, row: &Row<'_>) -> rusqlite::Result<ControlFlow<()>> {
        if self.second.first().is_some_and(|(of, _)| of.item.created_at != hit.item.created_at) {
            self.end_second();
        }
        if self.second.len() >= SECOND_EVENTS {
            self.visit = None;
        }
        if self.visit.is_none() {
            return Ok(ControlFlow::Break(()));
        }
        if self.hits.len() >= self.most {
            self.rest = Rest::Event(hit.item);
            return Ok(ControlFlow::Break(()));
        }
        let start = self.texts.len();
        self.texts.push_str(&sqlite_error::text(row, query::JSON_COLUMN)?);
        self.second.push((hit, start..self.texts.len()));
        Ok(ControlFlow::Continue(()))
    }

    fn end_second(&mut self) {
        self.second.sort_unstable_by_key(|(hit, _)| hit.item.id);
        for (hit, at) in self.second.drain(..) {
            if self.hits.len() < self.most
                && let Some(visit) = &mut self.visit
            {
                self.read += 1;
                let json = self.texts.get(at).unwrap_or_default();
                if visit(&hit.item, json).is_break() {
                    self.visit = None;
                }
            }
            self.hits.push(hit);
        }
        self.texts.clear();
    }
}

/// Newest first; within a second the lowest id first; without duplicates.
pub fn order(hits: &mut Vec<Hit>) {
    hits.sort_unstable_by_key(|hit| (Reverse(hit.item.created_at), hit.item.id));
    hits.dedup_by_key(|hit| hit.item.id);
}

/// Whether the item is among `hits`, which must be in order.
pub(super) fn contains(hits: &[Hit], item: &Item) -> bool {
    let key = |item: &Item| (Reverse(item.created_at), item.id);
    hits.binary_search_by_key(&key(item), |hit| key(&hit.item)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::super::{Deadline, schema};
    use super::*;
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};
    use rusqlite::{Connection, params};

    const NOW: u64 = 1_000;

    /// Events of a few seconds, one of them with many events, and of few authors and kinds.
    fn store(connection: &Connection, rng: &mut StdRng) {
        for _ in 0..rng.random_range(0..300) {
            let id: [u8; 32] = rng.random();
            let second = [rng.random_range(0..40), 20][rng.random_range(0..2)];
            let author = [rng.random_range(0..3_u8); 32];
            let kind = rng.random_range(0..3);
            let json = format!("{id:?}");
            let expires_at =
                [None, Some(NOW as i64 - 1), Some(NOW as i64 + 1)][rng.random_range(0..3)];
            let insert = "INSERT INTO event (id, pubkey, created_at, kind, json, expires_at)
                VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
            let row = params![id, author, second, kind, json, expires_at];
            connection.execute(insert, row).unwrap();
        }
    }

    fn filter(rng: &mut StdRng) -> Filter {
        let mut filter = Filter::default();
        if rng.random_bool(0.5) {
            filter.authors = Some(vec![[rng.random_range(0..3); 32]]);
        }
        if rng.random_bool(0.5) {
            filter.kinds = Some((0..rng.random_range(1..3)).collect());
        }
        if filter.kinds.is_none() && rng.random_bool(0.5) {
            filter.without_kinds = vec![rng.random_range(0..3)];
        }
        if rng.random_bool(0.5) {
            filter.limit = Some(rng.random_range(0..200));
        }
        if rng.random_bool(0.3) {
            filter.since = Some(rng.random_range(0..40));
            filter.until = Some(rng.random_range(0..40));
        }
        filter
    }

    /// Checks `rest` against all matching events without a limit.
    fn assert_rest(
        transaction: &ReadTransaction<'_>,
        filter: &Filter,
        most: usize,
        expired: &Expired,
        newest: &Newest,
        context: &str,
    ) {
        let unlimited = Filter { limit: None, ..filter.clone() };
        let all = super::newest(transaction, &unlimited, usize::MAX, expired).unwrap();
        assert_eq!(all.rest, Rest::Nothing, "{context}");
        match newest.rest {
            Rest::Nothing => assert_eq!(newest.hits, all.hits, "{context}"),
            Rest::Event(item) => {
                assert!(contains(&all.hits, &item), "{context}");
                assert!(!contains(&newest.hits, &item), "{context}");
            }
            Rest::Unknown => assert!(most == 0 || filter.limit == Some(0), "{context}"),
        }
    }

    #[test]
    fn what_is_read_in_the_walk_is_the_beginning_of_what_is_found() {
        let mut reads = 0;
        for seed in 0..80 {
            let mut rng = StdRng::seed_from_u64(seed);
            let folder = tempfile::tempdir().unwrap();
            let connection = schema::open_writer(&folder.path().join("store.sqlite")).unwrap();
            connection.execute_batch("PRAGMA synchronous = OFF; BEGIN").unwrap();
            store(&connection, &mut rng);
            let deadline = Deadline::default();
            let transaction = ReadTransaction::new(&connection, &deadline);
            let now = [0, NOW][rng.random_range(0..2)];
            let expired = Expired::by(&transaction, now).unwrap();
            for _ in 0..10 {
                let (filter, most) = (filter(&mut rng), rng.random_range(0..300));
                let expected = newest(&transaction, &filter, most, &expired).unwrap();
                let enough = rng.random_range(1..400);
                let mut visited = Vec::new();
                let mut visit = |item: &Item, json: &str| {
                    assert_eq!(json, format!("{:?}", item.id), "seed {seed}");
                    visited.push(*item);
                    if visited.len() < enough {
                        ControlFlow::Continue(())
                    } else {
                        ControlFlow::Break(())
                    }
                };
                let (found, read) =
                    and_first(&transaction, &filter, most, &expired, now, &mut visit).unwrap();
                let context = format!("seed {seed}: {filter:?}, {most}");
                assert_eq!(found.hits, expected.hits, "{context}");
                assert_rest(&transaction, &filter, most, &expired, &found, &context);
                assert_rest(&transaction, &filter, most, &expired, &expected, &context);
                let first: Vec<Item> = found.hits[..read].iter().map(|hit| hit.item).collect();
                assert_eq!(visited, first, "seed {seed}: {filter:?}, {most}, {enough}");
                reads += read;
            }
        }
        assert!(reads > 3_000, "{reads}");
    }

    /// Private events are skipped in the index.
    #[test]
    fn no_event_is_read_of_a_kind_that_is_left_out() {
        let connection = Connection::open_in_memory().unwrap();
        let tables = "CREATE TABLE event
                (row INTEGER PRIMARY KEY, id BLOB, created_at INTEGER, kind INTEGER);
            CREATE INDEX event_time ON event (created_at, id, kind);
            CREATE TABLE private_time (kind INTEGER)";
        connection.execute_batch(tables).unwrap();
        for number in 0..100 {
            let insert = "INSERT INTO event (id, created_at, kind) VALUES (randomblob(32), ?1, ?2)";
            connection.execute(insert, [number / 3, [1, 4][number as usize % 2]]).unwrap();
        }
        let unreadable = "ALTER TABLE event ADD COLUMN json TEXT AS
            (iif(kind = 4, abs(row - row - 9223372036854775807 - 1), 'json'))";
        connection.execute_batch(unreadable).unwrap();
        let (mut visits, deadline) = (0, Deadline::default());
        let mut read = |filter: &Filter| {
            let mut visit = |_: &Item, _: &str| {
                visits += 1;
                ControlFlow::Continue(())
            };
            let transaction = ReadTransaction::new(&connection, &deadline);
            and_first(&transaction, filter, 40, &Expired::none(), NOW, &mut visit)
        };
        let public = Filter { without_kinds: vec![4, 14], ..Filter::default() };
        assert_eq!(read(&public).unwrap().1, 40);
        assert!(read(&Filter::default()).is_err());
        assert_eq!(visits, 40);
    }

    /// A visitor that breaks off does not cause further reads: here a further read would fail.
    #[test]
    fn no_event_is_read_after_the_visitor_broke_off() {
        let connection = Connection::open_in_memory().unwrap();
        let tables = "CREATE TABLE event
                (row INTEGER PRIMARY KEY, id BLOB, created_at INTEGER, kind INTEGER);
            CREATE INDEX event_kind ON event (kind, created_at, id)";
        connection.execute_batch(tables).unwrap();
        for number in 0..900 {
            let insert = "INSERT INTO event (id, created_at, kind) VALUES (randomblob(32), ?1, 1)";
            connection.execute(insert, [number / 3]).unwrap();
        }
        let unreadable = "ALTER TABLE event ADD COLUMN json TEXT AS
            (iif(created_at < 290, abs(row - row - 9223372036854775807 - 1), 'json'))";
        connection.execute_batch(unreadable).unwrap();
        let read = |enough| {
            let mut visits = 0;
            let mut visit = |_: &Item, _: &str| {
                visits += 1;
                if visits < enough { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            };
            let filter = Filter { kinds: Some(vec![1]), ..Filter::default() };
            let (most, none, deadline) = (800, Expired::none(), Deadline::default());
            let transaction = ReadTransaction::new(&connection, &deadline);
            let expected = newest(&transaction, &filter, most, &none).unwrap();
            let (found, read) = and_first(&transaction, &filter, most, &none, NOW, &mut visit)?;
            assert_eq!((found.hits, read), (expected.hits, visits));
            Ok::<_, StoreError>(read)
        };
        for enough in [1, 2, 20, 24] {
            assert_eq!(read(enough).unwrap(), enough);
        }
        assert!(read(40).is_err());
    }
}
