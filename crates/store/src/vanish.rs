//! Requests to vanish (NIP-62). A request removes all events that its key wrote up to the request's
//! time, and the gift wraps (NIP-59) that were sent to the key, and keeps them out. The requests
//! themselves are kept.

use super::apply::remove_in_turn;
use super::change::{StoredEvent, Written};
use super::rules;
use super::sqlite_error;
use negsync_nostr::hex;
use negsync_nostr::kinds::{GIFT_WRAP, VANISH};
use negsync_nostr::relay_url::RelayName;
use negsync_nostr::{Event, TagKey};
use rusqlite::{Connection, OptionalExtension, params};

/// The writer's state of requests to vanish.
pub(super) struct Vanishing {
    // Our relay's name, if a URL is configured.
    us: Option<RelayName>,
    // Whether any key has vanished; if not, events need no check.
    anybody: bool,
    /// Whether events of vanished keys may still be stored.
    pub(super) is_pending: bool,
}

impl Vanishing {
    /// Reads the vanished keys. If the relay's URL changed, stored requests that name the new URL
    /// take effect now.
    pub(super) fn load(connection: &Connection, us: Option<RelayName>) -> rusqlite::Result<Self> {
        let anybody = connection.prepare("SELECT 1 FROM vanished")?.exists([])?;
        let mut vanishing = Self { us, anybody, is_pending: next_pending(connection)?.is_some() };
        if vanishing.us.is_some() {
            vanishing.follow_stored(connection)?;
        }
        Ok(vanishing)
    }

    fn follow_stored(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        let mut rows = connection.prepare(
            "SELECT row FROM event WHERE kind = ?1 AND NOT EXISTS (SELECT 1 FROM vanished
             WHERE vanished.pubkey = event.pubkey AND until >= event.created_at)",
        )?;
        let rows: Vec<i64> =
            rows.query_map([VANISH], |row| row.get(0))?.collect::<Result<_, _>>()?;
        let transaction = connection.unchecked_transaction()?;
        for row in rows {
            let request = transaction
                .prepare_cached("SELECT json FROM event WHERE row = ?1")?
                .query_row([row], |row| Ok(Event::parse(&sqlite_error::text(row, 0)?)))?;
            // Rows that are not valid events are reported by `check`.
            if let Ok(request) = request {
                self.follow(&transaction, &request)?;
            }
        }
        transaction.commit()
    }

    /// The second up to which the event's author has vanished; for a gift wrap, an addressee counts
    /// too.
    pub(super) fn until(
        &self,
        connection: &Connection,
        event: &Event,
    ) -> rusqlite::Result<Option<u64>> {
        if !self.anybody {
            return Ok(None);
        }
        let mut select =
            connection.prepare_cached("SELECT until FROM vanished WHERE pubkey = ?1")?;
        let mut latest = None;
        for key in std::iter::once(*event.pubkey()).chain(event.recipients()) {
            let until = select.query_row([key], |row| row.get::<_, i64>(0)).optional()?;
            latest = latest.max(until.map(|second| second.max(0) as u64));
        }
        Ok(latest)
    }

    /// Follows a request to vanish, if it is addressed to this relay. The removal happens later, in
    /// steps.
    pub(super) fn follow(
        &mut self,
        connection: &Connection,
        event: &Event,
    ) -> rusqlite::Result<()> {
        if !rules::vanishes_from(event, self.us.as_ref()) {
            return Ok(());
        }
        connection.execute(
            "INSERT INTO vanished (pubkey, until, pending) VALUES (?1, ?2, 1)
             ON CONFLICT DO UPDATE SET until = max(until, excluded.until), pending = 1",
            params![event.pubkey(), event.item().created_at as i64],
        )?;
        self.anybody = true;
        self.is_pending = true;
        Ok(())
    }
}

/// Removes events of a vanished key, until `most_rows` are written. Returns whether events of this
/// or another vanished key may be left.
pub(super) fn remove_some(
    connection: &Connection,
    most_rows: usize,
    change: &mut Written,
) -> rusqlite::Result<bool> {
    let Some((pubkey, until)) = next_pending(connection)? else { return Ok(false) };
    let mut written = connection.prepare_cached(
        "SELECT row, id, created_at, json FROM event INDEXED BY event_author
         WHERE pubkey = ?1 AND kind <> ?2 AND created_at <= ?3 LIMIT ?4",
    )?;
    let mut wraps = connection.prepare_cached(
        "SELECT event.row, event.id, event.created_at, event.json
         FROM tag JOIN event ON event.row = tag.event
         WHERE tag.key = ?1 AND tag.kind = ?2 AND tag.created_at <= ?3
         AND event.pubkey <> ?4 LIMIT ?5",
    )?;
    let addressed = TagKey::new(b'p', &hex::encode(&pubkey));
    let there_is_more = remove_in_turn(connection, most_rows, change, |limit| {
        let of_author = params![pubkey, VANISH, until, limit as i64];
        written.query_map(of_author, StoredEvent::read)?.collect()
    })? || remove_in_turn(connection, most_rows, change, |limit| {
        let to_author = params![addressed.as_bytes(), GIFT_WRAP, until, pubkey, limit as i64];
        wraps.query_map(to_author, StoredEvent::read)?.collect()
    })?;
    if !there_is_more {
        connection.execute("UPDATE vanished SET pending = 0 WHERE pubkey = ?1", [pubkey])?;
    }
    Ok(next_pending(connection)?.is_some())
}

/// A vanished key whose events may still be stored.
fn next_pending(connection: &Connection) -> rusqlite::Result<Option<([u8; 32], i64)>> {
    connection
        .prepare_cached("SELECT pubkey, until FROM vanished WHERE pending = 1 LIMIT 1")?
        .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()
}
