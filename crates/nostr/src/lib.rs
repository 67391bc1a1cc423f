//! Nostr events and filters for relays, without I/O.
//!
//! An [`Event`] is parsed once from its JSON, verified, and kept in the form in which it is sent. A
//! [`Filter`] is parsed strictly and kept in one normal form, so that filters with the same meaning
//! compare equal.
//!
//! ```
//! use negsync_nostr::{Event, Filter};
//!
//! let json = include_str!("../examples/event.json");
//! let event = Event::parse(json)?.verify()?;
//! let filter = Filter::parse(r#"{"kinds": [1], "since": 1700000000}"#)?;
//! assert!(filter.matches(&event));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]
#![warn(missing_debug_implementations, missing_docs)]
#![warn(clippy::must_use_candidate, clippy::return_self_not_must_use)]

mod event;
mod filter;
pub mod hex;
pub mod kinds;
pub mod nip11;
pub mod prefix;
pub mod relay_url;
mod signature;
mod tag_key;

pub use event::{Event, EventError, VerifiedEvent, has_tags};
pub use filter::{Filter, FilterError};
pub use nip11::RelayDocument;
pub use prefix::Prefix;
pub use relay_url::RelayUrl;
pub use tag_key::TagKey;

// The example in README.md is compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
