//! Holding the set against what the database shows: the seconds that something has touched, and now
//! and then all of it. Everything is compared by sums over runs of items, so that it takes no memory
//! to speak of.

use super::schema::{Row, Schema, Wanted};
use super::{Listener, StoreError};
use crate::change::Step;
use negsync_nostr::Event;
use negsync_reconcile::Item;
use rusqlite::Connection;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Counting rows takes this part of the time at the most.
const COUNT_SHARE: u32 = 20;
/// Comparing everything takes this part of the time at the most.
const COMPARE_SHARE: u32 = 100;
/// And this part when something was written that no row explains.
const UNEXPLAINED_SHARE: u32 = 10;
/// So many items, and what else is of the last one's second, are one run.
const RUN_ITEMS: u64 = 1_024;

/// The database as it is looked at, at one moment.
pub(super) struct DatabaseComparison<'look> {
    pub(super) moment: &'look Connection,
    pub(super) listener: &'look dyn Listener,
    pub(super) now: u64,
}

/// What one look finds.
#[derive(Default)]
pub(super) struct Touched {
    pub(super) steps: Vec<Step>,
    /// Among the steps, and not yet in the set.
    pub(super) added: HashSet<Item>,
    /// Among the steps, and still in the set.
    removed: HashSet<Item>,
    /// To be compared.
    pub(super) seconds: BTreeSet<u64>,
    /// Ids that an author has deleted.
    pub(super) deleted: HashSet<[u8; 32]>,
}

/// When what is compared next.
pub(super) struct Comparisons {
    count_due: Instant,
    all_due: Instant,
    all_cost: Duration,
    // Something was written since everything was compared.
    changed: bool,
}

impl Comparisons {
    /// Everything has just been read, which took so long.
    pub(super) fn after(cost: Duration) -> Self {
        let now = Instant::now();
        Self { count_due: now, all_due: now + cost * COMPARE_SHARE, all_cost: cost, changed: false }
    }

    pub(super) fn is_due(&self) -> bool {
        self.changed && Instant::now() >= self.all_due
    }

    /// Something was written.
    pub(super) fn changed(&mut self) {
        self.changed = true;
    }

    /// Something was written that no row explains.
    pub(super) fn hasten(&mut self) {
        let soon = Instant::now() + self.all_cost * UNEXPLAINED_SHARE;
        self.all_due = self.all_due.min(soon);
    }
}

/// Items of some seconds: how many, and the sum of their hashes, in the set and in the database.
struct ItemRun {
    from: u64,
    held: (u64, u64),
    shown: (u64, u64),
}

fn count(items: &mut (u64, u64), hash: u64) {
    *items = (items.0.wrapping_add(1), items.1.wrapping_add(hash));
}

/// The set as of the last look. Its items are the listener's.
pub(super) struct HeldItems {
    pub(super) schema: Arc<Schema>,
    /// NIP-40: when something of it expires, and the second in which that was made.
    pub(super) expiring: BTreeSet<(u64, u64)>,
    pub(super) items: i64,
    /// Rows, less the items.
    pub(super) rows_unseen: i64,
    pub(super) comparisons: Comparisons,
}

/// NIP-40: when a row expires, and the second in which it was made.
pub(super) fn expiry(row: &Row) -> Option<(u64, u64)> {
    row.expires_at.map(|second| (second, row.item.created_at))
}

impl HeldItems {
    pub(super) fn add(
        &mut self,
        look: &DatabaseComparison<'_>,
        row: &Row,
        event: Event,
        touched: &mut Touched,
    ) {
        if look.listener.holds(&row.item) || !touched.added.insert(row.item) {
            return;
        }
        self.items += 1;
        self.expiring.extend(expiry(row));
        touched.steps.push(Step::Added(Arc::new(event)));
    }

    /// Compares the seconds that were touched with what the database shows.
    pub(super) fn compare_touched(
        &mut self,
        look: &DatabaseComparison<'_>,
        touched: &mut Touched,
    ) -> Result<(), StoreError> {
        for second in std::mem::take(&mut touched.seconds) {
            self.compare(look, second, second, touched)?;
        }
        Ok(())
    }

    /// Compares the seconds from the first to the second, both included.
    fn compare(
        &mut self,
        look: &DatabaseComparison<'_>,
        from: u64,
        to: u64,
        touched: &mut Touched,
    ) -> Result<(), StoreError> {
        let mut visible = BTreeMap::new();
        let mut unseen = HashSet::new();
        self.schema
            .rows(look.moment, &Wanted::Seconds(from, to), &mut |row| {
                if row.is_public(look.now) {
                    visible.insert(row.item, row);
                } else {
                    unseen.insert(row.item);
                }
            })
            .map_err(StoreError::sqlite)?;
        let mut gone = Vec::new();
        look.listener.held(from, to, &mut |item| {
            if visible.remove(&item).is_none() {
                gone.push(item);
            }
        });
        for item in gone {
            if touched.removed.insert(item) {
                self.items -= 1;
                self.rows_unseen += i64::from(unseen.contains(&item));
                touched.steps.push(Step::Removed(item));
            }
        }
        visible.retain(|item, _| !touched.added.contains(item));
        for row in visible.into_values() {
            if let Some(event) =
                self.schema.event(look.moment, row.row).map_err(StoreError::sqlite)?
            {
                // It was there, and not shown.
                self.rows_unseen -= 1;
                self.add(look, &row, event, touched);
            }
        }
        Ok(())
    }

    /// Compares everything.
    pub(super) fn compare_all(
        &mut self,
        look: &DatabaseComparison<'_>,
        touched: &mut Touched,
    ) -> Result<(), StoreError> {
        let began = Instant::now();
        let mut end = u64::MAX;
        for run in self.runs(look, touched)?.into_iter().rev() {
            if run.held != run.shown {
                self.compare(look, run.from, end, touched)?;
            }
            end = run.from.saturating_sub(1);
        }
        self.rows_unseen =
            self.schema.count(look.moment).map_err(StoreError::sqlite)?.saturating_sub(self.items);
        let cost = began.elapsed();
        let count_due = self.comparisons.count_due;
        self.comparisons = Comparisons { count_due, ..Comparisons::after(cost) };
        Ok(())
    }

    /// All of the set, and all that is shown, in runs of seconds. What this look has found already
    /// is left out.
    fn runs(
        &self,
        look: &DatabaseComparison<'_>,
        touched: &Touched,
    ) -> Result<Vec<ItemRun>, StoreError> {
        let hasher = RandomState::new();
        let new = |from| ItemRun { from, held: (0, 0), shown: (0, 0) };
        let mut runs = Vec::new();
        let (mut run, mut second) = (new(0), 0);
        look.listener.held(0, u64::MAX, &mut |item| {
            if run.held.0 >= RUN_ITEMS && item.created_at > second {
                runs.push(std::mem::replace(&mut run, new(item.created_at)));
            }
            second = item.created_at;
            if !touched.removed.contains(&item) {
                count(&mut run.held, hasher.hash_one(item));
            }
        });
        runs.push(run);
        if let Some((first, last)) = self.schema.ends(look.moment).map_err(StoreError::sqlite)? {
            self.schema
                .rows(look.moment, &Wanted::Rows(first, last), &mut |row| {
                    let place = runs.partition_point(|run| run.from <= row.item.created_at);
                    let run = place.checked_sub(1).and_then(|place| runs.get_mut(place));
                    if let Some(run) = run
                        && row.is_public(look.now)
                        && !touched.added.contains(&row.item)
                    {
                        count(&mut run.shown, hasher.hash_one(row.item));
                    }
                })
                .map_err(StoreError::sqlite)?;
        }
        Ok(runs)
    }

    /// Counts the rows, now or when that is due, and compares everything when there are more or
    /// fewer than the changes explain.
    pub(super) fn check_count(
        &mut self,
        look: &DatabaseComparison<'_>,
        is_odd: bool,
        touched: &mut Touched,
    ) -> Result<(), StoreError> {
        let began = Instant::now();
        if !is_odd && began < self.comparisons.count_due {
            return Ok(());
        }
        let rows = self.schema.count(look.moment).map_err(StoreError::sqlite)?;
        self.comparisons.count_due = Instant::now() + began.elapsed() * COUNT_SHARE;
        if rows != self.items.saturating_add(self.rows_unseen) {
            self.compare_all(look, touched)?;
        }
        Ok(())
    }
}
