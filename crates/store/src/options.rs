//! How a store is opened.

use crate::clock::Clock;
use crate::retention::Retention;
use crate::viewer::PrivateKinds;
use crate::writer::Batches;
use negsync_nostr::RelayUrl;
use serde::{Deserialize, Serialize};

/// How a store is opened.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct StoreOptions {
    /// What an acknowledged event survives.
    pub synchronous: Synchronous,
    /// How many connections may read at the same time.
    pub readers: usize,
    /// The memory for the pages that the writer works on, in MiB. With less, what events touch again
    /// is read again.
    pub cache_mb: usize,
    /// The length at which the write-ahead log is moved into the file, in MiB; writing waits at
    /// twice the length.
    pub wal_mb: usize,
    /// The kinds that an index keeps apart, because they are not for everybody.
    pub private_kinds: PrivateKinds,
    /// The kinds that the store itself keeps apart, so that no scan for everybody meets them; `None`
    /// leaves it as it is. Changing them makes two indexes of the store anew.
    pub private_times: Option<PrivateKinds>,
    /// Which relay the store is of: requests to vanish (NIP-62) that name it are followed, and
    /// those that name all.
    pub relay_url: Option<RelayUrl>,
    /// What is kept and for how long; `None` leaves it as it is.
    pub retention: Option<Retention>,
    /// How much shares a commit.
    pub batches: Batches,
    /// Says what time it is.
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

/// How safe a commit is when the machine loses power, after SQLite's `PRAGMA synchronous`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Synchronous {
    /// Every commit is on the disk before its `OK`: nothing acknowledged is ever lost.
    #[default]
    Full,
    /// A power cut may lose the last commits; a crash of the process loses none.
    Normal,
}
