//! The state shared by the verbs of one connection.

use super::auth::ClientAuth;
use super::outbox::Outbox;
use super::publish::Publishing;
use super::subscriptions::Subscriptions;
use super::{RelayState, message};
use crate::server::departure::Attending;
use crate::server::limits::{FairQueue, Place};
use crate::store::{Deadline, Origin};
use std::net::IpAddr;
use std::sync::Arc;
use tokio::sync::Semaphore;
use tokio::task::JoinError;

/// A connected client.
pub(super) struct Client {
    pub(super) relay: Arc<RelayState>,
    pub(super) auth: Arc<ClientAuth>,
    pub(super) place: Arc<Place>,
    pub(super) attending: Attending,
    pub(super) outbox: Outbox,
    pub(super) publishing: Publishing,
    pub(super) subscriptions: Arc<Subscriptions>,
    // One permit for each event that is being verified or stored, or whose outcome is queued.
    pub(super) events_in_flight: Arc<Semaphore>,
}

impl Client {
    /// The address for limits.
    pub(super) fn address(&self) -> IpAddr {
        self.place.address()
    }

    /// The origin of its events for the queues of the verifier and the writer.
    pub(super) fn origin(&self) -> Origin {
        Origin::Client(self.address())
    }

    /// Ends a REQ or COUNT with CLOSED (NIP-01); `reason` begins with a prefix.
    pub(super) async fn closed(&self, id: &str, reason: &str) {
        self.relay.service.metrics.query_refusals.count_prefix(reason);
        self.outbox.text(message::closed(id, reason)).await;
    }

    /// Runs a query of the store for the client, as [`Service::query`](crate::server::Service::query).
    pub(super) async fn query<T: Send + 'static>(
        &self,
        turns: &Arc<FairQueue>,
        query: impl FnOnce(Deadline) -> T + Send + 'static,
    ) -> Result<T, JoinError> {
        let departure = self.attending.departure();
        self.relay.service.query(turns, self.address(), departure, query).await
    }

    /// Runs `work` in a turn of the client's, on a blocking thread.
    pub(super) async fn work<T: Send + 'static>(
        &self,
        turns: &Arc<FairQueue>,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, JoinError> {
        turns.work(self.address(), work).await
    }
}
