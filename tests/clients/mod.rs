//! Other people's clients and relays against ours.

mod nostr_sdk_auth;
mod nostr_sdk_client;
mod relay_builder_peer;
