//! The store on PostgreSQL, over real servers.

mod encryption;
mod engine;
mod failures;
mod index_files;
mod retention;
mod support;
