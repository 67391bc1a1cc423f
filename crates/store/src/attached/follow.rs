//! Follows the database of a running relay without its help. `PRAGMA data_version` shows that
//! something was written; the newest rows show what. The rules of Nostr tell which other rows a new
//! row removes: a deletion request names them, a replaceable event has the same address. Each
//! touched second is compared with the database, so a wrong guess costs only time. Changes that no
//! row explains, such as rows removed by hand, show in the number of rows or in a full comparison,
//! which takes at most one percent of the time.

use super::compare::{Comparisons, DatabaseComparison, HeldItems, Touched, expiry};
use super::open;
use super::schema::{Row, Schema, Wanted};
use super::{Listener, StoreError};
use crate::change::Change;
use negsync_nostr::kinds::DELETION;
use negsync_reconcile::Item;
use rusqlite::Connection;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// Newest rows that are remembered. When the newest rows are removed, their numbers are given to
/// new rows.
const RECENT_ROWS: usize = 64;
/// With more new rows than this, everything is read again.
const MOST_NEW_ROWS: i64 = 50_000;
/// Events of one address that are compared when the address is replaced.
const SECONDS_AN_ADDRESS: usize = 16;
/// Device and inode of the file behind a path: another file has another pair.
type FileId = (u64, u64);
/// Modification time and length of a file. A checkpoint changes them, and so does an overwrite.
type Written = (i64, i64, u64);

/// A database that is being followed.
pub(super) struct Follower {
    connection: Connection,
    file: FileId,
    written: Written,
    known: KnownRows,
}

/// The facts known about the database as of the last poll.
struct KnownRows {
    schema: Arc<Schema>,
    path: PathBuf,
    data_version: i64,
    schema_version: i64,
    // The newest rows, oldest first.
    recent: VecDeque<(i64, Item)>,
    // Address and second of each replaceable event; the upper half is the hash of the address.
    addresses: BTreeSet<u64>,
    held: HeldItems,
}

/// Facts about the rows of a scan, beside the items.
#[derive(Default)]
struct Scanned {
    items: Vec<Item>,
    expiring: Vec<(u64, u64)>,
    addresses: Vec<u64>,
}

impl Scanned {
    fn of(
        schema: &Schema,
        connection: &Connection,
        from: i64,
        to: i64,
        now: u64,
        room: usize,
    ) -> rusqlite::Result<Self> {
        let mut scanned = Self { items: Vec::with_capacity(room), ..Self::default() };
        schema.rows_and_addresses(connection, from, to, &mut |row, addresses| {
            if row.is_public(now) {
                scanned.items.push(row.item);
                scanned.expiring.extend(expiry(&row));
            }
            scanned.addresses.extend(addresses.iter().map(|hash| entry(*hash, &row.item)));
        })?;
        Ok(scanned)
    }
}

/// An address and the second of an event that has it. Seconds after the year 2106 are merged; a
/// replacement of such an event shows in the number of rows.
fn entry(hash: u32, item: &Item) -> u64 {
    u64::from(hash) << 32 | u64::from(u32::try_from(item.created_at).unwrap_or(u32::MAX))
}

impl Follower {
    /// Reads everything. Returns the public items.
    pub(super) fn begin(
        schema: &Arc<Schema>,
        path: &Path,
        now: u64,
    ) -> Result<(Self, Vec<Item>), StoreError> {
        let began = Instant::now();
        let metadata = metadata(path)?;
        let connection = open(path)?;
        let transaction = connection.unchecked_transaction().map_err(StoreError::sqlite)?;
        check(schema, &transaction, path)?;
        let data_version = pragma(&transaction, "data_version").map_err(StoreError::sqlite)?;
        let schema_version = pragma(&transaction, "schema_version").map_err(StoreError::sqlite)?;
        let rows = schema.count(&transaction).map_err(StoreError::sqlite)?;
        let mut recent = VecDeque::new();
        let mut scanned = Scanned::default();
        if let Some((first, last)) = schema.ends(&transaction).map_err(StoreError::sqlite)? {
            recent = newest_rows(schema, &transaction, last).map_err(StoreError::sqlite)?;
            let middle = first.midpoint(last);
            // The older half is read from a later snapshot. Events written in between are read
            // again, because they are newer than `data_version`. The vector gets its full capacity
            // at once: the memory that a growing vector releases would not be returned to the
            // system.
            let room = usize::try_from(rows).unwrap_or_default();
            let (older, newer) = std::thread::scope(|scope| {
                let scan_older = || -> Result<Scanned, StoreError> {
                    Scanned::of(schema, &open(path)?, first, middle, now, room)
                        .map_err(StoreError::sqlite)
                };
                let thread = std::thread::Builder::new().spawn_scoped(scope, scan_older);
                let second = middle.saturating_add(1);
                let newer = Scanned::of(schema, &transaction, second, last, now, room / 2);
                let older = match thread {
                    Ok(thread) => thread.join().unwrap_or(Err(StoreError::Closed)),
                    Err(_) => scan_older(),
                };
                (older, newer)
            });
            scanned = older?;
            let newer = newer.map_err(StoreError::sqlite)?;
            scanned.items.extend(newer.items);
            scanned.expiring.extend(newer.expiring);
            scanned.addresses.extend(newer.addresses);
        }
        drop(transaction);
        let now = self::metadata(path)?;
        let (file, written) = (file_id(&metadata), written(&metadata));
        // The file was overwritten during the read, unless a commit explains it: the two halves may
        // be of different contents.
        let is_written = self::written(&now) != written;
        if file_id(&now) != file
            || is_written
                && pragma(&connection, "data_version").map_err(StoreError::sqlite)? == data_version
        {
            return Err(StoreError::Rewritten { path: path.to_owned() });
        }
        let items = i64::try_from(scanned.items.len()).unwrap_or(i64::MAX);
        let known = KnownRows {
            schema: Arc::clone(schema),
            path: path.to_owned(),
            data_version,
            schema_version,
            recent,
            addresses: scanned.addresses.into_iter().collect(),
            held: HeldItems {
                schema: Arc::clone(schema),
                expiring: scanned.expiring.into_iter().collect(),
                rows_unseen: rows.saturating_sub(items),
                items,
                comparisons: Comparisons::after(began.elapsed()),
            },
        };
        Ok((Self { connection, file, written, known }, scanned.items))
    }

    /// Whether the database was written since the last poll.
    pub(super) fn is_behind(&self) -> Result<bool, StoreError> {
        Ok(pragma(&self.connection, "data_version").map_err(StoreError::sqlite)?
            != self.known.data_version)
    }

    /// Publishes what was written, and what has expired, since the last poll.
    pub(super) fn catch_up(&mut self, listener: &dyn Listener, now: u64) -> Result<(), StoreError> {
        let metadata = metadata(&self.known.path)?;
        if file_id(&metadata) != self.file {
            return Err(self.known.rewritten());
        }
        let written = written(&metadata);
        if written != self.written {
            if !self.is_behind()? {
                self.begin_afresh()?;
            }
            self.written = written;
        }
        let is_due = self.known.held.expiring.first().is_some_and(|(second, _)| *second <= now);
        let is_compared = self.known.held.comparisons.is_due();
        if !is_due && !is_compared && !self.is_behind()? {
            return Ok(());
        }
        // Ends when it is dropped; there is nothing to commit.
        let moment = self.connection.unchecked_transaction().map_err(StoreError::sqlite)?;
        self.known.look(&DatabaseComparison { moment: &moment, listener, now }, is_compared)
    }

    /// The file was written without a commit: by a checkpoint, or past SQLite, for example by `cp`.
    /// The page cache of this connection may be stale; a new connection shows whether the file is
    /// the same.
    fn begin_afresh(&mut self) -> Result<(), StoreError> {
        let known = &mut self.known;
        let fresh = open(&known.path)?;
        let data_version = pragma(&fresh, "data_version").map_err(StoreError::sqlite)?;
        let last = known
            .schema
            .ends(&fresh)
            .map_err(StoreError::sqlite)?
            .map_or(i64::MIN, |(_, last)| last);
        let is_same =
            newest_rows(&known.schema, &fresh, last).map_err(StoreError::sqlite)? == known.recent;
        // A commit in the meantime explains the write, for this connection too.
        if pragma(&self.connection, "data_version").map_err(StoreError::sqlite)?
            != known.data_version
        {
            return Ok(());
        }
        if !is_same {
            return Err(known.rewritten());
        }
        known.data_version = data_version;
        self.connection = fresh;
        Ok(())
    }
}

impl KnownRows {
    fn rewritten(&self) -> StoreError {
        StoreError::Rewritten { path: self.path.clone() }
    }

    /// Like [`Follower::catch_up`], on one snapshot of the database.
    fn look(&mut self, look: &DatabaseComparison<'_>, is_compared: bool) -> Result<(), StoreError> {
        let data_version = pragma(look.moment, "data_version").map_err(StoreError::sqlite)?;
        let schema_version = pragma(look.moment, "schema_version").map_err(StoreError::sqlite)?;
        if schema_version != self.schema_version {
            check(&self.schema, look.moment, &self.path)?;
            self.schema_version = schema_version;
        }
        let mut touched = Touched::default();
        while let Some((second, made)) = self.held.expiring.first().copied() {
            if second > look.now {
                break;
            }
            self.held.expiring.pop_first();
            touched.seconds.insert(made);
        }
        let mut new_rows = 0;
        if data_version != self.data_version {
            new_rows = self.read_new_rows(look, &mut touched)?;
            self.data_version = data_version;
            self.held.comparisons.changed();
        }
        self.find_deleted(look, &mut touched)?;
        self.held.compare_touched(look, &mut touched)?;
        if is_compared {
            self.held.compare_all(look, &mut touched)?;
        }
        // The database was written, and no row explains it.
        let is_odd = new_rows == 0 && touched.steps.is_empty();
        self.held.check_count(look, is_odd, &mut touched)?;
        if is_odd && touched.steps.is_empty() {
            self.held.comparisons.hasten();
        }
        if !touched.steps.is_empty() {
            look.listener.changed(Arc::new(Change { steps: touched.steps }));
        }
        Ok(())
    }

    /// Reads rows from the oldest remembered row on. Returns the number of new rows.
    fn read_new_rows(
        &mut self,
        look: &DatabaseComparison<'_>,
        touched: &mut Touched,
    ) -> Result<u64, StoreError> {
        let moment = look.moment;
        let first = self.recent.front().map_or(i64::MIN, |(row, _)| *row);
        let ends = self.schema.ends(moment).map_err(StoreError::sqlite)?;
        let last = ends.map_or(i64::MIN, |(_, last)| last);
        let known = self.recent.back().map_or(0, |(row, _)| *row);
        if last.saturating_sub(known) > MOST_NEW_ROWS {
            return Err(self.rewritten());
        }
        let mut rows = Vec::new();
        self.schema
            .rows_and_addresses(moment, first, last, &mut |row, addresses| {
                rows.push((row, addresses.to_vec()));
            })
            .map_err(StoreError::sqlite)?;
        let mut gone: BTreeMap<i64, Item> = self.recent.iter().copied().collect();
        rows.retain(|(row, _)| {
            let is_known = gone.get(&row.row) == Some(&row.item);
            if is_known {
                gone.remove(&row.row);
            }
            !is_known
        });
        // No remembered row is in its place: the rows were renumbered, or the file is another one.
        if !self.recent.is_empty() && gone.len() == self.recent.len() {
            return Err(self.rewritten());
        }
        touched.seconds.extend(gone.values().map(|item| item.created_at));
        let new_rows = rows.len() as u64;
        for (row, addresses) in rows {
            self.take(look, &row, &addresses, touched)?;
        }
        self.recent = newest_rows(&self.schema, moment, last).map_err(StoreError::sqlite)?;
        Ok(new_rows)
    }

    /// Handles a new row: adds its item, and marks the items it may have removed.
    fn take(
        &mut self,
        look: &DatabaseComparison<'_>,
        row: &Row,
        addresses: &[u32],
        touched: &mut Touched,
    ) -> Result<(), StoreError> {
        for hash in addresses {
            let all = entry(*hash, &Item::new(0, [0; 32]));
            let seconds = self.addresses.range(all..=all | u64::from(u32::MAX)).copied();
            let seconds: Vec<u64> = seconds.collect();
            touched.seconds.extend(seconds.iter().map(|entry| entry & u64::from(u32::MAX)));
            // Replaced events stay for a while, because a relay may keep one of several versions.
            if let Some(oldest) = seconds.first().filter(|_| seconds.len() >= SECONDS_AN_ADDRESS) {
                self.addresses.remove(oldest);
            }
            self.addresses.insert(entry(*hash, &row.item));
        }
        if !row.is_public(look.now) {
            self.held.rows_unseen += 1;
            return Ok(());
        }
        let Some(event) = self.schema.event(look.moment, row.row).map_err(StoreError::sqlite)?
        else {
            self.held.rows_unseen += 1;
            return Ok(());
        };
        if event.kind() == DELETION {
            touched.deleted.extend(event.deleted_ids());
        }
        self.held.add(look, row, event, touched);
        Ok(())
    }

    /// NIP-09: marks the seconds of events that were deleted by id, so that they are compared.
    fn find_deleted(
        &self,
        look: &DatabaseComparison<'_>,
        touched: &mut Touched,
    ) -> Result<(), StoreError> {
        if touched.deleted.is_empty() {
            return Ok(());
        }
        let ids: Vec<[u8; 32]> = touched.deleted.iter().copied().collect();
        self.schema
            .rows(look.moment, &Wanted::Ids(&ids), &mut |row| {
                touched.deleted.remove(&row.item.id);
                touched.seconds.insert(row.item.created_at);
            })
            .map_err(StoreError::sqlite)?;
        if self.schema.removes_deleted && !touched.deleted.is_empty() {
            // Only the set has the times of the deleted ids.
            look.listener.held(0, u64::MAX, &mut |item| {
                if touched.deleted.contains(&item.id) {
                    touched.seconds.insert(item.created_at);
                }
            });
        }
        Ok(())
    }
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
    (schema.check)(connection).map_err(StoreError::sqlite)?.map_err(unknown)
}

fn pragma(connection: &Connection, name: &str) -> rusqlite::Result<i64> {
    connection.prepare_cached(&format!("PRAGMA {name}"))?.query_row([], |row| row.get(0))
}

fn metadata(path: &Path) -> Result<Metadata, StoreError> {
    // The file is never opened here: closing it would drop the locks that SQLite holds.
    std::fs::metadata(path).map_err(|source| StoreError::Missing { path: path.to_owned(), source })
}

fn file_id(metadata: &Metadata) -> FileId {
    (metadata.dev(), metadata.ino())
}

fn written(metadata: &Metadata) -> Written {
    (metadata.mtime(), metadata.mtime_nsec(), metadata.len())
}
