//! The lock that keeps a second process from writing to the store.

use super::StoreError;
use super::presence::Identity;
use std::fs::{File, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Maximum number of symbolic links in a path, as in the kernel.
const LINKS: usize = 40;
/// Permissions of new files: only the owner has access.
const MODE: u32 = 0o600;
/// Maximum length of a record.
const RECORD_BYTES: usize = 512;

/// The store's lock. The system releases it when the process ends for any reason.
#[derive(Debug)]
pub(super) struct Lock {
    pub(super) file: File,
    pub(super) path: PathBuf,
    /// The path of the store, without links.
    pub(super) store: PathBuf,
}

/// Takes the store's lock. It is on a file of its own: closing a second handle to the database
/// would drop SQLite's locks.
pub(super) fn take(path: &Path) -> Result<Lock, StoreError> {
    let store = real_path(path);
    let found = store.metadata().ok();
    match &found {
        Some(it) if it.is_dir() => return Err(StoreError::Directory { path: path.to_owned() }),
        Some(it) if it.nlink() > 1 => {
            return Err(StoreError::Linked { path: path.to_owned(), names: it.nlink() });
        }
        _ => {}
    }
    let lock_path = beside(&store);
    let failed = |source| StoreError::Lock { path: lock_path.clone(), source };
    // Links are not followed: a link could open another file of this user, which must not be
    // truncated.
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(MODE);
    let file = options.custom_flags(libc::O_NOFOLLOW).open(&lock_path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(failed(io::Error::other("it is no regular file")));
    }
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let pid = holder(&file);
            return Err(StoreError::InUse { path: path.to_owned(), pid });
        }
        Err(TryLockError::Error(source)) => return Err(failed(source)),
    }
    // A user who can read the store must also be able to see whether it is in use.
    let mode = found.map_or(MODE, |it| it.mode() & 0o666);
    if metadata.mode() & 0o777 != mode {
        let _ = file.set_permissions(Permissions::from_mode(mode));
    }
    Ok(Lock { file, path: lock_path, store })
}

impl Lock {
    /// Releases the lock explicitly. Closing the file is not enough: a child process that is being
    /// started has a copy of the handle.
    pub(super) fn release(&self) {
        if let Err(error) = self.file.unlock() {
            tracing::warn!(%error, "the store's lock could not be given back");
        }
    }

    /// Records the identities of the store and its log for later starts.
    pub(super) fn record(&self, store: Identity, log: Identity) {
        let line = |name: &str, it: Identity| format!("{name} {} {}\n", it.inode, it.born);
        let text =
            line("store", store) + &line("log", log) + &format!("pid {}\n", std::process::id());
        let written = self
            .file
            .set_len(0)
            .and_then(|()| self.file.write_all_at(text.as_bytes(), 0))
            .and_then(|()| self.file.sync_data());
        if let Err(error) = written {
            // Without the record, the next start cannot detect a store that was replaced under its
            // log.
            tracing::warn!(lock = %self.path.display(), %error, "lock file cannot be written");
        }
    }
}

/// The process that holds the lock, if it has recorded its process id.
fn holder(file: &File) -> Option<u32> {
    let text = read_record(file)?;
    text.lines().find_map(|line| line.strip_prefix("pid ")?.parse().ok())
}

fn read_record(file: &File) -> Option<String> {
    let mut bytes = [0; RECORD_BYTES];
    let read = file.read_at(&mut bytes, 0).ok()?;
    String::from_utf8(bytes.get(..read)?.to_vec()).ok()
}

/// Inode and birth time of the store and of its log, as they were last opened for writing.
pub(super) fn recorded(store: &Path) -> Option<((u64, u128), (u64, u128))> {
    let mut options = OpenOptions::new();
    let file = options.read(true).custom_flags(libc::O_NOFOLLOW).open(beside(store)).ok()?;
    let text = read_record(&file)?;
    let of = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
        let (inode, born) = line.split_once(' ')?;
        Some((inode.parse().ok()?, born.parse().ok()?))
    };
    Some((of("store")?, of("log")?))
}

/// Creates the store's file if it is missing, and sets its permissions. SQLite gives its other
/// files the permissions of the store.
pub(super) fn prepare_files(lock: &Lock) {
    // SQLite fails for the same reason, with a better error.
    let _ = OpenOptions::new().write(true).create_new(true).mode(MODE).open(&lock.store);
    let Ok(store) = lock.store.metadata() else { return };
    let mode = store.mode() & 0o777;
    for suffix in ["-wal", "-shm"] {
        let mut path = lock.store.clone().into_os_string();
        path.push(suffix);
        let path = PathBuf::from(path);
        if path.symlink_metadata().is_ok_and(|it| it.is_file() && it.mode() & 0o777 & !mode != 0) {
            let _ = std::fs::set_permissions(&path, Permissions::from_mode(mode));
        }
    }
    if mode & 0o007 != 0 {
        let (store, mode) = (lock.store.display(), format!("{mode:o}"));
        tracing::warn!(%store, mode, "store open to every user of this machine, private events included; `chmod 600` it and the files beside it");
    }
}

/// Whether a process writes to the store, as far as can be determined.
pub(super) fn is_held(path: &Path) -> bool {
    match File::open(beside(&real_path(path))) {
        Ok(file) => matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)),
        Err(error) => error.kind() == io::ErrorKind::PermissionDenied,
    }
}

fn beside(store: &Path) -> PathBuf {
    let mut name = store.as_os_str().to_owned();
    name.push(".lock");
    name.into()
}

/// Resolves links, as SQLite does: the same file under another name is the same store. Also works
/// for a file that does not exist yet.
pub(super) fn real_path(path: &Path) -> PathBuf {
    let mut path = path.to_owned();
    for _ in 0..LINKS {
        match path.canonicalize() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Ok(real) => return real,
            Err(_) => return path,
        }
        let Ok(target) = path.read_link() else { return path };
        path = path.parent().map_or_else(|| target.clone(), |directory| directory.join(&target));
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_store_has_one_lock_by_whatever_name_it_is_opened_and_before_it_exists() {
        let folder = tempfile::tempdir().unwrap();
        let [far, near] = ["far", "near"].map(|name| folder.path().join(name));
        std::fs::create_dir(&far).unwrap();
        symlink("far/one", &near).unwrap();
        symlink("near", folder.path().join("nearer")).unwrap();
        symlink("far", folder.path().join("directory")).unwrap();
        for exists in [false, true] {
            if exists {
                std::fs::write(far.join("one"), "").unwrap();
            }
            for locked in ["far/one", "near", "nearer", "directory/one"] {
                let held = take(&folder.path().join(locked)).unwrap();
                for other in ["far/one", "near", "nearer", "directory/one"] {
                    let refused = take(&folder.path().join(other));
                    assert!(
                        matches!(refused, Err(StoreError::InUse { .. })),
                        "{locked}, {other}: {refused:?}"
                    );
                }
                drop(held);
            }
        }
        let refused = take(&folder.path().join("directory"));
        assert!(matches!(refused, Err(StoreError::Directory { .. })), "{refused:?}");
        std::fs::write(far.join("precious"), "precious").unwrap();
        symlink("precious", far.join("three.lock")).unwrap();
        let refused = take(&far.join("three"));
        assert!(matches!(refused, Err(StoreError::Lock { .. })), "{refused:?}");
        assert_eq!(std::fs::read(far.join("precious")).unwrap(), b"precious");
        symlink("loop", folder.path().join("loop")).unwrap();
        assert!(take(&folder.path().join("loop")).is_ok());
        std::fs::hard_link(far.join("one"), far.join("two")).unwrap();
        for name in ["far/one", "far/two", "near"] {
            let refused = take(&folder.path().join(name));
            assert!(matches!(refused, Err(StoreError::Linked { names: 2, .. })), "{refused:?}");
        }
    }
}
