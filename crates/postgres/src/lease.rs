//! The lease on work that only one node does: a row with a term, by the server's clock.

use crate::connection::ServerSession;
use std::time::Duration;
use tokio_postgres::Error;

/// Takes or renews the lease, unless another node holds it. Returns whether this node holds it.
pub(crate) async fn take(
    connection: &ServerSession,
    node: i64,
    term: Duration,
) -> Result<bool, Error> {
    const TAKE: &str = "INSERT INTO lease (node, until)
        VALUES ($1, clock_timestamp() + make_interval(secs => $2))
        ON CONFLICT (single) DO UPDATE SET node = excluded.node, until = excluded.until
        WHERE lease.node = excluded.node OR lease.until < clock_timestamp()
        RETURNING node";
    let rows = connection.query(TAKE, &[&node, &term.as_secs_f64()]).await?;
    Ok(!rows.is_empty())
}

/// Releases the lease, if this node holds it.
pub(crate) async fn give_up(connection: &ServerSession, node: i64) -> Result<(), Error> {
    connection.execute("DELETE FROM lease WHERE node = $1", &[&node]).await.map(|_| ())
}
