//! The relay as a client meets it: real sockets, real SQLite files.

#[path = "../support/mod.rs"]
mod support;

mod auth;
mod bad_input;
mod bad_negentropy;
mod builder;
mod clock;
mod connections;
mod deletion;
mod exchange;
mod expiration;
mod fair_writer;
mod faults;
mod files;
mod health;
mod kills;
mod limits;
mod management;
mod metrics;
mod model_based;
mod neg;
mod neg_property;
mod nip11;
mod nodes;
mod nodes_model;
mod page;
mod power_cut;
mod publish;
mod queries;
mod rates;
mod reload;
mod replaceable;
mod required;
mod shutdown;
mod slow_readers;
mod store_rules;
mod subscriptions;
mod unfinished;
mod unusual_json;
mod vanish;
mod visibility;
mod write_policy;
