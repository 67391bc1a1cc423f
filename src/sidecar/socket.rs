//! The sockets of both sides of a proxied connection, with the size of a read and the timeout of a
//! write.

use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf};

/// Maximum length of one read, in bytes.
pub(super) const READ_BYTES: usize = 32 << 10;

/// The reading half of a connection to a client or a relay.
pub(super) type Reading = ReadHalf<TokioIo<Upgraded>>;

/// The writing half of a connection to a client or a relay. Writes have a timeout, because a side
/// that is not being read cannot be seen to disconnect.
pub(super) struct ProxySocket {
    writing: WriteHalf<TokioIo<Upgraded>>,
    patience: Duration,
}

/// Both halves of a connection.
pub(super) fn split(upgraded: Upgraded, patience: Duration) -> (Reading, ProxySocket) {
    let (reading, writing) = tokio::io::split(TokioIo::new(upgraded));
    (reading, ProxySocket { writing, patience })
}

impl ProxySocket {
    /// The timeout of writes.
    pub(super) fn patience(&self) -> Duration {
        self.patience
    }

    /// Sends all bytes.
    ///
    /// # Errors
    /// `TimedOut` when nothing could be written for too long, and the socket's errors.
    pub(super) async fn send(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let taken = tokio::time::timeout(self.patience, self.writing.write(bytes)).await??;
            match bytes.get(taken..) {
                Some(rest) if taken > 0 => bytes = rest,
                _ => return Err(io::ErrorKind::WriteZero.into()),
            }
        }
        Ok(())
    }

    /// Closes the writing half.
    ///
    /// # Errors
    /// The socket's errors.
    pub(super) async fn shutdown(&mut self) -> io::Result<()> {
        self.writing.shutdown().await
    }
}
