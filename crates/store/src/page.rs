//! The newest events for a REQ: the visible events of all its filters, and whether limits left some
//! out.

use crate::StoreError;
use crate::newest::{self, Rest};
use crate::query::{Expired, Hit};
use crate::read_pool::ReadTransaction;
use crate::viewer::View;
use negsync_nostr::Filter;

/// The newest events for a REQ.
#[derive(Debug)]
pub struct StoredPage {
    /// Newest first; within a second the lowest id first; without duplicates.
    pub hits: Vec<Hit>,
    /// The number of hits that were visited.
    pub read: usize,
    /// Whether a limit left events out.
    pub left_out: LeftOut,
}

/// Whether limits left out matching events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeftOut {
    /// No: every matching event is there.
    Nothing,
    /// Yes, at least one.
    Some,
    /// Not determined: a limit is 0, or an event left out by one filter was returned for another.
    Unknown,
}

impl LeftOut {
    /// For the union of several filters' hits, in order, with the rest of each filter.
    #[must_use]
    pub fn of(hits: &[Hit], rests: &[Rest]) -> Self {
        let is_missing = |rest: &Rest| match rest {
            Rest::Event(item) => !newest::contains(hits, item),
            Rest::Nothing | Rest::Unknown => false,
        };
        if rests.iter().all(|rest| *rest == Rest::Nothing) {
            Self::Nothing
        } else if rests.iter().any(is_missing) {
            Self::Some
        } else {
            Self::Unknown
        }
    }
}

/// The one filter that answers all views, if there is exactly one.
pub(crate) fn only_part(views: &[View]) -> Option<&Filter> {
    let [view] = views else { return None };
    view.own.is_empty().then_some(&view.public)
}

/// The newest events of all the views, each with its own limit and at most `most`.
pub(crate) fn newest(
    read: &ReadTransaction<'_>,
    views: &[View],
    most: usize,
    now: u64,
) -> Result<(Vec<Hit>, LeftOut), StoreError> {
    // Without a writer nobody has removed expired events; they would take up the limit.
    let expired = Expired::by(read, now).map_err(StoreError::sqlite)?;
    let (mut hits, mut rests) = (Vec::new(), Vec::new());
    for view in views {
        let mut visible = Vec::new();
        for part in view.parts() {
            let mut newest = newest::newest(read, part, most, &expired)?;
            visible.append(&mut newest.hits);
            rests.push(newest.rest);
        }
        if !view.own.is_empty() {
            let mut rest = Rest::Nothing;
            let most = view.limit().map_or(most, |limit| limit.min(most));
            newest::cut(&mut visible, most, &mut rest);
            rests.push(rest);
        }
        hits.append(&mut visible);
    }
    newest::order(&mut hits);
    let left_out = LeftOut::of(&hits, &rests);
    Ok((hits, left_out))
}
