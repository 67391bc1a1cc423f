//! Memory for messages that wait to be sent. Each connection has a part of its own; beyond it,
//! messages count towards a total for all connections. Many slow readers cannot use more memory
//! than the machine has, and do not block other clients.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A connection's own part, in bytes.
const OWN_BYTES: usize = 64 << 10;

/// The bytes waiting for all clients.
pub(crate) struct OutboundTotal {
    // One permit for each byte beyond the connections' own parts.
    shared: Arc<Semaphore>,
    waiting: AtomicUsize,
}

/// The bytes waiting for one client. Clones are for the same client.
#[derive(Clone)]
pub(crate) struct OutboundRoom {
    of_all: Arc<OutboundTotal>,
    own: Arc<Semaphore>,
    // The client's maximum share of the total.
    beyond: Arc<Semaphore>,
}

/// The room of one message; returned when this is dropped.
pub(crate) struct OutboundPermit {
    of_all: Arc<OutboundTotal>,
    bytes: usize,
    _permits: [Option<OwnedSemaphorePermit>; 2],
}

impl OutboundTotal {
    /// A total of `bytes`, in addition to each connection's own part.
    pub(crate) fn new(bytes: usize) -> Arc<Self> {
        let shared = Arc::new(Semaphore::new(bytes.min(Semaphore::MAX_PERMITS)));
        Arc::new(Self { shared, waiting: AtomicUsize::new(0) })
    }

    /// Room for a client with at most `bytes` waiting, or one message.
    pub(crate) fn room(self: &Arc<Self>, bytes: usize) -> OutboundRoom {
        OutboundRoom {
            of_all: Arc::clone(self),
            own: Arc::new(Semaphore::new(OWN_BYTES)),
            beyond: Arc::new(Semaphore::new(bytes.saturating_sub(OWN_BYTES))),
        }
    }

    /// The number of waiting bytes.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    fn taken(
        self: &Arc<Self>,
        bytes: usize,
        permits: [Option<OwnedSemaphorePermit>; 2],
    ) -> OutboundPermit {
        self.waiting.fetch_add(bytes, Ordering::Relaxed);
        OutboundPermit { of_all: Arc::clone(self), bytes, _permits: permits }
    }
}

impl OutboundRoom {
    /// Takes room for a message; waits until there is some. A message above the client's own part
    /// waits alone in it. `None` only if the semaphore were closed, which never happens.
    pub(crate) async fn take(&self, bytes: usize) -> Option<OutboundPermit> {
        if let Some(taken) = self.try_take(bytes) {
            return Some(taken);
        }
        let own = Arc::clone(&self.own).acquire_many_owned(permits(bytes.min(OWN_BYTES))).await;
        Some(self.of_all.taken(bytes, [Some(own.ok()?), None]))
    }

    /// Like [`OutboundRoom::take`], without waiting.
    pub(crate) fn try_take(&self, bytes: usize) -> Option<OutboundPermit> {
        let own = permits(bytes.min(OWN_BYTES));
        if let Ok(own) = Arc::clone(&self.own).try_acquire_many_owned(own) {
            return Some(self.of_all.taken(bytes, [Some(own), None]));
        }
        let beyond = Arc::clone(&self.beyond).try_acquire_many_owned(permits(bytes)).ok()?;
        let shared = Arc::clone(&self.of_all.shared);
        let shared = shared.try_acquire_many_owned(permits(bytes)).ok()?;
        Some(self.of_all.taken(bytes, [Some(beyond), Some(shared)]))
    }
}

impl Drop for OutboundPermit {
    fn drop(&mut self) {
        self.of_all.waiting.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

fn permits(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    /// However much the others hold, a client that reads its messages gets one at a time.
    #[test]
    fn many_hold_no_more_than_the_sum_and_their_own_and_stop_nobody() {
        const CLIENTS: usize = 20;
        const IN_ALL: usize = 1 << 20;
        const EACH: usize = 256 << 10;
        for seed in 0..200 {
            let mut rng = StdRng::seed_from_u64(seed);
            let total = OutboundTotal::new(IN_ALL);
            let rooms: Vec<OutboundRoom> = (0..CLIENTS).map(|_| total.room(EACH)).collect();
            let mut held: Vec<Vec<OutboundPermit>> = rooms.iter().map(|_| Vec::new()).collect();
            for _ in 0..2_000 {
                let client = rng.random_range(0..CLIENTS);
                if rng.random_bool(0.3) {
                    held[client].clear();
                    let taken = rooms[client].try_take(rng.random_range(0..OWN_BYTES));
                    held[client].push(taken.expect("its own part is free"));
                } else {
                    held[client].extend(rooms[client].try_take(rng.random_range(0..OWN_BYTES)));
                }
                let of_client =
                    |held: &Vec<OutboundPermit>| held.iter().map(|taken| taken.bytes).sum();
                let sums: Vec<usize> = held.iter().map(of_client).collect();
                assert!(sums.iter().all(|sum| *sum <= EACH), "seed {seed}");
                assert_eq!(sums.iter().sum::<usize>(), total.waiting(), "seed {seed}");
                assert!(total.waiting() <= IN_ALL + CLIENTS * OWN_BYTES, "seed {seed}");
            }
            held.clear();
            assert_eq!(total.waiting(), 0);
        }
    }
}
