//! The recorded state of syncs and the operator's removals: separate statements, independent of the
//! feed.

use crate::columns::{bytes, second, slices};
use crate::connection::ServerSession;
use crate::transaction::retention;
use negsync_store::{
    BuriedFacts, PeerTraits, REMOVED_BY_OPERATOR, RETIRED, ReadMark, RefusedId, SyncMark, Undelete,
};
use std::collections::HashMap;
use tokio_postgres::{Error, Row};

/// Text for the server, which does not allow NUL.
fn text(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

pub(crate) async fn remember_refused(
    connection: &ServerSession,
    refused: &[RefusedId],
    now: u64,
) -> Result<(), Error> {
    const WRITE: &str = "INSERT INTO refused (peer, id, reason, until)
        SELECT DISTINCT ON (peer, id) * FROM unnest($1::text[], $2::bytea[], $3::text[], $4::bigint[])
            AS refused (peer, id, reason, until)
        ON CONFLICT (peer, id) DO UPDATE SET reason = excluded.reason, until = excluded.until";
    const TRIM: &str = "DELETE FROM refused WHERE (peer, id) IN
        (SELECT peer, id FROM refused ORDER BY until DESC OFFSET $1)";
    let latest = now.saturating_add(RefusedId::MOST_TERM_S) as i64;
    let outdated = "DELETE FROM refused WHERE until <= $1 OR until > $2";
    connection.execute(outdated, &[&(now as i64), &latest]).await?;
    let peers: Vec<String> = refused.iter().map(|it| text(&it.peer)).collect();
    let ids: Vec<&[u8]> = refused.iter().map(|it| it.id.as_slice()).collect();
    let reasons: Vec<String> = refused.iter().map(|it| text(&it.reason)).collect();
    let until = |it: &RefusedId| now.saturating_add(it.term_s.min(RefusedId::MOST_TERM_S)) as i64;
    let untils: Vec<i64> = refused.iter().map(until).collect();
    connection.execute(WRITE, &[&peers, &ids, &reasons, &untils]).await?;
    connection.execute(TRIM, &[&RefusedId::MOST]).await.map(|_| ())
}

pub(crate) async fn refused(
    connection: &ServerSession,
    peer: &str,
    ids: &[[u8; 32]],
    now: u64,
) -> Result<HashMap<[u8; 32], String>, Error> {
    const REFUSED: &str = "SELECT id, reason FROM refused
        WHERE id = ANY($1) AND peer IN ('', $2) AND until > $3 AND until <= $4";
    const REMOVED: &str = "SELECT id FROM operator_tombstone WHERE id = ANY($1)";
    let (ids, latest) = (slices(ids), now.saturating_add(RefusedId::MOST_TERM_S) as i64);
    let mut found = HashMap::new();
    for row in connection.query(REFUSED, &[&ids, &text(peer), &(now as i64), &latest]).await? {
        found.insert(bytes(&row, 0)?, row.try_get(1)?);
    }
    for row in connection.query(REMOVED, &[&ids]).await? {
        found.insert(bytes(&row, 0)?, REMOVED_BY_OPERATOR.to_owned());
    }
    for id in retention::retired(connection, &ids).await? {
        found.insert(id, RETIRED.to_owned());
    }
    Ok(found)
}

pub(crate) async fn remember_mark(
    connection: &ServerSession,
    peer: &str,
    filter: &str,
    mark: &SyncMark,
    now: u64,
) -> Result<(), Error> {
    const WRITE: &str =
        "INSERT INTO sync_mark (peer, filter, equal_up_to, read_from, read_to, whole_at, at)
        VALUES ($1, $2, $3, $4, $5, $6, $7)
        ON CONFLICT (peer, filter) DO UPDATE SET
            equal_up_to = coalesce(excluded.equal_up_to, sync_mark.equal_up_to),
            read_from = coalesce(excluded.read_from, sync_mark.read_from),
            read_to = coalesce(excluded.read_to, sync_mark.read_to),
            whole_at = coalesce(excluded.whole_at, sync_mark.whole_at), at = excluded.at";
    const TRIM: &str = "DELETE FROM sync_mark WHERE (peer, filter) IN
        (SELECT peer, filter FROM sync_mark ORDER BY at DESC OFFSET $1)";
    let equal = mark.equal_up_to.map(|second| second as i64);
    let from = mark.read.map(|read| read.from as i64);
    let to = mark.read.map(|read| read.to as i64);
    let whole_at = mark.read.map(|read| read.whole_at as i64);
    let (peer, filter) = (text(peer), text(filter));
    connection
        .execute(WRITE, &[&peer, &filter, &equal, &from, &to, &whole_at, &(now as i64)])
        .await?;
    connection.execute(TRIM, &[&SyncMark::MOST]).await.map(|_| ())
}

pub(crate) async fn mark(
    connection: &ServerSession,
    peer: &str,
    filter: &str,
) -> Result<SyncMark, Error> {
    const MARK: &str = "SELECT equal_up_to, read_from, read_to, whole_at FROM sync_mark
        WHERE peer = $1 AND filter = $2";
    let rows = connection.query(MARK, &[&text(peer), &text(filter)]).await?;
    let Some(row) = rows.first() else { return Ok(SyncMark::default()) };
    let at = |column: usize| -> Result<Option<u64>, Error> {
        Ok(row.try_get::<_, Option<i64>>(column)?.map(|second| second as u64))
    };
    let read = match (at(1)?, at(2)?, at(3)?) {
        (Some(from), Some(to), Some(whole_at)) => Some(ReadMark { from, to, whole_at }),
        _ => None,
    };
    Ok(SyncMark { equal_up_to: at(0)?, read })
}

pub(crate) async fn remember_traits(
    connection: &ServerSession,
    peer: &str,
    traits: &PeerTraits,
    now: u64,
) -> Result<(), Error> {
    const WRITE: &str = "INSERT INTO sync_peer (peer, read_until, why, largest_page, at)
        VALUES ($1, $2, $3, $4, $5)
        ON CONFLICT (peer) DO UPDATE SET read_until = excluded.read_until, why = excluded.why,
            largest_page = excluded.largest_page, at = excluded.at";
    const TRIM: &str = "DELETE FROM sync_peer WHERE peer IN
        (SELECT peer FROM sync_peer ORDER BY at DESC OFFSET $1)";
    let (until, why) = traits.without_negentropy.clone().unwrap_or_default();
    let (until, page) = (until as i64, traits.largest_page as i64);
    connection.execute(WRITE, &[&text(peer), &until, &text(&why), &page, &(now as i64)]).await?;
    connection.execute(TRIM, &[&SyncMark::MOST]).await.map(|_| ())
}

pub(crate) async fn traits(connection: &ServerSession, peer: &str) -> Result<PeerTraits, Error> {
    const TRAITS: &str = "SELECT read_until, why, largest_page FROM sync_peer WHERE peer = $1";
    let rows = connection.query(TRAITS, &[&text(peer)]).await?;
    let Some(row) = rows.first() else { return Ok(PeerTraits::default()) };
    let (until, why): (u64, String) = (second(row, 0)?, row.try_get(1)?);
    let without_negentropy = (until > 0).then_some((until, why));
    Ok(PeerTraits { without_negentropy, largest_page: second(row, 2)? })
}

/// The ids that the operator removed and that `undelete` selects.
pub(crate) async fn undeleted(
    connection: &ServerSession,
    undelete: &Undelete,
) -> Result<Vec<[u8; 32]>, Error> {
    const BURIED: &str = "SELECT id, pubkey, kind, created_at FROM operator_tombstone
        ORDER BY created_at DESC NULLS LAST, id";
    let mut ids = Vec::new();
    for row in connection.query(BURIED, &[]).await? {
        let id = bytes(&row, 0)?;
        ids.extend(undelete.means(&id, buried(&row)?.as_ref()).then_some(id));
    }
    Ok(ids)
}

fn buried(row: &Row) -> Result<Option<BuriedFacts>, Error> {
    let author: Option<&[u8]> = row.try_get(1)?;
    let (kind, created_at): (Option<i32>, Option<i64>) = (row.try_get(2)?, row.try_get(3)?);
    Ok(author.zip(kind).zip(created_at).map(|((author, kind), created_at)| BuriedFacts {
        pubkey: author.try_into().unwrap_or_default(),
        kind: kind as u16,
        created_at: created_at as u64,
    }))
}
