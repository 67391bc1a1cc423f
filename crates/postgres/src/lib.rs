//! An event store for Nostr on PostgreSQL, shared by any number of nodes, with the rules of
//! [`negsync_store`]: whoever has an answer of one node that an event is stored finds it in the next set
//! and in the next query of every other.
//!
//! All calls block: inside async code they belong on a blocking thread.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod acknowledged;
mod address;
mod batch;
mod connection;
mod ephemeral;
mod fault;
mod feed;
mod filter_sql;
mod history;
mod lease;
mod listening;
mod memory;
mod reading;
mod repair;
mod replica;
mod schema;
mod store;
mod tls;
mod transaction;
mod writer;

pub use address::{Address, is_address};
pub use store::PostgresStore;

// The example in README.md is compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
