//! The newest events of a REQ: what somebody may see of all its filters, and whether limits left some out.

use crate::StoreError;
use crate::newest::{self, Rest};
use crate::query::{Expired, Hit};
use crate::read_pool::ReadTransaction;
use crate::viewer::View;
use negsync_nostr::Filter;

/// The newest events of a REQ.
#[derive(Debug)]
pub struct StoredPage {
    /// Newest first, of one second the lowest id first, each once.
    pub hits: Vec<Hit>,
    /// How many of the hits were looked at.
    pub read: usize,
    /// Whether a limit left some out.
    pub left_out: LeftOut,
}

/// Whether limits left out events that match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeftOut {
    /// None: every event that matches is there.
    Nothing,
    /// At least one.
    Some,
    /// Nobody looked: a limit of 0, or what one filter's limit left out came with another one.
    Unknown,
}

impl LeftOut {
    /// Of the union of several filters' hits, in order, each filter with its rest.
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

/// The one filter that answers the views, if there is such a one.
pub(crate) fn only_part(views: &[View]) -> Option<&Filter> {
    let [view] = views else { return None };
    view.own.is_empty().then_some(&view.public)
}

/// The newest events of all the views, each with its own limit and with no more than `most`.
pub(crate) fn newest(
    read: &ReadTransaction<'_>,
    views: &[View],
    most: usize,
    now: u64,
) -> Result<(Vec<Hit>, LeftOut), StoreError> {
    // Without a writer nobody has removed them: they would take living events' places in a limit.
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
