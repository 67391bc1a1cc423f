//! After everything is synced: events as they come, both ways.

use super::super::Local;
use super::super::arrival::Asked;
use super::super::message;
use super::super::report::Progress;
use super::{End, Session};
use crate::index::{Subscriber, SubscriberError};
use crate::store::{Change, Step};
use std::sync::Arc;

/// The subscription of events as they come.
pub(super) const LIVE: &str = "live";

/// The most events that wait to be sent; with more the next reconciliation finds them.
const MOST_WAITING_EVENTS: usize = 10_000;

/// What goes on in our store meanwhile.
pub(super) struct Live {
    changes: Subscriber,
    // Whether commits were missed, so that only another pass tells what is to be sent.
    missed: bool,
    told: bool,
}

impl Live {
    pub(super) fn new(local: &Local) -> Self {
        Self { changes: local.sets.subscribe(), missed: false, told: false }
    }
}

/// The next commit in our store, when anyone wants to know.
pub(super) async fn next_change(live: &mut Option<Live>) -> Result<Arc<Change>, SubscriberError> {
    match live {
        Some(live) => live.changes.recv().await,
        None => std::future::pending().await,
    }
}

impl Session<'_> {
    /// Subscribes before anything is reconciled, so that nothing falls between the two. One
    /// stored event is asked for, because not every relay knows what to do with none.
    pub(super) fn begin_live(&mut self) -> Result<(), End> {
        if self.live.is_some() && self.options.direction.is_down() {
            self.peer.send(message::req(LIVE, &self.options.filter.newest(1)))?;
        }
        Ok(())
    }

    /// What live events are compared with.
    pub(super) fn live_asked(&self, subscription: &str) -> Option<Asked> {
        let filter = || Arc::new(self.options.filter.parsed().clone());
        (self.live.is_some() && subscription == LIVE).then(|| Asked::Matching(filter()))
    }

    /// All is synced. Returns whether the session goes on.
    pub(super) fn go_live(&mut self) -> bool {
        let Some(live) = &mut self.live else { return false };
        if std::mem::take(&mut live.missed) {
            self.memory.pass = 0;
            self.begin_pass();
        } else if !std::mem::replace(&mut live.told, true) {
            (self.progress)(Progress::Live);
        }
        true
    }

    /// Sends what was stored here, unless it came from the peer.
    pub(super) fn take_change(
        &mut self,
        changed: Result<Arc<Change>, SubscriberError>,
    ) -> Result<(), End> {
        let change = match changed {
            Ok(change) => change,
            Err(SubscriberError::Lagged) => {
                self.miss_changes();
                return Ok(());
            }
            Err(SubscriberError::Closed) => {
                return Err(End::Failed("the store is closed".to_owned()));
            }
        };
        for step in &change.steps {
            let (Step::Added(event) | Step::Passed(event)) = step else { continue };
            let id = event.item().id;
            let is_theirs = self.from_peer.as_ref().is_some_and(|from_peer| from_peer.remove(&id));
            if is_theirs
                || !self.options.direction.is_up()
                || !self.options.filter.parsed().matches(event)
                || (event.is_protected() && !self.local.moves_protected())
            {
                continue;
            }
            if self.upload.unsettled() >= MOST_WAITING_EVENTS {
                self.miss_changes();
                return Ok(());
            }
            self.upload.add_event(id, event.json().to_owned());
        }
        Ok(())
    }

    fn miss_changes(&mut self) {
        if let Some(from_peer) = &self.from_peer {
            from_peer.clear();
        }
        if let Some(live) = &mut self.live {
            live.missed = true;
            if self.pass.is_none() {
                self.go_live();
            }
        }
    }
}
