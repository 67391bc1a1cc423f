//! What a client may ask for.

use super::section::section;
use super::{ConfigError, bounds};
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use std::ops::RangeInclusive;

section! {
    /// `[limits]`
    pub struct Limits {
        /// The longest WebSocket message taken.
        pub message_bytes: usize where 1_024..=1_073_741_824 => NewConnections,
        /// The longest event taken, as JSON without white space; 0 for as long as a message can bring
        /// it. See [`Limits::longest_event`].
        pub event_bytes: usize where 0..=1_073_741_824 => OnReload,
        /// The most tags of an event.
        pub event_tags: usize where 0..=1_000_000 => OnReload,
        /// The most characters of an event's content.
        pub content_chars: usize where 0..=1_073_741_824 => OnReload,
        /// How far ahead an event's `created_at` may be.
        pub created_at_ahead_s: u64 where 0..=4_294_967_295 => OnReload,
        /// How far behind an event's `created_at` may be; 0 for no limit.
        pub created_at_behind_s: u64 where 0..=4_294_967_295 => OnReload,
        /// Subscriptions a connection.
        pub subscriptions: usize where 1..=10_000 => OnReload,
        /// Filters a message.
        pub filters: usize where 1..=1_000 => OnReload,
        /// Values in all lists of a filter.
        pub filter_values: usize where 1..=1_000_000 => OnReload,
        /// Values in all filters of a connection's subscriptions.
        pub subscription_values: usize where 1..=100_000_000 => OnReload,
        /// The memory for the filters of all subscriptions, in MiB.
        pub subscription_memory_mb: usize where 1..=1_000_000 => OnReload,
        /// Characters of a subscription id.
        pub subscription_id_chars: usize where 1..=1_024 => OnReload,
        /// Stored events that answer one filter.
        pub events_per_filter: usize where 1..=1_000_000 => OnReload,
        /// How long the store is searched for one REQ, COUNT or NEG-OPEN.
        pub query_timeout_s: u64 where 1..=3_600 => OnReload,
        /// How long a client may take nothing of what it is sent.
        pub send_timeout_s: u64 where 1..=3_600 => NewConnections,
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            message_bytes: 4 << 20,
            event_bytes: 0,
            event_tags: 5_000,
            content_chars: 256 << 10,
            created_at_ahead_s: 900,
            created_at_behind_s: 0,
            subscriptions: 64,
            filters: 32,
            filter_values: 10_000,
            subscription_values: 100_000,
            subscription_memory_mb: 512,
            subscription_id_chars: 64,
            events_per_filter: 5_000,
            query_timeout_s: 10,
            send_timeout_s: 60,
        }
    }
}

/// What stands around an event in the message that brings it: `["EVENT",` and `]`.
const AROUND_EVENT_BYTES: usize = 10;

impl Limits {
    /// The longest event that is taken, in bytes, from clients and from peers alike: one that EVENT
    /// cannot bring could be handed on to nobody.
    pub fn longest_event(&self) -> usize {
        let brought = self.message_bytes.saturating_sub(AROUND_EVENT_BYTES);
        match self.event_bytes {
            0 => brought,
            bytes => bytes.min(brought),
        }
    }

    /// NIP-11, `max_message_length`: a message of so many bytes is taken, and so is the event in it,
    /// for whose length NIP-11 has no number of its own.
    pub fn longest_message(&self) -> usize {
        self.longest_event() + AROUND_EVENT_BYTES
    }

    /// What two of the limits say that cannot be, and what to do.
    pub(super) fn contradiction(&self) -> Option<String> {
        let (event, message) = (self.event_bytes, self.message_bytes);
        (event > message).then(|| {
            format!(
                "an event may have {event} bytes (event_bytes), and the message that brings it only \
                 {message} (message_bytes): lower event_bytes or raise message_bytes"
            )
        })
    }
}

section! {
    /// `[negentropy]`
    pub struct NegentropyConfig {
        /// The most items of a session's set.
        pub max_sync_events: usize where 1..=1_000_000_000 => OnReload,
        /// The longest NEG-MSG sent, before hex; 0 for no limit.
        #[serde(deserialize_with = "frame_limit")]
        pub frame_limit_bytes: u64 => OnReload,
        /// NEG sessions a connection.
        pub sessions: usize where 1..=10_000 => OnReload,
        /// NEG sessions in all.
        pub sessions_in_all: usize where 1..=10_000_000 => OnReload,
        /// Memory for the sets that only sessions hold.
        pub memory_mb: usize where 1..=1_048_576 => OnReload,
        /// How long a session may be asked nothing.
        pub idle_timeout_s: u64 where 1..=86_400 => OnReload,
    }
}

impl Default for NegentropyConfig {
    fn default() -> Self {
        Self {
            max_sync_events: 10_000_000,
            frame_limit_bytes: 500_000,
            sessions: 64,
            sessions_in_all: 10_000,
            memory_mb: 512,
            idle_timeout_s: 300,
        }
    }
}

/// The frame limits that can be set, in bytes, beside 0 for none.
const FRAME_LIMITS: RangeInclusive<u64> = 4_096..=1_073_741_824;

impl NegentropyConfig {
    /// Checks the frame limit, which is 0 or within bounds.
    pub(super) fn check_frame_limit(&self) -> Result<(), ConfigError> {
        if self.frame_limit_bytes == 0 {
            return Ok(());
        }
        let key = "negentropy.frame_limit_bytes";
        bounds::check(key, self.frame_limit_bytes, *FRAME_LIMITS.start(), *FRAME_LIMITS.end())
    }
}

fn frame_limit<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let number = i64::deserialize(deserializer)?;
    u64::try_from(number)
        .ok()
        .filter(|bytes| *bytes == 0 || FRAME_LIMITS.contains(bytes))
        .ok_or_else(|| D::Error::custom(format!("{number} is neither 0 nor at least 4096")))
}
