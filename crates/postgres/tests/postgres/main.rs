//! The store on PostgreSQL, over real servers.

mod encryption;
mod engine;
mod failures;
mod support;
