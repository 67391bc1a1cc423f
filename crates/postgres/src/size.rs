//! The size of the store's tables on the server, and the number of tombstones.

use crate::connection::ServerSession;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio_postgres::Error;

/// Interval of the queries.
const ASK_INTERVAL: Duration = Duration::from_secs(30);

/// The sizes as of the last query.
#[derive(Debug, Default)]
pub(crate) struct StoreSize {
    bytes: AtomicU64,
    asked_at: Mutex<Option<Instant>>,
}

impl StoreSize {
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn note(&self, bytes: u64) {
        self.bytes.store(bytes, Ordering::Relaxed);
    }

    /// Whether a query is due; true for one caller only.
    pub(crate) fn is_due(&self) -> bool {
        let mut asked_at = self.asked_at.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = asked_at.is_none_or(|at| at.elapsed() >= ASK_INTERVAL);
        if is_due {
            *asked_at = Some(Instant::now());
        }
        is_due
    }
}

/// The size of all tables and their indexes, in bytes.
pub(crate) async fn bytes(connection: &ServerSession) -> Result<u64, Error> {
    const BYTES: &str = "SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint FROM pg_class c
        JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'negsync' AND c.relkind = 'r'";
    let rows = connection.query(BYTES, &[]).await?;
    Ok(rows.first().map_or(Ok(0), |row| row.try_get::<_, i64>(0))?.max(0) as u64)
}

/// The number of ids and addresses that deletion requests keep out.
pub(crate) async fn tombstones(connection: &ServerSession) -> Result<i64, Error> {
    const TOMBSTONES: &str = "SELECT coalesce(sum(named), 0)::bigint FROM deleter";
    let rows = connection.query(TOMBSTONES, &[]).await?;
    rows.first().map_or(Ok(0), |row| row.try_get(0))
}
