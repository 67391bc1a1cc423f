//! The thread that keeps up with another relay's database.

use crate::StoreError;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};
use std::time::Duration;

/// A database that is followed.
pub trait FollowedDatabase: Send + Sync + 'static {
    /// How often it is looked at when nobody asks for a set.
    const LOOK_INTERVAL: Duration;
    /// How long to wait before one that could not be read is tried again.
    const RETRY_INTERVAL: Duration;

    /// Its path or address, without a password.
    fn name(&self) -> String;

    /// Makes known what was written since the last look; reads everything anew where that is needed, as it
    /// is after a look that panicked.
    ///
    /// # Errors
    /// When nothing can be answered until a later look succeeds.
    fn look(&self) -> Result<(), StoreError>;
}

/// Looks again and again, on a thread of its own, until nobody has the database open any more. Each new
/// reason why it cannot be read is logged once.
///
/// # Errors
/// When there is no thread.
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
        // A panic leaves a database that is read anew.
        let found = match catch_unwind(AssertUnwindSafe(|| database.look())) {
            Ok(looked) => looked.err().map(|error| error.to_string()),
            Err(_) => Some("a look at it panicked".to_owned()),
        };
        match (&fault, &found) {
            (Some(_), None) => {
                tracing::info!(database = database.name(), "the database can be read again");
            }
            (before, Some(error)) if before.as_ref() != Some(error) => {
                tracing::error!(error, "sets cannot be answered until the database can be read");
            }
            _ => {}
        }
        fault = found;
        drop(database);
        let interval = if fault.is_some() { D::RETRY_INTERVAL } else { D::LOOK_INTERVAL };
        std::thread::sleep(interval);
    }
}
