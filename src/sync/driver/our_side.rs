//! What a machine has done on our side: over a store, or over other relays.

use super::super::machine::{Done, Loaded, Work};
use std::future::Future;
use std::sync::Arc;

/// Events of our side that came after the sync began.
pub(in super::super) enum OurEvents {
    New(Vec<Loaded>),
    /// There were more than are kept: only another look tells which.
    Missed,
    /// Our side is closed.
    Closed,
}

/// Our side of a sync with one peer.
pub(in super::super) trait OurSide: Send + Sync + 'static {
    /// Begins work that blocks: what is returned does it, on another thread. The connection to the peer may
    /// be gone by then.
    fn begin(self: Arc<Self>, work: Work) -> impl FnOnce() -> Done + Send;

    /// Has events of the peer checked and kept.
    fn ingest(&self, work: Work) -> impl Future<Output = Done> + Send;

    /// Events to pass on to the peer as they come; waits for ever where none are. Dropping the
    /// future loses nothing.
    fn next_events(&self) -> impl Future<Output = OurEvents> + Send;

    /// The connection to the peer is gone, or could not be made: then the peer is out of reach.
    fn peer_lost(&self, _is_out_of_reach: bool) {}

    /// Of what the machine was told to download nothing more will come.
    fn download_ended(&self) {}

    /// The sync is to end: nothing may wait any longer.
    fn stop(&self) {}
}
