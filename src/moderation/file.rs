//! Reads and edits the file. An edit locks its directory and replaces the file, so a reader finds
//! either the old list or the new one.

use super::ModerationError;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Maximum length of the file.
const MOST_BYTES: u64 = 16 << 20;

/// Identifies the state of a file: a change of the file changes the stamp.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp(Option<(u64, u64, i64, i64, u64)>);

impl Stamp {
    /// The stamp of the current file.
    pub(super) fn of(path: &Path) -> Self {
        let found = path.metadata().ok();
        Self(found.map(|it| (it.dev(), it.ino(), it.mtime(), it.mtime_nsec(), it.len())))
    }
}

/// The text of the file; empty if the file does not exist.
pub(super) fn read(path: &Path) -> Result<String, ModerationError> {
    let failed = |source| ModerationError::File { path: path.to_owned(), source };
    let file = match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(String::new()),
        opened => opened.map_err(failed)?,
    };
    let mut text = String::new();
    file.take(MOST_BYTES + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > MOST_BYTES {
        return Err(failed(io::Error::other(format!("it is longer than {MOST_BYTES} bytes"))));
    }
    Ok(text)
}

/// Replaces the file by the result of `edit`.
pub(super) fn edit(
    path: &Path,
    edit: impl FnOnce(&str) -> Result<String, ModerationError>,
) -> Result<(), ModerationError> {
    let failed = |source| ModerationError::File { path: path.to_owned(), source };
    // Through a link, the target is edited.
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let directory = path.parent().filter(|it| !it.as_os_str().is_empty());
    let directory = File::open(directory.unwrap_or(Path::new("."))).map_err(failed)?;
    directory.lock().map_err(failed)?;
    let before = read(&path)?;
    let after = edit(&before)?;
    if before == after {
        return Ok(());
    }
    replace(&path, &after).and_then(|()| directory.sync_all()).map_err(failed)
}

fn replace(path: &Path, text: &str) -> io::Result<()> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let _ = std::fs::remove_file(&partial);
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(&partial)?;
    if let Ok(found) = path.metadata() {
        file.set_permissions(found.permissions())?;
    }
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&partial, path)
}
