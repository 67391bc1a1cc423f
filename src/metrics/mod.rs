//! What the relay knows of itself while it runs.

mod look;
mod peers;

pub use look::{DayDiffers, Look, MOST_LOOK_DAYS};
pub use peers::{LastSync, PeerStatus, Peers, Tally, Watched};
