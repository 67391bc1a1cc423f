//! The negentropy engine, against the `negentropy` crate as oracle.
mod adaptive;
mod byte_identity;
mod codec;
mod hostile;
mod support;
