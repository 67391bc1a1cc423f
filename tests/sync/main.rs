//! Syncs over real sockets: with our own relay, with others, and with peers that misbehave.

mod beside;
mod command;
mod convergence;
mod cut_off;
mod diff;
mod exact;
mod nasty;
mod others;
mod protected;
mod proxied;
mod scheduled;
mod scripted;
#[path = "../support/mod.rs"]
mod shared;
mod support;
mod tls;
