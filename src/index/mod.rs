//! Which items match a filter: always whole, always current.
mod crate_storage;
pub mod slice;
pub mod tree;
pub use slice::Slice;
pub use tree::Tree;
