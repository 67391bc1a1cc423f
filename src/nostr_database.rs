//! The store as nostr-sdk's database (feature `nostr-database`): a program built on nostr-sdk
//! stores its events here, by the same rules as the relay, and can reconcile complete sets.

use crate::index::{Index, SnapshotError};
use crate::reconcile::RangeSet;
use crate::store::{self, FilterError, Outcome, StoreError};
use nostr::util::BoxedFuture;
use nostr::{Event, EventId, Filter, JsonUtil, Timestamp};
use nostr_database::{
    Backend, DatabaseError, DatabaseEventStatus, Events, NostrDatabase, RejectedReason,
    SaveEventStatus,
};
use std::ops::ControlFlow;

/// A store with its index, for `nostr_sdk::ClientBuilder::database`. Clones share it.
#[derive(Clone)]
pub struct Database {
    index: Index,
}

impl Database {
    /// A database over an index.
    pub fn new(index: Index) -> Self {
        Self { index }
    }

    /// The underlying index.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// Runs blocking work on a blocking thread.
    fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Index) -> Result<T, Failure> + Send + 'static,
    ) -> BoxedFuture<'_, Result<T, DatabaseError>> {
        let index = self.index.clone();
        Box::pin(async move {
            tokio::task::spawn_blocking(move || work(&index))
                .await
                .map_err(DatabaseError::backend)?
                .map_err(DatabaseError::backend)
        })
    }
}

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Database").finish_non_exhaustive()
    }
}

/// Why the store failed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("the filter cannot be answered: {0}")]
    Filter(#[from] FilterError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    #[error("the event cannot be read: {0}")]
    Event(String),
}

impl NostrDatabase for Database {
    fn backend(&self) -> Backend {
        Backend::Custom("negsync".to_owned())
    }

    fn save_event<'a>(
        &'a self,
        event: &'a Event,
    ) -> BoxedFuture<'a, Result<SaveEventStatus, DatabaseError>> {
        let json = event.as_json();
        self.run(move |index| {
            let event =
                store::Event::parse(&json).map_err(|error| Failure::Event(error.to_string()))?;
            // nostr-sdk guarantees that the events it saves are verified.
            let outcomes = index.store().publish(vec![event.trust()])?;
            match outcomes.into_iter().next() {
                Some(Outcome::Failed(reason)) => Err(Failure::Event(reason)),
                outcome => Ok(status(outcome)),
            }
        })
    }

    fn check_id<'a>(
        &'a self,
        event_id: &'a EventId,
    ) -> BoxedFuture<'a, Result<DatabaseEventStatus, DatabaseError>> {
        let filter = by_id(event_id);
        self.run(move |index| {
            let is_saved = !index.store().newest(&[filter], 1)?.is_empty();
            Ok(if is_saved {
                DatabaseEventStatus::Saved
            } else {
                // Deletions are stored by author and id, and the author is not known here.
                DatabaseEventStatus::NotExistent
            })
        })
    }

    fn event_by_id<'a>(
        &'a self,
        event_id: &'a EventId,
    ) -> BoxedFuture<'a, Result<Option<Event>, DatabaseError>> {
        let filter = by_id(event_id);
        self.run(move |index| Ok(read(index, filter)?.pop()))
    }

    fn count(&self, filter: Filter) -> BoxedFuture<'_, Result<usize, DatabaseError>> {
        self.run(move |index| Ok(index.snapshot(&[convert(&filter)?], usize::MAX)?.len()))
    }

    fn query(&self, filter: Filter) -> BoxedFuture<'_, Result<Events, DatabaseError>> {
        self.run(move |index| {
            let mut events = Events::new(&filter);
            events.extend(read(index, convert(&filter)?)?);
            Ok(events)
        })
    }

    /// All items that match, without a limit.
    fn negentropy_items(
        &self,
        filter: Filter,
    ) -> BoxedFuture<'_, Result<Vec<(EventId, Timestamp)>, DatabaseError>> {
        self.run(move |index| {
            let set = index.snapshot(&[convert(&filter)?], usize::MAX)?;
            let mut items = Vec::with_capacity(set.len());
            set.for_each(0..set.len(), &mut |item| {
                let id = EventId::from_byte_array(item.id);
                items.push((id, Timestamp::from_secs(item.created_at)));
            });
            Ok(items)
        })
    }

    fn delete(&self, filter: Filter) -> BoxedFuture<'_, Result<(), DatabaseError>> {
        self.run(move |index| Ok(index.store().remove(&convert(&filter)?)?))
    }

    fn wipe(&self) -> BoxedFuture<'_, Result<(), DatabaseError>> {
        self.delete(Filter::new())
    }
}

fn status(outcome: Option<Outcome>) -> SaveEventStatus {
    SaveEventStatus::Rejected(match outcome {
        Some(Outcome::Stored) => return SaveEventStatus::Success,
        Some(Outcome::Duplicate) => RejectedReason::Duplicate,
        Some(Outcome::Superseded) => RejectedReason::Replaced,
        Some(Outcome::Deleted | Outcome::Vanished | Outcome::RemovedByOperator) => {
            RejectedReason::Deleted
        }
        Some(Outcome::Expired) => RejectedReason::Expired,
        Some(Outcome::PassedOn) => RejectedReason::Ephemeral,
        _ => RejectedReason::Other,
    })
}

fn by_id(id: &EventId) -> store::Filter {
    store::Filter::of_ids(&[id.to_bytes()])
}

fn convert(filter: &Filter) -> Result<store::Filter, FilterError> {
    store::Filter::parse(&filter.as_json())
}

fn read(index: &Index, filter: store::Filter) -> Result<Vec<Event>, Failure> {
    index.store().expire()?;
    let hits = index.store().newest(&[filter], usize::MAX)?;
    let mut events = Vec::with_capacity(hits.len());
    let mut wrong = None;
    index.store().fetch(&hits, &mut |_, json| match Event::from_json(json) {
        Ok(event) => {
            events.push(event);
            ControlFlow::Continue(())
        }
        Err(error) => {
            wrong = Some(error.to_string());
            ControlFlow::Break(())
        }
    })?;
    wrong.map_or(Ok(events), |reason| Err(Failure::Event(reason)))
}
