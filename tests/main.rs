//! Every test through a door that a user has, one module a door.

// A helper that no test uses.
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
