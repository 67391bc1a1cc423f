//! The recorded state of a peer: how far it was equal or read, by filter, and how to query it.

use rusqlite::{Connection, OptionalExtension, params};

/// How far a peer is known, for one filter. Times are in seconds since the Unix epoch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SyncMark {
    /// The newest `created_at` of the sets when a reconciliation last proved them equal.
    pub equal_up_to: Option<u64>,
    /// The range read of a peer without NIP-77.
    pub read: Option<ReadMark>,
}

impl SyncMark {
    /// Maximum number of pairs of peer and filter, and of peers, that a store records; the least
    /// recently used are dropped.
    pub const MOST: i64 = 10_000;
}

/// A range of `created_at` in which all of a peer's events were read (by REQ), without a gap.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReadMark {
    /// The oldest second read; 0 if nothing older is left.
    pub from: u64,
    /// The newest second read.
    pub to: u64,
    /// The second at which the last complete reading ended; 0 if there is none.
    pub whole_at: u64,
}

/// How to query a peer, for all filters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PeerTraits {
    /// The second until which the peer is read by REQ without trying NIP-77, and the reason.
    pub without_negentropy: Option<(u64, String)>,
    /// Maximum number of events that it has ever returned for a REQ.
    pub largest_page: u64,
}

pub(super) fn remember(
    connection: &Connection,
    peer: &str,
    filter: &str,
    mark: &SyncMark,
    now: u64,
) -> rusqlite::Result<()> {
    let read = mark.read.unwrap_or_default();
    connection
        .prepare_cached(
            "INSERT INTO sync_mark (peer, filter, equal_up_to, read_from, read_to, whole_at, at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
             ON CONFLICT DO UPDATE SET
                 equal_up_to = coalesce(excluded.equal_up_to, equal_up_to),
                 read_from = coalesce(excluded.read_from, read_from),
                 read_to = coalesce(excluded.read_to, read_to),
                 whole_at = coalesce(excluded.whole_at, whole_at), at = excluded.at",
        )?
        .execute(params![
            peer,
            filter,
            mark.equal_up_to.map(|second| second as i64),
            mark.read.map(|_| read.from as i64),
            mark.read.map(|_| read.to as i64),
            mark.read.map(|_| read.whole_at as i64),
            now as i64
        ])?;
    connection.execute(
        "DELETE FROM sync_mark WHERE (peer, filter) IN
         (SELECT peer, filter FROM sync_mark ORDER BY at DESC LIMIT -1 OFFSET ?1)",
        [SyncMark::MOST],
    )?;
    Ok(())
}

pub(super) fn mark(
    connection: &Connection,
    peer: &str,
    filter: &str,
) -> rusqlite::Result<SyncMark> {
    let found = connection
        .prepare_cached(
            "SELECT equal_up_to, read_from, read_to, whole_at FROM sync_mark
             WHERE peer = ?1 AND filter = ?2",
        )?
        .query_row([peer, filter], |row| {
            let second = |column: usize| -> rusqlite::Result<Option<u64>> {
                Ok(row.get::<_, Option<i64>>(column)?.map(|it| it as u64))
            };
            let read = match (second(1)?, second(2)?, second(3)?) {
                (Some(from), Some(to), Some(whole_at)) => Some(ReadMark { from, to, whole_at }),
                _ => None,
            };
            Ok(SyncMark { equal_up_to: second(0)?, read })
        })
        .optional()?;
    Ok(found.unwrap_or_default())
}

pub(super) fn remember_traits(
    connection: &Connection,
    peer: &str,
    traits: &PeerTraits,
    now: u64,
) -> rusqlite::Result<()> {
    let (until, why) = traits.without_negentropy.clone().unwrap_or_default();
    connection
        .prepare_cached(
            "INSERT INTO sync_peer (peer, read_until, why, largest_page, at)
             VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT DO UPDATE SET read_until = excluded.read_until, why = excluded.why,
                 largest_page = excluded.largest_page, at = excluded.at",
        )?
        .execute(params![peer, until as i64, why, traits.largest_page as i64, now as i64])?;
    connection.execute(
        "DELETE FROM sync_peer WHERE peer IN
         (SELECT peer FROM sync_peer ORDER BY at DESC LIMIT -1 OFFSET ?1)",
        [SyncMark::MOST],
    )?;
    Ok(())
}

pub(super) fn traits(connection: &Connection, peer: &str) -> rusqlite::Result<PeerTraits> {
    let found = connection
        .prepare_cached("SELECT read_until, why, largest_page FROM sync_peer WHERE peer = ?1")?
        .query_row([peer], |row| {
            let until = row.get::<_, i64>(0)? as u64;
            let why: String = row.get(1)?;
            let without_negentropy = (until > 0).then_some((until, why));
            Ok(PeerTraits { without_negentropy, largest_page: row.get::<_, i64>(2)? as u64 })
        })
        .optional()?;
    Ok(found.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::super::schema;
    use super::*;

    #[test]
    fn each_kind_of_mark_is_kept_beside_the_other() {
        let folder = tempfile::tempdir().unwrap();
        let connection = schema::open_writer(&folder.path().join("store.sqlite")).unwrap();
        let found = |filter| mark(&connection, "ws://a", filter).unwrap();
        let write = |mark| remember(&connection, "ws://a", "{}", &mark, 7).unwrap();
        assert_eq!(found("{}"), SyncMark::default());
        let read = Some(ReadMark { from: 0, to: 9, whole_at: 5 });
        write(SyncMark { equal_up_to: Some(4), read: None });
        write(SyncMark { equal_up_to: None, read });
        assert_eq!(found("{}"), SyncMark { equal_up_to: Some(4), read });
        assert_eq!(found("[]"), SyncMark::default());

        assert_eq!(traits(&connection, "ws://a").unwrap(), PeerTraits::default());
        let without_negentropy = Some((90, "no answer".to_owned()));
        let some = PeerTraits { without_negentropy, largest_page: 3 };
        remember_traits(&connection, "ws://a", &some, 7).unwrap();
        assert_eq!(traits(&connection, "ws://a").unwrap(), some);
    }
}
