//! Shared by the tests over real sockets: signed events from a seed and from the real corpus, a
//! simple model of a relay's answers, a raw WebSocket client, and relays.

pub mod client;
pub mod disk;
pub mod engine;
pub mod events;
pub mod frames;
pub mod http;
pub mod model;
pub mod naive;
pub mod negentropy_client;
pub mod power_cut;
pub mod process;
pub mod relay;

pub use client::Client;
pub use events::{Author, corpora, id_of};
pub use relay::TestRelay;
