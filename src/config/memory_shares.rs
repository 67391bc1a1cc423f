//! Reduces the configured memory on a machine with little memory.

use super::Config;
use super::section::Section;
use crate::memory::Memory;

// Each constant is the divisor of the machine's memory for one use.
/// The writer's page cache.
const CACHE_PARTS: u64 = 8;
/// Cached sets.
const SETS_PARTS: u64 = 8;
/// Sets held only by NEG sessions.
const SESSIONS_PARTS: u64 = 4;
/// The filters of all subscriptions.
const SUBSCRIPTIONS_PARTS: u64 = 16;
/// Bytes waiting to be sent on one connection.
const OUTBOUND_PARTS: u64 = 1_024;
/// Bytes waiting to be sent on all connections.
const OUTBOUND_IN_ALL_PARTS: u64 = 16;

impl Config {
    /// Reduces the memory of caches, sets, subscriptions and queues to their shares. Returns
    /// whether anything was reduced.
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
