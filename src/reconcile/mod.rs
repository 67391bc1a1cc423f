//! Negentropy protocol v1, without clock, socket, task or database.
//!
//! Two sides that each hold a [`RangeSet`] find out which ids only one of them
//! has. The [`Initiator`] opens and asks; the [`Responder`] answers each message
//! from its set and remembers nothing. Both turn bytes into bytes: who carries
//! them, and in what wrapping, is not their concern.
//!
//! ```
//! use negsync::item::Item;
//! use negsync::reconcile::{Found, Initiator, Options, Responder, SortedItems, Step};
//!
//! let ours = SortedItems::new(vec![Item::new(1, [1; 32]), Item::new(2, [2; 32])]);
//! let theirs = SortedItems::new(vec![Item::new(2, [2; 32]), Item::new(3, [3; 32])]);
//! let mut initiator = Initiator::new(&ours, Options::default())?;
//! let mut responder = Responder::new(&theirs, 0)?;
//!
//! let mut found = Found::new();
//! let mut message = initiator.open();
//! loop {
//!     let answer = responder.answer(&message)?;
//!     match initiator.receive(&answer, &mut found)? {
//!         Step::Send(next) => message = next,
//!         Step::Done => break,
//!     }
//! }
//! assert_eq!(found.have, [[1; 32]]);
//! assert_eq!(found.need, [[3; 32]]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
mod adaptive;
pub mod fingerprint;
mod found;
mod initiator;
pub mod message;
mod options;
pub mod range_set;
mod reference;
mod responder;
pub mod sessions;
mod sorted_items;

pub use fingerprint::{Fingerprint, Sum};
pub use found::{Differences, Found};
pub use initiator::Initiator;
pub use message::MessageError;
pub use options::{InitiatorError, Options, Rule, Step};
pub use range_set::{Bound, Place, RangeSet};
pub use reference::{FRAME_LIMIT_MIN_BYTES, FrameLimitError};
pub use responder::Responder;
pub use sessions::Sessions;
pub use sorted_items::SortedItems;
