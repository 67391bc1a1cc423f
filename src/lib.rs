//! negsync keeps Nostr relays equal: NIP-77 (negentropy v1) over SQLite or PostgreSQL.
//!
//! A relay inside another program:
//!
//! ```
//! use negsync::config::Config;
//! use negsync::relay::Relay;
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! let mut config = Config::default();
//! config.relay.listen = "127.0.0.1:0".parse()?;
//! config.store.path = folder.path().join("events.sqlite");
//! let relay = Relay::start(config).await?;
//! println!("serving on ws://{}", relay.address());
//! relay.stop().await;
//! # Ok(())
//! # }
//! ```
//!
//! [`sync`] is the client side of reconciliation, [`sidecar`] a plugin for other relays. The crates
//! below are usable separately: [`reconcile`], [`store`], [`index`].
#![forbid(unsafe_code)]
#![warn(missing_debug_implementations, missing_docs)]
#![warn(clippy::return_self_not_must_use)]
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

// Used by the program and the tests of this package. Not part of the API: may change without
// notice.
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
mod library_page {}
