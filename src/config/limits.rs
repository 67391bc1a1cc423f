//! `[limits]` and `[negentropy]`: limits on the requests of a client.

use super::section::section;
use super::{ConfigError, bounds};
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use std::ops::RangeInclusive;

section! {
    /// `[limits]`
    pub struct Limits {
        /// Maximum length of a WebSocket message.
        pub message_bytes: usize where 1_024..=1_073_741_824 => NewConnections,
        /// Maximum length of an event, as JSON without white space; 0 for the length that fits in a
        /// message. See [`Limits::longest_event`].
        pub event_bytes: usize where 0..=1_073_741_824 => OnReload,
        /// Maximum number of tags of an event.
        pub event_tags: usize where 0..=1_000_000 => OnReload,
        /// Maximum number of characters of an event's content.
        pub content_chars: usize where 0..=1_073_741_824 => OnReload,
        /// How far in the future an event's `created_at` may be.
        pub created_at_ahead_s: u64 where 0..=4_294_967_295 => OnReload,
        /// How far in the past an event's `created_at` may be; 0 for no limit.
        pub created_at_behind_s: u64 where 0..=4_294_967_295 => OnReload,
        /// Maximum number of subscriptions of a connection.
        pub subscriptions: usize where 1..=10_000 => OnReload,
        /// Maximum number of filters of a message.
        pub filters: usize where 1..=1_000 => OnReload,
        /// Maximum number of values in all lists of a filter.
        pub filter_values: usize where 1..=1_000_000 => OnReload,
        /// Maximum number of values in all filters of a connection's subscriptions.
        pub subscription_values: usize where 1..=100_000_000 => OnReload,
        /// Maximum memory for the filters of all subscriptions, in MiB.
        pub subscription_memory_mb: usize where 1..=1_000_000 => OnReload,
        /// Maximum number of characters of a subscription id.
        pub subscription_id_chars: usize where 1..=1_024 => OnReload,
        /// Maximum number of stored events returned for one filter.
        pub events_per_filter: usize where 1..=1_000_000 => OnReload,
        /// Timeout of a query for one REQ, COUNT or NEG-OPEN.
        pub query_timeout_s: u64 where 1..=3_600 => OnReload,
        /// Timeout for sending to a client that does not read.
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

/// The bytes around an event in a message: `["EVENT",` and `]`.
const AROUND_EVENT_BYTES: usize = 10;

impl Limits {
    /// Maximum length of an event in bytes, for clients and for peers: an event that does not fit
    /// in an EVENT message could not be passed on.
    pub fn longest_event(&self) -> usize {
        let brought = self.message_bytes.saturating_sub(AROUND_EVENT_BYTES);
        match self.event_bytes {
            0 => brought,
            bytes => bytes.min(brought),
        }
    }

    /// NIP-11, `max_message_length`: a message of this length is accepted, including its event,
    /// since NIP-11 has no separate limit for events.
    pub fn longest_message(&self) -> usize {
        self.longest_event() + AROUND_EVENT_BYTES
    }

    /// A contradiction between two limits, with a hint.
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
        /// Maximum number of items in a session's set.
        pub max_sync_events: usize where 1..=1_000_000_000 => OnReload,
        /// Maximum length of a sent NEG-MSG, before hex encoding; 0 for no limit.
        #[serde(deserialize_with = "frame_limit")]
        pub frame_limit_bytes: u64 => OnReload,
        /// Maximum number of NEG sessions of a connection.
        pub sessions: usize where 1..=10_000 => OnReload,
        /// Maximum number of NEG sessions.
        pub sessions_in_all: usize where 1..=10_000_000 => OnReload,
        /// Maximum memory for sets that only sessions hold.
        pub memory_mb: usize where 1..=1_048_576 => OnReload,
        /// Idle timeout of a session.
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

/// The valid frame limits in bytes, in addition to 0 for no limit.
const FRAME_LIMITS: RangeInclusive<u64> = 4_096..=1_073_741_824;

impl NegentropyConfig {
    /// Checks that the frame limit is 0 or within its bounds.
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
