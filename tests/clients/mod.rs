//! Clients and relays of other projects with ours.

mod nostr_sdk_auth;
mod nostr_sdk_client;
mod relay_builder_peer;
