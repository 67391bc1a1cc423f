//! The server's feed of commits: a temporary logical slot, read with SQL. Each change comes once,
//! complete and in commit order.

use super::pgoutput::{Malformed, OutputMessage, Tuple, Value};
use super::relay_table::{ChangedColumns, RelayTable, TableRow};
use super::session::{DatabaseError, Outcome, RelaySession};
use negsync_store::Deadline;
use std::collections::{HashMap, VecDeque};

/// The publication for the table.
pub(crate) const PUBLICATION: &str = "negsync_attach";
/// Messages that one query requests; a transaction always comes whole.
const MESSAGES_AT_ONCE: usize = 10_000;
/// Transactions that are remembered, the latest ones: more than a server has connections.
const RECENT_TRANSACTIONS: usize = 4_096;

/// One change in the feed.
pub(crate) enum FeedStep {
    /// The row as it is now; the value is `None` if it holds no valid event.
    Put(u128, Option<Box<TableRow>>),
    /// The row with this key was removed.
    Gone(u128),
    /// The end of a transaction.
    Committed,
}

/// The changes of one table since the feed was opened.
pub(crate) struct ChangeFeed {
    session: RelaySession,
    table: &'static RelayTable,
    slot: String,
    oid: u32,
    /// The version of the publication's rows. Changes are decoded with the publication of their
    /// time, so one that was changed and changed back has left something out.
    publication: String,
    /// The columns that are read, with the numbers of their types.
    read: HashMap<String, u32>,
    /// The names of the table's columns, once the feed has sent them.
    columns: Vec<String>,
    // The latest transactions, oldest first.
    recent: VecDeque<u32>,
    transaction: u32,
}

impl ChangeFeed {
    /// Checks the server's settings, and creates the publication and the slot.
    pub(crate) fn open(session: RelaySession, table: &'static RelayTable) -> Outcome<Self> {
        check_server(&session)?;
        (table.check)(&session)?;
        let oid = check_table(&session, table)?;
        publish(&session, table)?;
        let publication = session.row(publication_version(oid))?.try_get(0)?;
        let pid: i32 = session.row("SELECT pg_backend_pid()")?.try_get(0)?;
        let slot = format!("negsync_attach_{pid}");
        session
            .execute(format!(
                "SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput', true)"
            ))
            .map_err(|error| slot_hint(&session, error))?;
        let read = columns_read(&session, table)?;
        let (columns, recent) = (Vec::new(), VecDeque::new());
        Ok(Self { session, table, slot, oid, publication, read, columns, recent, transaction: 0 })
    }

    /// The position up to which the log is on the server's disk: every commit acknowledged with
    /// `synchronous_commit` is before it.
    pub(crate) fn flushed(&self) -> Outcome<i64> {
        Ok(self.positions()?.1)
    }

    /// A position in the log after every commit that any client can have seen. The feed contains
    /// only flushed commits, so commits without `synchronous_commit` are flushed first.
    pub(crate) fn flush(&self) -> Outcome<i64> {
        let (inserted, flushed) = self.positions()?;
        if flushed < inserted {
            self.session.execute("SELECT pg_logical_emit_message(true, 'negsync', '')")?;
        }
        Ok(inserted.max(flushed))
    }

    /// The written and the flushed end of the log. Fails if the table was replaced, is no longer
    /// published, or is or was published only in part.
    fn positions(&self) -> Outcome<(i64, i64)> {
        let (oid, RelayTable { table, .. }) = (self.oid, self.table);
        let row = self.session.row(format!(
            "SELECT (pg_current_wal_insert_lsn() - '0/0')::int8,
                (pg_current_wal_flush_lsn() - '0/0')::int8,
                to_regclass('{table}')::oid = {oid}, EXISTS ({}),
                EXISTS (SELECT FROM pg_publication WHERE pubname = '{PUBLICATION}'), ({})",
            published(&oid.to_string()),
            publication_version(oid)
        ))?;
        let lost = if row.try_get::<_, Option<bool>>(2)? != Some(true) {
            "was replaced"
        } else if row.try_get(3)? {
            if row.try_get::<_, Option<String>>(5)?.as_ref() == Some(&self.publication) {
                return Ok((row.try_get(0)?, row.try_get(1)?));
            }
            "was published differently for a time"
        } else if row.try_get(4)? {
            "is published only in part"
        } else {
            "is not published any more"
        };
        Err(DatabaseError::Refused(format!("gap: the table {table} {lost}")))
    }

    /// Why the feed is incomplete, if the state of its table shows that.
    fn gap(&self) -> Option<DatabaseError> {
        self.positions().err().filter(|error| matches!(error, DatabaseError::Refused(_)))
    }

    /// Calls `visit` with the changes committed since the last call, at least up to the flushed end
    /// of the log at the time of the call.
    pub(crate) fn drain(
        &mut self,
        visit: &mut dyn FnMut(&RelaySession, FeedStep) -> Outcome<()>,
    ) -> Outcome<()> {
        loop {
            let sql = format!(
                "SELECT data FROM pg_logical_slot_get_binary_changes('{}', NULL, {MESSAGES_AT_ONCE},
                    'proto_version', '1', 'publication_names', '{PUBLICATION}')",
                self.slot
            );
            let rows = self
                .session
                .query(sql, &Deadline::default())
                .map_err(|error| self.gap().unwrap_or(error))?;
            for row in &rows {
                if let Some(step) = self.read(row.try_get(0)?)? {
                    visit(&self.session, step)?;
                }
            }
            if rows.len() < MESSAGES_AT_ONCE {
                return Ok(());
            }
        }
    }

    /// Whether unread changes are waiting.
    pub(crate) fn is_waiting(&self) -> Outcome<bool> {
        // The begin and end of a transaction alone are not a change.
        let row = self.session.row(format!(
            "SELECT EXISTS (
                SELECT FROM pg_logical_slot_peek_binary_changes('{}', NULL, NULL,
                    'proto_version', '1', 'publication_names', '{PUBLICATION}')
                WHERE get_byte(data, 0) NOT IN ({}, {}))",
            self.slot, b'B', b'C'
        ))?;
        Ok(row.try_get(0)?)
    }

    fn read(&mut self, data: &[u8]) -> Outcome<Option<FeedStep>> {
        Ok(match OutputMessage::read(data)? {
            OutputMessage::Begin(transaction) => {
                self.transaction = transaction;
                None
            }
            OutputMessage::Commit => {
                if self.recent.len() >= RECENT_TRANSACTIONS {
                    self.recent.pop_front();
                }
                self.recent.push_back(self.transaction);
                Some(FeedStep::Committed)
            }
            OutputMessage::Relation { columns } => {
                let is_as_before = |(name, form): (&String, &u32)| {
                    columns.iter().any(|column| column.0 == name && column.1 == *form)
                };
                if !self.read.iter().all(is_as_before) {
                    let reason =
                        format!("gap: the table {} has other columns now", self.table.table);
                    return Err(DatabaseError::Refused(reason));
                }
                self.columns = columns.into_iter().map(|column| column.0.to_owned()).collect();
                None
            }
            OutputMessage::Insert(new) => Some(self.put(&new)?),
            OutputMessage::Update { old, new } => {
                let step = self.put(&new)?;
                // A row whose key changes is another row; this only happens by hand.
                if let (Some(old), FeedStep::Put(key, _)) = (old, &step)
                    && self.key(&old)? != *key
                {
                    let reason = "gap: a primary key was changed".to_owned();
                    return Err(DatabaseError::Refused(reason));
                }
                Some(step)
            }
            OutputMessage::Delete(old) => Some(FeedStep::Gone(self.key(&old)?)),
            OutputMessage::Truncate => {
                let reason = format!("gap: the table {} was truncated", self.table.table);
                return Err(DatabaseError::Refused(reason));
            }
            OutputMessage::Other => None,
        })
    }

    fn key(&self, values: &Tuple<'_>) -> Outcome<u128> {
        let columns = ChangedColumns { names: &self.columns, values };
        Ok((self.table.read_key)(&columns).ok_or(Malformed)?)
    }

    fn put(&self, values: &Tuple<'_>) -> Outcome<FeedStep> {
        let columns = ChangedColumns { names: &self.columns, values };
        let row = (self.table.read_change)(&columns);
        // A value that was not sent is unknown.
        if row.is_none() && values.contains(&Value::Unchanged) {
            return Err(Malformed.into());
        }
        Ok(FeedStep::Put(self.key(values)?, row.map(Box::new)))
    }

    /// Whether a snapshot, in the form of `pg_current_snapshot()`, contains every transaction of
    /// the feed so far. A commit is in the log shortly before other connections see it; with a
    /// synchronous replica, until the replica has answered.
    pub(crate) fn is_seen_by(&self, snapshot: &str) -> Outcome<bool> {
        let numbers = |text: &str| -> Option<Vec<u32>> {
            // The upper half counts the wraparounds of the lower half.
            let numbers = text.split(',').filter(|number| !number.is_empty());
            numbers.map(|number| number.parse::<u64>().ok().map(|number| number as u32)).collect()
        };
        let mut parts = snapshot.splitn(3, ':').map(numbers);
        let (Some(Some(_)), Some(Some(end)), Some(Some(running))) =
            (parts.next(), parts.next(), parts.next())
        else {
            return Err(Malformed.into());
        };
        let end = *end.first().ok_or(Malformed)?;
        let is_seen =
            |number: &u32| (number.wrapping_sub(end) as i32) < 0 && !running.contains(number);
        Ok(self.recent.iter().all(is_seen))
    }
}

fn check_server(session: &RelaySession) -> Outcome<()> {
    let row = session.row(
        "SELECT pg_is_in_recovery(), current_setting('wal_level'),
            current_setting('max_slot_wal_keep_size'), current_user::text,
            (SELECT rolsuper OR rolreplication FROM pg_roles WHERE rolname = current_user)",
    )?;
    let refused = |reason: String| Err(DatabaseError::Refused(reason));
    if row.try_get(0)? {
        return refused("it is a standby; name the primary server".into());
    }
    let level: &str = row.try_get(1)?;
    if level != "logical" {
        return refused(format!(
            "wal_level is {level}; run ALTER SYSTEM SET wal_level = logical and restart the server"
        ));
    }
    if row.try_get::<_, Option<bool>>(4)? != Some(true) {
        let user: &str = row.try_get(3)?;
        return refused(format!(
            "the user may not follow changes; run ALTER ROLE \"{user}\" REPLICATION"
        ));
    }
    let kept: &str = row.try_get(2)?;
    if kept == "-1" {
        tracing::warn!(
            max_slot_wal_keep_size = kept,
            "the server keeps its log without a bound while this program hangs; \
             set max_slot_wal_keep_size, such as to 10GB"
        );
    }
    Ok(())
}

/// Checks that updates and deletions identify their row. Otherwise, once the table is published,
/// the relay's own updates would fail. Returns the table's number.
fn check_table(session: &RelaySession, table: &RelayTable) -> Outcome<u32> {
    let RelayTable { table, .. } = table;
    let row = session.row(format!(
        "SELECT oid, relkind = 'r' AND (relreplident = 'f' OR relreplident = 'd' AND EXISTS (
            SELECT FROM pg_index JOIN pg_attribute ON attrelid = indrelid AND attnum = indkey[0]
            WHERE indrelid = pg_class.oid AND indisprimary AND indnatts = 1 AND attname = 'id'))
         FROM pg_class WHERE oid = to_regclass('{table}')"
    ))?;
    if row.try_get(1)? {
        return Ok(row.try_get(0)?);
    }
    Err(DatabaseError::Refused(format!(
        "unknown schema: the table {table} has no primary key id as its replica identity"
    )))
}

/// The columns that are read, with the numbers of their types.
fn columns_read(session: &RelaySession, table: &RelayTable) -> Outcome<HashMap<String, u32>> {
    let rows = session.query(
        format!(
            "SELECT attname::text, atttypid FROM pg_attribute
             WHERE attrelid = to_regclass('{}') AND attnum > 0 AND NOT attisdropped",
            table.table
        ),
        &Deadline::default(),
    )?;
    let pairs = rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?)));
    let mut found = pairs.collect::<Outcome<HashMap<String, u32>>>()?;
    found.retain(|name, _| table.columns.iter().any(|column| column.0 == name));
    Ok(found)
}

/// A query that returns a row if the publication has all changes of a table. A publication of some
/// rows or columns (PostgreSQL 15) is incomplete.
fn published(table: &str) -> String {
    format!(
        "SELECT FROM pg_publication_rel JOIN pg_publication ON prpubid = pg_publication.oid
         WHERE pubname = '{PUBLICATION}' AND prrelid = {table}
            AND pubinsert AND pubupdate AND pubdelete AND pubtruncate
            AND to_jsonb(pg_publication_rel) ->> 'prqual' IS NULL
            AND to_jsonb(pg_publication_rel) ->> 'prattrs' IS NULL"
    )
}

/// A query for the version of the publication's rows: another one after each change of them.
fn publication_version(table: u32) -> String {
    format!(
        "SELECT string_agg(concat_ws('.', p.oid, p.xmin, r.oid, r.xmin), ' ')
         FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid
         WHERE p.pubname = '{PUBLICATION}' AND r.prrelid = {table}"
    )
}

/// Creates the publication if it is missing and the user has the right.
fn publish(session: &RelaySession, table: &RelayTable) -> Outcome<()> {
    let RelayTable { table, .. } = table;
    let found = format!(
        "SELECT EXISTS ({}) FROM pg_publication WHERE pubname = '{PUBLICATION}'",
        published(&format!("to_regclass('{table}')"))
    );
    let create = format!("CREATE PUBLICATION {PUBLICATION} FOR TABLE {table}");
    let rows = session.query(found, &Deadline::default())?;
    match rows.first().map(|row| row.try_get(0)).transpose()? {
        Some(true) => Ok(()),
        Some(false) => Err(DatabaseError::Refused(format!(
            "the publication {PUBLICATION} leaves something out; as its owner run \
             DROP PUBLICATION {PUBLICATION}; {create}"
        ))),
        None => session.execute(create.as_str()).map_err(|error| {
            let reason = "there is no publication of the table; as the table's owner run";
            DatabaseError::Refused(format!("{reason} {create} ({error})"))
        }),
    }
}

/// A slot can be created only once all open transactions have ended.
fn slot_hint(session: &RelaySession, error: DatabaseError) -> DatabaseError {
    let oldest = "SELECT date_trunc('second', min(xact_start))::text FROM pg_stat_activity
                  WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid()";
    match session.row(oldest).ok().and_then(|row| row.try_get::<_, Option<String>>(0).ok()?) {
        Some(since) => DatabaseError::Refused(format!(
            "{error}; a transaction has been open since {since}, and the feed begins when it ends"
        )),
        None => error,
    }
}
