//! Keeping up with a relay that writes, without its help. `PRAGMA data_version` says that something
//! was written; the newest rows say what. What a new row removes elsewhere is found by the rules of
//! Nostr: a deletion names it, a replaceable event has its address. Whatever is touched is compared
//! second by second with what the database shows, so that a wrong guess costs time and nothing
//! else. What no row explains, such as rows that were removed by hand, shows in the number of rows
//! or in a comparison of everything, which takes one percent of the time at the most.

use super::open;
use super::schema::{Row, Schema, Wanted};
use super::{Listener, StoreError};
use crate::item::Item;
use crate::store::change::{Change, Step};
use crate::store::event::{DELETION, Event};
use crate::store::unix_now;
use rusqlite::Connection;
use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// So many of the newest rows are remembered: when the newest are removed, their numbers are given
/// to new rows.
const RECENT_ROWS: usize = 64;
/// With more new rows than that everything is read anew.
const MOST_NEW_ROWS: i64 = 50_000;
/// So many of the events that an address has or had are looked at when it is replaced.
const SECONDS_AN_ADDRESS: usize = 16;
/// Counting rows takes this part of the time at the most.
const COUNT_SHARE: u32 = 20;
/// Comparing everything takes this part of the time at the most.
const COMPARE_SHARE: u32 = 100;
/// And this part when something was written that no row explains.
const UNEXPLAINED_SHARE: u32 = 10;

/// The file behind a path; another file has another pair.
type FileId = (u64, u64);

/// A database that is followed.
pub(super) struct Follower {
    connection: Connection,
    file: FileId,
    known: Known,
}

/// What is known of the database as of the last look.
struct Known {
    schema: Arc<Schema>,
    path: PathBuf,
    data_version: i64,
    schema_version: i64,
    // The newest rows, oldest first.
    recent: VecDeque<(i64, Item)>,
    // NIP-40: what is shown and will expire.
    expiring: BTreeSet<(u64, Item)>,
    // Hash of the address and second of what may be replaced, the hash in the upper half.
    addresses: BTreeSet<u64>,
    // Rows, less the items of the set.
    rows_unseen: i64,
    items: i64,
    count_due: Instant,
    compare_due: Instant,
    compare_cost: Duration,
    // Something was written since everything was compared.
    changed: bool,
}

/// What the rows of a scan are, beside items.
#[derive(Default)]
struct Scanned {
    items: Vec<Item>,
    expiring: Vec<(u64, Item)>,
    addresses: Vec<u64>,
}

impl Scanned {
    fn of(
        schema: &Schema,
        connection: &Connection,
        from: i64,
        to: i64,
        now: u64,
    ) -> rusqlite::Result<Self> {
        let mut scanned = Self::default();
        schema.rows_and_addresses(connection, from, to, &mut |row, addresses| {
            if row.is_public(now) {
                scanned.items.push(row.item);
                scanned.expiring.extend(row.expires_at.map(|second| (second, row.item)));
            }
            scanned.addresses.extend(addresses.iter().map(|hash| entry(*hash, &row.item)));
        })?;
        Ok(scanned)
    }
}

/// An address and the second of an event that has it. Seconds after the year 2106 are not kept
/// apart: that such an event was replaced shows in the number of rows.
fn entry(hash: u32, item: &Item) -> u64 {
    u64::from(hash) << 32 | u64::from(u32::try_from(item.created_at).unwrap_or(u32::MAX))
}

impl Follower {
    /// Reads everything; returns the items that are for everybody.
    pub(super) fn begin(
        schema: &Arc<Schema>,
        path: &Path,
    ) -> Result<(Self, Vec<Item>), StoreError> {
        let began = Instant::now();
        let now = unix_now();
        let file = file_id(path)?;
        let connection = open(path)?;
        let transaction = connection.unchecked_transaction()?;
        check(schema, &transaction, path)?;
        let data_version = pragma(&transaction, "data_version")?;
        let schema_version = pragma(&transaction, "schema_version")?;
        let rows = schema.count(&transaction)?;
        let mut recent = VecDeque::new();
        let mut scanned = Scanned::default();
        if let Some((first, last)) = schema.ends(&transaction)? {
            recent = newest_rows(schema, &transaction, last)?;
            let middle = first.midpoint(last);
            // The older half at another moment, a little later: what is written in between is
            // read again, because it is newer than `data_version`.
            let (older, newer) = std::thread::scope(|scope| {
                let older = scope.spawn(move || -> Result<Scanned, StoreError> {
                    Ok(Scanned::of(schema, &open(path)?, first, middle, now)?)
                });
                let newer = Scanned::of(schema, &transaction, middle.saturating_add(1), last, now);
                (older.join().unwrap_or(Err(StoreError::Closed)), newer)
            });
            scanned = older?;
            let newer = newer?;
            scanned.items.extend(newer.items);
            scanned.expiring.extend(newer.expiring);
            scanned.addresses.extend(newer.addresses);
        }
        drop(transaction);
        if file_id(path)? != file {
            return Err(StoreError::Rewritten { path: path.to_owned() });
        }
        let items = i64::try_from(scanned.items.len()).unwrap_or(i64::MAX);
        let cost = began.elapsed();
        let known = Known {
            schema: Arc::clone(schema),
            path: path.to_owned(),
            data_version,
            schema_version,
            recent,
            expiring: scanned.expiring.into_iter().collect(),
            addresses: scanned.addresses.into_iter().collect(),
            rows_unseen: rows.saturating_sub(items),
            items,
            count_due: Instant::now(),
            compare_due: Instant::now() + cost * COMPARE_SHARE,
            compare_cost: cost,
            changed: false,
        };
        Ok((Self { connection, file, known }, scanned.items))
    }

    /// Whether something was written since the last look.
    pub(super) fn is_behind(&self) -> Result<bool, StoreError> {
        Ok(pragma(&self.connection, "data_version")? != self.known.data_version)
    }

    /// Makes known what was written, and what has expired, since the last look.
    pub(super) fn catch_up(&mut self, listener: &dyn Listener, now: u64) -> Result<(), StoreError> {
        let Self { connection, file, known } = self;
        if file_id(&known.path)? != *file {
            return Err(StoreError::Rewritten { path: known.path.clone() });
        }
        let is_due = known.expiring.first().is_some_and(|(second, _)| *second <= now);
        let is_written = pragma(connection, "data_version")? != known.data_version;
        let is_compared = known.changed && Instant::now() >= known.compare_due;
        if !is_due && !is_written && !is_compared {
            return Ok(());
        }
        // Ends where it is dropped; there is nothing to commit.
        let moment = connection.unchecked_transaction()?;
        known.look(&moment, listener, now, is_compared)
    }
}

impl Known {
    /// As [`Follower::catch_up`], on the database as it is at one moment.
    fn look(
        &mut self,
        moment: &Connection,
        listener: &dyn Listener,
        now: u64,
        is_compared: bool,
    ) -> Result<(), StoreError> {
        let data_version = pragma(moment, "data_version")?;
        let schema_version = pragma(moment, "schema_version")?;
        if schema_version != self.schema_version {
            check(&self.schema, moment, &self.path)?;
            self.schema_version = schema_version;
        }
        let mut touched = Touched::default();
        while let Some((second, item)) = self.expiring.first().copied() {
            if second > now {
                break;
            }
            self.expiring.pop_first();
            touched.seconds.insert(item.created_at);
        }
        let mut new_rows = 0;
        if data_version != self.data_version {
            new_rows = self.read_new_rows(moment, listener, now, &mut touched)?;
            self.data_version = data_version;
            self.changed = true;
        }
        self.find_deleted(moment, listener, &mut touched)?;
        self.compare(moment, listener, now, &mut touched)?;
        if is_compared {
            self.compare_all(moment, listener, now, &mut touched)?;
        }
        // Something was written that no row explains.
        let is_odd = new_rows == 0 && touched.steps.is_empty();
        if is_odd || Instant::now() >= self.count_due {
            self.check_count(moment, listener, now, &mut touched)?;
        }
        if is_odd && touched.steps.is_empty() {
            let soon = Instant::now() + self.compare_cost * UNEXPLAINED_SHARE;
            self.compare_due = self.compare_due.min(soon);
        }
        if !touched.steps.is_empty() {
            listener.changed(Arc::new(Change { steps: touched.steps }));
        }
        Ok(())
    }

    /// Reads the rows from the oldest that is remembered on. Returns how many are new.
    fn read_new_rows(
        &mut self,
        moment: &Connection,
        listener: &dyn Listener,
        now: u64,
        touched: &mut Touched,
    ) -> Result<u64, StoreError> {
        let rewritten = || StoreError::Rewritten { path: self.path.clone() };
        let first = self.recent.front().map_or(i64::MIN, |(row, _)| *row);
        let ends = self.schema.ends(moment)?;
        let last = ends.map_or(i64::MIN, |(_, last)| last);
        let known = self.recent.back().map_or(0, |(row, _)| *row);
        if last.saturating_sub(known) > MOST_NEW_ROWS {
            return Err(rewritten());
        }
        let mut rows = Vec::new();
        self.schema.rows_and_addresses(moment, first, last, &mut |row, addresses| {
            rows.push((row, addresses.to_vec()));
        })?;
        let mut gone: BTreeMap<i64, Item> = self.recent.iter().copied().collect();
        rows.retain(|(row, _)| {
            let is_known = gone.get(&row.row) == Some(&row.item);
            if is_known {
                gone.remove(&row.row);
            }
            !is_known
        });
        // None is where it was: the rows have other numbers, or the file is another one.
        if !self.recent.is_empty() && gone.len() == self.recent.len() {
            return Err(rewritten());
        }
        touched.seconds.extend(gone.values().map(|item| item.created_at));
        let new_rows = rows.len() as u64;
        for (row, addresses) in rows {
            self.take(moment, listener, now, &row, &addresses, touched)?;
        }
        self.recent = newest_rows(&self.schema, moment, last)?;
        Ok(new_rows)
    }

    /// A new row: itself, and what it may have removed.
    fn take(
        &mut self,
        moment: &Connection,
        listener: &dyn Listener,
        now: u64,
        row: &Row,
        addresses: &[u32],
        touched: &mut Touched,
    ) -> Result<(), StoreError> {
        for hash in addresses {
            let all = entry(*hash, &Item::new(0, [0; 32]));
            let seconds = self.addresses.range(all..=all | u64::from(u32::MAX)).copied();
            let seconds: Vec<u64> = seconds.collect();
            touched.seconds.extend(seconds.iter().map(|entry| entry & u64::from(u32::MAX)));
            // What was replaced stays for a while: a relay may leave one of several.
            if let Some(oldest) = seconds.first().filter(|_| seconds.len() >= SECONDS_AN_ADDRESS) {
                self.addresses.remove(oldest);
            }
            self.addresses.insert(entry(*hash, &row.item));
        }
        if !row.is_public(now) {
            self.rows_unseen += 1;
            return Ok(());
        }
        let Some(event) = self.schema.event(moment, row.row)? else {
            self.rows_unseen += 1;
            return Ok(());
        };
        if event.kind() == DELETION {
            touched.deleted.extend(event.deleted_ids());
        }
        self.add(row, event, listener, touched);
        Ok(())
    }

    fn add(&mut self, row: &Row, event: Event, listener: &dyn Listener, touched: &mut Touched) {
        if listener.holds(&row.item) || !touched.added.insert(row.item) {
            return;
        }
        self.items += 1;
        self.expiring.extend(row.expires_at.map(|second| (second, row.item)));
        touched.steps.push(Step::Added(Arc::new(event)));
    }

    /// NIP-09: has the seconds compared of what was deleted by id.
    fn find_deleted(
        &self,
        moment: &Connection,
        listener: &dyn Listener,
        touched: &mut Touched,
    ) -> Result<(), StoreError> {
        if touched.deleted.is_empty() {
            return Ok(());
        }
        let ids: Vec<[u8; 32]> = touched.deleted.iter().copied().collect();
        self.schema.rows(moment, &Wanted::Ids(&ids), &mut |row| {
            touched.deleted.remove(&row.item.id);
            touched.seconds.insert(row.item.created_at);
        })?;
        if self.schema.removes_deleted && !touched.deleted.is_empty() {
            // Where they were is known to the set alone.
            listener.held(0, u64::MAX, &mut |item| {
                if touched.deleted.contains(&item.id) {
                    touched.seconds.insert(item.created_at);
                }
            });
        }
        Ok(())
    }

    /// Compares the seconds that were touched with what the database shows.
    fn compare(
        &mut self,
        moment: &Connection,
        listener: &dyn Listener,
        now: u64,
        touched: &mut Touched,
    ) -> Result<(), StoreError> {
        for second in std::mem::take(&mut touched.seconds) {
            let mut visible = BTreeMap::new();
            let mut unseen = HashSet::new();
            self.schema.rows(moment, &Wanted::Second(second), &mut |row| {
                if row.is_public(now) {
                    visible.insert(row.item, row);
                } else {
                    unseen.insert(row.item);
                }
            })?;
            let mut gone = Vec::new();
            listener.held(second, second, &mut |item| {
                if visible.remove(&item).is_none() {
                    gone.push(item);
                }
            });
            for item in gone {
                self.items -= 1;
                self.rows_unseen += i64::from(unseen.contains(&item));
                touched.steps.push(Step::Removed(item));
            }
            visible.retain(|item, _| !touched.added.contains(item));
            for row in visible.into_values() {
                if let Some(event) = self.schema.event(moment, row.row)? {
                    // It was there, and not shown.
                    self.rows_unseen -= 1;
                    self.add(&row, event, listener, touched);
                }
            }
        }
        Ok(())
    }

    /// Compares everything.
    fn compare_all(
        &mut self,
        moment: &Connection,
        listener: &dyn Listener,
        now: u64,
        touched: &mut Touched,
    ) -> Result<(), StoreError> {
        let began = Instant::now();
        let mut shown = Vec::new();
        let (first, last) = self.schema.ends(moment)?.unwrap_or((1, 0));
        self.schema.rows(moment, &Wanted::Rows(first, last), &mut |row| {
            if row.is_public(now) {
                shown.push(row.item);
            }
        })?;
        shown.sort_unstable();
        let mut shown = shown.into_iter().peekable();
        let seconds = &mut touched.seconds;
        listener.held(0, u64::MAX, &mut |item| {
            while let Some(newcomer) = shown.next_if(|next| *next < item) {
                seconds.insert(newcomer.created_at);
            }
            if shown.next_if_eq(&item).is_none() {
                seconds.insert(item.created_at);
            }
        });
        seconds.extend(shown.map(|item| item.created_at));
        self.compare(moment, listener, now, touched)?;
        self.rows_unseen = self.schema.count(moment)?.saturating_sub(self.items);
        self.changed = false;
        self.compare_cost = began.elapsed();
        self.compare_due = Instant::now() + self.compare_cost * COMPARE_SHARE;
        Ok(())
    }

    /// Compares everything when there are more or fewer rows than the changes explain.
    fn check_count(
        &mut self,
        moment: &Connection,
        listener: &dyn Listener,
        now: u64,
        touched: &mut Touched,
    ) -> Result<(), StoreError> {
        let began = Instant::now();
        let rows = self.schema.count(moment)?;
        self.count_due = Instant::now() + began.elapsed() * COUNT_SHARE;
        if rows != self.items.saturating_add(self.rows_unseen) {
            self.compare_all(moment, listener, now, touched)?;
        }
        Ok(())
    }
}

/// What one look finds.
#[derive(Default)]
struct Touched {
    steps: Vec<Step>,
    /// Among the steps, and not yet in the set.
    added: HashSet<Item>,
    /// To be compared.
    seconds: BTreeSet<u64>,
    /// Ids that an author has deleted.
    deleted: HashSet<[u8; 32]>,
}

fn newest_rows(
    schema: &Schema,
    moment: &Connection,
    last: i64,
) -> rusqlite::Result<VecDeque<(i64, Item)>> {
    let mut recent = VecDeque::new();
    let from = last.saturating_sub(RECENT_ROWS as i64 - 1);
    schema.rows(moment, &Wanted::Rows(from, last), &mut |row| {
        recent.push_back((row.row, row.item));
    })?;
    Ok(recent)
}

fn check(schema: &Schema, connection: &Connection, path: &Path) -> Result<(), StoreError> {
    let unknown = |reason| StoreError::UnknownSchema { path: path.to_owned(), reason };
    (schema.check)(connection)?.map_err(unknown)
}

fn pragma(connection: &Connection, name: &str) -> rusqlite::Result<i64> {
    connection.prepare_cached(&format!("PRAGMA {name}"))?.query_row([], |row| row.get(0))
}

fn file_id(path: &Path) -> Result<FileId, StoreError> {
    // The file is never opened here: closing it would drop the locks that SQLite holds.
    let metadata = std::fs::metadata(path)
        .map_err(|source| StoreError::Missing { path: path.to_owned(), source })?;
    Ok((metadata.dev(), metadata.ino()))
}
