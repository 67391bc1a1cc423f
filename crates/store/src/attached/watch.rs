//! The thread that follows another relay's database.

use crate::StoreError;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};
use std::time::Duration;

/// A database that can be followed.
pub trait FollowedDatabase: Send + Sync + 'static {
    /// Poll interval while no set is requested.
    const LOOK_INTERVAL: Duration;
    /// Time until a retry after the database could not be read.
    const RETRY_INTERVAL: Duration;

    /// The path or address of the database, without a password.
    fn name(&self) -> String;

    /// Publishes what was written since the last poll. Reads everything again where needed, such as
    /// after a poll that panicked.
    ///
    /// # Errors
    /// When reads cannot be answered until a later poll succeeds.
    fn look(&self) -> Result<(), StoreError>;
}

/// Starts a thread that polls until all other handles to the database are dropped. It logs each new
/// error once.
///
/// # Errors
/// When the thread cannot be started.
pub fn keep_following<D: FollowedDatabase>(database: &Arc<D>) -> Result<(), StoreError> {
    let watched = Arc::downgrade(database);
    std::thread::Builder::new()
        .name("attached".into())
        .spawn(move || watch(&watched))
        .map_err(StoreError::Thread)?;
    Ok(())
}

fn watch<D: FollowedDatabase>(watched: &Weak<D>) {
    let mut fault: Option<String> = None;
    while let Some(database) = watched.upgrade() {
        // After a panic the database is read again as a whole.
        let found = match catch_unwind(AssertUnwindSafe(|| database.look())) {
            Ok(looked) => looked.err().map(|error| error.to_string()),
            Err(_) => Some("a look at it panicked".to_owned()),
        };
        match (&fault, &found) {
            (Some(_), None) => {
                tracing::info!(database = database.name(), "the database can be read again");
            }
            (before, Some(error)) if before.as_ref() != Some(error) => {
                tracing::error!(error, "database not readable: NEG-OPEN is refused until it is");
            }
            _ => {}
        }
        fault = found;
        drop(database);
        let interval = if fault.is_some() { D::RETRY_INTERVAL } else { D::LOOK_INTERVAL };
        std::thread::sleep(interval);
    }
}
