//! An event store for Nostr on SQLite: one writer with group commit, concurrent readers, and the
//! rules by which an accepted event affects others (replaceable events, deletion requests, requests
//! to vanish, expiration).
//!
//! ```
//! use negsync_store::{Event, EventStore, Filter, Outcome, Store, StoreOptions};
//! use std::ops::ControlFlow;
//!
//! # let folder = tempfile::tempdir()?;
//! let path = folder.path().join("events.sqlite");
//! let store = Store::open(&path, StoreOptions::default(), Box::new(|_| {}))?;
//! let event = Event::parse(EVENT)?.verify()?;
//! assert_eq!(store.publish(vec![event])?, [Outcome::Stored]);
//!
//! let filter = Filter::parse(r#"{"kinds": [1]}"#)?;
//! let mut found = Vec::new();
//! store.reader().items(&filter, |item| {
//!     found.push(item.id);
//!     ControlFlow::Continue(())
//! })?;
//! assert_eq!(found.len(), 1);
//! # const EVENT: &str = include_str!("../examples/event.json");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]
#![warn(missing_debug_implementations, missing_docs)]
#![warn(clippy::must_use_candidate, clippy::return_self_not_must_use)]

mod apply;
mod attached;
mod backup;
mod change;
mod check;
mod checkpoint;
mod clock;
mod commits;
mod compact;
mod deadline;
mod deletion;
mod doubt;
mod error;
mod event_store;
mod export_mark;
mod file_kind;
pub mod findings;
mod flush;
mod index_mark;
mod lock;
mod marked_store;
mod metrics;
mod newest;
mod operator;
mod options;
mod page;
mod presence;
mod private_times;
mod query;
mod read_gate;
mod read_pool;
mod reader;
mod refused;
mod retag;
mod retention;
pub mod rules;
mod salvage;
mod schema;
mod source;
mod source_queue;
mod sqlite_error;
mod store;
pub mod submission;
mod sync_mark;
mod vanish;
mod verifier;
mod viewer;
mod wal;
mod writer;

pub use attached::{
    Attached, AttachedOptions, FollowedDatabase, Listener, RelayKind, keep_following,
};
pub use backup::{BackupError, BackupReport, backup, restore};
pub use change::{Change, Step};
pub use check::check;
pub use clock::{Clock, DAY_S, ManualClock};
pub use compact::{Compacted, compact};
pub use deadline::Deadline;
pub use error::StoreError;
pub use event_store::{EventStore, FeedLag, VisitEvent};
pub use export_mark::ExportMark;
pub use findings::{CheckReport, Finding};
pub use flush::OnCommit;
pub use index_mark::MarkName;
pub use marked_store::MarkedStore;
pub use metrics::{Distribution, StoreMetrics, Timer};
pub use negsync_nostr::kinds::{AUTHENTICATION, KindRange, Lifetime, VANISH};
pub use negsync_nostr::{Event, EventError, Filter, FilterError, TagKey, VerifiedEvent};
pub use newest::{Rest, cut, order};
pub use operator::{
    BuriedFacts, FindIds, REMOVED_BY_OPERATOR, Selected, Selection, Undelete, UndeleteError,
};
pub use options::{StoreOptions, Synchronous};
pub use page::{LeftOut, StoredPage};
pub use query::Hit;
pub use reader::{ReadSnapshot, Reader};
pub use refused::RefusedId;
pub use retention::{RETIRED, Retention, RetentionRule, RetentionWindow, RuleMatches};
pub use rules::Outcome;
pub use source::{EventSource, SourceSnapshot, Work};
pub use source_queue::{NextJob, Origin, SourceQueue};
pub use sqlite_error::{SqliteError, SqliteErrorKind};
pub use store::Store;
pub use sync_mark::{PeerTraits, ReadMark, SyncMark};
pub use verifier::Verifier;
pub use viewer::{PrivateKinds, View, Viewer};
pub use writer::{Batches, Reply};

// The example in README.md is compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
