//! Syncs over real sockets: with our own relay, with others, and with peers that misbehave.
mod convergence;
mod nasty;
mod others;
mod scheduled;
mod scripted;
mod support;
