//! negsync keeps Nostr relays equal: NIP-77 (negentropy v1) over SQLite or PostgreSQL.
#![forbid(unsafe_code)]
#![warn(missing_docs)]
pub mod admission;
pub mod config;
mod metrics;
pub mod moderation;
#[cfg(feature = "nostr-database")]
pub mod nostr_database;
mod policy;
pub mod relay;
pub mod sidecar;
pub mod sync;

// What the program and the tests of this package need besides. No part of the API: it changes without notice.
#[doc(hidden)]
pub mod control;
#[doc(hidden)]
pub mod engine;
#[doc(hidden)]
pub mod memory;
#[doc(hidden)]
pub mod plot;
#[doc(hidden)]
pub mod server;
#[doc(hidden)]
pub mod utc;

pub use negsync_index as index;
pub use negsync_nostr::{hex, prefix, relay_url};
pub use negsync_reconcile as reconcile;
pub use negsync_reconcile::item;
pub use negsync_store as store;

// The Rust in docs/library.md is compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../docs/library.md")]
struct LibraryPage;
