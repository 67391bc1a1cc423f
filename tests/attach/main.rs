//! negsync beside another relay: its database as a source of events, and everything else passed
//! through.

#[path = "../support/mod.rs"]
mod support;

mod database;
mod following;
mod limits;
mod moving;
mod operation;
mod passing;
mod real;
mod rewriting;
mod viewers;
