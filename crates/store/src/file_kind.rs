//! What stands where a database should be. SQLite would wait for ever for somebody to write into a
//! named pipe.

use super::StoreError;
use std::path::{Path, PathBuf};

/// What SQLite opens beside a database.
const BESIDE: [&str; 3] = ["-wal", "-shm", "-journal"];

/// Refuses what is neither a file nor a place where one can be made: a directory, a named pipe, a
/// socket or a device. Looks at the names alone, and opens nothing.
pub(super) fn refuse_other_than_files(database: &Path) -> Result<(), StoreError> {
    let beside = BESIDE.map(|end| {
        let mut name = database.as_os_str().to_owned();
        name.push(end);
        PathBuf::from(name)
    });
    for path in std::iter::once(database).chain(beside.iter().map(PathBuf::as_path)) {
        if path.metadata().is_ok_and(|found| !found.is_file()) {
            return Err(StoreError::NotAFile { path: path.to_owned() });
        }
    }
    Ok(())
}
