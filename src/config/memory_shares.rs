//! Lowers the configured memory on a machine that has little.

use super::Config;
use super::section::Section;
use crate::memory::Memory;

// Each may take one part in so many of the machine's memory.
/// The pages that the writer works on.
const CACHE_PARTS: u64 = 8;
/// Cached sets.
const SETS_PARTS: u64 = 8;
/// Sets that only NEG sessions hold.
const SESSIONS_PARTS: u64 = 4;
/// The filters of all subscriptions.
const SUBSCRIPTIONS_PARTS: u64 = 16;
/// What waits for the socket of one connection.
const OUTBOUND_PARTS: u64 = 1_024;
/// What waits for the sockets of all connections.
const OUTBOUND_IN_ALL_PARTS: u64 = 16;

impl Config {
    /// Lowers what caches, sets, subscriptions and queues may take to their shares of the memory. Returns
    /// whether anything was lowered.
    #[doc(hidden)]
    pub fn fit(&mut self, memory: Memory) -> bool {
        let before = self.clone();
        let share = |parts, configured: usize| memory.share(parts, configured << 20) >> 20;
        self.store.cache_mb = share(CACHE_PARTS, self.store.cache_mb);
        self.index.memory_mb = share(SETS_PARTS, self.index.memory_mb);
        self.negentropy.memory_mb = share(SESSIONS_PARTS, self.negentropy.memory_mb);
        self.limits.subscription_memory_mb =
            share(SUBSCRIPTIONS_PARTS, self.limits.subscription_memory_mb);
        let outbound = &mut self.connections.outbound_bytes;
        *outbound = memory.share(OUTBOUND_PARTS, *outbound);
        let in_all = &mut self.connections.outbound_bytes_in_all;
        *in_all = memory.share(OUTBOUND_IN_ALL_PARTS, *in_all);
        self.store.clamp();
        self.negentropy.clamp();
        self.limits.clamp();
        self.connections.clamp();
        before != *self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn on_a_small_machine_memory_is_shared_out_and_on_a_large_one_nothing_changes() {
        let mut config = Config::default();
        assert!(!config.fit(Memory::of_bytes(64 << 30)));
        assert_eq!(config, Config::default());
        assert!(config.fit(Memory::of_bytes(256 << 20)));
        let shares = (config.store.cache_mb, config.index.memory_mb, config.negentropy.memory_mb);
        assert_eq!(shares, (32, 32, 64));
        assert_eq!(config.limits.subscription_memory_mb, 16);
        assert_eq!(config.connections.outbound_bytes, 256 << 10);
        assert_eq!(config.connections.outbound_bytes_in_all, 16 << 20);
        config.store.cache_mb = 5;
        assert!(!config.fit(Memory::of_bytes(256 << 20)));
    }
}
