//! Commits of the feed as marks of the index: index files name their commit, and changes since then
//! are read from the feed.

use crate::connection::ServerSession;
use crate::reading::{StoreReading, read_item};
use crate::transaction::{FeedPlace, head_row};
use negsync_reconcile::Item;
use negsync_store::{MarkName, StoreError};
use tokio_postgres::types::Type;
use tokio_postgres::{Error, Row};

/// The mark name of a commit.
pub(crate) fn name(place: FeedPlace) -> MarkName {
    ((u128::from(place.seq as u64) << 64) | u128::from(place.mark as u64)).to_be_bytes()
}

/// The commit of a mark name.
pub(crate) fn place(name: &MarkName) -> FeedPlace {
    let number = u128::from_be_bytes(*name);
    FeedPlace { seq: (number >> 64) as i64, mark: number as i64 }
}

/// Those of these commits that are in the feed, latest first.
pub(crate) async fn standing(
    connection: &ServerSession,
    of: &[MarkName],
) -> Result<Vec<MarkName>, Error> {
    const STANDING: &str = "SELECT c.seq, c.mark
        FROM unnest($1::bigint[], $2::bigint[]) AS known (seq, mark)
        JOIN feed_commit c ON c.seq = known.seq AND c.mark = known.mark
        ORDER BY c.seq DESC";
    let (seqs, marks): (Vec<i64>, Vec<i64>) =
        of.iter().map(place).map(|place| (place.seq, place.mark)).unzip();
    let rows = connection.query(STANDING, &[&seqs, &marks]).await?;
    rows.iter().map(|row| FeedPlace::read(row).map(name)).collect()
}

/// See [`negsync_store::MarkedStore::since_index_mark`]; in one snapshot.
pub(crate) fn since(
    reading: &StoreReading<'_>,
    mark: &MarkName,
    most: usize,
    removed: &mut dyn FnMut(Item),
    added: &mut dyn FnMut(Item, u16),
) -> Result<bool, StoreError> {
    // Each statement has both bounds: the server estimates a range without an upper bound as a
    // third of the table.
    const GONE: &str = "SELECT created_at, id FROM gone WHERE seq > $1 AND seq <= $2";
    const ADDED: &str = "SELECT created_at, id, kind FROM event WHERE seq > $1 AND seq <= $2";
    let since = place(mark);
    let connection = reading.connection()?;
    let Some(head) = reading.wait(head_if_few(connection, since, most))? else { return Ok(false) };
    let part = || vec![(&since.seq as _, Type::INT8), (&head as _, Type::INT8)];
    reading.each_row(GONE, part(), read_item, removed)?;
    let with_kind = |row: &Row| Ok((read_item(row)?, row.try_get::<_, i32>(2)? as u16));
    reading.each_row(ADDED, part(), with_kind, &mut |(item, kind)| added(item, kind))?;
    Ok(true)
}

/// The number of the last commit; `None` if the feed does not reach back to `since`, or if more
/// than `most` events were added or removed since.
async fn head_if_few(
    connection: &ServerSession,
    since: FeedPlace,
    most: usize,
) -> Result<Option<i64>, Error> {
    const HEAD: &str = "SELECT h.seq,
            EXISTS (SELECT 1 FROM feed_commit WHERE seq = $1 AND mark = $2),
            (SELECT coalesce(sum(c.added::bigint + c.removed), 0)::bigint
                FROM feed_commit c WHERE c.seq > $1 AND c.seq <= h.seq)
        FROM head h";
    let rows = connection.query(HEAD, &[&since.seq, &since.mark]).await?;
    let row = head_row(connection, &rows).await?;
    let (head, stands, events): (i64, bool, i64) =
        (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
    let is_few = usize::try_from(events).is_ok_and(|events| events <= most);
    Ok((stands && is_few).then_some(head))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_of_one_commit() {
        for (seq, mark) in [(0, 0), (1, -1), (i64::MAX, i64::MIN), (7, i64::MAX)] {
            let of = FeedPlace { seq, mark };
            assert_eq!(place(&name(of)), of);
        }
    }
}
