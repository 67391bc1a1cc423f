//! Why a peer could not be reached.

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
    /// Nothing came in time.
    pub(super) is_silence: bool,
    /// Whether another attempt cannot do better; the hint may.
    pub(super) is_final: bool,
    pub(super) hint: Option<&'static str>,
}

impl DialError {
    pub(super) fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), is_silence: false, is_final: false, hint: None }
    }

    /// One that said nothing for too long.
    pub(super) fn silence(reason: impl Into<String>) -> Self {
        Self { is_silence: true, ..Self::new(reason) }
    }

    /// One that stays as it is, however often it is tried.
    pub(super) fn lasting(reason: impl Into<String>, hint: Option<&'static str>) -> Self {
        Self { is_final: true, hint, ..Self::new(reason) }
    }
}

/// Why there is no connection, and what may be wrong.
pub(super) fn unreached(url: &RelayUrl, error: &std::io::Error) -> String {
    match (error.kind(), error.raw_os_error()) {
        (ErrorKind::ConnectionRefused, _) => {
            format!("nothing serves at {}; is the relay running?", url.authority())
        }
        // Looking the name up is no call of the system, and has no number.
        (_, None) => format!("{error}; is the name {} right?", url.host()),
        _ => error.to_string(),
    }
}
