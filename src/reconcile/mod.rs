//! Negentropy protocol v1, without clock, socket, task or database.
pub mod fingerprint;
pub mod range_set;
pub use fingerprint::{Fingerprint, Sum};
pub use range_set::{Bound, RangeSet};
