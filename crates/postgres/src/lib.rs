//! An event store for Nostr on PostgreSQL, shared by any number of nodes, with the rules of
//! [`negsync_store`]: once a node has acknowledged an event, the next set and the next query of
//! every node contain it.
//!
//! ```no_run
//! # use negsync_reconcile::Item;
//! # use negsync_store::{Change, Listener};
//! # use std::sync::Arc;
//! use negsync_postgres::{Address, PostgresStore};
//! use negsync_store::{EventSource, EventStore, Filter, StoreOptions};
//!
//! # struct Printed;
//! # impl Listener for Printed {
//! #     fn begun(&self, _: Vec<Item>) {}
//! #     fn changed(&self, _: Arc<Change>) {}
//! #     fn holds(&self, _: &Item) -> bool { false }
//! #     fn held(&self, _: u64, _: u64, _: &mut dyn FnMut(Item)) {}
//! # }
//! let address = Address::parse("postgres://relay@%2Frun%2Fpostgresql/events")?;
//! let store = PostgresStore::open(&address, StoreOptions::default(), Box::new(Printed))?;
//! let newest = store.newest(&[Filter::parse(r#"{"kinds": [1]}"#)?], 20)?;
//! println!("{} newest notes", newest.len());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! All calls block: from async code use a blocking thread.
#![forbid(unsafe_code)]
#![warn(missing_debug_implementations, missing_docs)]
#![warn(clippy::must_use_candidate, clippy::return_self_not_must_use)]

mod acknowledged;
mod address;
mod backlog;
mod batch;
mod check;
mod columns;
mod connection;
mod ephemeral;
mod fault;
mod feed;
mod filter_sql;
mod history;
mod index_mark;
mod lease;
mod listening;
mod memory;
mod node;
mod preview;
mod reading;
mod repair;
mod replica;
mod schema;
mod size;
mod store;
mod tls;
mod transaction;
mod wake_up;
mod writer;

pub use address::{Address, Served};
pub use check::check;
pub use store::PostgresStore;

// The example in README.md is compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
