//! Hints for errors of layers that do not know of flags and files.

use negsync::config::ConfigError;
use negsync::relay::RelayError;
use negsync::relay_url::RelayUrlError;
use negsync::store::{FilterError, SqliteErrorKind, StoreError};
use negsync::sync::SyncError;
use std::error::Error;
use std::io::{self, ErrorKind};

/// The hint for the first known cause.
pub(crate) fn hints(error: &anyhow::Error) -> Option<&'static str> {
    error.chain().find_map(of_cause)
}

fn of_cause(cause: &(dyn Error + 'static)) -> Option<&'static str> {
    if let Some(ConfigError::Read { .. }) = cause.downcast_ref() {
        return Some(
            "name a file that can be read, or leave --config out: every key has a default",
        );
    }
    if let Some(RelayError::Listen { source, .. }) = cause.downcast_ref() {
        return listen(source.kind());
    }
    if let Some(error) = cause.downcast_ref::<StoreError>() {
        return store(error);
    }
    // Some errors wrap another one transparently.
    if let Some(RelayError::Store(error)) = cause.downcast_ref() {
        return store(error);
    }
    if cause.is::<RelayUrlError>() || matches!(cause.downcast_ref(), Some(SyncError::Url(_))) {
        return Some("a relay's URL is such as wss://relay.example.com");
    }
    if cause.is::<FilterError>() {
        return Some(
            "a filter is such as '{\"kinds\":[1],\"since\":1700000000}', in single quotes",
        );
    }
    if let Some(SyncError::Key { .. }) = cause.downcast_ref() {
        return Some("write the key itself there, 64 hex digits or nsec1..., and nothing else");
    }
    if let Some(SyncError::KeyPermissions { .. }) = cause.downcast_ref() {
        return Some("let only its owner read it: chmod 600 FILE");
    }
    if let Some(SyncError::OnionWithoutProxy { .. }) = cause.downcast_ref() {
        return Some("name Tor's SOCKS port, such as sync.proxy = \"socks5://127.0.0.1:9050\"");
    }
    if let Some(SyncError::Authorities { .. }) = cause.downcast_ref() {
        return Some(
            "sync.ca_file is one or more certificates that begin with -----BEGIN CERTIFICATE-----",
        );
    }
    cause.downcast_ref::<io::Error>().and_then(|error| file(error.kind()))
}

fn listen(kind: ErrorKind) -> Option<&'static str> {
    match kind {
        ErrorKind::AddrInUse => {
            Some("another program serves there; end it, or take another port with --listen")
        }
        ErrorKind::AddrNotAvailable => {
            Some("this machine does not have that address; 0.0.0.0 listens on all addresses")
        }
        ErrorKind::PermissionDenied => {
            Some("take a port above 1023, and let a proxy in front of it serve the others")
        }
        _ => None,
    }
}

fn store(error: &StoreError) -> Option<&'static str> {
    match error {
        StoreError::InUse { .. } => Some(
            "or, while it runs: its [[peer]] sections sync, `import --into` hands events to it, \
             `delete` and `undelete` have it change its store, and `diff`, `sync --dry-run`, `export`, `check` and `backup` read beside it",
        ),
        StoreError::Lock { source, .. } if source.kind() == ErrorKind::NotFound => {
            Some("make the directory first, or name another file with --store")
        }
        StoreError::Lock { source, .. } if source.kind() == ErrorKind::PermissionDenied => {
            Some("give the directory to the user that runs negsync, or name another with --store")
        }
        StoreError::Open { path, source } => match source.kind() {
            SqliteErrorKind::CannotOpen if path.exists() => {
                Some("it is there: may this user read it, and write beside it?")
            }
            SqliteErrorKind::CannotOpen => {
                Some("name the file of a store with --store; `negsync import` makes one")
            }
            SqliteErrorKind::NotAllowed => {
                Some("run this as the user that the relay runs as, who may write beside it")
            }
            SqliteErrorKind::NotADatabase => {
                Some("it is a file of something else; name another with --store")
            }
            _ => None,
        },
        _ => None,
    }
}

fn file(kind: ErrorKind) -> Option<&'static str> {
    match kind {
        ErrorKind::NotFound => Some("is its name right?"),
        ErrorKind::PermissionDenied => Some("give it to the user that runs negsync"),
        _ => None,
    }
}
