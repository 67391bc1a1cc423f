//! NIP-62: stored requests to vanish whose URL has become this relay's URL later. Anyone may
//! publish them, so they are read in pages, and once for each URL.

use super::begin;
use super::writing::note_vanished;
use crate::batch::{Bytes, Changes};
use crate::columns::{bytes, second};
use crate::connection::ServerSession;
use negsync_nostr::kinds::VANISH;
use negsync_nostr::{Event, RelayUrl};
use negsync_store::rules;
use tokio_postgres::{Error, Row};

/// Maximum number of requests on a page, and their maximum bytes, unless a single request has more.
const PAGE_REQUESTS: i64 = 256;
const PAGE_BYTES: i64 = 4 << 20;

/// How far the stored requests to vanish have been followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum StoredRequests {
    /// Not known yet.
    Unknown,
    /// Down to this request, newest first.
    ReadTo { created_at: i64, id: Bytes },
    /// All that name this relay.
    Followed,
}

/// Follows a page of the stored requests to vanish, unless all that name `us` have been followed.
pub(crate) async fn follow_stored(
    connection: &ServerSession,
    us: &RelayUrl,
    read: &StoredRequests,
) -> Result<StoredRequests, Error> {
    let (created_at, id) = match read {
        StoredRequests::Followed => return Ok(StoredRequests::Followed),
        StoredRequests::Unknown if are_followed(connection, us).await? => {
            return Ok(StoredRequests::Followed);
        }
        StoredRequests::Unknown => (i64::MAX, Bytes::default()),
        StoredRequests::ReadTo { created_at, id } => (*created_at, *id),
    };
    let page = read_page(connection, created_at, &id).await?;
    let Some(last) = page.last() else {
        let followed = "UPDATE store SET vanish_url = $1";
        connection.execute(followed, &[&us.address()]).await?;
        return Ok(StoredRequests::Followed);
    };
    let read = StoredRequests::ReadTo { created_at: last.try_get(0)?, id: bytes(last, 1)? };
    let changes = vanishing(&page, us)?;
    if !changes.vanished.is_empty() {
        begin(connection).await?;
        note_vanished(connection, &changes).await?;
        connection.client().batch_execute("COMMIT").await?;
    }
    Ok(read)
}

/// Whether the stored requests were last read for this relay's URL.
async fn are_followed(connection: &ServerSession, us: &RelayUrl) -> Result<bool, Error> {
    let rows = connection.query("SELECT vanish_url FROM store", &[]).await?;
    let url: Option<&str> = rows.first().map(|row| row.try_get(0)).transpose()?.flatten();
    Ok(url.is_some_and(|url| us.name().is(url)))
}

/// The requests after one, newest first; without their JSON if their author has vanished by then.
async fn read_page(
    connection: &ServerSession,
    created_at: i64,
    id: &Bytes,
) -> Result<Vec<Row>, Error> {
    const PAGE: &str = "SELECT created_at, id, CASE WHEN NOT EXISTS (SELECT 1 FROM vanished
            WHERE vanished.pubkey = page.pubkey AND vanished.until >= page.created_at) THEN json END
        FROM (SELECT *, sum(octet_length(json)) OVER (ORDER BY created_at DESC, id) AS bytes
            FROM ((SELECT created_at, id, pubkey, json FROM event
                    WHERE kind = $1 AND created_at = $2 AND id > $3 ORDER BY id LIMIT $4)
                UNION ALL
                (SELECT created_at, id, pubkey, json FROM event
                    WHERE kind = $1 AND created_at < $2 ORDER BY created_at DESC, id LIMIT $4)
                ORDER BY created_at DESC, id LIMIT $4) AS next) AS page
        WHERE bytes - octet_length(json) < $5 ORDER BY created_at DESC, id";
    let kind = i32::from(VANISH);
    let (requests, bytes) = (PAGE_REQUESTS, PAGE_BYTES);
    connection.query(PAGE, &[&kind, &created_at, &id.as_slice(), &requests, &bytes]).await
}

/// The authors that ask this relay to vanish.
fn vanishing(page: &[Row], us: &RelayUrl) -> Result<Changes, Error> {
    let (mut changes, us) = (Changes::default(), us.name());
    for row in page {
        let json: Option<&str> = row.try_get(2)?;
        // Rows that are not valid events are reported by `check`.
        let Some(Ok(request)) = json.map(Event::parse) else { continue };
        if rules::vanishes_from(&request, Some(&us)) {
            let until = changes.vanished.entry(*request.pubkey()).or_default();
            *until = second(row, 0)?.max(*until);
        }
    }
    Ok(changes)
}
