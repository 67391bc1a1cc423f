//! negsync beside another relay: its database as a source of events, and everything else passed
//! through.

mod database;
mod following;
mod limits;
mod moving;
#[cfg(feature = "postgres")]
mod on_postgres;
mod operation;
mod passing;
mod real;
mod rewriting;
#[cfg(feature = "postgres")]
mod server_faults;
#[cfg(feature = "postgres")]
mod stored_relay;
mod viewers;
