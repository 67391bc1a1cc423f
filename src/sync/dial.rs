//! Errors of connecting to a peer.

use crate::relay_url::RelayUrl;
use std::io::ErrorKind;
use tokio::io::{AsyncRead, AsyncWrite};

/// A byte stream, encrypted or not.
pub(super) trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Duplex for T {}

/// Why a peer could not be reached.
#[derive(Debug, thiserror::Error)]
#[error("cannot connect: {reason}")]
pub(super) struct DialError {
    reason: String,
    /// Whether the error is a timeout.
    pub(super) is_silence: bool,
    /// Whether retries are pointless until the hint is followed.
    pub(super) is_final: bool,
    pub(super) hint: Option<&'static str>,
}

impl DialError {
    pub(super) fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), is_silence: false, is_final: false, hint: None }
    }

    /// A timeout.
    pub(super) fn silence(reason: impl Into<String>) -> Self {
        Self { is_silence: true, ..Self::new(reason) }
    }

    /// A permanent error.
    pub(super) fn lasting(reason: impl Into<String>, hint: Option<&'static str>) -> Self {
        Self { is_final: true, hint, ..Self::new(reason) }
    }
}

/// The reason, with a hint at a probable cause.
pub(super) fn unreached(url: &RelayUrl, error: &std::io::Error) -> String {
    match (error.kind(), error.raw_os_error()) {
        (ErrorKind::ConnectionRefused, _) => {
            format!("nothing serves at {}; is the relay running?", url.authority())
        }
        // A failed name lookup is not a system call and has no error number.
        (_, None) => format!("{error}; is the name {} right?", url.host()),
        _ => error.to_string(),
    }
}
