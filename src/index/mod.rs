//! Which items match a filter: always whole, always current.
pub mod tree;
pub use tree::Tree;
