//! A preview of what rules would remove.

use super::sweep::{kinds, used_bytes};
use super::{Retention, is_removed_by_size};
use rusqlite::{Connection, params};

/// The stored events that one rule would remove; an event may fall under several rules.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RuleMatches {
    /// The number of stored events that are too old.
    pub too_old: u64,
    /// The number of stored events beyond the newest that are kept of each author and kind.
    pub surplus: u64,
}

/// What each rule would remove, in rule order; and the estimated number of the oldest events to
/// remove for the size of the store.
pub(crate) fn preview(
    connection: &Connection,
    retention: &Retention,
    now: u64,
) -> rusqlite::Result<(Vec<RuleMatches>, u64)> {
    let kinds = kinds(connection)?;
    let mut of_kind = connection.prepare_cached(
        "SELECT count(*) FROM event INDEXED BY event_kind WHERE kind = ?1 AND created_at < ?2",
    )?;
    let mut crowds = connection.prepare_cached(
        "SELECT kind, sum(surplus) FROM
         (SELECT kind, count(*) - ?1 AS surplus FROM event INDEXED BY event_author GROUP BY pubkey, kind)
         WHERE surplus > 0 GROUP BY kind",
    )?;
    let mut matches = Vec::new();
    for rule in &retention.rules {
        let mut found = RuleMatches::default();
        if let Some(age) = rule.max_age_s {
            let oldest = now.saturating_sub(age) as i64;
            for kind in kinds.iter().filter(|kind| rule.covers(**kind)) {
                let count: i64 = of_kind.query_row(params![kind, oldest], |row| row.get(0))?;
                found.too_old += count.unsigned_abs();
            }
        }
        if let Some(kept) = rule.max_per_author {
            let mut rows = crowds.query([kept])?;
            while let Some(row) = rows.next()? {
                if rule.covers(row.get(0)?) {
                    found.surplus += row.get::<_, i64>(1)?.unsigned_abs();
                }
            }
        }
        matches.push(found);
    }
    let by_size = match retention.store_bytes {
        Some(most) => over_size(connection, &kinds, most)?,
        None => 0,
    };
    Ok((matches, by_size))
}

/// The estimated number of events to remove so that the store has at most its maximum size.
fn over_size(connection: &Connection, kinds: &[u16], most: u64) -> rusqlite::Result<u64> {
    let used = used_bytes(connection)?;
    let mut of_kind = connection
        .prepare_cached("SELECT count(*) FROM event INDEXED BY event_kind WHERE kind = ?1")?;
    let mut events = 0;
    for kind in kinds.iter().filter(|kind| is_removed_by_size(**kind)) {
        events += of_kind.query_row([kind], |row| row.get::<_, i64>(0))?.unsigned_abs();
    }
    let too_much = u128::from(used.saturating_sub(most));
    Ok(u64::try_from(too_much * u128::from(events) / u128::from(used.max(1))).unwrap_or(events))
}
