//! Options of a store.

use crate::clock::Clock;
use crate::retention::Retention;
use crate::viewer::PrivateKinds;
use crate::writer::Batches;
use negsync_nostr::RelayUrl;
use serde::{Deserialize, Serialize};

/// Options for opening a store.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct StoreOptions {
    /// The durability of acknowledged events.
    pub synchronous: Synchronous,
    /// Maximum number of concurrent reading connections.
    pub readers: usize,
    /// The writer's page cache, in MiB. With a smaller cache, pages that events touch repeatedly
    /// are read repeatedly.
    pub cache_mb: usize,
    /// The length at which the write-ahead log is moved into the file, in MiB. At twice the length,
    /// writes wait.
    pub wal_mb: usize,
    /// The private kinds, which the index keeps apart.
    pub private_kinds: PrivateKinds,
    /// The private kinds that the store itself keeps apart, so that public scans never meet them.
    /// `None` leaves them unchanged. A change rebuilds two indexes of the store.
    pub private_times: Option<PrivateKinds>,
    /// The URL of the relay that owns the store. Requests to vanish (NIP-62) that name it are
    /// followed, in addition to those that name all relays.
    pub relay_url: Option<RelayUrl>,
    /// Rules of retention; `None` leaves them unchanged.
    pub retention: Option<Retention>,
    /// Limits on the events of one commit.
    pub batches: Batches,
    /// The clock of the store.
    pub clock: Clock,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            synchronous: Synchronous::Full,
            readers: 8,
            cache_mb: 256,
            wal_mb: 256,
            private_kinds: PrivateKinds::default(),
            private_times: None,
            relay_url: None,
            retention: None,
            batches: Batches::Short,
            clock: Clock::system(),
        }
    }
}

impl StoreOptions {
    /// Sets [`StoreOptions::synchronous`].
    #[must_use]
    pub fn synchronous(mut self, synchronous: Synchronous) -> Self {
        self.synchronous = synchronous;
        self
    }

    /// Sets [`StoreOptions::readers`].
    #[must_use]
    pub fn readers(mut self, readers: usize) -> Self {
        self.readers = readers;
        self
    }

    /// Sets [`StoreOptions::cache_mb`].
    #[must_use]
    pub fn cache_mb(mut self, cache_mb: usize) -> Self {
        self.cache_mb = cache_mb;
        self
    }

    /// Sets [`StoreOptions::wal_mb`].
    #[must_use]
    pub fn wal_mb(mut self, wal_mb: usize) -> Self {
        self.wal_mb = wal_mb;
        self
    }

    /// Sets [`StoreOptions::private_kinds`].
    #[must_use]
    pub fn private_kinds(mut self, private_kinds: PrivateKinds) -> Self {
        self.private_kinds = private_kinds;
        self
    }

    /// Sets [`StoreOptions::private_times`].
    #[must_use]
    pub fn private_times(mut self, private_times: impl Into<Option<PrivateKinds>>) -> Self {
        self.private_times = private_times.into();
        self
    }

    /// Sets [`StoreOptions::relay_url`].
    #[must_use]
    pub fn relay_url(mut self, relay_url: impl Into<Option<RelayUrl>>) -> Self {
        self.relay_url = relay_url.into();
        self
    }

    /// Sets [`StoreOptions::retention`].
    #[must_use]
    pub fn retention(mut self, retention: impl Into<Option<Retention>>) -> Self {
        self.retention = retention.into();
        self
    }

    /// Sets [`StoreOptions::batches`].
    #[must_use]
    pub fn batches(mut self, batches: Batches) -> Self {
        self.batches = batches;
        self
    }

    /// Sets [`StoreOptions::clock`].
    #[must_use]
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }
}

/// The durability of a commit when the machine loses power, after SQLite's `PRAGMA synchronous`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Synchronous {
    /// Each commit is flushed before its `OK`: no acknowledged event is lost.
    #[default]
    Full,
    /// A power cut may lose the last commits; a crash of the process loses none.
    Normal,
}
