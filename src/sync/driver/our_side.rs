//! Our side of a sync: a store, or other relays.

use super::super::machine::{Done, Loaded, Work};
use std::future::Future;
use std::sync::Arc;

/// Events of our side that arrived after the sync began.
pub(in super::super) enum OurEvents {
    New(Vec<Loaded>),
    /// There were more than are kept: only another round finds them.
    Missed,
    /// Our side is closed.
    Closed,
}

/// Our side of a sync with one peer.
pub(in super::super) trait OurSide: Send + Sync + 'static {
    /// Begins blocking work. The returned function does it, on another thread; the connection to
    /// the peer may be gone by then.
    fn begin(self: Arc<Self>, work: Work) -> impl FnOnce() -> Done + Send;

    /// Checks and stores events of the peer.
    fn ingest(&self, work: Work) -> impl Future<Output = Done> + Send;

    /// Waits for new events to pass on to the peer; never returns if there are none. Cancel-safe.
    fn next_events(&self) -> impl Future<Output = OurEvents> + Send;

    /// The connection was lost, or could not be made: then the peer is out of reach.
    fn peer_lost(&self, _is_out_of_reach: bool) {}

    /// No more requested events will come.
    fn download_ended(&self) {}

    /// The sync is ending: nothing may wait any longer.
    fn stop(&self) {}
}
