//! Syncs over real sockets: with our own relay, with others, and with misbehaving peers.

mod beside;
mod between;
mod command;
mod convergence;
mod cut_off;
mod diff;
mod exact;
mod field_peers;
mod marks;
mod model_peer;
mod model_store;
mod model_sync;
mod nasty;
mod others;
mod protected;
mod proxied;
mod random_peers;
mod scheduled;
mod scripted;
mod support;
mod tls;
mod two_relays;
