//! The command line as users run it: the real binary, real files.

mod backup;
mod ban;
mod check;
mod command_line;
mod compact;
mod configuration;
mod databases;
mod decode;
mod decode_fixtures;
mod delete;
mod errors;
mod examples;
mod export;
mod import;
mod kept_out;
mod logs;
mod neg_open;
mod readme;
mod retention;
mod service;
mod shells;
mod top;
