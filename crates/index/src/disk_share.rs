//! The disk that the files of kept sets may take together. Each file holds its share as long as
//! anybody uses it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The bound of all files together, and what they take.
#[derive(Clone, Debug)]
pub(super) struct DiskShares {
    most_bytes: u64,
    used: Arc<AtomicU64>,
}

/// One file's share. Dropping it gives it back.
#[derive(Debug)]
pub(super) struct DiskShare {
    of: DiskShares,
    bytes: u64,
}

impl DiskShares {
    /// Shares of `most_bytes` together.
    pub(super) fn new(most_bytes: u64) -> Self {
        Self { most_bytes, used: Arc::default() }
    }

    /// The bytes that are taken.
    pub(super) fn bytes(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// A share of nothing yet.
    pub(super) fn nothing(&self) -> DiskShare {
        DiskShare { of: self.clone(), bytes: 0 }
    }
}

impl DiskShare {
    /// The bytes that it has.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes more bytes. Returns whether there was room for them.
    pub(super) fn grow(&mut self, bytes: u64) -> bool {
        let taken = self.of.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
            used.checked_add(bytes).filter(|used| *used <= self.of.most_bytes)
        });
        if taken.is_ok() {
            self.bytes += bytes;
        }
        taken.is_ok()
    }

    /// Whether there is room for more bytes once no other file has a share.
    pub(super) fn could_grow(&self, bytes: u64) -> bool {
        self.bytes.saturating_add(bytes) <= self.of.most_bytes
    }
}

impl Drop for DiskShare {
    fn drop(&mut self) {
        self.of.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
