//! NIP-40: events that have expired and are still stored.

use rusqlite::{Connection, params};

/// NIP-40: what has expired and has not been removed yet.
pub(crate) struct Expired {
    now: u64,
    // Nearly always there is none, and no row has to be looked at.
    any: bool,
}

impl Expired {
    /// What expired by `now`.
    pub(crate) fn by(connection: &Connection, now: u64) -> rusqlite::Result<Self> {
        let mut rows = connection.prepare_cached(
            "SELECT 1 FROM event WHERE expires_at IS NOT NULL AND expires_at <= ?1 LIMIT 1",
        )?;
        Ok(Self { now, any: rows.exists([now as i64])? })
    }

    /// Nothing.
    #[cfg(test)]
    pub(crate) fn none() -> Self {
        Self { now: 0, any: false }
    }

    /// Whether there is anything.
    pub(super) fn any(&self) -> bool {
        self.any
    }

    /// Whether the event in this row is among them.
    pub(crate) fn contains(&self, connection: &Connection, row: i64) -> rusqlite::Result<bool> {
        if !self.any {
            return Ok(false);
        }
        let mut rows =
            connection.prepare_cached("SELECT 1 FROM event WHERE row = ?1 AND expires_at <= ?2")?;
        rows.exists(params![row, self.now as i64])
    }
}
