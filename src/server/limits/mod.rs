//! Limits for one client, and for all clients together.

mod client_address;
mod event_cost;
mod fair_queue;
mod half_open;
mod incoming;
mod neg_total;
mod outbound;
mod per_address;
mod subscribed;
mod token_bucket;

pub(crate) use client_address::{
    FORWARDED_FOR, client_address, counted_as, is_forwarded, remove_forwarding,
};
pub(crate) use event_cost::event_cost;
pub(crate) use fair_queue::FairQueue;
pub(crate) use half_open::{HalfOpen, Handshake};
pub(crate) use incoming::{MessageSize, Reservation};
pub(crate) use neg_total::NegShare;
pub(crate) use outbound::{OutboundPermit, OutboundRoom};
pub(crate) use per_address::{Addresses, Full, Place};
pub(crate) use subscribed::{NoRoom, SubscribedShare};

use crate::config::Config;
use neg_total::NegTotal;
use outbound::OutboundTotal;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::thread::available_parallelism;

/// State of the limits over all connections.
pub(crate) struct ConnectionCounts {
    pub(crate) addresses: Arc<Addresses>,
    pub(crate) neg_total: Arc<NegTotal>,
    /// Bytes that wait to be sent to clients.
    pub(crate) outbound: Arc<OutboundTotal>,
    /// For parsing long messages. Separate from `short`, because a message of megabytes takes tens
    /// of milliseconds and does not give way.
    pub(crate) parsing: Arc<FairQueue>,
    /// For work of a few milliseconds at most: kept sets and short NEG messages. Leaves one core to
    /// other work.
    pub(crate) short: Arc<FairQueue>,
    /// For work that may take seconds: building sets, and answering long NEG messages.
    pub(crate) long: Arc<FairQueue>,
    /// For queries of the store that answer a REQ.
    pub(crate) queries: Arc<FairQueue>,
}

impl ConnectionCounts {
    /// Nothing yet.
    pub(crate) fn new(config: &Config) -> Self {
        let readers = config.store.readers;
        let cores = available_parallelism().map_or(1, NonZeroUsize::get);
        Self {
            addresses: Arc::default(),
            neg_total: Arc::default(),
            outbound: OutboundTotal::new(config.connections.outbound_bytes_in_all),
            parsing: Arc::new(FairQueue::new(cores.saturating_sub(1))),
            short: Arc::new(FairQueue::new(cores.saturating_sub(1))),
            long: Arc::new(FairQueue::for_queries(cores / 2, readers / 4)),
            queries: Arc::new(FairQueue::for_queries((readers / 2).min(2 * cores), readers / 2)),
        }
    }

    /// Maximum number of threads that work in a turn at a time.
    pub(crate) fn threads(&self) -> usize {
        let all = [&self.parsing, &self.short, &self.long, &self.queries];
        all.iter().map(|turns| turns.threads()).sum()
    }
}
