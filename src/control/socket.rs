//! Where the socket is. The system takes no address of a socket that is longer than 107 bytes; a
//! longer path is named by way of its directory, opened.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// A longer path does not fit into `sockaddr_un`.
const ADDRESS_BYTES: usize = 107;

/// The socket beside a store.
pub(super) struct ControlSocket {
    /// The socket's path, for people.
    pub(super) path: PathBuf,
    /// The path by which the system takes it.
    pub(super) address: PathBuf,
    // Open for as long as the address is used.
    _directory: Option<File>,
}

impl ControlSocket {
    /// Of the store in `store`, which is there.
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
