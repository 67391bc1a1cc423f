//! The path of the socket. The system limits socket addresses to 107 bytes; a longer path is
//! addressed through its opened directory.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// Maximum length of a path in `sockaddr_un`.
const ADDRESS_BYTES: usize = 107;

/// The socket beside a store.
pub(super) struct ControlSocket {
    /// The socket's path, for messages.
    pub(super) path: PathBuf,
    /// The path for the system.
    pub(super) address: PathBuf,
    // Kept open as long as the address is in use.
    _directory: Option<File>,
}

impl ControlSocket {
    /// The socket of the store in `store`, which must exist.
    pub(super) fn beside(store: &Path) -> io::Result<Self> {
        let mut path = store.canonicalize()?.into_os_string();
        path.push(".control");
        let path = PathBuf::from(path);
        if path.as_os_str().len() <= ADDRESS_BYTES {
            return Ok(Self { address: path.clone(), path, _directory: None });
        }
        let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        };
        let directory = File::open(directory)?;
        let address = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name);
        Ok(Self { path, address, _directory: Some(directory) })
    }
}
