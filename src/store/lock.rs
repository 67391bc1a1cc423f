//! One process writes: the lock that keeps a second one out.

use super::StoreError;
use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// How many links a name may go through, as the system has it.
const LINKS: usize = 40;

/// Takes the store's lock, which ends with the process however it ends. The lock is on a file of
/// its own: closing a second handle to the database would drop SQLite's own locks.
pub(super) fn take(path: &Path) -> Result<File, StoreError> {
    let real = real_path(path);
    match real.metadata() {
        Ok(it) if it.is_dir() => return Err(StoreError::Directory { path: path.to_owned() }),
        Ok(it) if it.nlink() > 1 => {
            return Err(StoreError::Linked { path: path.to_owned(), names: it.nlink() });
        }
        _ => {}
    }
    let lock_path = beside(real);
    let failed = |source| StoreError::Lock { path: lock_path.clone(), source };
    let file = File::create(&lock_path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::InUse { path: path.to_owned() }),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

/// Whether somebody writes to the store.
pub(super) fn is_held(path: &Path) -> bool {
    File::open(beside(real_path(path)))
        .is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

fn beside(store: PathBuf) -> PathBuf {
    let mut name = store.into_os_string();
    name.push(".lock");
    name.into()
}

/// SQLite follows links: the same file by another name is the same store. So does this, to where
/// the file will be when it is not there yet.
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
        symlink("loop", folder.path().join("loop")).unwrap();
        assert!(take(&folder.path().join("loop")).is_ok());
        std::fs::hard_link(far.join("one"), far.join("two")).unwrap();
        for name in ["far/one", "far/two", "near"] {
            let refused = take(&folder.path().join(name));
            assert!(matches!(refused, Err(StoreError::Linked { names: 2, .. })), "{refused:?}");
        }
    }
}
