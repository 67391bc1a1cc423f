//! Whether a store is what it should be: the file, each event, what is derived from it, and the
//! rules. Reads only, all of it at one moment, also beside a running relay.

mod rules;

use super::source_queue::Origin;
use super::verifier::Verifier;
use super::{StoreError, schema, sqlite_error};
use negsync_nostr::Event;
use negsync_nostr::TagKey;
use negsync_nostr::kinds::Lifetime;
use rules::{Orders, orders, rules};
use rusqlite::{Connection, Row, params};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc::sync_channel;

/// So many findings are described; all are counted.
const MOST_DESCRIBED: usize = 1_000;
/// How many events, and how many bytes of them, go to a verifying thread at a time.
const CHUNK_EVENTS: usize = 256;
const CHUNK_BYTES: usize = 1 << 20;
/// How many chunks are being verified.
const CHUNKS_IN_FLIGHT: usize = 16;

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What is wrong: `file`, `event`, `signature`, `column`, `tag` or `rule`.
    pub what: &'static str,
    /// The event's id, where it is about one.
    pub id: Option<[u8; 32]>,
    /// What is wrong with it, in words.
    pub detail: String,
}

/// What a check has seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// The events that were read.
    pub events: u64,
    /// The single-letter tags in the index.
    pub tags: u64,
    /// Events that have expired and that a relay removes when it starts. Nothing is wrong with that.
    pub expired: u64,
    /// Events of keys that have asked to vanish, which a relay is removing or goes on to remove when
    /// it starts. Nothing is wrong with that either.
    pub vanishing: u64,
    /// How often each kind of finding came up.
    pub found: BTreeMap<&'static str, u64>,
    /// The first thousand findings.
    pub findings: Vec<Finding>,
}

impl CheckReport {
    /// Whether nothing is wrong.
    pub fn is_sound(&self) -> bool {
        self.found.is_empty()
    }

    fn find(&mut self, finding: Finding) {
        *self.found.entry(finding.what).or_default() += 1;
        if self.findings.len() < MOST_DESCRIBED {
            self.findings.push(finding);
        }
    }

    /// Of a part that could not be read because of the damage the rest can still be.
    fn settle(&mut self, done: rusqlite::Result<()>) -> Result<(), StoreError> {
        match done {
            Err(error) if sqlite_error::is_damage(&error) => {
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

/// Checks the store in `path`. `progress` hears of the events that are done, and of how many there
/// are: 0 of 0 while SQLite checks its file.
///
/// # Errors
/// When the file is not there, is no store, or cannot be read for another reason than damage.
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
    // What follows is of one moment, whatever a relay writes meanwhile.
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

/// SQLite's own check: pages, and that each index holds what its table holds.
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

/// An event's row as it stands.
struct StoredRow {
    row: i64,
    id: Vec<u8>,
    pubkey: Vec<u8>,
    created_at: i64,
    kind: i64,
    address: Option<String>,
    expires_at: Option<i64>,
    json: String,
}

impl StoredRow {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            row: row.get(0)?,
            id: row.get(1)?,
            pubkey: row.get(2)?,
            created_at: row.get(3)?,
            kind: row.get(4)?,
            address: row.get(5)?,
            expires_at: row.get(6)?,
            json: sqlite_error::text(row, 7)?.into_owned(),
        })
    }
}

/// What a row gives away on a thread that does not read the store.
struct Examined {
    stored: StoredRow,
    findings: Vec<Finding>,
    // Empty when the JSON is no event.
    tag_keys: Vec<TagKey>,
    orders: Orders,
}

/// Each event: its JSON, its id and signature, its columns, its tags in the index, and of a
/// request to delete or to vanish whether it was followed.
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
    let mut orders_unreadable = false;
    loop {
        let (mut chunk, mut bytes) = (Vec::new(), 0);
        while chunk.len() < CHUNK_EVENTS && bytes < CHUNK_BYTES {
            let Some(row) = rows.next()? else { break };
            let stored = StoredRow::read(row)?;
            bytes += stored.json.len();
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
                if !orders_unreadable {
                    match orders(connection, &event, checked) {
                        // Of damaged tombstones it is said once, and events are read on.
                        Err(error) if sqlite_error::is_damage(&error) => {
                            orders_unreadable = true;
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

fn examine(stored: StoredRow) -> Examined {
    let id: Option<[u8; 32]> = stored.id.as_slice().try_into().ok();
    let mut findings = Vec::new();
    let mut find = |what, detail| findings.push(Finding { what, id, detail });
    let event = match Event::parse(&stored.json) {
        Ok(event) => event,
        Err(error) => {
            find("event", error.reason);
            return Examined { stored, findings, tag_keys: Vec::new(), orders: Orders::default() };
        }
    };
    let expires_at = event.expires_at().map(|second| i64::try_from(second).unwrap_or(i64::MAX));
    let columns = [
        ("id", stored.id == event.item().id),
        ("pubkey", stored.pubkey == event.pubkey()),
        ("created_at", stored.created_at == event.item().created_at as i64),
        ("kind", stored.kind == i64::from(event.kind())),
        ("address", stored.address.as_deref() == event.address()),
        ("expires_at", stored.expires_at == expires_at),
        ("json", stored.json == event.json()),
    ];
    for (column, is_right) in columns {
        if !is_right {
            find("column", format!("{column}: is not what the event says"));
        }
    }
    if event.lifetime() == Lifetime::Ephemeral {
        find("rule", "an ephemeral event is stored".into());
    }
    let tag_keys = event.tag_keys().to_vec();
    let orders = Orders::of(&event);
    if let Err(error) = event.verify() {
        find("signature", error.reason);
    }
    Examined { stored, findings, tag_keys, orders }
}

/// How many of an event's tags are in the index as they should be; the others are findings.
fn indexed_tags(
    connection: &Connection,
    event: &Examined,
    checked: &mut CheckReport,
) -> rusqlite::Result<i64> {
    let mut select = connection.prepare_cached(
        "SELECT 1 FROM tag
         WHERE key = ?1 AND created_at = ?2 AND id = ?3 AND kind = ?4 AND event = ?5",
    )?;
    let StoredRow { id, created_at, kind, row, .. } = &event.stored;
    let mut indexed = 0;
    for key in &event.tag_keys {
        if select.exists(params![key.as_bytes(), created_at, id, kind, row])? {
            indexed += 1;
        } else {
            let id = id.as_slice().try_into().ok();
            checked.find(Finding { what: "tag", id, detail: format!("{key:?} is not indexed") });
        }
    }
    Ok(indexed)
}

/// Looks for what the index of tags holds beside the `indexed` tags of stored events.
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
        let detail = match json.as_deref().map(Event::parse) {
            None => "is indexed under an event that is not stored",
            Some(Ok(event)) if event.tag_keys().iter().any(|has| has.as_bytes() == key) => continue,
            Some(Ok(_)) => "is indexed and the event does not have it",
            // That the event is none has been said.
            Some(Err(_)) => continue,
        };
        let key: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
        let id = row.get(0).ok();
        checked.find(Finding { what: "tag", id, detail: format!("{key} {detail}") });
    }
    Ok(())
}
