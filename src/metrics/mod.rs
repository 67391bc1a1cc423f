//! What the relay knows of itself while it runs.

mod peers;

pub use peers::{LastSync, PeerStatus, Peers, Tally, Watched};
