//! Checks the kind of file at a database's path. On a named pipe SQLite would wait forever for a
//! writer.

use super::StoreError;
use std::path::{Path, PathBuf};

/// Suffixes of the files that SQLite keeps beside a database.
const BESIDE: [&str; 3] = ["-wal", "-shm", "-journal"];

/// Fails if the path is a directory, a named pipe, a socket or a device. Reads only the metadata
/// and opens nothing.
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

/// The path in a form that SQLite takes literally. It gives relative names such as `:memory:` and
/// `file:name` a meaning of their own.
pub(super) fn literal(path: &Path) -> PathBuf {
    Path::new(".").join(path)
}
