//! Keeps the set equal to the events that the relay shows, commit by commit.

use super::feed::{ChangeFeed, FeedStep};
use super::relay_table::{RelayTable, TableRow, byte_array};
use super::scan::{begin_snapshot, for_each_row};
use super::session::{DatabaseError, Outcome, RelaySession, ServerConnector};
use negsync_nostr::hex;
use negsync_reconcile::Item;
use negsync_store::{Change, Deadline, Event, Listener, PrivateKinds, Step};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// A database that is being followed.
pub(crate) struct RelayFollower {
    pub(crate) feed: ChangeFeed,
    rows: HeldRows,
    /// The position up to which the feed was read.
    drained: i64,
}

/// The rows of public events, by their primary keys: a deletion in the feed contains only the key.
struct HeldRows {
    table: &'static RelayTable,
    private: PrivateKinds,
    items: HashMap<u128, Item>,
    /// NIP-40: the expiration times of rows that expire.
    expiries: HashMap<u128, u64>,
    expiring: BTreeSet<(u64, u128)>,
}

impl RelayFollower {
    /// Begins the feed, reads everything, and reads the feed up to a later position. Returns the
    /// public items.
    pub(crate) fn begin(
        connector: &Arc<ServerConnector>,
        table: &'static RelayTable,
        private: &PrivateKinds,
        now: u64,
    ) -> Outcome<(Self, Vec<Item>)> {
        let none = Deadline::default();
        let feed = ChangeFeed::open(RelaySession::open(connector, &none)?, table)?;
        let mut rows = HeldRows {
            table,
            private: private.clone(),
            items: HashMap::new(),
            expiries: HashMap::new(),
            expiring: BTreeSet::new(),
        };
        let session = RelaySession::open(connector, &none)?;
        begin_snapshot(&session)?;
        let columns = table.row_columns();
        let sql = format!("SELECT {columns} FROM {}", table.table);
        for_each_row(&session, &sql, &none, &mut |row| {
            if let Some(row) = table.read_row(row)?.filter(|row| rows.is_public(row, now)) {
                rows.replace(row.key, Some(&row));
            }
            Ok(true)
        })?;
        drop(session);
        // Commits during the read come again in the feed: the last change of a row counts.
        let mut follower = Self { feed, rows, drained: 0 };
        let end = follower.feed.flush()?;
        let (rows, feed) = (&mut follower.rows, &mut follower.feed);
        feed.drain(&mut |_, step| {
            rows.apply(step, now);
            Ok(())
        })?;
        follower.drained = end;
        let items = follower.rows.items.values().copied().collect();
        Ok((follower, items))
    }

    /// Publishes what was committed, and what has expired, before the call. Unless `is_sure`,
    /// commits without `synchronous_commit` may come later.
    pub(crate) fn catch_up(
        &mut self,
        listener: &dyn Listener,
        now: u64,
        is_sure: bool,
    ) -> Outcome<()> {
        let end = if is_sure { self.feed.flush()? } else { self.feed.flushed()? };
        if end > self.drained {
            let rows = &mut self.rows;
            let mut steps = Vec::new();
            self.feed.drain(&mut |session, step| {
                if let FeedStep::Committed = step {
                    tell(listener, &mut steps);
                    return Ok(());
                }
                let (gone, added) = rows.apply(step, now);
                steps.extend(gone.map(Step::Removed));
                if let Some(row) = added {
                    match rows.event(session, &row)? {
                        Some(event) => steps.push(Step::Added(Arc::new(event))),
                        None => rows.forget(row.key),
                    }
                }
                Ok(())
            })?;
            self.drained = end;
        }
        let mut steps = self.rows.expire(now);
        tell(listener, &mut steps);
        Ok(())
    }
}

impl RelayFollower {
    /// Whether nothing was committed since the last poll.
    pub(crate) fn is_still(&mut self) -> Outcome<bool> {
        let end = self.feed.flush()?;
        let is_still = end <= self.drained || !self.feed.is_waiting()?;
        if is_still {
            self.drained = end;
        }
        Ok(is_still)
    }
}

fn tell(listener: &dyn Listener, steps: &mut Vec<Step>) {
    if !steps.is_empty() {
        listener.changed(Arc::new(Change { steps: std::mem::take(steps) }));
    }
}

impl HeldRows {
    fn is_public(&self, row: &TableRow, now: u64) -> bool {
        row.is_visible(now) && !self.private.contains(row.kind)
    }

    /// Returns the removed item and the new row.
    fn apply(&mut self, step: FeedStep, now: u64) -> (Option<Item>, Option<Box<TableRow>>) {
        let (key, row) = match step {
            FeedStep::Put(key, row) => (key, row.filter(|row| self.is_public(row, now))),
            FeedStep::Gone(key) => (key, None),
            FeedStep::Committed => return (None, None),
        };
        let old = self.replace(key, row.as_deref());
        if old == row.as_ref().map(|row| row.item) { (None, None) } else { (old, row) }
    }

    /// Replaces the row with this key; returns the item of the old row.
    fn replace(&mut self, key: u128, row: Option<&TableRow>) -> Option<Item> {
        if let Some(second) = self.expiries.remove(&key) {
            self.expiring.remove(&(second, key));
        }
        let Some(row) = row else { return self.items.remove(&key) };
        if let Some(second) = row.expires_at {
            self.expiries.insert(key, second);
            self.expiring.insert((second, key));
        }
        self.items.insert(key, row.item)
    }

    fn forget(&mut self, key: u128) {
        self.replace(key, None);
    }

    /// NIP-40: removes expired events.
    fn expire(&mut self, now: u64) -> Vec<Step> {
        let mut steps = Vec::new();
        while let Some((second, key)) = self.expiring.first().copied()
            && second <= now
        {
            steps.extend(self.replace(key, None).map(Step::Removed));
        }
        steps
    }

    /// The event of a row from the feed; `None` if it is invalid, which is logged.
    fn event(&self, session: &RelaySession, row: &TableRow) -> Outcome<Option<Event>> {
        let json = match &row.json {
            Some(json) => Some(json.clone()),
            None => self.fetch(session, &row.item)?,
        };
        let event = json.as_deref().and_then(Event::parse_stored);
        if event.is_none() {
            let id = hex::encode(&row.item.id);
            tracing::warn!(id, "an event of the relay cannot be read; it is left out");
        }
        Ok(event)
    }

    /// Reads the JSON of an event from the table: the feed leaves out long content that an update
    /// did not change.
    fn fetch(&self, session: &RelaySession, item: &Item) -> Outcome<Option<String>> {
        let RelayTable { event, table, id, read_json, .. } = self.table;
        let ids = byte_array([item.id.as_slice()]);
        let sql = format!("SELECT {event} FROM {table} WHERE {id} = ANY({ids})");
        let rows = session.query(sql, &Deadline::default())?;
        match rows.first() {
            Some(row) => Ok(read_json(row, 0)),
            // The event was removed since; the previous state of the set cannot be determined.
            None => Err(DatabaseError::Refused("gap: an event left while it was read".into())),
        }
    }
}
