//! Other people's clients and relays against ours.

#[path = "../support/mod.rs"]
mod support;

mod nostr_sdk_auth;
mod nostr_sdk_client;
mod relay_builder_peer;
