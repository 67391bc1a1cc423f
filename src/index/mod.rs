//! Which items match a filter: always whole, always current.
