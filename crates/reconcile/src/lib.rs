//! Set reconciliation by the negentropy protocol, version 1, for both roles and without I/O.
//!
//! Two sides that each hold a [`RangeSet`] find the ids that only one of them has. The
//! [`Initiator`] asks; the [`Responder`] answers each message from its set and keeps no other
//! state. Both turn bytes into bytes; the caller provides the transport.
//!
//! ```
//! use negsync_reconcile::{Difference, Initiator, InitiatorOptions, InitiatorStep};
//! use negsync_reconcile::{Item, Responder, SortedItems};
//!
//! let ours = SortedItems::new(vec![Item::new(1, [1; 32]), Item::new(2, [2; 32])]);
//! let theirs = SortedItems::new(vec![Item::new(2, [2; 32]), Item::new(3, [3; 32])]);
//! let mut initiator = Initiator::new(&ours, InitiatorOptions::default())?;
//! let mut responder = Responder::new(&theirs, 0)?;
//!
//! let mut difference = Difference::new();
//! let mut message = initiator.open();
//! loop {
//!     let answer = responder.answer(&message)?;
//!     match initiator.receive(&answer, &mut difference)? {
//!         InitiatorStep::Send(next) => message = next,
//!         InitiatorStep::Done => break,
//!     }
//! }
//! assert_eq!(difference.have, [[1; 32]]);
//! assert_eq!(difference.need, [[3; 32]]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The crate is `no_std` with `alloc`.
#![no_std]
#![forbid(unsafe_code)]
#![warn(missing_debug_implementations, missing_docs)]
#![warn(clippy::must_use_candidate, clippy::return_self_not_must_use)]
extern crate alloc;
#[cfg(test)]
extern crate std;

mod adaptive;
mod difference;
pub mod fingerprint;
mod initiator;
pub mod item;
pub mod message;
#[cfg(feature = "negentropy")]
mod negentropy_storage;
mod options;
pub mod range_set;
mod reference;
mod responder;
pub mod sessions;
mod sorted_items;

pub use difference::{Difference, DifferenceCount};
pub use fingerprint::{Fingerprint, Sum};
pub use initiator::Initiator;
pub use item::Item;
pub use message::MessageError;
#[cfg(feature = "negentropy")]
pub use negentropy_storage::NegentropyStorage;
pub use options::{InitiatorError, InitiatorOptions, InitiatorStep, Rule};
pub use range_set::{Bound, RangePosition, RangeSet};
pub use reference::{FRAME_LIMIT_MIN_BYTES, FrameLimitError};
pub use responder::Responder;
pub use sessions::Sessions;
pub use sorted_items::SortedItems;

// The example in README.md is compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
