//! negsync keeps Nostr relays equal: NIP-77 (negentropy v1) over SQLite.
#![forbid(unsafe_code)]
#![warn(missing_docs)]
pub mod admission;
pub mod config;
pub mod control;
pub mod memory;
pub mod metrics;
pub mod moderation;
#[cfg(feature = "nostr-database")]
pub mod nostr_database;
pub mod plot;
mod policy;
pub mod relay;
pub mod server;
pub mod sidecar;
pub mod sync;
pub mod utc;

pub use negsync_index as index;
pub use negsync_nostr::{prefix, relay_url};
pub use negsync_reconcile as reconcile;
pub use negsync_reconcile::item;
pub use negsync_store as store;

// The Rust in docs/library.md is compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../docs/library.md")]
struct LibraryPage;
