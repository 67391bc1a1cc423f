//! A preview of what rules of retention would remove.

use crate::columns::second;
use crate::reading::StoreReading;
use crate::transaction::retention::kinds;
use negsync_store::{Retention, RetentionRule, RuleMatches, StoreError};
use tokio_postgres::Error;

/// The events that each rule would remove at the second `now`, in rule order.
pub(crate) fn preview(
    reading: &StoreReading<'_>,
    retention: &Retention,
    now: u64,
) -> Result<Vec<RuleMatches>, StoreError> {
    let kinds = reading.wait(kinds(reading.connection()?))?;
    let of_rule = |rule| matches(reading, rule, &kinds, now);
    retention.rules.iter().map(of_rule).collect()
}

fn matches(
    reading: &StoreReading<'_>,
    rule: &RetentionRule,
    kinds: &[u16],
    now: u64,
) -> Result<RuleMatches, StoreError> {
    const OLD: &str = "SELECT count(*) FROM event WHERE kind = ANY($1) AND created_at < $2";
    const SURPLUS: &str = "SELECT coalesce(sum(surplus), 0)::bigint
        FROM (SELECT count(*) - $2 AS surplus FROM event WHERE kind = ANY($1) GROUP BY pubkey, kind) AS author
        WHERE surplus > 0";
    let connection = reading.connection()?;
    let kinds = kinds.iter().filter(|kind| rule.covers(**kind));
    let kinds: Vec<i32> = kinds.map(|kind| i32::from(*kind)).collect();
    let count = async |sql: &'static str, by: i64| -> Result<u64, Error> {
        let rows = connection.query(sql, &[&kinds, &by]).await?;
        rows.first().map_or(Ok(0), |row| second(row, 0))
    };
    let mut found = RuleMatches::default();
    if let Some(age) = rule.max_age_s {
        found.too_old = reading.wait(count(OLD, now.saturating_sub(age) as i64))?;
    }
    if let Some(kept) = rule.max_per_author {
        found.surplus = reading.wait(count(SURPLUS, kept.into()))?;
    }
    Ok(found)
}
