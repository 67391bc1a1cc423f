//! Tests through the interfaces of users, one module for each.

// Unused test support is an error.
#![deny(dead_code, unused_imports)]

mod attach;
mod cli;
mod clients;
mod examples;
mod fuzz_corpus;
#[cfg(feature = "nostr-database")]
mod nostr_database;
mod relay;
mod support;
mod sync;
