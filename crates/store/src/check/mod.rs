//! Checks a store: the file, each event, the data derived from it, and the rules. Only reads, on
//! one snapshot; a relay may run meanwhile.

mod rules;

use super::source_queue::Origin;
use super::verifier::Verifier;
use super::{StoreError, schema, sqlite_error};
use crate::findings::{CheckReport, CheckedRow, Finding, MOST_DESCRIBED};
use negsync_nostr::Event;
use rules::{requests, rules};
use rusqlite::{Connection, Row, params};
use std::path::Path;
use std::sync::mpsc::sync_channel;

/// Maximum number and total bytes of events that go to a verifying thread at a time.
const CHUNK_EVENTS: usize = 256;
const CHUNK_BYTES: usize = 1 << 20;
/// Chunks being verified at the same time.
const CHUNKS_IN_FLIGHT: usize = 16;

impl CheckReport {
    /// Records damage that stopped one part of the check, so that the other parts can continue.
    fn settle(&mut self, done: rusqlite::Result<()>) -> Result<(), StoreError> {
        match done {
            Err(error) if is_damage(&error) => {
                self.find_damage(&error);
                Ok(())
            }
            done => Ok(done.map_err(StoreError::sqlite)?),
        }
    }

    fn find_damage(&mut self, error: &rusqlite::Error) {
        self.find(Finding { what: "file", id: None, detail: error.to_string() });
    }
}

/// Checks the store in `path`. `progress` gets the number of checked events and the total: 0 of 0
/// while SQLite checks its file.
///
/// # Errors
/// When the file is missing, is not a store, or cannot be read for a reason other than damage.
pub fn check(path: &Path, mut progress: impl FnMut(u64, u64)) -> Result<CheckReport, StoreError> {
    let mut checked = CheckReport::default();
    progress(0, 0);
    let connection = match schema::open_reader(path) {
        Err(StoreError::Sqlite(error)) => {
            checked.settle(Err(error.0)).map_err(|error| error.while_opening(path))?;
            return Ok(checked);
        }
        opened => opened?,
    };
    schema::check_version(&connection, path)?;
    // The rest uses one snapshot, even if a relay writes meanwhile.
    let transaction = connection.unchecked_transaction().map_err(StoreError::sqlite)?;
    let pass = file(&transaction, &mut checked);
    checked.settle(pass)?;
    let verifier = Verifier::start()?;
    let pass = events(&transaction, &verifier, &mut checked, &mut progress);
    checked.settle(pass)?;
    let pass = rules(&transaction, &mut checked);
    checked.settle(pass)?;
    Ok(checked)
}

fn is_damage(error: &rusqlite::Error) -> bool {
    sqlite_error::is_damage(error) || sqlite_error::is_damaged_row(error)
}

/// SQLite's own check: the pages, and that each index agrees with its table.
fn file(connection: &Connection, checked: &mut CheckReport) -> rusqlite::Result<()> {
    let mut pragma = connection.prepare(&format!("PRAGMA integrity_check({MOST_DESCRIBED})"))?;
    let mut rows = pragma.query([])?;
    while let Some(row) = rows.next()? {
        let detail: String = row.get(0)?;
        if detail != "ok" {
            checked.find(Finding { what: "file", id: None, detail });
        }
    }
    Ok(())
}

fn read_row(row: &Row<'_>) -> rusqlite::Result<StoredRow> {
    let checked = CheckedRow {
        id: row.get(1)?,
        pubkey: row.get(2)?,
        created_at: row.get(3)?,
        kind: row.get(4)?,
        address: row.get(5)?,
        expires_at: row.get(6)?,
        json: sqlite_error::text(row, 7)?.into_owned(),
    };
    Ok((row.get(0)?, checked))
}

/// The row number and its columns.
type StoredRow = (i64, CheckedRow<String>);

/// The part of a check that needs no access to the store.
struct Examined {
    row: i64,
    stored: CheckedRow<String>,
    findings: Vec<Finding>,
    // `None` if the JSON is not a valid event.
    event: Option<Event>,
}

/// Checks each event: its JSON, id and signature, its columns, its tags in the index, and whether a
/// request to delete or to vanish was followed.
fn events(
    connection: &Connection,
    verifier: &Verifier,
    checked: &mut CheckReport,
    progress: &mut impl FnMut(u64, u64),
) -> rusqlite::Result<()> {
    let total: i64 = connection.query_row("SELECT count(*) FROM event", [], |row| row.get(0))?;
    let mut select = connection.prepare(
        "SELECT row, id, pubkey, created_at, kind, address, expires_at, json FROM event",
    )?;
    let mut rows = select.query([])?;
    let (send, examined) = sync_channel(CHUNKS_IN_FLIGHT);
    let (mut in_flight, mut indexed) = (0, 0);
    let mut requests_unreadable = false;
    loop {
        let (mut chunk, mut bytes) = (Vec::new(), 0);
        while chunk.len() < CHUNK_EVENTS && bytes < CHUNK_BYTES {
            let Some(row) = rows.next()? else { break };
            let stored = match read_row(row) {
                Err(error) if sqlite_error::is_damaged_row(&error) => {
                    checked.events += 1;
                    let number: i64 = row.get(0)?;
                    let detail = format!("row {number} is damaged: {error}");
                    checked.find(Finding { what: "event", id: row.get(1).ok(), detail });
                    continue;
                }
                read => read?,
            };
            bytes += stored.1.json.len();
            chunk.push(stored);
        }
        let at_end = chunk.is_empty();
        if !at_end {
            let send = send.clone();
            in_flight += 1;
            verifier.run(&Origin::Local, bytes, move || {
                let _ = send.send(chunk.into_iter().map(examine).collect::<Vec<Examined>>());
            });
        }
        while in_flight > 0 && (at_end || in_flight == CHUNKS_IN_FLIGHT) {
            let Ok(chunk) = examined.recv() else { return Ok(()) };
            in_flight -= 1;
            for event in chunk {
                checked.events += 1;
                indexed += indexed_tags(connection, &event, checked)?;
                if !requests_unreadable {
                    match requests(connection, &event, checked) {
                        // Damaged tombstones are reported once; the check of events continues.
                        Err(error) if is_damage(&error) => {
                            requests_unreadable = true;
                            checked.find_damage(&error);
                        }
                        looked => looked?,
                    }
                }
                event.findings.into_iter().for_each(|finding| checked.find(finding));
            }
            progress(checked.events, total.max(0) as u64);
        }
        if at_end {
            return stray_tags(connection, indexed, checked);
        }
    }
}

fn examine((row, stored): StoredRow) -> Examined {
    let (event, findings) = stored.examine(|event| event.address().map(str::to_owned));
    Examined { row, stored, findings, event }
}

/// The number of an event's tags that are indexed correctly; the others become findings.
fn indexed_tags(
    connection: &Connection,
    event: &Examined,
    checked: &mut CheckReport,
) -> rusqlite::Result<i64> {
    let mut select = connection.prepare_cached(
        "SELECT 1 FROM tag
         WHERE key = ?1 AND created_at = ?2 AND id = ?3 AND kind = ?4 AND event = ?5",
    )?;
    let CheckedRow { id, created_at, kind, .. } = &event.stored;
    let mut indexed = 0;
    for key in event.event.iter().flat_map(Event::tag_keys) {
        if select.exists(params![key.as_bytes(), created_at, id, kind, event.row])? {
            indexed += 1;
        } else {
            checked.find_missing_tag(id.as_slice().try_into().ok(), *key);
        }
    }
    Ok(indexed)
}

/// Finds rows of the tag index that are not among the `indexed` tags of stored events.
fn stray_tags(
    connection: &Connection,
    indexed: i64,
    checked: &mut CheckReport,
) -> rusqlite::Result<()> {
    let tags: i64 = connection.query_row("SELECT count(*) FROM tag", [], |row| row.get(0))?;
    checked.tags = tags.max(0) as u64;
    if tags == indexed {
        return Ok(());
    }
    let mut select = connection.prepare(
        "SELECT tag.id, tag.key, event.json FROM tag LEFT JOIN event
         ON event.row = tag.event AND event.id = tag.id
         AND event.created_at = tag.created_at AND event.kind = tag.kind",
    )?;
    let mut rows = select.query([])?;
    while let Some(row) = rows.next()? {
        let (key, json): (Vec<u8>, Option<String>) = (row.get(1)?, row.get(2)?);
        checked.look_at_indexed_tag(row.get(0).ok(), &key, json.as_deref());
    }
    Ok(())
}
