//! The sets of items that match filters: always complete, always current.
//!
//! An [`Index`] is a store with sets over it in memory. A snapshot is made without a copy, and is
//! reconciled with `negsync-reconcile`:
//!
//! ```
//! use negsync_index::Index;
//! use negsync_reconcile::{RangeSet, Responder};
//! use negsync_store::{Filter, StoreOptions};
//!
//! # let folder = tempfile::tempdir()?;
//! let path = folder.path().join("events.sqlite");
//! let index = Index::open(&path, StoreOptions::default(), 64 << 20)?;
//! let notes = index.snapshot(&[Filter::parse(r#"{"kinds": [1]}"#)?], 1_000_000)?;
//! assert_eq!(notes.len(), 0);
//! // Answers the messages of a peer from exactly these events.
//! let _responder = Responder::new(&notes, 0)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]
#![warn(missing_debug_implementations, missing_docs)]
#![warn(clippy::must_use_candidate, clippy::return_self_not_must_use)]

mod catalog;
mod commit_feed;
mod disk_share;
mod files;
mod index;
mod item_set;
mod keeper;
#[cfg(test)]
mod lifecycle_tests;
mod listener;
mod memory_reservation;
mod metrics;
mod oversized;
mod scan;
mod set_cache;
mod set_files;
mod sets;
mod slice;
mod sorted_file;
mod tree;

pub use catalog::{Catalog, SnapshotError};
pub use commit_feed::{Subscriber, SubscriberError};
pub use index::Index;
pub use item_set::ItemSet;
pub use metrics::IndexMetrics;
pub use set_cache::{SetCacheSize, Statistics};
pub use sets::Sets;
pub use slice::Slice;
pub use sorted_file::{FileIdentity, FileWriter, IndexFileError, SortedFile, WriteError};
pub use tree::Tree;

// The example in README.md is compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
