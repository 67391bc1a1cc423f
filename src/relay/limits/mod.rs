//! What one client may take of the relay, and what all of them may take together.

mod address;
mod addresses;
mod bucket;
mod half_open;
mod neg_total;
mod turns;

pub(super) use address::{client_address, is_forwarded};
pub(super) use addresses::{Addresses, Full, Place};
pub(super) use half_open::{HalfOpen, Handshake};
pub(super) use neg_total::{NegShare, NegTotal};
pub(super) use turns::Turns;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::thread::available_parallelism;

/// What is counted over all connections.
pub(super) struct Counts {
    pub(super) addresses: Arc<Addresses>,
    pub(super) half_open: Arc<HalfOpen>,
    pub(super) neg_total: Arc<NegTotal>,
    /// For what takes a few milliseconds at the most: long messages are read, and short NEG
    /// messages answered. One core is left to others.
    pub(super) short: Arc<Turns>,
    /// For what may take seconds: sets are built, and long NEG messages answered.
    pub(super) long: Arc<Turns>,
    /// For looking up in the store what a REQ is answered with.
    pub(super) queries: Arc<Turns>,
}

impl Counts {
    /// Nothing yet. So many threads can read the store at a time.
    pub(super) fn new(readers: usize) -> Self {
        let cores = available_parallelism().map_or(1, NonZeroUsize::get);
        Self {
            addresses: Arc::default(),
            half_open: Arc::default(),
            neg_total: Arc::default(),
            short: Arc::new(Turns::new(cores.saturating_sub(1))),
            long: Arc::new(Turns::new(cores / 2)),
            queries: Arc::new(Turns::new(readers.min(2 * cores))),
        }
    }
}
