//! Checks that removed events are gone and kept out (NIP-01, NIP-09, NIP-62).

use super::Examined;
use crate::clock::Clock;
use crate::findings::{self, CheckReport, CheckedRow, Unfollowed, asks_every_relay_to_vanish};
use crate::sqlite_error;
use negsync_nostr::Event;
use negsync_nostr::TagKey;
use negsync_nostr::hex;
use negsync_nostr::kinds::{GIFT_WRAP, VANISH};
use rusqlite::{Connection, Rows, params};

/// Checks that the targets of a stored request are kept out; [`rules`] checks that they are gone.
pub(super) fn requests(
    connection: &Connection,
    examined: &Examined,
    checked: &mut CheckReport,
) -> rusqlite::Result<()> {
    let Some(event) = &examined.event else { return Ok(()) };
    let CheckedRow { id, pubkey, created_at, .. } = &examined.stored;
    let (row, by) = (examined.row, id.as_slice().try_into().ok());
    let mut find = |what: Unfollowed<'_>| checked.find_broken_rule(by, what.detail());
    let mut by_id = connection.prepare_cached(
        "SELECT 1 FROM tombstone WHERE id = ?1 AND pubkey = ?2 AND deletion = ?3",
    )?;
    for id in event.deleted_ids() {
        if !by_id.exists(params![id, pubkey, row])? {
            find(Unfollowed::Id(id));
        }
    }
    let mut by_address = connection.prepare_cached(
        "SELECT 1 FROM address_tombstone WHERE pubkey = ?1 AND kind = ?2 AND address = ?3
         AND created_at = ?4 AND deletion = ?5",
    )?;
    for (kind, d) in event.deleted_addresses() {
        if !by_address.exists(params![pubkey, kind, d, created_at, row])? {
            find(Unfollowed::Address(*kind, d));
        }
    }
    let mut vanished =
        connection.prepare_cached("SELECT 1 FROM vanished WHERE pubkey = ?1 AND until >= ?2")?;
    if asks_every_relay_to_vanish(event) && !vanished.exists(params![pubkey, created_at])? {
        find(Unfollowed::Author);
    }
    Ok(())
}

/// Checks that no deleted or vanished event is stored, and that each address has one version.
/// Events that a relay is still removing, or removes at its next start, are not findings.
pub(super) fn rules(connection: &Connection, checked: &mut CheckReport) -> rusqlite::Result<()> {
    const BROKEN: [(&str, &str); 6] = [
        (
            "SELECT event.id FROM operator_tombstone JOIN event USING (id)",
            findings::OPERATOR_REMOVED,
        ),
        (
            "SELECT event.id FROM tombstone JOIN event
             ON event.id = tombstone.id AND event.pubkey = tombstone.pubkey
             WHERE event.kind NOT IN (5, 62) AND event.id NOT IN (SELECT id FROM removal)",
            findings::DELETED_BY_ID,
        ),
        (
            "SELECT event.id FROM address_tombstone buried JOIN event
             ON event.pubkey = buried.pubkey AND event.kind = buried.kind
             AND event.address = buried.address AND event.address IS NOT NULL
             WHERE event.created_at <= buried.created_at
             AND event.id NOT IN (SELECT id FROM removal)",
            findings::DELETED_BY_ADDRESS,
        ),
        (
            "SELECT tombstone.id FROM tombstone LEFT JOIN event
             ON event.row = tombstone.deletion AND event.pubkey = tombstone.pubkey
             WHERE event.kind IS NOT 5",
            findings::ID_WITHOUT_REQUEST,
        ),
        (
            "SELECT NULL FROM address_tombstone buried LEFT JOIN event
             ON event.row = buried.deletion AND event.pubkey = buried.pubkey
             WHERE event.kind IS NOT 5",
            findings::ADDRESS_WITHOUT_REQUEST,
        ),
        (
            "SELECT old.id FROM event old JOIN event new
             ON new.pubkey = old.pubkey AND new.kind = old.kind AND new.address = old.address
             AND old.address IS NOT NULL AND new.address IS NOT NULL AND new.row <> old.row
             WHERE new.created_at > old.created_at
             OR (new.created_at = old.created_at AND new.id < old.id)",
            "a newer version is stored",
        ),
    ];
    for (sql, detail) in BROKEN {
        let mut select = connection.prepare(sql)?;
        let mut rows = select.query([])?;
        while let Some(row) = rows.next()? {
            checked.find_broken_rule(row.get(0).ok(), detail);
        }
    }
    let expired: i64 = connection.query_row(
        "SELECT count(*) FROM event WHERE expires_at IS NOT NULL AND expires_at <= ?1",
        [Clock::system().now() as i64],
        |row| row.get(0),
    )?;
    checked.expired = expired.max(0) as u64;
    wraps(connection, checked)?;
    vanished(connection, checked)
}

/// NIP-59: gift wraps that one of their recipients has deleted.
fn wraps(connection: &Connection, checked: &mut CheckReport) -> rusqlite::Result<()> {
    let mut select = connection.prepare(
        "SELECT event.id, event.json, tombstone.pubkey FROM tombstone JOIN event
         ON event.id = tombstone.id AND event.kind = ?1 AND event.pubkey <> tombstone.pubkey
         WHERE event.id NOT IN (SELECT id FROM removal)",
    )?;
    let mut rows = select.query([GIFT_WRAP])?;
    while let Some(row) = rows.next()? {
        let key: [u8; 32] = row.get(2)?;
        let wrap = Event::parse(&sqlite_error::text(row, 1)?);
        if wrap.is_ok_and(|wrap| wrap.recipients().any(|recipient| recipient == key)) {
            checked.find_broken_rule(row.get(0).ok(), findings::DELETED_BY_RECIPIENT);
        }
    }
    Ok(())
}

/// NIP-62: events of a vanished key, and gift wraps that were sent to it.
fn vanished(connection: &Connection, checked: &mut CheckReport) -> rusqlite::Result<()> {
    let mut written = connection
        .prepare("SELECT id FROM event WHERE pubkey = ?1 AND kind <> ?2 AND created_at <= ?3")?;
    let mut wraps = connection.prepare(
        "SELECT event.id FROM tag JOIN event ON event.row = tag.event
         WHERE tag.key = ?1 AND tag.kind = ?2 AND tag.created_at <= ?3 AND event.pubkey <> ?4",
    )?;
    let mut keys = connection.prepare("SELECT pubkey, until, pending FROM vanished")?;
    let mut keys = keys.query([])?;
    while let Some(key) = keys.next()? {
        let (pubkey, until, pending): (Vec<u8>, i64, bool) =
            (key.get(0)?, key.get(1)?, key.get(2)?);
        let addressed = TagKey::new(b'p', &hex::encode(&pubkey));
        let mut see = |mut rows: Rows<'_>, detail: &str| {
            while let Some(row) = rows.next()? {
                if pending {
                    checked.vanishing += 1;
                } else {
                    checked.find_broken_rule(row.get(0).ok(), detail);
                }
            }
            Ok::<_, rusqlite::Error>(())
        };
        let rows = written.query(params![pubkey, VANISH, until])?;
        see(rows, findings::AUTHOR_VANISHED)?;
        let rows = wraps.query(params![addressed.as_bytes(), GIFT_WRAP, until, pubkey])?;
        see(rows, findings::ADDRESSEE_VANISHED)?;
    }
    Ok(())
}
