//! negsync keeps Nostr relays equal: NIP-77 (negentropy v1) over SQLite.
#![forbid(unsafe_code)]
#![warn(missing_docs)]
pub mod admission;
pub mod attach;
pub mod clients;
pub mod config;
pub mod control;
pub mod index;
pub mod memory;
pub mod metrics;
pub mod moderation;
#[cfg(feature = "nostr-database")]
pub mod nostr_database;
pub mod plot;
mod policy;
pub mod prefix;
pub mod relay;
pub mod relay_url;
pub mod store;
pub mod sync;
pub mod utc;

pub use negsync_reconcile as reconcile;
pub use negsync_reconcile::item;

// The Rust in docs/library.md is compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../docs/library.md")]
struct LibraryPage;
