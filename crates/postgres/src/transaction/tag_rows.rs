//! The table `tag`.

use negsync_nostr::Event;
use negsync_reconcile::Item;

/// The rows of the table `tag` of some events, column by column.
#[derive(Default)]
pub(super) struct TagRows<'event> {
    pub(super) keys: Vec<&'event [u8]>,
    pub(super) times: Vec<i64>,
    pub(super) ids: Vec<&'event [u8]>,
    pub(super) kinds: Vec<i32>,
}

impl<'event> TagRows<'event> {
    pub(super) fn of(events: impl Iterator<Item = (&'event Event, &'event Item)>) -> Self {
        let mut rows = Self::default();
        for (event, item) in events {
            for key in event.tag_keys() {
                rows.keys.push(key.as_bytes());
                rows.times.push(item.created_at as i64);
                rows.ids.push(&item.id);
                rows.kinds.push(i32::from(event.kind()));
            }
        }
        rows
    }
}
