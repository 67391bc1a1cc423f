//! The negentropy engine, against the `negentropy` crate as oracle.
mod adaptive;
mod byte_identity;
mod codec;
mod exact;
mod figures;
mod hazards;
mod hostile;
mod javascript;
mod random_syncs;
mod scripted;
mod sessions;
mod support;
