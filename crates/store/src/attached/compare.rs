//! Compares the set with the database: the touched seconds after each change, and everything at
//! intervals. The comparison uses sums over runs of items, so it needs little memory.

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

/// Counting rows takes at most one part in this many of the time.
const COUNT_SHARE: u32 = 20;
/// Comparing everything takes at most one part in this many of the time.
const COMPARE_SHARE: u32 = 100;
/// The same share after a write that no row explains.
const UNEXPLAINED_SHARE: u32 = 10;
/// Minimum number of items in a run. A run also contains all other items of its last second.
const RUN_ITEMS: u64 = 1_024;

/// One snapshot of the database, for a comparison with the set.
pub(super) struct DatabaseComparison<'look> {
    pub(super) moment: &'look Connection,
    pub(super) listener: &'look dyn Listener,
    pub(super) now: u64,
}

/// The changes that one poll found.
#[derive(Default)]
pub(super) struct Touched {
    pub(super) steps: Vec<Step>,
    /// Items added by the steps that are not in the set yet.
    pub(super) added: HashSet<Item>,
    /// Items removed by the steps that are still in the set.
    removed: HashSet<Item>,
    /// Seconds to compare.
    pub(super) seconds: BTreeSet<u64>,
    /// Ids that their authors have deleted.
    pub(super) deleted: HashSet<[u8; 32]>,
}

/// The schedule of comparisons.
pub(super) struct Comparisons {
    count_due: Instant,
    all_due: Instant,
    all_cost: Duration,
    // Something was written since the last full comparison.
    changed: bool,
}

impl Comparisons {
    /// The schedule after a full read that took `cost`.
    pub(super) fn after(cost: Duration) -> Self {
        let now = Instant::now();
        Self { count_due: now, all_due: now + cost * COMPARE_SHARE, all_cost: cost, changed: false }
    }

    pub(super) fn is_due(&self) -> bool {
        self.changed && Instant::now() >= self.all_due
    }

    /// Records that the database was written.
    pub(super) fn changed(&mut self) {
        self.changed = true;
    }

    /// Records a write that no row explains.
    pub(super) fn hasten(&mut self) {
        let soon = Instant::now() + self.all_cost * UNEXPLAINED_SHARE;
        self.all_due = self.all_due.min(soon);
    }
}

/// The items of some seconds: their number and the sum of their hashes, in the set and in the
/// database.
struct ItemRun {
    from: u64,
    held: (u64, u64),
    shown: (u64, u64),
}

fn count(items: &mut (u64, u64), hash: u64) {
    *items = (items.0.wrapping_add(1), items.1.wrapping_add(hash));
}

/// The facts known about the set as of the last poll. The listener holds the items themselves.
pub(super) struct HeldItems {
    pub(super) schema: Arc<Schema>,
    /// NIP-40: the second at which an event expires, and the second of its `created_at`.
    pub(super) expiring: BTreeSet<(u64, u64)>,
    pub(super) items: i64,
    /// The number of rows minus the number of items.
    pub(super) rows_unseen: i64,
    pub(super) comparisons: Comparisons,
}

/// NIP-40: the second at which a row expires, and the second of its `created_at`.
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

    /// Compares the touched seconds with the database.
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

    /// Compares a range of seconds, both ends included.
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
                // The row existed before and was not shown.
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

    /// The whole set and all shown rows, in runs of seconds. Changes that this poll has found
    /// already are left out.
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

    /// Counts the rows, at once or when the count is due. If the changes do not explain the number,
    /// compares everything.
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
