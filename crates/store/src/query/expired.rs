//! NIP-40: expired events that are still stored.

use rusqlite::{Connection, params};

/// NIP-40: the events that have expired and are not removed yet.
pub(crate) struct Expired {
    now: u64,
    // False in nearly all cases; no row has to be checked then.
    any: bool,
}

impl Expired {
    /// The events that expired by `now`.
    pub(crate) fn by(connection: &Connection, now: u64) -> rusqlite::Result<Self> {
        let mut rows = connection.prepare_cached(
            "SELECT 1 FROM event WHERE expires_at IS NOT NULL AND expires_at <= ?1 LIMIT 1",
        )?;
        Ok(Self { now, any: rows.exists([now as i64])? })
    }

    /// No events.
    #[cfg(test)]
    pub(crate) fn none() -> Self {
        Self { now: 0, any: false }
    }

    /// Whether there are any.
    pub(super) fn any(&self) -> bool {
        self.any
    }

    /// Whether the event in this row is one of them.
    pub(crate) fn contains(&self, connection: &Connection, row: i64) -> rusqlite::Result<bool> {
        if !self.any {
            return Ok(false);
        }
        let mut rows =
            connection.prepare_cached("SELECT 1 FROM event WHERE row = ?1 AND expires_at <= ?2")?;
        rows.exists(params![row, self.now as i64])
    }
}
